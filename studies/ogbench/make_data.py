"""An OGBench data set of states, from the scripted experts of the ogbench package.

    python -m studies.ogbench.make_data --dataset=cube-single-play-v0 --transitions=200000 --workers=2

Needs the extras `ogbench` and `train`; 3 to 4 CPU minutes for 100k transitions. Writes NAME.npz and NAME-val.npz in
OGBench's own layout, and NAME.json, which says how they were made. The result does not depend on the number of
processes, and an interrupted run goes on.
"""

from dataclasses import dataclass
from pathlib import Path

from deas_vla.launch import run_recipe
from studies.ogbench.scripted_data import make_dataset


@dataclass
class MakeOGBenchDataConfig:
    """Settings of studies/ogbench/make_data.py."""

    # Which one: ENV-play-v0 (open-loop plans) or ENV-noisy-v0 (closed loop, noisier); ENV is cube-single, cube-double,
    # cube-triple, cube-quadruple, cube-octuple, scene, puzzle-3x3, puzzle-4x4, puzzle-4x5 or puzzle-4x6.
    dataset: str = "cube-single-play-v0"
    # Training transitions, in trajectories of 1000; OGBench itself has 1000000 for most. A tenth as many are made
    # for validation.
    transitions: int = 200_000
    # Chooses all trajectories.
    seed: int = 0
    # Processes; the outcome does not depend on it.
    workers: int = 2
    # Folder of the files.
    output: str = "outputs/ogbench/data"


def main(config: MakeOGBenchDataConfig) -> None:
    path = make_dataset(config.dataset, config.transitions, config.seed, Path(config.output), config.workers)
    print(f"{path} and {path.stem}-val.npz: there")


if __name__ == "__main__":
    run_recipe(main, MakeOGBenchDataConfig)
