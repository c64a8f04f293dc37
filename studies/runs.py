"""Finished runs of the whole loop, as numbers, and their records: small files that outlive the runs' large folders."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError
from deas_vla.files import atomic_path
from deas_vla.training.stages import DONE, stage_report
from studies.grid import Cell, Grid, grid_difference, grid_mean, success_interval
from studies.markdown import gap, rate, rate_range

# The stage in which every policy of a run plays without its noise, and what it did.
WITHOUT_NOISE = "without_noise"


def is_finished(run: Path) -> bool:
    """Whether a run was evaluated to its end."""
    return (run / "evaluation" / DONE).is_file()


def read_run(run: Path) -> dict:
    """``settings`` and ``seconds`` of every stage, and ``methods``: method to task to its records.

    A run whose policies were also played without their noise has ``without_noise``, likewise.

    Raises:
        UserError: if the run's evaluation is not finished.
    """
    if not is_finished(run):
        raise UserError(f"{run} has no evaluation; run its recipe to its end first")
    stages = stages_of(run)
    read = {
        "settings": {name: stage["settings"] for name, stage in stages.items()},
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "methods": _methods_of(run / "evaluation", stages["evaluation"]["settings"]["tasks"]),
    }
    if WITHOUT_NOISE in stages:
        read[WITHOUT_NOISE] = _methods_of(run / WITHOUT_NOISE, stages[WITHOUT_NOISE]["settings"]["tasks"])
    return read


def stages_of(run: Path) -> dict[str, dict]:
    """Name of a run's every finished stage to what it left about itself."""
    return {path.parent.name: stage_report(path.parent) for path in sorted(run.glob(f"*/{DONE}"))}


def samples_of(records: list[dict]) -> int:
    """Draws of the noise in each scene."""
    return 1 + max(record["sample"] for record in records)


def method_grids(runs: list[dict], tasks: list[str], played: str = "methods") -> dict[str, Grid]:
    """Method to its grid over training seeds and tasks; a value is the mean over the samples of one scene.

    Args:
        runs: as `read_run` gives them.
        tasks: in the order of the grid.
        played: which of a run's outcomes, ``methods`` or ``without_noise``.
    """
    grids: dict[str, Grid] = {}
    for run in runs:
        seed = run["settings"]["evaluation"]["seed"]
        for method, by_task in run[played].items():
            for task, records in by_task.items():
                grids.setdefault(method, {})[seed, tasks.index(task)] = cell_of(records)
    return grids


def cell_of(records: list[dict]) -> Cell:
    """What one run did in its scenes: the mean over the samples of each."""
    samples = samples_of(records)
    success = np.array([record["success"] for record in records], float).reshape(-1, samples)
    return Cell(tuple(record["scene"] for record in records[::samples]), success.mean(1))


def by_task(grid: Grid, tasks: list[str], value) -> dict:
    """``mean``: the value of the whole grid, and ``per_task``: of each task's part that is there."""
    alone = {task: {key: cell for key, cell in grid.items() if key[1] == i} for i, task in enumerate(tasks)}
    return {"mean": value(grid), "per_task": {task: value(part) for task, part in alone.items() if part}}


def level_of(grid: Grid, shared: bool = False) -> dict:
    """A success rate with its interval; `shared` as of `grid_interval`."""
    return {"success": grid_mean(grid), "ci95": list(success_interval(grid, shared=shared))}


def gain_over(grid: Grid, base: Grid, shared: bool = False) -> dict:
    """The difference in the scenes that both played: an oracle plays fewer."""
    both = {key: _common(grid[key], base[key]) for key in grid}
    difference = grid_difference(
        {key: pair[0] for key, pair in both.items()}, {key: pair[1] for key, pair in both.items()}, shared=shared
    )
    return asdict(difference) | {"ci95": list(difference.ci95)}


def write_page(output: Path, name: str, results: dict, page: str, figures: dict[str, str] | None = None) -> None:
    """Writes ``name.json``, ``name.md`` and each figure as ``name-FIGURE.svg`` to a folder, whole or not at all."""
    files = {f"{name}-{figure}.svg": svg for figure, svg in (figures or {}).items()}
    files[f"{name}.json"] = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files[f"{name}.md"] = page
    for file, text in files.items():
        with atomic_path(output / file) as temporary:
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


def _methods_of(stage: Path, tasks: list[str]) -> dict[str, dict[str, list[dict]]]:
    methods: dict[str, dict[str, list[dict]]] = {}
    for task in tasks:
        for path in sorted((stage / "methods" / task).glob("*.json")):
            methods.setdefault(path.stem, {})[task] = json.loads(path.read_text(encoding="utf-8"))
    return methods


