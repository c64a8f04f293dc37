"""Writes the results of the robosuite runs: a record of each run, a page, and a file with all numbers.

    python -m studies.robosuite.results --runs=outputs/robosuite --commit=0123abc --output=studies/results

Reads what studies.robosuite.suite and studies.ablations left, in seconds; runs nothing. Every finished run
becomes a small file in studies/results/robosuite, and the page is made from all files there. Commit them: the runs may
be made one by one, on several machines, and their folders deleted.
"""

from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.launch import run_recipe
from studies.robosuite.summary import run_names
from studies.robosuite.write import write_robosuite_results
from studies.runs import is_finished


@dataclass
class RobosuiteResultsConfig:
    """Settings of studies.robosuite.results."""

    # folder of the suite; it need not hold runs that have a record
    runs: str = "outputs/robosuite"
    # its training seeds
    seeds: list[int] = field(default_factory=lambda: [11, 12, 13])
    # folders of studies.ablations.critic that are new
    critic_ablations: list[str] = field(default_factory=list)
    # folders of studies.ablations.policy that are new
    policy_ablations: list[str] = field(default_factory=list)
    # folders of studies.ablations.second_iteration that are new
    second_iteration_ablations: list[str] = field(default_factory=list)
    # the commit that fixed the settings, before the first evaluation; needed where a run has no record yet
    commit: str = ""
    # folder of robosuite.md and robosuite.json, and of the records in robosuite/
    output: str = "studies/results"


def main(config: RobosuiteResultsConfig) -> None:
    runs = Path(config.runs)
    for name in run_names(config.seeds):
        if (runs / name).is_dir() and not is_finished(runs / name):
            print(f"{runs / name}: skipped, its evaluation is not finished")
    results = write_robosuite_results(
        runs,
        Path(config.output),
        config.seeds,
        critic_ablations=[Path(ablation) for ablation in config.critic_ablations],
        policy_ablations=[Path(ablation) for ablation in config.policy_ablations],
        second_iteration_ablations=[Path(ablation) for ablation in config.second_iteration_ablations],
        commit=config.commit,
    )
    for row in results["targets"]:
        shown = {True: "shown", False: "not shown", None: "not measured"}[row["met"]]
        print(f"{row['target']}: {row['measured']} – {shown}")
    if results["missing"]:
        print(f"not made yet: {', '.join(results['missing'])}")
    print(f"wrote {Path(config.output) / 'robosuite.md'}")


if __name__ == "__main__":
    run_recipe(main, RobosuiteResultsConfig)
