"""The parquet files of a data set as the audit reads them: one in memory at a time, faults are reported, not raised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deas_vla.data.audit.findings import ERROR, Finding, Findings, found, of_error
from deas_vla.data.lerobot.files import IMAGE_TYPES, is_list, plain, read_table, to_numpy
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.errors import UserError, as_user_error

if TYPE_CHECKING:
    import pyarrow as pa

# Lists of what was said at a row, of any number: nothing here reads them.
LANGUAGE = "language"
# What the rules of this project and LeRobot read besides the columns that info.json lists.
NEEDED = ("episode_index", "task_index")
BOOKKEEPING = (*NEEDED, "frame_index", "index", "timestamp")


def tables(folder: LerobotFolder, findings: Findings) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Each file with those of its columns that can be read, images left out.

    Args:
        folder: the data set.
        findings: gets missing and broken files, missing columns and wrong types.
    """
    try:
        files = folder.data_files()
    except UserError as error:
        findings.add(of_error(error, "missing-rows"))
        return
    for number, file in zip(folder.episodes if folder.episodic else [None] * len(files), files, strict=True):
        position = {"file": str(file.relative_to(folder.root)), "episodes": () if number is None else (number,)}
        if not file.is_file():
            findings.add(found("missing-rows", f"{position['file']} is missing", **position))
            continue
        try:
            names, table = _read(folder, file)
        except UserError as error:
            findings.add(of_error(error, "broken-rows", **position))
            continue
        listed = [name for name, feature in folder.features.items() if feature["dtype"] != "video"]
        for name in dict.fromkeys((*listed, *NEEDED)):
            if name not in names and (name in NEEDED or name not in BOOKKEEPING):
                message = f"column {name} is not in {position['file']}, info.json lists it"
                findings.add(found("missing-column", message, file=position["file"], column=name))
        columns = {}
        for name in table.column_names:
            problems = list(_type_problem(folder, name, table.column(name), position["file"]))
            findings.extend(problems)
            if all(problem.severity != ERROR for problem in problems):
                columns[name] = to_numpy(table.column(name))
        if not len(table):
            findings.add(found("no-rows", f"{position['file']} has no rows", **position))
        elif columns:
            yield file, columns


def _read(folder: LerobotFolder, file: Path) -> tuple[list[str], pa.Table]:
    """The names of all columns, and those columns that are looked at."""
    import pyarrow.parquet as pq

    with as_user_error(f"{file} cannot be read; copy it again"):
        names = pq.read_schema(file).names
    skipped = (*IMAGE_TYPES, LANGUAGE)
    listed = [name for name, feature in folder.features.items() if feature["dtype"] not in skipped]
    return names, read_table(file, [n for n in dict.fromkeys((*listed, *BOOKKEEPING)) if n in names])


def _type_problem(folder: LerobotFolder, name: str, column: pa.ChunkedArray, file: str) -> Iterator[Finding]:
    """Empty entries, vectors of another width or numbers of another kind than info.json says."""
    import pyarrow.compute as pc

    def problem(code: str, what: str) -> Finding:
        return found(code, f"column {name} {what}", file=file, column=name)

    if column.null_count:
        yield problem("empty-entries", f"has {column.null_count} empty entries")
        return
    column, widths = plain(column), []
    while is_list(column.type):
        # A row within a row may be empty: its width is None.
        widths.append(pc.unique(pc.list_value_length(column)).to_pylist())
        column = pc.list_flatten(column)
    feature = folder.features.get(name, {})
    if widths:
        wanted = math.prod(feature.get("shape", [next(iter(each), 0) for each in widths]))
        right = all(len(each) == 1 and each[0] is not None for each in widths)
        if not right or math.prod(each[0] for each in widths) != wanted:
            there = " by ".join(str(sorted(each, key=str)) for each in widths)
            yield problem("wrong-width", f"has {there} entries a row, info.json says {wanted}")
            return
    declared = feature.get("dtype")
    stored = {"float": "float32", "double": "float64"}.get(str(column.type), str(column.type))
    number = _kind(stored) in ("bool", "float", "int")
    if stored != (declared or stored) or not number:
        other = not number or _kind(stored) != _kind(declared)
        if number or declared != "string":
            code = "wrong-type" if other else "other-precision"
            yield problem(code, f"holds {column.type}, info.json says {declared or 'numbers'}")


def _kind(dtype: str) -> str:
    """``float32`` and ``float64`` are floats, ``uint8`` and ``int64`` are ints."""
    return dtype.rstrip("0123456789").removeprefix("u")


def counts(folder: LerobotFolder, lengths: dict[int, int], rows: int, findings: Findings) -> None:
    """What info.json and the list of episodes count, against the rows that each episode and all files have."""
    for key, there in (("total_frames", rows), ("total_episodes", len(lengths))):
        if key in folder.info and folder.info[key] != there:
            message = f"info.json says {key} {folder.info[key]}, there are {there}"
            findings.add(found("wrong-count", message, file="meta/info.json", column=key))
    if folder.episodic:
        listed = set(folder.data_files())
        for file in sorted(set((folder.root / "data").rglob("*.parquet")) - listed):
            name = str(file.relative_to(folder.root))
            message = f"{name} belongs to no episode of the list: it is not read"
            findings.add(found("unlisted-rows", message, file=name))
    where = "meta/episodes.jsonl" if folder.episodic else "meta/episodes"
    for number in sorted(folder.episodes.keys() | lengths.keys()):
        listed = folder.episodes[number]["length"] if number in folder.episodes else None
        if number not in lengths:
            message = f"episode {number} is in the list of episodes, its rows are not there"
        elif listed is None:
            message = f"episode {number} is not in the list of episodes"
        elif listed != lengths[number]:
            message = f"episode {number} has {lengths[number]} rows, the list of episodes says {listed}"
        else:
            continue
        findings.add(found("wrong-length", message, file=where, episodes=(number,)))
    short = tuple(number for number, length in lengths.items() if length < 2)
    if short:
        findings.add(found("too-short", f"episode {short[0]} has {lengths[short[0]]} rows", episodes=short))
