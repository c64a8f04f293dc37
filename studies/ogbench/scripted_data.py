"""Makes OGBench's manipulation data sets: several processes, each trajectory kept as it is finished.

The result is a function of the data set's name, the seed and the amount, not of the number of processes or of how
often the work was interrupted: the files have the same SHA-256. (With the same packages on the same kind of
processor: physics engines promise no more.)
"""

import importlib.metadata
import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tqdm import tqdm

from deas_vla.errors import UserError, require
from deas_vla.files import atomic_path, sha256_of, write_json
from studies.ogbench.data import COLUMNS, OGBenchData, write_npz
from studies.ogbench.experts import facts

# Rows of a trajectory in OGBench; the last one has no successor.
ROWS = 1001
# One trajectory for validation for so many for training.
TRAIN_PER_VALIDATION = 10
PACKAGES = ("ogbench", "mujoco", "dm-control", "gymnasium", "numpy")


def make_dataset(name: str, transitions: int, seed: int, folder: Path, workers: int, rows: int = ROWS) -> Path:
    """Makes NAME.npz and NAME-val.npz (a tenth as much again), or finds them made before.

    NAME.json beside them says how they were made. What an interrupted call finished lies in ``NAME.parts`` and is
    not made again.

    Args:
        name: of the data set, such as ``cube-single-play-v0``.
        transitions: training transitions, a multiple of ``rows - 1``; OGBench has a million for most data sets.
        seed: of the data set; 0 or more.
        folder: where the files go.
        workers: processes.
        rows: rows a trajectory.

    Returns:
        The path of NAME.npz.

    Raises:
        UserError: if the name or a number is impossible, ogbench is not installed, or the files were made with
            other settings, by someone else, or have changed since.
    """
    settings = {"dataset": name, "seed": seed, "transitions": transitions, "rows": rows}
    settings["parameters"] = facts(name)
    if seed < 0:
        raise UserError(f"--seed={seed} must be at least 0")
    if workers < 1:
        raise UserError(f"--workers={workers} must be at least 1")
    if rows < 2 or transitions < 1 or transitions % (rows - 1):
        raise UserError(f"--transitions={transitions} must be a multiple of {max(rows, 2) - 1}: one trajectory")
    # It brings accelerate and torch, which take longer to import than a wrong setting to be told.
    from deas_vla.training.stages import lock

    train = Path(folder) / f"{name}.npz"
    with lock(train):
        if not _made_before(train, settings):
            _make(train, settings, workers)
    return train


def _made_before(train: Path, settings: dict) -> bool:
    """Whether the files are there, made with these settings and not changed since."""
    about = train.with_suffix(".json")
    if not about.is_file():
        if train.exists() and not _parts(train).exists():
            raise UserError(
                f"{train} is there, but not {about.name}, which says how it was made; choose another --output"
            )
        return False
    there = json.loads(about.read_text(encoding="utf-8"))
    _require_same(train, there["settings"], settings)
    for file, facts_of_file in there["files"].items():
        path = train.with_name(file)
        if not path.is_file() or sha256_of(path) != facts_of_file["sha256"]:
            raise UserError(f"{path} is missing or has changed since it was made; delete {about} to make it anew")
    return True


def _make(train: Path, settings: dict, workers: int) -> None:
    require("ogbench", "ogbench")
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    parts, about = _parts(train), train.with_suffix(".json")
    begun = parts / "settings.json"
    if begun.is_file():
        _require_same(parts, json.loads(begun.read_text(encoding="utf-8")), settings | {"versions": versions})
    write_json(begun, settings | {"versions": versions})

    trajectories = settings["transitions"] // (settings["rows"] - 1)
    numbers = {"train": trajectories, "val": max(1, trajectories // TRAIN_PER_VALIDATION)}
    files = {split: [parts / f"{split}-{i:05d}.safetensors" for i in range(n)] for split, n in numbers.items()}
    _play([file for split in files.values() for file in split], settings, workers)

    written = {}
    for split, path in {"train": train, "val": train.with_name(f"{train.stem}-val.npz")}.items():
        data = _joined(files[split])
        write_npz(path, data)
        written[path.name] = {"rows": len(data), "trajectories": numbers[split], "sha256": sha256_of(path)}
    write_json(about, {"settings": settings, "versions": versions, "files": written})
    shutil.rmtree(parts)


def _play(files: list[Path], settings: dict, workers: int) -> None:
    """Makes the trajectories' files that are not there yet."""
    wanted = [file for file in files if not file.is_file()]
    name, seed, rows = settings["dataset"], settings["seed"], settings["rows"]
    bar = tqdm(total=len(files), initial=len(files) - len(wanted), desc=name, unit="trajectory", dynamic_ncols=True)
    with bar, _Workers([name, str(seed), str(rows)], min(workers, len(wanted))) as pool:
        for _ in pool.answers(wanted):
            bar.update()


def _joined(files: list[Path]) -> OGBenchData:
    parts = [load_file(file) for file in files]
    return OGBenchData(**{c: np.concatenate([p[c] for p in parts]) for c in COLUMNS if c in parts[0]})


def _parts(train: Path) -> Path:
    return train.with_suffix(".parts")


def _require_same(path: Path, there: dict, now: dict) -> None:
    changed = [f"{k}: {there.get(k)!r} there, {v!r} now" for k, v in now.items() if there.get(k) != v]
    if changed:
        raise UserError(
            f"{path} was made with other settings ({'; '.join(changed)}); choose another --output, or delete it"
        )


class _Workers:
    """Processes that play trajectories; use as a context manager.

    They are plain ``python -m`` processes on pipes: the script that starts them is not imported again. One whose
    parent is gone reads the end of its input, or cannot write, and ends. Only the parent writes files.
    """

    def __init__(self, arguments: list[str], number: int):
        command = [sys.executable, "-W", "ignore", "-m", "studies.ogbench.experts", *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        self._processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) for _ in range(number)]
        self._idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
        for process in self._processes:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(max(1, number))

    def answers(self, files: list[Path]) -> Iterator[None]:
        """Makes these files; yields once for each."""
        return self._threads.map(self._answer, files)

    def _answer(self, file: Path) -> None:
        process = self._idle.get()
        split, _, index = file.stem.partition("-")
        try:
            process.stdin.write(f"{split} {index}\n".encode())
            process.stdin.flush()
        except BrokenPipeError:
            # The reason is told below.
            pass
        length = int.from_bytes(process.stdout.read(8), "little")
        content = process.stdout.read(length)
        if not length or len(content) < length:
            raise RuntimeError(f"a worker ended with status {process.wait()}; its own message is above")
        self._idle.put(process)
        with atomic_path(file) as temporary:
            temporary.write_bytes(content)

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_) -> None:
        # Ended first, so that threads that wait for them wake up.
        for process in self._processes:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            process.stdin.close()
            process.stdout.close()
