"""Finished runs of the whole loop, as numbers: who succeeded where, and by how much more than another."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError
from deas_vla.files import atomic_path
from deas_vla.report.ogbench_findings import gap, rate, rate_range
from deas_vla.rollouts.grid import Cell, Grid, grid_difference, grid_mean, success_interval
from deas_vla.stage import DONE, stage_report


def is_finished(run: Path) -> bool:
    """Whether a run was evaluated to its end."""
    return (run / "evaluation" / DONE).is_file()


def read_run(run: Path) -> dict:
    """``settings`` and ``seconds`` of every stage, and ``arms``: arm to task to its records.

    Raises:
        UserError: if the run's evaluation is not finished.
    """
    if not is_finished(run):
        raise UserError(f"{run} has no evaluation; run its recipe to its end first")
    stages = _stages(run)
    arms: dict[str, dict[str, list[dict]]] = {}
    for task in stages["evaluation"]["settings"]["tasks"]:
        for path in sorted((run / "evaluation" / "arms" / task).glob("*.json")):
            arms.setdefault(path.stem, {})[task] = json.loads(path.read_text())
    return {
        "settings": {name: stage["settings"] for name, stage in stages.items()},
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "arms": arms,
    }


def run_record(run: Path, commit: str) -> dict:
    """What is kept of a finished run when its folder is gone: a few kilobytes, the same for the same run.

    Args:
        run: folder of the run.
        commit: what fixed its settings.

    Returns:
        JSON values: ``commit``, ``peak_memory_bytes`` of the stage that took most, the fewest ``processes`` of a stage,
        ``settings``, ``seconds`` and ``arms`` as of `read_run`, with 0 and 1 for each episode, scene by scene;
        ``critic`` of report.json, if there is one, without long lists. `run_of` reads it.

    Raises:
        UserError: as `read_run`.
    """
    read, stages = read_run(run), _stages(run)
    report = run / "report.json"
    return {
        "commit": commit,
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages.values()),
        "processes": min(stage["processes"] for stage in stages.values()),
        "settings": read["settings"],
        "seconds": read["seconds"],
        **({"critic": _brief(json.loads(report.read_text())["critic"])} if report.is_file() else {}),
        "arms": {
            arm: {task: _packed(records) for task, records in by_task.items()}
            for arm, by_task in read["arms"].items()
        },
    }


def run_of(record: dict) -> dict:
    """A `run_record` as `read_run` would give it, and what else it holds."""
    arms = {
        arm: {task: _unpacked(packed) for task, packed in by_task.items()}
        for arm, by_task in record["arms"].items()
    }
    return record | {"arms": arms}


def arm_grids(runs: list[dict], tasks: list[str]) -> dict[str, Grid]:
    """Arm to its grid over training seeds and tasks; a value is the mean over the draws of one scene."""
    grids: dict[str, Grid] = {}
    for run in runs:
        seed = run["settings"]["evaluation"]["seed"]
        for arm, by_task in run["arms"].items():
            for task, records in by_task.items():
                grids.setdefault(arm, {})[seed, tasks.index(task)] = _cell(records)
    return grids


def by_task(grid: Grid, tasks: list[str], value) -> dict:
    """``mean``: the value of the whole grid, and ``per_task``: of each task's part that is there."""
    alone = {task: {key: cell for key, cell in grid.items() if key[1] == i} for i, task in enumerate(tasks)}
    return {"mean": value(grid), "per_task": {task: value(part) for task, part in alone.items() if part}}


def level_of(grid: Grid) -> dict:
    """A success rate with its interval."""
    return {"success": grid_mean(grid), "ci95": list(success_interval(grid))}


def gain_over(grid: Grid, base: Grid) -> dict:
    """The difference in the scenes that both played: an oracle plays fewer."""
    both = {key: _common(grid[key], base[key]) for key in grid}
    difference = grid_difference(
        {key: pair[0] for key, pair in both.items()}, {key: pair[1] for key, pair in both.items()}
    )
    return asdict(difference) | {"ci95": list(difference.ci95)}


def write_page(output: Path, name: str, results: dict, page: str) -> None:
    """Writes ``name.json`` and ``name.md`` to a folder, each whole or not at all."""
    numbers = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for kind, text in (("json", numbers), ("md", page)):
        with atomic_path(output / f"{name}.{kind}") as temporary:
            temporary.write_text(text, encoding="utf-8")


def without_seed(settings: dict) -> dict:
    """Settings of stages as they are for every seed."""
    return {name: stage | {"seed": None} for name, stage in settings.items()}


def rate_in(level: dict, name: str) -> str:
    """A task's success rate with its interval, or that of all for another name."""
    value = level["per_task"].get(name, level["mean"])
    return f"{rate(value['success'], 0)} ({rate_range(value['ci95'])})"


def gap_in(gain: dict, name: str) -> str:
    """A task's difference with its interval, or that of all for another name."""
    return gap(gain["per_task"].get(name, gain["mean"]))


def _stages(run: Path) -> dict[str, dict]:
    return {path.parent.name: stage_report(path.parent) for path in sorted(run.glob(f"*/{DONE}"))}


def _brief(value):
    """Without the lists that are longer than an interval."""
    if not isinstance(value, dict):
        return value
    return {
        key: _brief(entry) for key, entry in value.items() if not (isinstance(entry, list) and len(entry) > 2)
    }


def _packed(records: list[dict]) -> dict:
    draws = _draws(records)
    scenes = [record["scene"] for record in records[::draws]]
    first, count = scenes[0], len(scenes)
    return {
        "scenes": {"first": first, "count": count} if scenes == [*range(first, first + count)] else scenes,
        "draws": draws,
        "success": "".join("1" if record["success"] else "0" for record in records),
    }


def _unpacked(packed: dict) -> list[dict]:
    scenes = packed["scenes"]
    if isinstance(scenes, dict):
        scenes = range(scenes["first"], scenes["first"] + scenes["count"])
    episodes = [(scene, draw) for scene in scenes for draw in range(packed["draws"])]
    return [
        {"scene": scene, "draw": draw, "success": flag == "1"}
        for (scene, draw), flag in zip(episodes, packed["success"], strict=True)
    ]


def _draws(records: list[dict]) -> int:
    return 1 + max(record["draw"] for record in records)


def _cell(records: list[dict]) -> Cell:
    draws = _draws(records)
    success = np.array([record["success"] for record in records], float).reshape(-1, draws)
    return Cell(tuple(record["scene"] for record in records[::draws]), success.mean(1))


def _common(one: Cell, other: Cell) -> tuple[Cell, Cell]:
    scenes = tuple(sorted(set(one.scenes) & set(other.scenes)))
    return tuple(
        Cell(scenes, np.array([cell.values[cell.scenes.index(scene)] for scene in scenes]))
        for cell in (one, other)
    )
