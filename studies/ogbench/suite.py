"""Every run of studies/results/ogbench.md: agents, ablations and selection rules over tasks and training seeds.

    python -m studies.ogbench.suite --suite=main --dataset=cube-single-play-v0 --workers=2
    python -m studies.ogbench.results --runs=outputs/ogbench

Runs are independent of each other and of the number of workers; one that is done is skipped, so the same command goes
on after an interruption, and another suite adds to what is there. Needs the extra `ogbench`; 1 GB a worker.
"""

import contextlib
import multiprocessing
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from deas_vla.config import parse
from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.launch import end_with_parent, run_recipe
from deas_vla.training.stages import lock
from studies.machine import machine_facts
from studies.ogbench import train

# Runs by suite and name; each is flags of studies.ogbench.train. Nothing here was chosen on the scenes or seeds of the
# results: settings were fixed on seed 90.
SUITES: dict[str, dict[str, list[str]]] = {
    "main": {
        "deas": ["--agent=deas", "--play.methods=consensus-8,best-128,consensus-128", "--play.curve_points=3"],
        "bc": ["--agent=bc"],
        "bc@H=1": ["--agent=bc", "--horizon=1"],
        # They decide at every step: 128 candidates would take longer to play than to train.
        "iql": ["--agent=iql", "--play.methods=best-8,best-32"],
        "nstep_iql": ["--agent=nstep_iql", "--play.methods=best-8,best-32"],
        "filtered_bc": ["--agent=filtered_bc"],
        # The published 32 samples a target would take several times as long again.
        "qc": ["--agent=qc", "--qc.num_samples=8", "--play.methods=consensus-8,best-128,consensus-128"],
        "deas_onestep": ["--agent=deas_onestep"],
        "dqc": ["--agent=dqc", "--play.methods=best-8,best-8-execute-2,best-8-execute-1"],
        "qc_fql": ["--agent=qc_fql"],
        "fql": ["--agent=fql"],
    },
    # Plays the agents of main again, by other rules and from more candidates.
    "selection": {
        "deas": [
            "--agent=deas", "--play.curve_points=3",
            "--play.methods=best-8,best-32,best-128,consensus-8,consensus-32,consensus-128,quantile-128,lower_bound-128,"
            "softmax-128,dense-128,smoothed-128",
        ],
    },
    "ablations": {
        # Twice the updates of every other run, at half of what those of Q-chunking cost.
        "deas@updates=6000": ["--agent=deas", "--training.steps=6000", "--play.methods=consensus-8,consensus-128"],
        "deas@H=1": ["--agent=deas", "--deas.critic.horizon=1"],
        "deas@H=2": ["--agent=deas", "--deas.critic.horizon=2"],
        "deas@H=10": ["--agent=deas", "--deas.critic.horizon=10"],
        "deas@gamma1=0.99": ["--agent=deas", "--deas.critic.reward_discount=0.99"],
        "deas@gamma2=0.995": ["--agent=deas", "--deas.critic.bootstrap_discount=0.995"],
        "deas@tau=0.5": ["--agent=deas", "--deas.critic.expectile=0.5"],
        "deas@tau=0.9": ["--agent=deas", "--deas.critic.expectile=0.9"],
        "deas@head=hl_gauss": [
            "--agent=deas", "--deas.critic.head=hl_gauss", "--play.methods=consensus-8,best-128,consensus-128",
        ],
        "deas@num_q=1": ["--agent=deas", "--deas.critic.num_q=1"],
        "deas@num_q=5": ["--agent=deas", "--deas.critic.num_q=5"],
        "deas@support=published": ["--agent=deas", "--deas.support=published"],
        "deas@support=data": ["--agent=deas", "--deas.support=data"],
        # With the discount of DEAS: beside deas@head=hl_gauss it differs in nothing but the target.
        "qc@head=hl_gauss": [
            "--agent=qc", "--qc.num_samples=8", "--qc.critic.head=hl_gauss", "--qc.critic.reward_discount=0.9",
        ],
        # Targets that move as slowly as published, for a million updates.
        "deas@polyak=0.005": [
            "--agent=deas", "--deas.critic.polyak=0.005", "--play.methods=best-8,best-32,best-128",
            "--play.curve_points=3",
        ],
        "iql@polyak=0.005": ["--agent=iql", "--iql.critic.polyak=0.005", "--play.methods=best-8"],
        "nstep_iql@polyak=0.005": [
            "--agent=nstep_iql", "--nstep_iql.critic.polyak=0.005", "--play.methods=best-8",
        ],
        "qc@polyak=0.005": [
            "--agent=qc", "--qc.num_samples=8", "--qc.critic.polyak=0.005",
            "--play.methods=consensus-8,best-128,consensus-128",
        ],
        "deas@head=hl_gauss+polyak=0.005": [
            "--agent=deas", "--deas.critic.head=hl_gauss", "--deas.critic.polyak=0.005", "--play.curve_points=3",
            "--play.methods=best-8,best-32,best-128,consensus-8,consensus-32,consensus-128",
        ],
    },
}  # fmt: skip


