"""Demonstrations as a stage: of a scripted expert, or a LeRobot data set of yours.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/collect_demos.py --tasks=lift

    python recipes/collect_demos.py --demos.dataset=my/lerobot/dataset --output=outputs/mine/demonstrations

Needs the extras `sim` and `lerobot`. Attempts that fail are counted and left out. The stage's last line says how long
it took; in the demo 24 s (studies/results/demo.json). The normalisation statistics are computed here, once: every
policy, critic and rollout that follows uses them.
"""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from deas_vla.config import incidental, outcome_settings
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError, require_ranges
from deas_vla.launch import run_recipe
from deas_vla.rollouts.collect import BLOCKS, DATASET, collect_in_blocks, expert_episodes, load_blocks, write_collected
from deas_vla.rollouts.estimate import collecting_needs, copying_needs
from deas_vla.rollouts.outputs import Outputs
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage


@dataclass
class DemosConfig:
    """How many demonstrations, and how densely their images are stored."""

    episodes: int = 150  # Attempts of the expert, for each task.
    # LeRobot data set (v3, v2.1, v2.0) of which the successful episodes are taken instead; see `deas-vla audit`.
    dataset: str = ""
    frame_every: int = 1  # Images are stored every so many steps; each is a frame that the policy can be trained on.

    def __post_init__(self):
        require_ranges(self, "demos.", {"at least 1": "frame_every"})


@dataclass
class CollectDemosConfig(SimulatorConfig):
    """Settings of recipes/collect_demos.py."""

    output: str = incidental("outputs/lift/demonstrations")  # Folder of this stage.
    seed: int = 1  # Chooses the scenes and the expert's imperfections, 0 to 99.
    demos: DemosConfig = field(default_factory=DemosConfig)  # How much to collect.
    dry_run: bool = incidental(False)  # Say what it would take of disk, memory and time, and end.


def collect_demos(accelerator: Accelerator, config: CollectDemosConfig, outputs: Outputs | None = None) -> None:
    demos, outputs = config.demos, outputs or Outputs(config.dry_run)
    scenes = scenes_of("demonstrations", demos.episodes, config.seed)

    def work(folder: Path) -> None:
        if config.dry_run or not (folder / DATASET).exists():
            if demos.dataset:
                episodes, contract, _ = read_dataset(Path(demos.dataset), image_every=demos.frame_every)
                if not outputs.announce(accelerator, folder, *copying_needs(folder, episodes, contract)):
                    return
            else:
                blocks = []
                for task in config.tasks:
                    with config.open_workers(task) as workers:
                        contract = workers.contract
                        collect = partial(expert_episodes, workers, demos.frame_every)
                        if task == config.tasks[0]:
                            needs = collecting_needs(accelerator, folder, config, workers, scenes, collect)
                            if not outputs.announce(accelerator, folder, *needs):
                                return
                        blocks += collect_in_blocks(folder, task, scenes, collect)
                episodes = load_blocks(blocks)
            metadata = {"settings": outcome_settings(config)}
            write_collected(folder, episodes, contract, metadata=metadata, demonstrations=True)
        shutil.rmtree(folder / BLOCKS, ignore_errors=True)

    data = [demos.dataset] if demos.dataset else []
    run_stage(accelerator, Path(config.output), config, {}, work, data=data)


def main(config: CollectDemosConfig) -> None:
    if config.demos.episodes < 2 and not config.demos.dataset:
        raise UserError(f"--demos.episodes={config.demos.episodes} is too few; statistics need at least 2")
    collect_demos(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, CollectDemosConfig)
