"""Writing a reranker, see `Reranker.export`."""

from dataclasses import asdict
from pathlib import Path

from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.card import card
from deas_vla.export.golden import GOLDEN, Golden, Tolerance
from deas_vla.export.lerobot_files import write_lerobot_files
from deas_vla.export.manifest import FORMAT, MANIFEST, selection_section, told_by_parts
from deas_vla.export.reranker import CRITIC, POLICY, Reranker, require_fit
from deas_vla.export.sums import write_sums
from deas_vla.files import atomic_path, sha256_of, write_json
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.report.data import collect_versions
from deas_vla.scorers.scorer import Scorer, load_scorer

# Folders are named by their last parts: where somebody keeps a run is nobody else's business.
NAMED_PARTS = 3


def export(
    policy: ChunkPolicy,
    scorer: Scorer,
    folder: Path,
    observation: Observation,
    num_candidates: int,
    selection: SelectionConfig,
    execute_steps: int,
    origins: dict[str, Path],
    results: dict,
) -> Reranker:
    """See `Reranker.export`."""
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --output, or delete it to export anew")
    if not 1 <= execute_steps <= policy.horizon:
        raise UserError(f"execute_steps={execute_steps} must be 1 to {policy.horizon}, the steps of a chunk")
    given = BestOfN(policy.eval(), num_candidates, selection.rule, scorer, selection)
    require_fit(observation, policy.contract)
    origin = {"policy": policy.origin(), "critic": {}}
    for part, path in origins.items():
        origin[part] |= {"folder": "/".join(Path(path).parts[-NAMED_PARTS:]), "sha256": sha256_of(Path(path))}

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        alone, merged = policy.standalone()
        alone.save(temporary / POLICY)
        # The same tokens but for rounding, which is checked below, under the fingerprint of the merged weights.
        bound = scorer.bound_to(alone.encoder_fingerprint)
        del alone
        bound.save(temporary / CRITIC)

        # From here on everything is made of what was written.
        policy, scorer = type(policy).load(temporary / POLICY), load_scorer(temporary / CRITIC)
        written = BestOfN(policy, num_candidates, selection.rule, scorer, selection)
        apart = _require_same_decisions(given, written, observation)
        golden = Golden.record(written, observation, _keys(observation))
        golden.save(temporary / GOLDEN)
        manifest = {
            "format": FORMAT,
            **told_by_parts(policy, scorer),
            "selection": selection_section(num_candidates, selection, execute_steps),
            "golden": {"inputs": len(observation)},
            "origin": origin,
            "merged": asdict(merged) | {"largest_differences": apart},
            "versions": collect_versions(),
        }
        write_json(temporary / MANIFEST, manifest)
        write_lerobot_files(manifest, temporary)
        (temporary / "README.md").write_text(card(manifest, results), encoding="utf-8")
        write_sums(temporary)
    return Reranker(written, manifest)


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
    contract, support = given.policy.contract, given.scorer.score_range
    # Choices are not compared: two equal scores may change places by rounding.
    lines = before.differences(after, contract, support, Tolerance.of(given.policy))
    if lines:
        raise UserError(
            "the written policy does not decide as the given one does, so its adapters are not all merged or its "
            f"files not all read: {'; '.join(lines)}"
        )
    return {name: float(tensor.amax()) for name, tensor in before.distances(after, contract, support).items()}
