"""The results of robosuite's tasks over training seeds: what was set out to be shown, and whether it is."""

import json
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.report.bench import bench_table
from deas_vla.report.loop_runs import (
    arm_grids,
    by_task,
    gain_over,
    gap_in,
    is_finished,
    level_of,
    rate_in,
    run_of,
    run_record,
    without_seed,
    write_page,
)
from deas_vla.report.markdown import table
from deas_vla.report.ogbench_findings import gap, rate, rate_range
from deas_vla.report.summary import ARMS, arm_meaning, arm_title, counted
from deas_vla.rollouts.grid import Grid
from deas_vla.rollouts.statistics import RESAMPLES, ratio_interval

# In the order of the page; each is run with every training seed.
TASKS = ("lift", "stack", "pick_place_can", "door")
BASE, CHOSEN, CLONED, WEIGHTED, BOTH = (
    "policy", "best_of_n", "filtered_bc", "advantage_weighted", "advantage_weighted + best_of_n"
)  # fmt: skip
# One of the candidates, whose noise may be less than the policy's own.
ONE = "best_of_1"
SECOND, SECOND_BOTH = "second_round", "second_round + best_of_n"
# What is to be shown.
SEEDS, SCENES, TASKS_WITH_GAIN = 3, 200, 3
GAIN, HEADROOM, WEIGHTED_GAIN, AHEAD_OF_CLONED, MINUTES = 0.10, 0.40, 0.15, 0.05, 20
# Stages of one loop; the yardsticks and the second round come on top.
LOOP = ("demonstrations", "policy", "rollouts", "critic", "filtered_bc", "advantage_weighted")
# Differences that are looked at besides those from the policy: name, arm, and what it is compared with.
COMPARED = {
    "weighted_over_cloned": (WEIGHTED, CLONED),
    "both_over_weighted": (BOTH, WEIGHTED),
    "both_over_chosen": (BOTH, CHOSEN),
    "second_over_first": (SECOND, WEIGHTED),
    "second_both_over_both": (SECOND_BOTH, BOTH),
    "chosen_over_one": (CHOSEN, ONE),
    "chosen_over_zero_noise": (CHOSEN, "zero_noise"),
    "chosen_over_iql": (CHOSEN, "iql"),
    "chosen_over_qc": (CHOSEN, "qc"),
}


def write_robosuite_results(
    runs: Path, output: Path, seeds: list[int], benches: list[Path], commit: str = ""
) -> dict:
    """Keeps a record of every finished run and writes ``robosuite.md`` and ``robosuite.json`` from all that are kept.

    The records lie in ``robosuite/`` beside the page and are to be committed: run folders are large, and may be made
    one by one on several machines. The same records give the same bytes. Nothing is written unless all is well.

    Args:
        runs: folder of recipes/robosuite_suite.py, in which each task and seed has its own; what is not there or not
            finished is left out.
        output: folder of the results.
        seeds: the training seeds of the page.
        benches: folders of recipes/critic_bench.py, for the table of ingredients; they are kept likewise, and a bench
            replaces its older self.
        commit: what fixed the settings before the evaluation scenes were used; only new records need it.

    Returns:
        The content of robosuite.json.

    Raises:
        UserError: if there is no run at all, a run differs from its record, or the runs cannot be one result.
    """
    folder, names = output / "robosuite", run_names(seeds)
    kept = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    made = {name: run_record(runs / name, commit) for name in names if is_finished(runs / name)}
    for name in names:
        if name in made and name in kept:
            _require_same(folder / f"{name}.json", kept[name], runs / name, made[name])
    new = [name for name in made if name not in kept]
    if new and not commit:
        raise UserError(f"say with --commit which commit fixed the settings of {', '.join(new)}")
    brought = {f"bench-{bench.name}": _read_bench(bench) for bench in benches}
    known = made | kept | brought
    if not known.keys() & set(names):
        raise UserError(
            f"neither {runs} nor {folder} has a finished run of seeds {', '.join(map(str, seeds))}: "
            "run recipes/robosuite_suite.py first"
        )
    results = summarize({name: run_of(known[name]) for name in names if name in known}, seeds)
    results["benches"] = {
        name.removeprefix("bench-"): known[name] for name in sorted(known) if name.startswith("bench-")
    }
    for name in [*new, *brought]:
        write_json(folder / f"{name}.json", known[name])
    write_page(output, "robosuite", results, page(results))
    return results


