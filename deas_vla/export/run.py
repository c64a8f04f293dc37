"""``deas-vla export``: from the folders of a run of recipes/finetune_robocasa.py to a reranker."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.export import Export
from deas_vla.export.reranker import CRITIC, POLICY, Reranker
from deas_vla.improvement.selection import CANDIDATE_NOISE, SelectionConfig
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.collect import DATASET
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.stages import stage_report

# Stored frames that become golden inputs, of demonstrations and of rollouts each.
FRAMES_A_SOURCE = 4


@dataclass
class ExportConfig:
    """Exports policy and critic of a run as one folder, which deas-vla verify checks."""

    # Folder of the run.
    run: str = "outputs/lift"
    # Folder of the reranker; must not exist.
    output: str = "outputs/reranker"
    # Stage of the run whose policy proposes the chunks: policy, filtered_bc, advantage_weighted, and with _2 those of
    # the second iteration.
    policy: str = "policy"
    # Stage of the run whose critic scores them; empty: critic, or for a policy of the second iteration critic_2.
    critic: str = ""
    # Chunks that the policy proposes at a decision.
    candidates: int = 8
    # Which of them is played: the one with the highest score, of chunks made with the evaluation's half noise.
    selection: SelectionConfig = field(
        default_factory=lambda: SelectionConfig(rule="best", noise_scale=CANDIDATE_NOISE)
    )
    # Actions played of each chunk before the policy decides again; 0: as many as the run's evaluation played.
    execute_steps: int = 0


def export_run(config: ExportConfig) -> Reranker:
    """Exports what a run left; its golden inputs are frames of the run's own data.

    Raises:
        UserError: if a stage is missing or not finished, or the parts do not belong together.
    """
    run = Path(config.run)
    iteration = re.search(r"_\d+$", config.policy)
    critic = config.critic or f"critic{iteration.group() if iteration else ''}"
    for stage in (config.policy, critic):
        stage_report(run / stage)
    origins = {"policy": run / config.policy / POLICY, "critic": run / critic / CRITIC}
    policy = load_policy(origins["policy"])
    report, evaluation, executed = run / "report.json", run / "evaluation", None
    if evaluation.is_dir():
        executed = stage_report(evaluation)["settings"]["evaluation"]["execute_steps"]
    return Export(
        policy=policy,
        scorer=load_scorer(origins["critic"], policy.contract),
        observation=stored_frames(run, policy.contract),
        num_candidates=config.candidates,
        selection=config.selection,
        execute_steps=config.execute_steps or executed,
        origins=origins,
        results=json.loads(report.read_text())["methods"] if report.is_file() else {},
    ).write(config.output)


def stored_frames(run: Path, contract: Contract) -> Observation:
    """A few of the observations that the run recorded, from its demonstrations and its rollouts.

    Raises:
        UserError: if it has neither, or their columns are not those of the contract.
    """
    frames = []
    for name in ("demonstrations", "rollouts"):
        root = run / name / DATASET
        if root.is_dir():
            frames += some_frames(read_dataset(root, contract)[0], FRAMES_A_SOURCE)
    if not frames:
        raise UserError(f"{run} has no recorded frames (demonstrations/{DATASET}, rollouts/{DATASET})")
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
