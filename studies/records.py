"""Records of finished runs: small files beside a results page, which outlive the runs' large folders."""

import json
from collections.abc import Callable
from pathlib import Path

from deas_vla.errors import UserError
from studies.loop_runs import WITHOUT_NOISE, read_run, samples_of, stages_of

# Outcomes of episodes in a record.
PLAYED = ("methods", WITHOUT_NOISE)


def read_records(folder: Path) -> dict[str, dict]:
    """Name to content of every record in a folder; it need not be there."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def new_records(
    folder: Path, kept: dict[str, dict], made: dict[str, dict], runs: dict[str, Path]
) -> list[str]:
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
        **({"critic": _brief(json.loads(report.read_text())["critic"])} if report.is_file() else {}),
        **{part: _of_each(_packed, read[part]) for part in PLAYED if part in read},
    }


def run_of(record: dict) -> dict:
    """A `run_record` as `read_run` would give it, and what else it holds."""
    return record | {part: _of_each(_unpacked, record[part]) for part in PLAYED if part in record}


def _of_each(change: Callable, methods: dict[str, dict]) -> dict[str, dict]:
    """Method to task to what was changed."""
    return {
        method: {task: change(played) for task, played in by_task.items()}
        for method, by_task in methods.items()
    }


def _brief(value):
    """Without the lists that are longer than an interval."""
    if not isinstance(value, dict):
        return value
    return {
        key: _brief(entry) for key, entry in value.items() if not (isinstance(entry, list) and len(entry) > 2)
    }


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