def _common(one: Cell, other: Cell) -> tuple[Cell, Cell]:
    scenes = tuple(sorted(set(one.scenes) & set(other.scenes)))
    return tuple(
        Cell(scenes, np.array([cell.values[cell.scenes.index(scene)] for scene in scenes])) for cell in (one, other)
    )


# ---- records ---------------------------------------------------------------------------------------------------

# Outcomes of episodes in a record.
PLAYED = ("methods", WITHOUT_NOISE)


def read_records(folder: Path) -> dict[str, dict]:
    """Name to content of every record in a folder; it need not be there."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def new_records(folder: Path, kept: dict[str, dict], made: dict[str, dict], runs: dict[str, Path]) -> list[str]:
    """Names of those made that are not kept yet.

    Args:
        folder: of the records.
        kept: what `read_records` found there.
        made: name to record of each finished run.
        runs: name to the folder that it was made from.

    Raises:
        UserError: if a run is not what its record says: scenes of an evaluation are meant to be played once.
    """
    for name in made.keys() & kept.keys():
        # A record keeps the commit that it was made with.
        parts = sorted((kept[name].keys() | made[name].keys()) - {"commit"})
        changed = [part for part in parts if kept[name].get(part) != made[name].get(part)]
        if changed:
            raise UserError(
                f"{folder / name}.json says otherwise than {runs[name]} ({', '.join(changed)}): delete the file if "
                "this run is to replace it; but evaluation scenes are meant to be played once"
            )
    return [name for name in made if name not in kept]


def run_record(run: Path, commit: str) -> dict:
    """What is kept of a finished run when its folder is gone: a few kilobytes, the same for the same run.

    Args:
        run: folder of the run.
        commit: what fixed its settings.

    Returns:
        JSON values: ``commit``, ``peak_memory_bytes`` of the stage that took most, the fewest ``processes`` and
        the most ``attempts`` of a stage, ``settings``, ``seconds``, ``methods`` and perhaps ``without_noise`` as of
        `read_run`, with 0 and 1 for each episode, scene by scene; ``critic`` of report.json, if there is one, without
        long lists. `run_of` reads it.

    Raises:
        UserError: as `read_run`.
    """
    read, stages = read_run(run), stages_of(run)
    report = run / "report.json"
    return {
        "commit": commit,
        "peak_memory_bytes": max(stage["peak_memory_bytes"] for stage in stages.values()),
        "processes": min(stage["processes"] for stage in stages.values()),
        # The seconds of a stage are those of its last attempt.
        "attempts": max(stage.get("attempts", 1) for stage in stages.values()),
        "settings": read["settings"],
        "seconds": read["seconds"],
        **({"critic": _brief(json.loads(report.read_text(encoding="utf-8"))["critic"])} if report.is_file() else {}),
        **{part: _of_each(_packed, read[part]) for part in PLAYED if part in read},
    }


def run_of(record: dict) -> dict:
    """A `run_record` as `read_run` would give it, and what else it holds."""
    return record | {part: _of_each(_unpacked, record[part]) for part in PLAYED if part in record}


def _of_each(change: Callable, methods: dict[str, dict]) -> dict[str, dict]:
    """Method to task to what was changed."""
    return {method: {task: change(played) for task, played in by_task.items()} for method, by_task in methods.items()}


def _brief(value):
    """Without the lists that are longer than an interval."""
    if not isinstance(value, dict):
        return value
    return {key: _brief(entry) for key, entry in value.items() if not (isinstance(entry, list) and len(entry) > 2)}


def _packed(records: list[dict]) -> dict:
    samples = samples_of(records)
    scenes = [record["scene"] for record in records[::samples]]
    first, count = scenes[0], len(scenes)
    return {
        "scenes": {"first": first, "count": count} if scenes == [*range(first, first + count)] else scenes,
        "samples": samples,
        "success": "".join("1" if record["success"] else "0" for record in records),
    }


def _unpacked(packed: dict) -> list[dict]:
    scenes = packed["scenes"]
    if isinstance(scenes, dict):
        scenes = range(scenes["first"], scenes["first"] + scenes["count"])
    episodes = [(scene, sample) for scene in scenes for sample in range(packed["samples"])]
    return [
        {"scene": scene, "sample": sample, "success": flag == "1"}
        for (scene, sample), flag in zip(episodes, packed["success"], strict=True)
    ]
