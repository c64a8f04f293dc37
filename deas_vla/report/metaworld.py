"""The results of runs over many tasks with one critic, task by task: a JSON file, and a Markdown page of it."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError
from deas_vla.files import atomic_path
from deas_vla.report.lerobot import lerobot_table, read_lerobot_runs
from deas_vla.report.markdown import table
from deas_vla.report.ogbench_findings import gap, rate, rate_range
from deas_vla.report.summary import ARMS, arm_title, counted
from deas_vla.rollouts.grid import Cell, Grid, grid_difference, grid_mean, success_interval
from deas_vla.stage import stage_report

BASE, CHOSEN = "policy", "best_of_n"
EPISODES = 50  # an arm must have played on every task before anything is said
STAGES = (
    "demonstrations", "policy", "rollouts", "critic", "filtered_bc", "advantage_weighted", "evaluation"
)  # fmt: skip


def write_metaworld_results(runs: list[Path], output: Path, lerobot_runs: list[Path] | None = None) -> dict:
    """Writes ``metaworld.md`` and ``metaworld.json``; the same runs give the same bytes.

    Args:
        runs: folders of recipes/finetune_metaworld.py with the same settings and different seeds.
        output: folder of the results.
        lerobot_runs: folders of recipes/finetune_lerobot.py, for a section of their own.

    Returns:
        The content of metaworld.json.

    Raises:
        UserError: if a run is not finished, or two of them cannot be one result.
    """
    results = summarize([read_run(run) for run in runs])
    results["lerobot"] = read_lerobot_runs(lerobot_runs or [])
    contents = {
        "metaworld.json": json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "metaworld.md": page(results),
    }
    for name, text in contents.items():
        with atomic_path(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return results


def read_run(run: Path) -> dict:
    """``settings`` and ``seconds`` of every stage, and ``arms``: arm to task to its records.

    Raises:
        UserError: if the run's evaluation is not finished.
    """
    stages = {name: stage_report(run / name) for name in STAGES if (run / name).is_dir()}
    if "evaluation" not in stages:
        raise UserError(f"{run} has no evaluation; run recipes/finetune_metaworld.py to its end first")
    arms: dict[str, dict[str, list[dict]]] = {}
    for task in stages["evaluation"]["settings"]["tasks"]:
        for path in sorted((run / "evaluation" / "arms" / task).glob("*.json")):
            arms.setdefault(path.stem, {})[task] = json.loads(path.read_text())
    return {
        "settings": {name: stage["settings"] for name, stage in stages.items()},
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "arms": arms,
    }


def summarize(runs: list[dict]) -> dict:
    """All numbers of the page, as JSON values: rates and differences are fractions.

    Raises:
        UserError: if two runs have the same seed or other settings than each other.
    """
    seeds = [run["settings"]["evaluation"]["seed"] for run in runs]
    plain = [_without_seed(run["settings"]) for run in runs]
    if len(set(seeds)) < len(seeds) or any(settings != plain[0] for settings in plain):
        raise UserError(f"runs of one page differ in their seeds and in nothing else; these have {seeds}")
    tasks = plain[0]["evaluation"]["tasks"]
    grids: dict[str, Grid] = {}
    for seed, run in zip(seeds, runs, strict=True):
        for arm, by_task in run["arms"].items():
            for task, records in by_task.items():
                grids.setdefault(arm, {})[seed, tasks.index(task)] = _cell(records)
    known = [arm for arm in ARMS if arm in grids] + sorted(set(grids) - set(ARMS))
    levels = {arm: _by_task(grids[arm], tasks, _level) for arm in known}
    gains = {
        arm: _by_task(grids[arm], tasks, lambda grid: _gain(grid, grids[BASE]))
        for arm in known
        if arm != BASE
    }
    arms_of_all = [by_task for run in runs for arm, by_task in run["arms"].items() if arm != "oracle"]
    fewest = min(len(records) for by_task in arms_of_all for records in by_task.values())
    worse = [task for task in tasks if gains[CHOSEN]["per_task"][task]["ci95"][1] < 0]
    mean = gains[CHOSEN]["mean"]
    return {
        "tasks": tasks,
        "seeds": seeds,
        "candidates": plain[0]["evaluation"]["evaluation"]["num_candidates"],
        "episodes_per_task": fewest,
        "success": levels,
        "gain_over_policy": gains,
        "worse_tasks": worse,
        "shown": {
            "episodes": fewest >= EPISODES,
            "average_gain": mean["ci95"][0] > 0,
            "no_task_worse": not worse,
        },
        "seconds": [run["seconds"] for run in runs],
        "settings": plain[0],
    }


def page(results: dict) -> str:
    """The Markdown page of `summarize`'s result."""
    n, tasks = results["candidates"], results["tasks"]
    gains, shown = results["gain_over_policy"], results["shown"]
    mean, worse = gains[CHOSEN]["mean"], results["worse_tasks"]
    verdict = {True: "shown", False: "**not shown**"}
    targets = [
        [
            f"at least {EPISODES} episodes a task and arm",
            f"{results['episodes_per_task']} a seed",
            verdict[shown["episodes"]],
        ],
        [
            f"best of {n} gains over the policy, on average",
            gap(mean),
            verdict[shown["average_gain"]],
        ],
        ["no task worse beyond its interval", ", ".join(worse) or "none is", verdict[shown["no_task_worse"]]],
    ]
    arms = [arm for arm in results["success"] if arm != "oracle"]
    rows = [
        [name, *(_rate(results["success"][arm], name) for arm in arms)] for name in [*tasks, "**average**"]
    ]
    others = [arm for arm in arms if arm != BASE]
    gain_rows = [[name, *(_gap(gains[arm], name) for arm in others)] for name in [*tasks, "**average**"]]
    seconds = [sum(stages.values()) / 60 for stages in results["seconds"]]
    parts = [
        f"# One policy and one critic for {counted(len(tasks), 'task')} of Meta-World",
        _in_words(results),
        table(["what it should show", "measured", ""], targets, "lll"),
        "## Success of every arm",
        table(["task", *(arm_title(arm, n) for arm in arms)], rows),
        "## Differences from the policy",
        table(["task", *(arm_title(arm, n) for arm in others)], gain_rows),
        "In per cent and percentage points; in brackets 95 % intervals: a bootstrap over scenes and, where there are "
        "several, training seeds. Every arm plays the same scenes with the same noise. With so many tasks and arms "
        "some intervals miss the truth; nothing is corrected for that.",
        _oracle(results),
        *_lerobot(results["lerobot"]),
        "## How it was made",
        _made(results, seconds),
        "---\n\nThis page and [metaworld.json](metaworld.json) are written by `python recipes/metaworld_results.py` "
        "from the folders of recipes/finetune_metaworld.py and recipes/finetune_lerobot.py.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- numbers ----------------------------------------------------------------------------------------------------


def _cell(records: list[dict]) -> Cell:
    draws = 1 + max(record["draw"] for record in records)
    success = np.array([record["success"] for record in records], float).reshape(-1, draws)
    return Cell(tuple(record["scene"] for record in records[::draws]), success.mean(1))


def _by_task(grid: Grid, tasks: list[str], value) -> dict:
    alone = {task: {key: cell for key, cell in grid.items() if key[1] == i} for i, task in enumerate(tasks)}
    return {"mean": value(grid), "per_task": {task: value(part) for task, part in alone.items()}}


def _level(grid: Grid) -> dict:
    return {"success": grid_mean(grid), "ci95": list(success_interval(grid))}


def _gain(grid: Grid, base: Grid) -> dict:
    """The difference in the scenes that both played: the oracle plays fewer."""
    both = {key: _common(grid[key], base[key]) for key in grid}
    difference = grid_difference(
        {key: pair[0] for key, pair in both.items()}, {key: pair[1] for key, pair in both.items()}
    )
    return asdict(difference) | {"ci95": list(difference.ci95)}


def _common(one: Cell, other: Cell) -> tuple[Cell, Cell]:
    scenes = tuple(sorted(set(one.scenes) & set(other.scenes)))
    return tuple(
        Cell(scenes, np.array([cell.values[cell.scenes.index(scene)] for scene in scenes]))
        for cell in (one, other)
    )


def _without_seed(settings: dict) -> dict:
    return {name: stage | {"seed": None} for name, stage in settings.items()}


# ---- words ------------------------------------------------------------------------------------------------------


def _rate(level: dict, name: str) -> str:
    value = level["per_task"].get(name, level["mean"])
    return f"{rate(value['success'], 0)} ({rate_range(value['ci95'])})"


def _gap(gain: dict, name: str) -> str:
    return gap(gain["per_task"].get(name, gain["mean"]))


def _in_words(results: dict) -> str:
    base, chosen = (results["success"][arm]["mean"]["success"] for arm in (BASE, CHOSEN))
    gain = results["gain_over_policy"][CHOSEN]["mean"]
    found = "gains" if results["shown"]["average_gain"] else "is not shown to gain"
    return (
        f"Best of {results['candidates']} by one language-conditioned critic {found} over the policy: "
        f"{rate(chosen)} against {rate(base)} per cent on average over the tasks, {gap(gain)} points; "
        f"{gain['wins']} scenes better and {gain['losses']} worse of {gain['pairs']}, "
        f"{counted(len(results['seeds']), 'training seed')}."
    )


def _oracle(results: dict) -> str:
    if "oracle" not in results["gain_over_policy"]:
        return ""
    oracle = results["gain_over_policy"]["oracle"]["mean"]
    return (
        f"An oracle that tries all {results['candidates']} candidates out in the simulator gains {gap(oracle)} points "
        f"in the first {counted(oracle['pairs'], 'scene')}: what choosing better could be worth."
    )


def _lerobot(runs: list[dict]) -> list[str]:
    if not runs:
        return []
    return [
        "## LeRobot's policies in LeRobot's tools",
        lerobot_table(runs),
        "Trained by stock `lerobot-train`; policy and exported reranker played by stock `lerobot-eval`, on the same "
        "scenes and each with its own noise; the reranker's episodes once more by `recipes/evaluate.py`, with the same "
        "noise. Small policies from new weights, one training seed each.",
    ]


def _made(results: dict, minutes: list[float]) -> str:
    settings = results["settings"]
    evaluation, demos, rollouts = (
        settings["evaluation"],
        settings["demonstrations"]["demos"],
        settings["rollouts"]["rollouts"],
    )
    plan, views = evaluation["evaluation"], evaluation["simulator"]
    rows = [
        ["images", f"{', '.join(views['cameras'])}; {views['camera_size']} pixels"],
        [
            "experts",
            f"noise {views['expert_noise']:g}, misjudgement {1000 * views['expert_grasp_bias']:g} mm",
        ],
        ["demonstrations", f"{demos['episodes']} attempts a task"],
        ["rollouts", f"{rollouts['episodes']} a task"],
        ["policy", f"{settings['policy']['training']['steps']} updates"],
        ["critic", f"{settings['critic']['training']['steps']} updates, all tasks together"],
        ["evaluation", f"{plan['scenes']} scenes with {plan['draws']} noise draws each"],
        ["training seeds", ", ".join(map(str, results["seeds"]))],
        ["time", f"{max(minutes):.0f} minutes a seed at most"],
    ]
    return table(["", ""], rows, "ll")
