"""Whether a second round pays where a critic chooses, over runs: numbers and one table."""

import json
from pathlib import Path

from deas_vla.report.loop_runs import by_task, cell_of, gain_over, gap_in, level_of, rate_in
from deas_vla.report.markdown import table
from deas_vla.rollouts.grid import Grid
from deas_vla.stage import stage_report


def judge(stages: list[Path], pairings: list[str]) -> dict:
    """Success of every pairing over tasks and training seeds, and its paired differences from the first.

    Args:
        stages: what recipes/second_round_bench.py left of each run; no two are of one task and seed.
        pairings: their names; the first is what the others are compared with.

    Returns:
        ``tasks``, ``seeds``, and ``pairings``: name to ``success`` and, but for the first, ``over_first``, as
        `by_task` of `level_of` and `gain_over` gives them.
    """
    settings = [stage_report(stage)["settings"] for stage in stages]
    tasks = list(dict.fromkeys(task for one in settings for task in one["tasks"]))
    grids: dict[str, Grid] = {name: {} for name in pairings}
    for stage, one in zip(stages, settings, strict=True):
        for task in one["tasks"]:
            for name, grid in grids.items():
                path = stage / "arms" / task / f"{name}.json"
                grid[one["seed"], tasks.index(task)] = cell_of(json.loads(path.read_text()))
    first = grids[pairings[0]]
    judged = {name: {"success": by_task(grid, tasks, level_of)} for name, grid in grids.items()}
    for name in pairings[1:]:
        judged[name]["over_first"] = by_task(grids[name], tasks, lambda part: gain_over(part, first))
    return {"tasks": tasks, "seeds": sorted({one["seed"] for one in settings}), "pairings": judged}


def second_round_table(results: dict) -> str:
    """The Markdown table of what `judge` returns: success, and the difference from the first line."""
    tasks = [*results["tasks"], "**average**"]
    return table(
        ["who proposes, who chooses", *tasks, *(f"{task} − first" for task in tasks)],
        [
            [
                name,
                *(rate_in(entry["success"], task) for task in tasks),
                *(gap_in(entry["over_first"], task) if "over_first" in entry else None for task in tasks),
            ]
            for name, entry in results["pairings"].items()
        ],
    )
