"""Whether a second iteration pays where a critic chooses, over runs: numbers and two tables."""

import json
from pathlib import Path

from deas_vla.training.stages import stage_report
from studies.grid import Grid
from studies.markdown import table
from studies.runs import by_task, cell_of, gain_over, gap_in, level_of, rate_in


def judge(stages: list[Path], against: dict[str, str | None]) -> dict:
    """Success of every pairing over tasks and training seeds, and its paired differences from another.

    Args:
        stages: what studies/ablations/second_iteration.py left of each run; no two are of one task and seed.
        against: name of every pairing to that of the one it is compared with, or None.

    Returns:
        ``tasks``, ``seeds``, and ``pairings``: name to ``success`` and perhaps ``against`` and ``difference``, as
        `by_task` of `level_of` and `gain_over` gives them.
    """
    settings = [stage_report(stage)["settings"] for stage in stages]
    tasks = list(dict.fromkeys(task for one in settings for task in one["tasks"]))
    grids: dict[str, Grid] = {name: {} for name in against}
    for stage, one in zip(stages, settings, strict=True):
        for task in one["tasks"]:
            for name, grid in grids.items():
                path = stage / "methods" / task / f"{name}.json"
                grid[one["seed"], tasks.index(task)] = cell_of(json.loads(path.read_text(encoding="utf-8")))
    judged = {name: {"success": by_task(grid, tasks, level_of)} for name, grid in grids.items()}
    for name, base in against.items():
        if base is not None:
            difference = by_task(grids[name], tasks, lambda part, base=base: gain_over(part, grids[base]))
            judged[name] |= {"against": base, "difference": difference}
    return {"tasks": tasks, "seeds": sorted({one["seed"] for one in settings}), "pairings": judged}


def second_iteration_tables(results: dict) -> str:
    """The Markdown tables of what `judge` returns: success, and the differences."""
    tasks, pairings = [*results["tasks"], "**average**"], results["pairings"]
    success = table(
        ["who proposes and who chooses", *tasks],
        [[name, *(rate_in(entry["success"], task) for task in tasks)] for name, entry in pairings.items()],
    )
    differences = table(
        ["", *tasks],
        [
            [f"{name} − {entry['against']}", *(gap_in(entry["difference"], task) for task in tasks)]
            for name, entry in pairings.items()
            if "against" in entry
        ],
    )
    return f"{success}\n\n{differences}"
