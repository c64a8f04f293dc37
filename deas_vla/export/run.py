"""From the folders of a run of recipes/finetune_robocasa.py to a reranker."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.reranker import CRITIC, POLICY, Reranker
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.collect import DATASET
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.stages import stage_report

# Stored frames that become golden inputs, of demonstrations and of rollouts each.
FRAMES_A_SOURCE = 4

# Named, because the help of the command line is read from the source and sees no quotes in an annotation.
PolicyStage = Literal["policy", "filtered_bc", "advantage_weighted"]


@dataclass
class ExportConfig(SelectionConfig):
    """Exports policy and critic of a run as one folder, which deas-vla verify checks."""

    # Folder of the run.
    run: str = "outputs/lift"
    # Folder of the reranker; must not exist.
    output: str = "outputs/reranker"
    # Which policy of the run proposes the chunks.
    policy: PolicyStage = "policy"
    # Chunks that it proposes at a decision.
    candidates: int = 8
    # The noise that they are made of is multiplied by this; the evaluation's default.
    noise_scale: float = 0.5
    # Actions played of each chunk before the policy decides again; 0: as many as the run's evaluation played.
    execute_steps: int = 0


def export_run(config: ExportConfig) -> Reranker:
    """Exports what a run left; its golden inputs are frames of the run's own data.

    Raises:
        UserError: if a stage is missing or not finished, or the parts do not belong together.
    """
    run = Path(config.run)
    for stage in (config.policy, "critic"):
        stage_report(run / stage)
    if Path(config.output).exists():
        raise UserError(
            f"{config.output} exists already; choose another --output, or delete it to export anew"
        )
    origins = {"policy": run / config.policy / POLICY, "critic": run / "critic" / CRITIC}
    policy = load_policy(origins["policy"])
    scorer = load_scorer(origins["critic"], policy.contract)
    report = run / "report.json"
    return Reranker.export(
        policy,
        scorer,
        config.output,
        stored_frames(run, policy.contract),
        num_candidates=config.candidates,
        selection=config,
        execute_steps=config.execute_steps or _executed(run),
        origins=origins,
        results=json.loads(report.read_text())["methods"] if report.is_file() else {},
    )


def stored_frames(run: Path, contract: Contract) -> Observation:
    """A few of the observations that the run recorded, from its demonstrations and its rollouts.

    Raises:
        UserError: if it has neither, or their columns are not those of the contract.
    """
    frames = []
    for name in ("demonstrations", "rollouts"):
        root = run / name / DATASET
        if root.is_dir():
            frames += spread(read_dataset(root, contract)[0], FRAMES_A_SOURCE)
    if not frames:
        raise UserError(f"{run} has no recorded frames (demonstrations/{DATASET}, rollouts/{DATASET})")
    return Observation.stack(frames)


def spread(episodes: list[Episode], count: int) -> list[dict]:
    """Frames of different episodes, from different moments of them."""
    frames = []
    for number, place in enumerate(np.linspace(0, len(episodes) - 1, count).round().astype(int)):
        episode = episodes[place]
        row = number * len(episode.frame_steps) // count
        frames.append(
            {
                "images": {name: images[row] for name, images in episode.images.items()},
                "state": episode.states[episode.frame_steps[row]],
                "instruction": episode.instruction,
            }
        )
    return frames


def _executed(run: Path) -> int | None:
    """What the run's evaluation played of each chunk; None if it has none."""
    if not (run / "evaluation").is_dir():
        return None
    return stage_report(run / "evaluation")["settings"]["evaluation"]["execute_steps"]
