"""Writes the results of the robosuite runs: a page and a file with all numbers.

    python recipes/robosuite_results.py --runs=outputs/robosuite --commit=0123abc --output=docs/results

Reads what recipes/robosuite_suite.py and recipes/critic_bench.py left, in seconds; runs nothing.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.launch import run_recipe
from deas_vla.report.robosuite import write_robosuite_results


@dataclass
class RobosuiteResultsConfig:
    """Settings of recipes/robosuite_results.py."""

    # folder of the suite
    runs: str = "outputs/robosuite"
    # its training seeds
    seeds: list[int] = field(default_factory=lambda: [7, 8, 9])
    # folders of recipes/critic_bench.py
    benches: list[str] = field(default_factory=list)
    # the commit that fixed the settings, before the first evaluation
    commit: str = ""
    # folder of robosuite.md and robosuite.json
    output: str = "docs/results"


def main(config: RobosuiteResultsConfig) -> None:
    runs = [path for seed in config.seeds for path in sorted(Path(config.runs).glob(f"*-{seed}"))]
    if not runs:
        raise UserError(
            f"{config.runs} has no run of seeds {config.seeds}: run recipes/robosuite_suite.py first"
        )
    if not config.commit:
        raise UserError("say with --commit which commit fixed the settings")
    benches = [Path(bench) for bench in config.benches]
    results = write_robosuite_results(runs, Path(config.output), benches, config.commit)
    for row in results["targets"]:
        shown = {True: "shown", False: "not shown", None: "not measured"}[row["met"]]
        print(f"{row['target']}: {row['measured']} – {shown}")
    print(f"wrote {Path(config.output) / 'robosuite.md'}")


if __name__ == "__main__":
    run_recipe(main, RobosuiteResultsConfig)
