"""Writing a reranker: from its parts, or (``deas-vla export``) from a run of recipes/finetune_robocasa.py."""

import gc
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError, as_user_error
from deas_vla.export.card import card
from deas_vla.export.lerobot_files import lerobot_files
from deas_vla.export.reranker import CRITIC, FORMAT, MANIFEST, POLICY, Reranker, sections_of_parts
from deas_vla.export.verify import CARD, GOLDEN, Golden, write_sums
from deas_vla.files import atomic_path, read_json, sha256_of, write_json
from deas_vla.improvement.best_of_n import BestOfN, require_scored
from deas_vla.improvement.selection import CANDIDATE_NOISE, RULES, SelectionConfig
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.collect import DATASET
from deas_vla.scorers.scorer import Scorer, load_scorer
from deas_vla.training.estimate import require_room_for_weights
from deas_vla.training.stages import stage_report
from deas_vla.versions import collect_versions

NAMED_PARTS = 3  # folders are named by their last parts: where somebody keeps a run is private
FRAMES = 4  # stored frames that become golden inputs: so many, or one of each data set


@dataclass
class ExportConfig:
    """Exports policy and critic of a run as one folder, which deas-vla verify checks."""

    run: str = "outputs/lift"  # Folder of the run.
    output: str = "outputs/reranker"  # Folder of the reranker; must not exist.
    # Repository on the Hugging Face hub, OWNER/NAME, that the export is uploaded to; empty: none.
    push_to_hub: str = ""
    private: bool = True  # Whether that repository, if it is new, can be read by nobody else.
    # Stage of the run whose policy proposes the chunks: policy, filtered_bc, advantage_weighted, and with _2 those of
    # the second iteration.
    policy: str = "policy"
    # Stage of the run whose critic scores them; empty: critic, or for a policy of the second iteration critic_2.
    critic: str = ""
    candidates: int = 8  # Chunks that the policy proposes at a decision.
    # Which of them is played: the one with the highest score, of chunks made with the evaluation's half noise.
    selection: SelectionConfig = field(default_factory=lambda: SelectionConfig("best", noise_scale=CANDIDATE_NOISE))
    # Actions played of each chunk before the policy decides again; 0: as many as the run's evaluation played.
    execute_steps: int = 0


def export_run(config: ExportConfig) -> Reranker:
    """Exports finished stages of a run; the golden inputs are frames of its own data."""
    run = Path(config.run)
    iteration = re.search(r"_\d+$", config.policy)
    critic = config.critic or f"critic{iteration.group() if iteration else ''}"
    for stage in (config.policy, critic):
        stage_report(run / stage)
    origins = {"policy": run / config.policy / POLICY, "critic": run / critic / CRITIC}
    # Most exports peak at 1.1 to 1.3 times the weights (benchmarks/export_memory.py).
    require_room_for_weights("export", origins["policy"], Path(config.output), 1.3)
    policy = load_policy(origins["policy"])
    report, evaluation, executed = run / "report.json", run / "evaluation", None
    if evaluation.is_dir():
        # Of a policy of shorter chunks the evaluation played whole chunks.
        executed = min(stage_report(evaluation)["settings"]["evaluation"]["execute_steps"], policy.horizon)
    return export_reranker(
        config.output,
        policy=policy,
        scorer=load_scorer(origins["critic"], policy.contract),
        observation=stored_frames(run / critic, policy.contract),
        num_candidates=config.candidates,
        selection=config.selection,
        execute_steps=config.execute_steps or executed,
        origins=origins,
        results=read_json(report)["methods"] if report.is_file() else {},
        keep=False,
    )


def upload(folder: Path, repository: str, private: bool = True) -> str:
    """Uploads an export to a repository on the Hugging Face hub, which is made if it is not there; returns its URL."""
    from huggingface_hub import HfApi

    again = f"log in with `hf auth login`, then try again: hf upload {repository} {folder}"
    with as_user_error(f"{folder} is written, but not uploaded to {repository}; {again}"):
        made = HfApi().create_repo(repository, private=private, exist_ok=True)
        HfApi().upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Upload policy")
    return str(made)


