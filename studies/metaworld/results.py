"""Writes the results of the Meta-World runs: a record of each, a page task by task, and a file with all numbers.

    python -m studies.metaworld.results --runs=outputs/metaworld --commit=0123abc --output=studies/results

    python -m studies.metaworld.results --lerobot=outputs/lerobot-diffusion,outputs/lerobot-smolvla

Reads what recipes/finetune_metaworld.py and studies.metaworld.finetune_lerobot left, in seconds; runs nothing. Every
run becomes a small file in studies/results/metaworld, and the page is made from all files there: commit them, and the
runs' folders can be deleted. Runs of several training seeds become one page.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.launch import run_recipe
from studies.metaworld.page import write_metaworld_results


@dataclass
class MetaworldResultsConfig:
    """Settings of studies.metaworld.results."""

    # folders of recipes/finetune_metaworld.py that are new; runs differ in their seed only
    runs: list[str] = field(default_factory=list)
    # folders of studies.metaworld.finetune_lerobot that are new
    lerobot: list[str] = field(default_factory=list)
    # the commit that fixed the settings, before the first evaluation; needed with new runs
    commit: str = ""
    # folder of metaworld.md and metaworld.json, and of the records in metaworld/
    output: str = "studies/results"


def main(config: MetaworldResultsConfig) -> None:
    results = write_metaworld_results(
        [Path(run) for run in config.runs], Path(config.output), [Path(run) for run in config.lerobot], config.commit
    )
    for target, shown in results["shown"].items():
        print(f"{target.replace('_', ' ')}: {'shown' if shown else 'not shown'}")
    print(f"wrote {Path(config.output) / 'metaworld.md'}")


if __name__ == "__main__":
    run_recipe(main, MetaworldResultsConfig)
