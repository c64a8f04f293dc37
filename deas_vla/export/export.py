"""Writing a reranker."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.card import card
from deas_vla.export.golden import GOLDEN, Golden, Tolerance
from deas_vla.export.lerobot_files import lerobot_files
from deas_vla.export.manifest import FORMAT, MANIFEST, sections_of_parts, selection_section
from deas_vla.export.reranker import CRITIC, POLICY, Reranker
from deas_vla.export.verify import write_sums
from deas_vla.files import atomic_path, sha256_of, write_json
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.improvement.selection import RULES, SelectionConfig
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.scorers.scorer import Scorer, load_scorer
from deas_vla.versions import collect_versions

# Folders are named by their last parts: where somebody keeps a run is private.
NAMED_PARTS = 3


@dataclass(kw_only=True)
class Export:
    """What becomes a reranker.

    Args:
        policy: of a registered class; it is put into evaluation mode.
        scorer: made for it.
        observation: G observations to keep as golden inputs; stored frames of the policy's own robot.
        num_candidates: N.
        selection: the rule and its parameters.
        execute_steps: actions of a chunk that are played; None: all that the critic scores.
        origins: ``policy`` and ``critic`` to the folders they were read from, for the manifest.
        results: method to outcome, as in ``report.json``, for the model card.

    Raises:
        UserError: if the parts do not belong together, or actions would be played that were never scored.
    """

    policy: ChunkPolicy
    scorer: Scorer
    observation: Observation
    num_candidates: int = 8
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig(rule="best"))
    execute_steps: int | None = None
    origins: dict[str, Path] = field(default_factory=dict)
    results: dict = field(default_factory=dict)

    def __post_init__(self):
        policy, scorer = self.policy.eval(), self.scorer
        self.selection = what_is_played(self.selection, self.num_candidates)
        self.decider = BestOfN(policy, self.num_candidates, self.selection.rule, scorer, self.selection)
        if self.execute_steps is None:
            self.execute_steps = scorer.horizon if RULES[self.selection.rule].needs_scorer else policy.horizon
        if not 1 <= self.execute_steps <= policy.horizon:
            raise UserError(f"execute_steps={self.execute_steps} must be 1 to {policy.horizon}, the steps of a chunk")
        require_scored(self.execute_steps, scorer.horizon, self.selection.rule)
        self.observation.require_fits(policy.contract)

    def write(self, folder: str | Path) -> Reranker:
        """Writes the folder, whole or not at all.

        The policy is written with its adapters merged and all its weights. It is read back, and must decide as the one
        that was given, within rounding; the golden inputs are recorded on the CPU from what was read.

        Returns:
            What was written, as `Reranker.load` reads it.

        Raises:
            UserError: if the folder exists, or the written policy is not the one that was given.
        """
        folder = Path(folder)
        if folder.exists():
            raise UserError(f"{folder} exists already; choose another --output, or delete it to export anew")
        origin = {"policy": self.policy.origin(), "critic": {}}
        for part, path in self.origins.items():
            named = "/".join(Path(path).parts[-NAMED_PARTS:])
            origin[part] |= {"folder": named, "sha256": sha256_of(Path(path))}

        with atomic_path(folder) as temporary:
            temporary.mkdir()
            standalone, merged = self.policy.standalone()
            standalone.save(temporary / POLICY)
            # The same tokens but for rounding, which is checked below, under the fingerprint of the merged weights.
            self.scorer.bound_to(standalone.encoder_fingerprint).save(temporary / CRITIC)
            del standalone

            # All that follows is made of what was written.
            policy, scorer = type(self.policy).load(temporary / POLICY), load_scorer(temporary / CRITIC)
            written = BestOfN(policy, self.num_candidates, self.selection.rule, scorer, self.selection)
            distances = _require_same_decisions(self.decider, written, self.observation)
            Golden.record(written, self.observation, _keys(self.observation)).save(temporary / GOLDEN)
            manifest = {
                "format": FORMAT,
                **sections_of_parts(policy, scorer),
                "selection": selection_section(self.num_candidates, self.selection, self.execute_steps),
                "golden": {"inputs": len(self.observation)},
                "origin": origin,
                "merged": asdict(merged) | {"largest_differences": distances},
                "versions": collect_versions(),
            }
            for name, content in {MANIFEST: manifest, **lerobot_files(manifest)}.items():
                write_json(temporary / name, content)
            (temporary / "README.md").write_text(card(manifest, self.results), encoding="utf-8")
            write_sums(temporary)
        return Reranker(written, manifest)


def what_is_played(selection: SelectionConfig, num_candidates: int) -> SelectionConfig:
    """The selection by the name of what it does: up to as_best_of candidates, consensus is the highest score."""
    if selection.rule == "consensus" and num_candidates <= selection.as_best_of:
        return replace(selection, rule="best")
    return selection


def require_scored(execute_steps: int, horizon: int, rule: str) -> None:
    """Refuses to play actions of a chunk that the critic never scored (design rule 8)."""
    if execute_steps > horizon and RULES[rule].needs_scorer:
        raise UserError(
            f"{execute_steps} actions of a chunk would be played, of which the critic scores the first {horizon}: play "
            f"{horizon} (--execute_steps={horizon}; in LeRobot --policy.n_action_steps={horizon}), or train a critic "
            f"with --critic.horizon={execute_steps}"
        )


def _keys(observation: Observation) -> list[NoiseKey]:
    return [NoiseKey(seed=0, scene=number, sample=0, decision=0) for number in range(len(observation))]


def _require_same_decisions(given: BestOfN, written: BestOfN, observation: Observation) -> dict[str, float]:
    """Compares what was given with what was written, on the same processor.

    Returns:
        Part to largest difference, see `Golden.distances`.

    Raises:
        UserError: if they differ by more than rounding.
    """
    device = next(given.policy.parameters()).device
    reranker = Reranker(written, {}).to(device)
    before, after = (Golden.record(d, observation, _keys(observation)) for d in (given, written))
    reranker.to("cpu")
    contract, score_range = given.policy.contract, given.scorer.score_range
    # Choices are not compared: two equal scores may change places by rounding.
    lines = before.differences(after, contract, score_range, Tolerance.of(given.policy))
    if lines:
        raise UserError(
            "the written policy does not decide as the given one does, so its adapters are not all merged or its "
            f"files not all read: {'; '.join(lines)}"
        )
    return {name: float(tensor.amax()) for name, tensor in before.distances(after, contract, score_range).items()}