def stored_frames(critic: Path, contract: Contract) -> Observation:
    """A few of the observations that the critic of a stage was trained on, from each of its stages and data sets."""
    report = stage_report(critic)
    # A run that was moved has its stages beside the critic.
    stages = [
        [Path(source) / DATASET, critic.parent / Path(source).name / DATASET] for source in report["sources"].values()
    ]
    places = [*stages, *([Path(folder)] for folder in report.get("data", {}))]
    roots = [next(filter(Path.is_dir, each), None) for each in places]
    labels = LabelRules(**report["settings"].get("more", {}).get("labels", {}))
    frames = []
    roots = [root for root in roots if root]
    for root in roots:
        episodes = read_dataset(root, contract.with_statistics(None), labels=labels, in_memory=0)[0]
        frames += some_frames(episodes, -(-FRAMES // len(roots)))
    if not frames:
        named = ", ".join(str(each[0]) for each in places)
        raise UserError(f"{critic}: no frames of the data that it was trained on are there ({named}); put them back")
    return Observation.stack(frames)


def some_frames(episodes: list[Episode], count: int) -> list[dict]:
    """Frames of different episodes, from different moments of them."""
    frames = []
    for number, index in enumerate(np.linspace(0, len(episodes) - 1, count).round().astype(int)):
        episode = episodes[index]
        row = number * len(episode.frame_steps) // count
        images = {name: images[row] for name, images in episode.images.items()}
        state = episode.states[episode.frame_steps[row]]
        frames.append({"images": images, "state": state, "instruction": episode.instruction})
    return frames


def export_reranker(
    folder: str | Path,
    *,
    policy: ChunkPolicy,
    scorer: Scorer,
    observation: Observation,
    num_candidates: int = 8,
    selection: SelectionConfig | None = None,
    execute_steps: int | None = None,
    origins: dict[str, Path] | None = None,
    results: dict | None = None,
    keep: bool = True,
) -> Reranker:
    """Writes a reranker, whole or not at all.

    The policy is written with its adapters merged and all its weights. It is read back, and must decide as the one
    that was given, within rounding; the golden inputs are recorded on the CPU from what was read.

    Args:
        policy: of a registered class; it is put into evaluation mode.
        observation: G observations to keep as golden inputs; stored frames of the policy's own robot.
        selection: the rule and its parameters; None: the highest score, which consensus of up to `as_best_of`
            candidates is too, and is called so.
        execute_steps: actions of a chunk that are played; None: all that the critic scores.
        origins: ``policy`` and ``critic`` to the folders they were read from, for the manifest.
        results: method to outcome, as in ``report.json``, for the model card.
        keep: whether the policy is left as it was given. Without it adapters are merged in place, and its weights are
            given up before the export is read: one copy of them is in memory at a time.

    Raises UserError if the folder exists, the parts do not belong together, actions would be played that were never
    scored, or the written policy is not the one that was given.
    """
    folder, selection = Path(folder), selection or SelectionConfig(rule="best")
    if folder.exists():
        raise UserError(f"{folder} exists already; choose another --output, or delete it to export anew")
    if selection.rule == "consensus" and num_candidates <= selection.as_best_of:
        selection = replace(selection, rule="best")
    rule = RULES[selection.rule]
    given = BestOfN(policy.eval(), num_candidates, selection.rule, scorer, selection)
    if execute_steps is None:
        execute_steps = scorer.horizon if rule.needs_scorer else policy.horizon
    if not 1 <= execute_steps <= policy.horizon:
        raise UserError(f"execute_steps={execute_steps} must be 1 to {policy.horizon}, the steps of a chunk")
    require_scored(execute_steps, scorer.horizon, selection.rule)
    observation.require_fits(policy.contract)
    origin = {"policy": policy.origin(), "critic": {}}
    for part, path in (origins or {}).items():
        origin[part] |= {"folder": "/".join(Path(path).parts[-NAMED_PARTS:]), "sha256": sha256_of(Path(path))}

    with atomic_path(folder) as temporary:
        temporary.mkdir()
        before, device = Golden.record(given, observation), next(policy.parameters()).device
        merged = policy.save_standalone(temporary / POLICY, keep=keep)
        if not keep:
            policy.to("meta")  # whoever still holds it: its memory is that of the export now
            gc.collect()

        # All that follows is made of what was written.
        policy = type(policy).load(temporary / POLICY)
        # The same tokens but for rounding, which is checked below, under the fingerprint of the merged weights.
        scorer.bound_to(policy.encoder_fingerprint).save(temporary / CRITIC)
        scorer = load_scorer(temporary / CRITIC)
        written = BestOfN(policy, num_candidates, selection.rule, scorer, selection)
        golden, distances = _require_same_decisions(before, written, device)
        golden.save(temporary / GOLDEN)
        manifest = {
            "format": FORMAT,
            **sections_of_parts(policy, scorer),
            "selection": {
                "num_candidates": num_candidates,
                "rule": selection.rule,
                "parameters": {name: getattr(selection, name) for name in ("noise_scale", *rule.hyper_parameters)},
                "execute_steps": execute_steps,
            },
            "golden": {"inputs": len(observation)},
            "origin": origin,
            "merged": merged._asdict() | {"largest_differences": distances},
            "versions": collect_versions(),
        }
        for name, content in {MANIFEST: manifest, **lerobot_files(manifest)}.items():
            write_json(temporary / name, content)
        (temporary / CARD).write_text(card(manifest, results or {}), encoding="utf-8")
        write_sums(temporary)
    return Reranker(written, manifest)


def _require_same_decisions(before: Golden, written: BestOfN, device: torch.device) -> tuple[Golden, dict[str, float]]:
    """What was written decides on the CPU, and how far it is from what was given, on its device: part to distance."""
    # Choices are not compared: two equal scores may change places by rounding.
    golden = after = Golden.record(written, before.observation)
    if device.type != "cpu":
        reranker = Reranker(written, {}).to(device)
        after = Golden.record(written, before.observation)
        reranker.to("cpu")
    if lines := before.differences(after, written):
        why = "so its adapters are not all merged or its files not all read"
        raise UserError(f"the written policy does not decide as the given one does, {why}: {'; '.join(lines)}")
    return golden, {name: float(distance.amax()) for name, distance in before.distances(after, written).items()}
