"""What robosuite's runs add up to: rates, differences, headroom, and what was set out to be shown."""

import numpy as np

from deas_vla.errors import UserError
from deas_vla.report.summary import METHODS, counted
from deas_vla.rollouts.statistics import ratio_interval
from studies.grid import Grid
from studies.markdown import gap
from studies.runs import WITHOUT_NOISE, by_task, gain_over, level_of, method_grids, without_seed

# In the order of the page; each is run with every training seed.
TASKS = ("lift", "stack", "pick_place_can", "door")
BASE, CHOSEN, CLONED, WEIGHTED, BOTH = (
    "policy", "best_of_n", "filtered_bc", "advantage_weighted", "advantage_weighted + best_of_n"
)  # fmt: skip
# One of the candidates, whose noise may be less than the policy's own.
ONE = "best_of_1"
SECOND, SECOND_BOTH = "second_iteration", "second_iteration + best_of_n"
# What is to be shown.
SEEDS, SCENES, TASKS_WITH_GAIN = 3, 200, 3
GAIN, HEADROOM, WEIGHTED_GAIN, AHEAD_OF_CLONED, MINUTES = 0.10, 0.40, 0.15, 0.05, 20
# Stages of one loop; the baselines and the second iteration come on top.
LOOP = ("demonstrations", "policy", "rollouts", "critic", "filtered_bc", "advantage_weighted")
# Differences that are looked at besides those from the policy: name, method, and what it is compared with.
COMPARED = {
    "weighted_over_cloned": (WEIGHTED, CLONED),
    "weighted_over_one": (WEIGHTED, ONE),
    "weighted_over_zero_noise": (WEIGHTED, "zero_noise"),
    "both_over_weighted": (BOTH, WEIGHTED),
    "both_over_chosen": (BOTH, CHOSEN),
    "both_over_zero_noise": (BOTH, "zero_noise"),
    "second_over_first": (SECOND, WEIGHTED),
    "second_both_over_both": (SECOND_BOTH, BOTH),
    "chosen_over_one": (CHOSEN, ONE),
    "chosen_over_zero_noise": (CHOSEN, "zero_noise"),
    "chosen_over_iql": (CHOSEN, "iql"),
    "chosen_over_qc": (CHOSEN, "qc"),
}
# The same of policies that play without their noise.
COMPARED_WITHOUT_NOISE = {
    "cloned_over_policy": (CLONED, BASE),
    "weighted_over_policy": (WEIGHTED, BASE),
    "weighted_over_cloned": (WEIGHTED, CLONED),
    "second_over_first": (SECOND, WEIGHTED),
}


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
    grids = method_grids(in_order, tasks)
    known = [method for method in METHODS if method in grids] + sorted(set(grids) - set(METHODS))

    results = {
        "tasks": tasks,
        "seeds": sorted({run["settings"]["evaluation"]["seed"] for run in in_order}),
        "runs": {task: _cost(same) for task, same in of_task.items()},
        "missing": [name.replace("-", " ") for name in run_names(seeds) if name not in runs],
        "commits": list(dict.fromkeys(run["commit"] for run in in_order)),
        "candidates": plan["num_candidates"],
        "scenes": min(len(cell.scenes) for cell in grids[BASE].values()),
        "samples": plan["samples"],
        "success": {method: by_task(grids[method], tasks, level_of) for method in known},
        "gain_over_policy": {method: _against(grids, tasks, method, BASE) for method in known if method != BASE},
        "compared": _compared(grids, tasks, COMPARED),
        "headroom": _headroom(grids, tasks),
        "settings": {task: without_seed(same[0]["settings"]) for task, same in of_task.items()},
    }
    if all(WITHOUT_NOISE in run for run in in_order):
        quiet = method_grids(in_order, tasks, WITHOUT_NOISE)
        results[WITHOUT_NOISE] = {
            "success": {method: by_task(quiet[method], tasks, level_of) for method in METHODS if method in quiet},
            "compared": _compared(quiet, tasks, COMPARED_WITHOUT_NOISE),
        }
    results["targets"] = targets(results)
    return results


def by_count(results: dict) -> dict[int, str]:
    """Number of candidates, ascending, to the method that plays the best of so many; 1 may be the policy."""
    numbers = {
        int(method.removeprefix("best_of_")): method
        for method in results["success"]
        if method.removeprefix("best_of_").isdigit()
    }
    return dict(sorted(({1: BASE, results["candidates"]: CHOSEN} | numbers).items()))


