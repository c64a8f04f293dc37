"""Stages of a run: each has a folder, is skipped when it is done, and refuses to mix two configurations."""

import fcntl
import json
import os
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from accelerate import Accelerator

from deas_vla.config import fingerprint
from deas_vla.errors import UserError
from deas_vla.files import write_json

DONE = "stage.json"
SETTINGS = "settings.json"


def run_stage(
    accelerator: Accelerator,
    folder: Path,
    settings: dict,
    inputs: dict[str, Path],
    work: Callable[[Path], None],
    *,
    everyone: bool = False,
) -> None:
    """Runs one stage, goes on with it, or skips it.

    A stage is done when its folder holds ``stage.json``. It matches when its settings, and the stages it read from,
    have the fingerprint that is written there; a stage that is deleted and made again is another one, since code and
    packages may have changed. An interrupted stage left ``settings.json``; `work` finds its own blocks and
    checkpoints in the folder and goes on from them.

    Args:
        accelerator: Accelerate's handle on the processes.
        folder: where the stage keeps everything.
        settings: every setting that the outcome depends on, as JSON values.
        inputs: name to folder of the stages whose output is read; they must be done.
        work: does the stage, given its folder.
        everyone: all processes work (training); otherwise only the main one does and the others wait.

    Raises:
        UserError: if the folder holds the output of other settings, or an input is not done.
    """
    sources = {name: stage_mark(path) for name, path in inputs.items()}
    description = {"settings": settings, "inputs": sources}
    mark = fingerprint(description)
    description["sources"] = {name: str(path) for name, path in inputs.items()}
    with alone(accelerator, folder):
        if (folder / DONE).is_file():
            _require_same(folder, json.loads((folder / DONE).read_text()), description, mark)
            accelerator.print(f"{folder.name}: done before, skipped")
            return
        began, cpu_began, attempts = time.perf_counter(), time.process_time(), 1
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            if (folder / SETTINGS).is_file():
                before = json.loads((folder / SETTINGS).read_text())
                _require_same(folder, before, description, mark)
                attempts += before.get("attempts", 1)
                accelerator.print(f"{folder.name}: goes on where it was interrupted")
            write_json(folder / SETTINGS, {"fingerprint": mark, **description, "attempts": attempts})
            accelerator.print(f"{folder.name} …")
        accelerator.wait_for_everyone()
        with MemoryWatch(enabled=accelerator.is_main_process) as memory:
            if everyone or accelerator.is_main_process:
                work(folder)
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            facts = {
                "seconds": round(time.perf_counter() - began, 1),
                "cpu_seconds": round(time.process_time() - cpu_began, 1),
                "peak_memory_bytes": memory.peak,
                "processes": accelerator.num_processes,
                "attempts": attempts,
                "made": uuid.uuid4().hex,
            }
            write_json(folder / DONE, {"fingerprint": mark, **description, **facts})
            peak = memory.peak / 2**30
            accelerator.print(f"{folder.name}: {facts['seconds']:.0f} s, peak memory {peak:.1f} GiB")
        accelerator.wait_for_everyone()


def numbered(name: str, folders: list[str]) -> dict[str, str]:
    """Names for stages of one kind: ``name`` to the first folder, ``name_2`` to the second, and so on."""
    return {name if number == 1 else f"{name}_{number}": folder for number, folder in enumerate(folders, 1)}


@contextmanager
def alone(accelerator: Accelerator, folder: Path) -> Iterator[None]:
    """Keeps a second run out of a folder until this one is through with it; all processes of a run call it.

    A launcher that was killed may leave its processes at work. The run that is started after it waits, stage by
    stage, and finds what they made. The system releases the lock of a process that dies.
    """
    if not accelerator.is_main_process:
        accelerator.wait_for_everyone()
        yield
        return
    with sole_process(folder, accelerator.print):
        accelerator.wait_for_everyone()
        yield


@contextmanager
def sole_process(folder: Path, tell: Callable[[str], None] = print) -> Iterator[None]:
    """Holds a file lock on a folder (its parent is made) for the block; waits while another process holds it.

    Args:
        folder: what only one process may write at a time.
        tell: gets one line when there is somebody to wait for.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            tell(f"{folder.name}: process {lock.read() or '?'} is working on it; waiting for it to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether this process may make `path` now: False while another one is at it.

    Processes that go through the same list of things to make, each behind its claim, share the work however long each
    thing takes. The system releases the claim of a process that dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / f".{path.name}.claim").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def stage_report(folder: Path) -> dict:
    """What `run_stage` noted of a finished stage.

    Returns:
        ``fingerprint``, ``settings``, ``inputs`` (their fingerprints), ``sources`` (their folders), ``seconds``,
        ``cpu_seconds`` of the main process alone, ``peak_memory_bytes`` and ``processes``, all of the last of the
        ``attempts`` that it took; ``made``, which no two stages share.
    """
    if not (folder / DONE).is_file():
        raise UserError(f"{folder} is not a finished stage (no {DONE}); run the recipe that makes it first")
    return json.loads((folder / DONE).read_text())


def stage_mark(folder: Path) -> str:
    """Names the content of a finished stage: its settings, its inputs, and when it was made."""
    report = stage_report(folder)
    # Stages of earlier versions are named by their settings alone.
    return f"{report['fingerprint']}{report.get('made', '')}"


def _require_same(folder: Path, there: dict, description: dict, mark: str) -> None:
    if there["fingerprint"] == mark:
        return
    changed = []
    for part in ("settings", "inputs"):
        old, new = _flat(there[part]), _flat(description[part])
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                what = key if part == "settings" else f"stage {key}"
                values = "" if part == "inputs" else f": {old.get(key)!r} there, {new.get(key)!r} now"
                changed.append(f"{what}{values or ' was made anew'}")
    raise UserError(
        f"{folder} was made with other settings ({'; '.join(changed)}); "
        "choose another --output, or delete that folder to make it anew"
    )


def _flat(value: dict, prefix: str = "") -> dict:
    flat = {}
    for key, item in value.items():
        if isinstance(item, dict):
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat


class MemoryWatch:
    """Peak memory of this run, all its processes together, sampled as often as 2 % of a core allow.

    Proportional set size where the system tells it (pages that processes share are counted once), else the sum of
    resident sizes.
    """

    PAUSE, SHARE = 0.5, 0.02

    def __init__(self, enabled: bool = True):
        self.enabled = enabled
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        if self.enabled:
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        if self.enabled:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        # Under `accelerate launch` the processes are children of one launcher; without it, this process is the root.
        parent = me.parent()
        root = parent if parent is not None and "accelerate" in " ".join(parent.cmdline()) else me
        pause = self.PAUSE
        while not self._stop.wait(pause):
            began, total = time.thread_time(), 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except (psutil.Error, AttributeError):
                    continue
            self.peak = max(self.peak, total)
            # To add up the pages of large processes takes a while.
            pause = max(self.PAUSE, (time.thread_time() - began) / self.SHARE)
