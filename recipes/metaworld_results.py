"""Writes the results of the Meta-World runs, task by task: a page and a file with all numbers.

    python recipes/metaworld_results.py --runs=outputs/metaworld --output=docs/results

Reads what recipes/finetune_metaworld.py left, in seconds; runs nothing. Runs of several training seeds become one page:
`--runs=outputs/metaworld,outputs/metaworld-2`. `--lerobot=outputs/lerobot-diffusion,outputs/lerobot-smolvla` adds what
recipes/finetune_lerobot.py left.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.launch import run_recipe
from deas_vla.report.metaworld import write_metaworld_results


@dataclass
class MetaworldResultsConfig:
    """Settings of recipes/metaworld_results.py."""

    # folders of runs that differ in their seed only
    runs: list[str] = field(default_factory=lambda: ["outputs/metaworld"])
    # folders of recipes/finetune_lerobot.py
    lerobot: list[str] = field(default_factory=list)
    # folder of metaworld.md and metaworld.json
    output: str = "docs/results"


def main(config: MetaworldResultsConfig) -> None:
    results = write_metaworld_results(
        [Path(run) for run in config.runs], Path(config.output), [Path(run) for run in config.lerobot]
    )
    for target, shown in results["shown"].items():
        print(f"{target.replace('_', ' ')}: {'shown' if shown else 'not shown'}")
    print(f"wrote {Path(config.output) / 'metaworld.md'}")


if __name__ == "__main__":
    run_recipe(main, MetaworldResultsConfig)
