"""Stages of a run: each has a folder, is skipped when it is done, and refuses to mix two configurations."""

import dataclasses
import os
import resource
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from filelock import FileLock, Timeout

from deas_vla.config import flat, outcome_settings, to_json
from deas_vla.errors import UserError, is_out_of_memory
from deas_vla.files import folder_identity, read_json, sha256_of, write_json
from deas_vla.launch import FITS_WITH
from deas_vla.registry import PLUGINS
from deas_vla.training.checkpoint import CHECKPOINT

DONE = "stage.json"
SETTINGS = "settings.json"
FEATURES = "features"  # where a critic's stage keeps what hours of encoding made, if nothing else is said
ESTIMATE = "estimate.json"  # what a stage was said to take when it began


def run_stage(
    accelerator: Accelerator,
    folder: Path,
    config: Any,
    inputs: dict[str, Path],
    work: Callable[[Path], dict | None],
    *,
    everyone: bool = False,
    data: Sequence[str] = (),
) -> None:
    """Runs one stage, goes on with it, or skips it.

    It is done when its folder holds ``stage.json``, and matches when the settings and the stages it read from are those
    written there; a stage that is deleted and made again is another one. An interrupted one left ``settings.json``;
    `work` finds its own blocks and checkpoints in the folder.

    Args:
        config: a dataclass, of which `incidental` fields do not count, and a field that is newer than the folder
            counts as its default there; or a dict of JSON values.
        inputs: name to folder of the stages whose output is read; they must be done.
        work: does the stage, given its folder; what it returns, JSON values, is noted as `facts`.
        data: folders of data sets that are read besides; a set that has changed since is another one.
        everyone: all processes work (training); otherwise only the main one does and the others wait.

    Raises UserError if the folder holds the output of other settings, or an input is not done.
    """
    record = {
        "settings": outcome_settings(config),
        "inputs": {name: stage_mark(path) for name, path in inputs.items()},
        "sources": {name: str(path) for name, path in inputs.items()},
        "data": {folder: folder_identity(Path(folder)) for folder in data},
        "code": {file: sha256_of(Path(file)) for file in _plugin_files(config)},
    }
    if getattr(config, "dry_run", False):  # says what it would take, and writes nothing
        if (folder / DONE).is_file():
            _require_same(folder, DONE, record, config)
            accelerator.print(f"{folder.name}: there already")
        else:
            work(folder)
        return
    with lock_for_run(accelerator, folder):
        if (folder / DONE).is_file():
            _require_same(folder, DONE, record, config)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            accelerator.print(f"{folder.name}: done before, skipped")
            return
        began, cpu_began, attempts = time.perf_counter(), time.process_time(), 1
        if accelerator.is_main_process:
            if (folder / SETTINGS).is_file():
                attempts += _require_same(folder, SETTINGS, record, config)["attempts"]
                fix = _memory_fix(folder)
                killed = f"; if memory ran out (signal 9), {fix}" if fix else ""
                accelerator.print(f"{folder.name}: goes on where it was interrupted{killed}")
            write_json(folder / SETTINGS, record | {"attempts": attempts})
            accelerator.print(f"{folder.name} …")
        accelerator.wait_for_everyone()
        facts = None
        try:
            if everyone or accelerator.is_main_process:
                facts = work(folder)
        except UserError:
            # What was refused before it made anything must not stand in the way of the next try.
            if accelerator.is_main_process and {path.name for path in folder.iterdir()} <= {SETTINGS, ESTIMATE}:
                shutil.rmtree(folder)
            raise
        except Exception as error:
            if is_out_of_memory(error) and (fix := _memory_fix(folder)):
                error.add_note(f"{FITS_WITH}{fix}")
            raise
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            record |= {
                "seconds": round(time.perf_counter() - began, 1),
                "cpu_seconds": round(time.process_time() - cpu_began, 1),
                "peak_memory_bytes": _peak_memory(accelerator.num_processes),
                "processes": accelerator.num_processes,
                "attempts": attempts,
                "facts": facts or {},
                "made": uuid.uuid4().hex,
            }
            write_json(folder / DONE, record)
            (folder / CHECKPOINT).unlink(missing_ok=True)
            peak = record["peak_memory_bytes"] / 2**30
            accelerator.print(f"{folder.name}: {record['seconds']:.0f} s, memory at most {peak:.1f} GiB")
        accelerator.wait_for_everyone()