def run_names(seeds: list[int]) -> list[str]:
    """Names of the folders and records of all runs, in the order of the page."""
    return [f"{task}-{seed}" for task in TASKS for seed in seeds]


def summarize(runs: dict[str, dict], seeds: list[int]) -> dict:
    """All numbers of the page, as JSON values: rates and differences are fractions.

    Args:
        runs: name to run, at least one, as `run_of` gives them.
        seeds: the training seeds of the page; what has no run is named as missing.

    Raises:
        UserError: if a run is not what its name says, or settings differ that should not.
    """
    of_task = _of_task(runs)
    tasks, in_order = list(of_task), [run for same in of_task.values() for run in same]
    plan = in_order[0]["settings"]["evaluation"]["evaluation"]
    grids = arm_grids(in_order, tasks)
    known = [arm for arm in ARMS if arm in grids] + sorted(set(grids) - set(ARMS))

    def against(arm: str, base: str) -> dict:
        return by_task(grids[arm], tasks, lambda part: gain_over(part, grids[base]))

    results = {
        "tasks": tasks,
        "seeds": sorted({run["settings"]["evaluation"]["seed"] for run in in_order}),
        "runs": {task: _cost(same) for task, same in of_task.items()},
        "missing": [name.replace("-", " ") for name in run_names(seeds) if name not in runs],
        "commits": list(dict.fromkeys(run["commit"] for run in in_order)),
        "candidates": plan["num_candidates"],
        "scenes": min(len(cell.scenes) for cell in grids[BASE].values()),
        "draws": plan["draws"],
        "success": {arm: by_task(grids[arm], tasks, level_of) for arm in known},
        "gain_over_policy": {arm: against(arm, BASE) for arm in known if arm != BASE},
        "compared": {
            name: against(arm, base)
            for name, (arm, base) in COMPARED.items()
            if arm in grids and base in grids
        },
        "headroom": _headroom(grids, tasks),
        "settings": {task: without_seed(same[0]["settings"]) for task, same in of_task.items()},
    }
    results["targets"] = targets(results)
    return results


def _of_task(runs: dict[str, dict]) -> dict[str, list[dict]]:
    """Each task's runs, in the order of the page."""
    plans = {name: run["settings"]["evaluation"] for name, run in runs.items()}
    for name, plan in plans.items():
        found = f"{'+'.join(plan['tasks'])}-{plan['seed']}"
        if name != found:
            raise UserError(
                f"what is called {name} is the run {found}: the runs of one page are one a task and seed"
            )
    of_task = {
        task: [runs[name] for name, plan in plans.items() if plan["tasks"] == [task]] for task in TASKS
    }
    for task, same in of_task.items():
        if any(without_seed(run["settings"]) != without_seed(same[0]["settings"]) for run in same):
            raise UserError(f"the runs of {task} differ in more than their seeds: make them again")
    return {task: same for task, same in of_task.items() if same}


def _require_same(path: Path, kept: dict, run: Path, made: dict) -> None:
    # A record keeps the commit that it was made with.
    parts = sorted((kept.keys() | made.keys()) - {"commit"})
    changed = [part for part in parts if kept.get(part) != made.get(part)]
    if changed:
        raise UserError(
            f"{path} says otherwise than {run} ({', '.join(changed)}): delete the file if this run is to replace it; "
            "but evaluation scenes are meant to be played once"
        )


def _read_bench(bench: Path) -> dict:
    path = bench / "bench.json"
    if not path.is_file():
        raise UserError(f"{bench} has no {path.name}; run recipes/critic_bench.py first")
    return json.loads(path.read_text())