@dataclass
class OGBenchSuiteConfig:
    """Settings of studies.ogbench.suite."""

    # which runs: main (every agent), selection (rules) or ablations
    suite: str = "main"
    # only these runs of the suite; empty: all
    only: list[str] = field(default_factory=list)
    # OGBench's name of the data set
    dataset: str = "cube-single-play-v0"
    # tasks of the data set
    tasks: list[int] = field(default_factory=lambda: [1, 2, 3, 4, 5])
    # training seeds
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    # further flags of studies.ogbench.train for every run, separated by spaces
    flags: str = ""
    # folder of all runs
    output: str = "outputs/ogbench"
    # runs at once, one thread each
    workers: int = 2


def main(config: OGBenchSuiteConfig) -> None:
    if config.suite not in SUITES:
        raise UserError(f"suite {config.suite!r} is unknown; choose {' or '.join(SUITES)}")
    unknown = set(config.only) - set(SUITES[config.suite])
    if unknown:
        raise UserError(
            f"suite {config.suite} has no {', '.join(sorted(unknown))}; it has {', '.join(SUITES[config.suite])}"
        )
    base = config.dataset.removesuffix("-v0")
    # Agent by agent and seed by seed: whatever is there after an interruption is comparable.
    jobs = [
        [
            *flags, *config.flags.split(), f"--variant={name}", f"--seed={seed}",
            f"--task={base}-singletask-task{task}-v0", f"--output={config.output}",
        ]
        for name, flags in SUITES[config.suite].items()
        if not config.only or name in config.only
        for seed in config.seeds
        for task in config.tasks
    ]  # fmt: skip
    logs = Path(config.output) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with lock(Path(config.output) / "machine.json"):
        write_json(Path(config.output) / "machine.json", machine_facts())
    context = multiprocessing.get_context("spawn")
    failed = []
    with (
        context.Pool(config.workers, _start_worker) as pool,
        tqdm(total=len(jobs), unit="run", smoothing=0.1, dynamic_ncols=True) as bar,
    ):
        for name, error in pool.imap_unordered(_run, [(job, str(logs)) for job in jobs]):
            bar.set_postfix_str(name)
            bar.update()
            if error:
                failed.append(name)
                bar.write(f"{name}: {error}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed (see {logs}); run the same command again")


def _start_worker() -> None:
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def _run(job: tuple[list[str], str]) -> tuple[str, str]:
    """Runs one job in a worker; returns its name and what went wrong, or ""."""
    flags, logs = job
    values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    name = f"{values['task'].removesuffix('-v0')}-seed{values['seed']}-{values['variant']}"
    with (
        (Path(logs) / f"{name}.log").open("a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        try:
            train.ogbench(train.make_accelerator(), parse(train.OGBenchConfig, flags))
        except UserError as error:
            return name, str(error)
        except Exception as error:
            traceback.print_exc()
            return name, repr(error)
    return name, ""


if __name__ == "__main__":
    run_recipe(main, OGBenchSuiteConfig)
