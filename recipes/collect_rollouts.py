"""Rollouts of a policy, successes and failures alike, as a LeRobot data set.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/collect_rollouts.py \\
        --policy=outputs/lift/policy --tasks=lift

Needs the extras `sim`, `lerobot` and `groot`. Simulators render where the policy decides and every `frame_every`
steps besides: those frames are where the critic's options start. Scenes are never those of the evaluation.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from deas_vla.config import incidental, outcome_settings
from deas_vla.data.episodes import Episode
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import require_ranges
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import CANDIDATE_NOISE, EXECUTE_STEPS, SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.rollouts.collect import BLOCKS, DATASET, collect_in_blocks, load_blocks, write_collected
from deas_vla.rollouts.estimate import collecting_needs
from deas_vla.rollouts.outputs import Outputs
from deas_vla.rollouts.play import Job, play_episodes
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage


@dataclass
class RolloutsConfig:
    """How many rollouts, and how densely their images are stored."""

    episodes: int = 1000  # Episodes, for each task.
    frame_every: int = 8  # Images are stored every so many steps, besides where the policy decides; 0: only there.
    # The policy's noise is multiplied by this: with less, a policy plays nearer to its mean and succeeds more often.
    noise_scale: float = CANDIDATE_NOISE
    # Actions played of each chunk before the policy decides again; of shorter chunks, all.
    execute_steps: int = EXECUTE_STEPS

    def __post_init__(self):
        ranges = {"at least 1": "episodes execute_steps", "at least 0": "frame_every noise_scale"}
        require_ranges(self, "rollouts.", ranges)


@dataclass
class CollectRolloutsConfig(SimulatorConfig):
    """Settings of recipes/collect_rollouts.py."""

    output: str = incidental("outputs/lift/rollouts")  # Folder of this stage.
    policy: str = incidental("outputs/lift/policy")  # Stage folder of the policy to roll out.
    seed: int = 1  # Chooses the scenes and the policy's noise, 0 to 99.
    skip: int = 0  # Scenes that are left out at the beginning: those of earlier iterations.
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)  # How much to collect.
    dry_run: bool = incidental(False)  # Say what it would take of disk, memory and time, and end.

    def __post_init__(self):
        super().__post_init__()
        require_ranges(self, "", {"at least 0": "skip"})


def collect_rollouts(accelerator: Accelerator, config: CollectRolloutsConfig, outputs: Outputs | None = None) -> None:
    plan, outputs, inputs = config.rollouts, outputs or Outputs(config.dry_run), {"policy": Path(config.policy)}

    def work(folder: Path) -> dict | None:
        policy = outputs.policy(inputs["policy"]).to(accelerator.device).eval()
        played = min(plan.execute_steps, policy.horizon)
        if config.dry_run or not (folder / DATASET).exists():
            decider = BestOfN(policy, selection=SelectionConfig(noise_scale=plan.noise_scale))
            scenes = scenes_of("rollouts", config.skip + plan.episodes, config.seed)[config.skip :]

            def collect(workers: EnvWorkers, some: list[int], finished: Callable[[Episode], None]) -> list[Episode]:
                rollouts = play_episodes(
                    workers, decider, [Job(scene) for scene in some], seed=config.seed,
                    parallel=config.parallel_episodes, execute_steps=played, frame_every=plan.frame_every,
                    finished=lambda rollout: finished(rollout.episode),
                )  # fmt: skip
                return [rollout.episode for rollout in rollouts]

            blocks = []
            for task in config.tasks:
                with config.open_workers(task, accelerator.num_processes) as workers:
                    seen = workers.contract.with_cameras_of(policy.contract)
                    seen.require_same(policy.contract, f"task {task}", f"policy {config.policy}")
                    mine = partial(collect, workers)
                    if task == config.tasks[0]:
                        needs = collecting_needs(accelerator, folder, config, workers, scenes, mine, policy.contract)
                        if not outputs.announce(accelerator, folder, *needs):
                            return None
                    shown = accelerator.is_local_main_process
                    blocks += collect_in_blocks(folder, task, scenes, mine, show=shown)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                metadata = {"settings": outcome_settings(config)}
                metadata["settings"]["rollouts"]["execute_steps"] = played
                write_collected(folder, load_blocks(blocks), policy.contract, metadata=metadata)
        if accelerator.is_main_process:
            shutil.rmtree(folder / BLOCKS, ignore_errors=True)
        return {"execute_steps": played}

    run_stage(accelerator, Path(config.output), config, outputs.made(inputs), work, everyone=True)


def main(config: CollectRolloutsConfig) -> None:
    collect_rollouts(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, CollectRolloutsConfig)