def _against(grids: dict[str, Grid], tasks: list[str], method: str, base: str) -> dict:
    return by_task(grids[method], tasks, lambda part: gain_over(part, grids[base]))


def _compared(grids: dict[str, Grid], tasks: list[str], pairs: dict[str, tuple[str, str]]) -> dict:
    """The differences of pairs of methods that were both played."""
    return {
        name: _against(grids, tasks, method, base)
        for name, (method, base) in pairs.items()
        if method in grids and base in grids
    }


def _of_task(runs: dict[str, dict]) -> dict[str, list[dict]]:
    """Each task's runs, in the order of the page."""
    plans = {name: run["settings"]["evaluation"] for name, run in runs.items()}
    for name, plan in plans.items():
        found = f"{'+'.join(plan['tasks'])}-{plan['seed']}"
        if name != found:
            raise UserError(f"what is called {name} is the run {found}: the runs of one page are one a task and seed")
    of_task = {task: [runs[name] for name, plan in plans.items() if plan["tasks"] == [task]] for task in TASKS}
    for task, same in of_task.items():
        if any(without_seed(run["settings"]) != without_seed(same[0]["settings"]) for run in same):
            raise UserError(f"the runs of {task} differ in more than their seeds: make them again")
    return {task: same for task, same in of_task.items() if same}


def _cost(runs: list[dict]) -> dict:
    """Of one task: its seeds, the minutes of each run's loop and evaluation, and the memory it takes."""
    return {
        "seeds": [run["settings"]["evaluation"]["seed"] for run in runs],
        "minutes": [
            sum(run["seconds"][stage] for stage in (*LOOP, "evaluation") if stage in run["seconds"]) / 60
            for run in runs
        ],
        "processes": [run["processes"] for run in runs],
        "attempts": [run["attempts"] for run in runs],
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
    }


def _headroom(grids: dict[str, Grid], tasks: list[str]) -> dict:
    """Share of what the oracle gains over the policy that best-of-N gains, in the oracle's scenes."""
    shares = {}
    for number, task in enumerate(tasks):
        parts = {BASE: [], CHOSEN: [], "oracle": []}
        for key, oracle in grids.get("oracle", {}).items():
            if key[1] == number:
                for method, values in parts.items():
                    cell = grids[method][key]
                    values += [cell.values[cell.scenes.index(scene)] for scene in oracle.scenes]
        if parts["oracle"]:
            policy, chosen, oracle = (np.array(parts[method]) for method in (BASE, CHOSEN, "oracle"))
            gained, possible = chosen - policy, oracle - policy
            share = float(gained.sum() / possible.sum()) if possible.sum() > 0 else None
            interval = ratio_interval(gained, possible) if share is not None else None
            shares[task] = {"share": share, "ci95": interval and list(interval)}
    known = [entry["share"] for entry in shares.values() if entry["share"] is not None]
    return {"per_task": shares, "mean": float(np.mean(known)) if known else None}


def targets(results: dict) -> list[dict]:
    """What the project set out to show, what was measured, and whether that shows it.

    All of it is about all runs: while one is missing, nothing is shown.
    """
    gains = results["gain_over_policy"]
    chosen, compared = gains[CHOSEN], results["compared"]
    good = [task for task, one in chosen["per_task"].items() if one["difference"] >= GAIN and one["ci95"][0] > 0]
    worse = [task for task, one in chosen["per_task"].items() if one["ci95"][1] < 0]
    rows = [
        (
            f"{SEEDS} training seeds, at least {SCENES} paired scenes a seed and method",
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
    at_least("two iterations are better than one: the policy", compared.get("second_over_first"), 0.0)
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
        {"target": words, "measured": measured, "met": met and not results["missing"]} for words, measured, met in rows
    ]


def _minutes_on_two_cores(results: dict) -> list[float]:
    """Of the runs that had two processes, one a core, and were not interrupted."""
    return [
        minutes
        for one in results["runs"].values()
        for minutes, processes, attempts in zip(one["minutes"], one["processes"], one["attempts"], strict=True)
        if (processes, attempts) == (2, 1)
    ]
