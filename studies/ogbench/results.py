"""Writes the results of the OGBench runs: a page, its figures and a file with all numbers.

    python -m studies.ogbench.results --runs=outputs/ogbench --output=studies/results

Reads what studies/ogbench/suite.py left, in seconds; runs nothing. What is not there yet is a dash on the page.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.launch import run_recipe
from studies.ogbench.report.summary import ResultsOptions
from studies.ogbench.report.write import write_ogbench_results


@dataclass
class OGBenchResultsConfig:
    """Settings of studies/ogbench/results.py."""

    # folder of all runs
    runs: str = "outputs/ogbench"
    # folder of ogbench.md, ogbench.json and the figures
    output: str = "studies/results"
    # names of methods; each agent is compared in the first of them that it has played
    methods: list[str] = field(default_factory=lambda: ResultsOptions().methods)
    # N from which success against N is judged
    few: int = 8
    # N up to which it is judged
    many: int = 128
    # training seeds of the results; settings are tuned on others. empty: all that are there
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


def main(config: OGBenchResultsConfig) -> None:
    options = ResultsOptions(config.methods, config.few, config.many, config.seeds)
    results = write_ogbench_results(Path(config.runs), Path(config.output), options)
    for row in results["targets"]:
        print(f"{row['verdict']}: {row['target']} ({row['data_set']}): {row['measured']}")
    print(f"wrote {Path(config.output) / 'ogbench.md'}")


if __name__ == "__main__":
    run_recipe(main, OGBenchResultsConfig)