def _memory_fix(folder: Path) -> str:
    """What takes less memory, by what was estimated when the stage began; "" if nothing was."""
    return read_json(folder / ESTIMATE)["fix"] if (folder / ESTIMATE).is_file() else ""


def stage_report(folder: Path) -> dict:
    """What `run_stage` noted of a finished stage: of ``inputs`` their marks, of ``sources`` their folders, ``facts``
    that its work returned, a mark of its own in ``made``, and what the last of the ``attempts`` took.
    """
    if folder == Path():
        raise UserError("the name of a stage's folder is empty; give the folder of a finished stage")
    if not (folder / DONE).is_file():
        raise UserError(f"{folder} is not a finished stage (no {DONE}); run the recipe that makes it first")
    return read_json(folder / DONE)


def stage_mark(folder: Path) -> str:
    """A name for the content of a finished stage, which no other stage shares."""
    report = stage_report(folder)
    # Earlier versions also noted, or noted only, a fingerprint of the settings.
    return f"{report.get('fingerprint', '')}{report.get('made', '')}"


def numbered(name: str, folders: list[str]) -> dict[str, str]:
    """Names for stages of one kind: ``name`` to the first folder, ``name_2`` to the second, and so on."""
    return {name if number == 1 else f"{name}_{number}": folder for number, folder in enumerate(folders, 1)}


def _plugin_files(config: Any) -> list[str]:
    """The user's own files of code that the settings name, as ``FILE.py:NAME``, or the environment does."""
    settings = config if isinstance(config, dict) else to_json(config)
    named = [value.rpartition(":")[0] for value in flat(settings).values() if isinstance(value, str)]
    named += os.environ.get(PLUGINS, "").split(",")
    return sorted({name for name in named if name.endswith(".py") and Path(name).is_file()})


def _peak_memory(processes: int) -> int:
    """Bytes at most: the peaks of this process, as many times as there are, and of its largest child, added up."""
    own, child = (resource.getrusage(kind).ru_maxrss for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return 1024 * (own * processes + child)


@contextmanager
def lock_for_run(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder until this one is through with it; all processes of a run call it.

    The run that is started after a killed launcher waits for the processes it left at work, and finds what they made.
    """
    with lock(folder, accelerator.print) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        yield


@contextmanager
def lock(folder: Path, describe: Callable[[str], None] = print) -> Iterator[None]:
    """Holds a folder (its parent is made) for the block; waits, and says so, while another process holds it."""
    with try_lock(folder) as free:
        if not free:
            describe(f"{folder.name}: another process is working on it; waiting for it to end")
        with nullcontext() if free else _lock_of(folder):
            yield


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Whether this process may make `path` now: False while another is at it; a process that dies releases its lock."""
    try:
        held = _lock_of(path).acquire(timeout=0)
    except Timeout:
        yield False
        return
    with held:
        yield True


def _lock_of(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.parent / f".{path.name}.lock")


def _require_same(folder: Path, file: str, record: dict, config: Any) -> dict:
    """What is written there; refuses other settings and other inputs."""
    there = read_json(folder / file)
    old, new = flat(there["settings"]), flat(record["settings"])
    compared = old.keys() | new.keys()
    if dataclasses.is_dataclass(config):
        compared -= flat(to_json(config)).keys() - new.keys()
        old = flat(outcome_settings(type(config)())) | old
    changed = [
        f"{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now"
        for key in sorted(compared)
        if old.get(key, "absent") != new.get(key, "absent")
    ]
    changed += [f"stage {name} is new here" for name in sorted(record["inputs"].keys() - there["inputs"].keys())]
    changed += [f"stage {name} is not read now" for name in sorted(there["inputs"].keys() - record["inputs"].keys())]
    changed += [
        f"stage {name} was made anew"
        for name in sorted(there["inputs"].keys() & record["inputs"].keys())
        if there["inputs"][name] != record["inputs"][name]
    ]
    # An older version did not note its data sets and the user's own files of code.
    for kind, what in (("data", "the data set"), ("code", "the file")):
        marks = there.get(kind, {})
        changed += [f"{what} {n} has changed" for n, mark in record[kind].items() if marks.get(n, mark) != mark]
    if changed:
        fix = "choose another --output, or delete that folder to make it anew"
        if (folder / FEATURES).is_dir():
            fix = f"choose another --output, with --cache={folder / FEATURES} to keep the features that are there"
        raise UserError(f"{folder} was made with other settings ({'; '.join(changed)}); {fix}")
    return there