def _cost(runs: list[dict]) -> dict:
    """Of one task: its seeds, the minutes of each run's loop and evaluation, and the memory it takes."""
    return {
        "seeds": [run["settings"]["evaluation"]["seed"] for run in runs],
        "minutes": [
            sum(run["seconds"][stage] for stage in (*LOOP, "evaluation") if stage in run["seconds"]) / 60
            for run in runs
        ],
        "processes": [run["processes"] for run in runs],
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def _headroom(grids: dict[str, Grid], tasks: list[str]) -> dict:
    """Share of what the oracle gains over the policy that best-of-N gains, in the oracle's scenes."""
    shares = {}
    for number, task in enumerate(tasks):
        parts = {BASE: [], CHOSEN: [], "oracle": []}
        for key, oracle in grids.get("oracle", {}).items():
            if key[1] == number:
                for arm, values in parts.items():
                    cell = grids[arm][key]
                    values += [cell.values[cell.scenes.index(scene)] for scene in oracle.scenes]
        if parts["oracle"]:
            policy, chosen, oracle = (np.array(parts[arm]) for arm in (BASE, CHOSEN, "oracle"))
            gained, possible = chosen - policy, oracle - policy
            share = float(gained.sum() / possible.sum()) if possible.sum() > 0 else None
            interval = ratio_interval(gained, possible, 0.95, RESAMPLES, 0) if share is not None else None
            shares[task] = {"share": share, "ci95": interval and list(interval)}
    known = [entry["share"] for entry in shares.values() if entry["share"] is not None]
    return {"per_task": shares, "mean": float(np.mean(known)) if known else None}


def targets(results: dict) -> list[dict]:
    """What the project set out to show, what was measured, and whether that shows it.

    All of it is about all runs: while one is missing, nothing is shown.
    """
    gains = results["gain_over_policy"]
    chosen, compared = gains[CHOSEN], results["compared"]
    good = [
        task for task, one in chosen["per_task"].items() if one["difference"] >= GAIN and one["ci95"][0] > 0
    ]
    worse = [task for task, one in chosen["per_task"].items() if one["ci95"][1] < 0]
    rows = [
        (
            f"{SEEDS} training seeds, at least {SCENES} paired scenes a seed and arm",
            f"{counted(len(results['seeds']), 'seed')}, {counted(results['scenes'], 'scene')}",
            len(results["seeds"]) >= SEEDS and results["scenes"] >= SCENES,
        ),
        (
            f"best-of-N gains {100 * GAIN:.0f} points or more on {TASKS_WITH_GAIN} tasks, beyond doubt",
            ", ".join(good) or "none",
            len(good) >= TASKS_WITH_GAIN,
        ),
        ("best-of-N is worse on no task", ", ".join(worse) or "none is", not worse),
    ]
    share = results["headroom"]["mean"]
    rows.append(
        (
            f"best-of-N gets {100 * HEADROOM:.0f} % of the oracle's headroom on average",
            "–" if share is None else f"{100 * share:.0f} %",
            None if share is None else share >= HEADROOM,
        )
    )

    def at_least(words: str, result: dict | None, bar: float) -> None:
        mean = result and result["mean"]
        met = None if mean is None else mean["difference"] >= bar and mean["ci95"][0] > 0
        rows.append((words, gap(mean), met))

    at_least(
        f"advantage weighting gains {100 * WEIGHTED_GAIN:.0f} points on average", gains.get(WEIGHTED), WEIGHTED_GAIN
    )  # fmt: skip
    at_least(
        f"and is {100 * AHEAD_OF_CLONED:.0f} ahead of filtered behaviour cloning",
        compared.get("weighted_over_cloned"),
        AHEAD_OF_CLONED,
    )
    at_least("both together are ahead of advantage weighting", compared.get("both_over_weighted"), 0.0)
    at_least("and of best-of-N", compared.get("both_over_chosen"), 0.0)
    at_least("two rounds are better than one: the policy", compared.get("second_over_first"), 0.0)
    at_least("and policy with critic", compared.get("second_both_over_both"), 0.0)
    minutes = _minutes_on_two_cores(results)
    rows.append(
        (
            f"one task and seed in {MINUTES} minutes on two cores",
            f"{max(minutes):.0f} minutes at most" if minutes else "–",
            max(minutes) <= MINUTES if minutes else None,
        )
    )
    return [
        {"target": words, "measured": measured, "met": met and not results["missing"]}
        for words, measured, met in rows
    ]


def page(results: dict) -> str:
    """The Markdown page of `summarize`'s result."""
    n, tasks = results["candidates"], [*results["tasks"], "**average**"]
    words = {True: "shown", False: "**not shown**", None: "not measured"}
    by_count = {1: BASE, n: CHOSEN} | {
        int(arm.removeprefix("best_of_")): arm
        for arm in results["success"]
        if arm.removeprefix("best_of_").isdigit()
    }
    told = (BASE, CHOSEN, ONE)
    arms = [arm for arm in results["success"] if arm not in by_count.values() or arm in told]
    success, gains = results["success"], results["gain_over_policy"]
    others = {name: (arm_title(a, n), arm_title(b, n)) for name, (a, b) in COMPARED.items()}
    parts = [
        f"# A critic that sees: {counted(len(results['tasks']), 'task')} of robosuite, "
        f"{counted(len(results['seeds']), 'training seed')}",
        _in_words(results),
        *_missing(results),
        table(
            ["what it should show", "measured", ""],
            [[row["target"], row["measured"], words[row["met"]]] for row in results["targets"]],
            "lll",
        ),
        "## Success",
        table(
            ["arm", *tasks, "what it is"],
            [
                [arm_title(arm, n), *(rate_in(success[arm], task) for task in tasks), arm_meaning(arm)]
                for arm in arms
            ],
            "l" + "r" * len(tasks) + "l",
        ),
        "## Differences from the policy",
        table(
            ["arm", *tasks],
            [
                [arm_title(arm, n), *(gap_in(gains[arm], task) for task in tasks)]
                for arm in arms
                if arm != BASE
            ],
        ),
        "## Other differences",
        table(
            ["", *tasks],
            [
                [f"{one} − {other}", *(gap_in(results["compared"][name], task) for task in tasks)]
                for name, (one, other) in others.items()
                if name in results["compared"]
            ],
        ),
        "## Success by the number of candidates",
        table(
            ["candidates", *tasks],
            [
                [count, *(rate_in(success[by_count[count]], task) for task in tasks)]
                for count in sorted(by_count)
            ],
        ),
        "In per cent and percentage points; in brackets 95 % intervals: a bootstrap over training seeds and scenes. "
        "Every arm plays the same scenes with the same noise; the oracle plays fewer, and is compared in those.",
        "## The oracle's headroom",
        table(
            ["task", "share that best-of-N gets"],
            [[task, _share(entry)] for task, entry in results["headroom"]["per_task"].items()],
        ),
    ]
    for name, bench in results["benches"].items():
        parts += [
            f"## Ingredients of the critic: {name}",
            f"{bench['decisions']} decisions in {bench['scenes']} scenes that no run evaluates on, all candidates "
            "played out; what choosing by a critic gains in one decision.",
            bench_table(bench),
        ]
    commits = [f"`{commit}`" for commit in results["commits"]]
    parts += [
        "## Runs",
        table(
            ["task", "seeds", "minutes of one loop", "processes", "peak memory"],
            [
                [
                    task,
                    *(
                        ", ".join(f"{each:.0f}" for each in one[what])
                        for what in ("seeds", "minutes", "processes")
                    ),
                    _gigabytes(one),
                ]
                for task, one in results["runs"].items()
            ],
        ),
        "## How it was made",
        f"Settings were chosen on training seed 0 and its scenes. {_listed('Commit', commits)} fixed them; the "
        f"evaluation scenes of {_listed('seed', results['seeds'])} were played once, after it. The minutes are those "
        "of the first round and the evaluation of all arms; a run of one process had one core, another run beside it.",
        "---\n\nThis page and [robosuite.json](robosuite.json) are written by `python recipes/robosuite_results.py` "
        "from the records in [robosuite/](robosuite/), which it makes from the folders of recipes/robosuite_suite.py "
        "and recipes/critic_bench.py.",
    ]
    return "\n\n".join(parts) + "\n"


def _in_words(results: dict) -> str:
    n, success = results["candidates"], results["success"]
    arms = [arm for arm in (BASE, CHOSEN, CLONED, WEIGHTED, BOTH, SECOND, SECOND_BOTH) if arm in success]
    told = [f"{arm_title(arm, n)} {rate(success[arm]['mean']['success'])}" for arm in arms]
    return f"Success in per cent, mean over tasks and seeds: {', '.join(told)}."


def _missing(results: dict) -> list[str]:
    if not results["missing"]:
        return []
    return [
        f"Runs that are not made yet: {', '.join(results['missing'])}. Averages are over those that are there, and "
        "nothing counts as shown before all are."
    ]


def _listed(noun: str, entries: list) -> str:
    return f"{noun}{'s' if len(entries) > 1 else ''} {', '.join(map(str, entries))}"


def _minutes_on_two_cores(results: dict) -> list[float]:
    """Of the runs that had two processes; one process uses a core."""
    return [
        minutes
        for one in results["runs"].values()
        for minutes, processes in zip(one["minutes"], one["processes"], strict=True)
        if processes == 2
    ]


def _gigabytes(cost: dict) -> str:
    return f"{cost['peak_memory_bytes'] / 1e9:.1f} GB"


def _share(entry: dict) -> str:
    if entry["share"] is None:
        return "–"
    interval = f" ({rate_range(entry['ci95'])})" if entry["ci95"] else ""
    return f"{100 * entry['share']:.0f} %{interval}"
