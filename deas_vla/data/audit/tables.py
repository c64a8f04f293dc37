"""The parquet files of a data set as the audit reads them: one in memory at a time, faults are told, not raised."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from deas_vla.data.audit.findings import ERROR, NOTE, WARNING, Finding, Findings, of_error
from deas_vla.data.audit.rows import Rows
from deas_vla.data.lerobot.folder import IMAGE_TYPES, LerobotFolder, is_list, plain, read_table, to_numpy
from deas_vla.errors import UserError

# Lists of what was said at a row, of any number: nothing here reads them.
LANGUAGE = "language"
# What the rules of this project and LeRobot read besides the columns that info.json lists.
BOOKKEEPING = ("episode_index", "frame_index", "index", "timestamp", "task_index")


def tables(folder: LerobotFolder, findings: Findings) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Each file with those of its columns that can be read, pictures left out.

    Args:
        folder: the data set.
        findings: gets missing and broken files, missing columns and wrong types.
    """
    try:
        files = folder.data_files()
    except UserError as error:
        findings.add(of_error(error, "missing-rows"))
        return
    numbers = [(number,) for number in folder.episodes] if folder.episodic else [()] * len(files)
    for file, episode in zip(files, numbers, strict=True):
        place = {"file": str(file.relative_to(folder.root)), "episodes": episode}
        if not file.is_file():
            findings.add(
                Finding(
                    ERROR, "missing-rows", f"{place['file']} is missing", "copy the data set again", **place
                )
            )
            continue
        try:
            names = pq.read_schema(file).names
            listed = [
                name
                for name, feature in folder.features.items()
                if feature["dtype"] not in (*IMAGE_TYPES, LANGUAGE)
            ]
            wanted = [name for name in dict.fromkeys((*listed, *BOOKKEEPING)) if name in names]
            table = read_table(file, wanted)
        except (UserError, OSError, pa.ArrowException) as error:
            problem = error if isinstance(error, UserError) else UserError(_unreadable(file, error))
            findings.add(of_error(problem, "broken-rows", **place))
            continue
        findings.extend(_missing(folder, names, place["file"]))
        columns = {}
        for name in wanted:
            problems = list(_type_problems(folder, name, table.column(name), place["file"]))
            findings.extend(problems)
            if not any(problem.severity == ERROR for problem in problems):
                columns[name] = to_numpy(table.column(name))
        if not len(table):
            findings.add(Finding(ERROR, "no-rows", f"{place['file']} has no rows", "leave it out", **place))
        elif columns:
            yield file, columns


def episodes_of(
    folder: LerobotFolder, file: Path, columns: dict[str, np.ndarray], first_rows: dict[int, int]
) -> Iterator[Rows]:
    """The episodes in one file, in the order in which they lie there.

    Args:
        folder: the data set.
        file: the file.
        columns: what could be read of it.
        first_rows: the ``index`` of the first row of each episode in the list of episodes.
    """
    rows = len(next(iter(columns.values())))
    numbers = columns.get("episode_index")
    if numbers is None:
        return
    numbers = numbers.reshape(rows)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    for start, end in zip(starts, np.append(starts[1:], rows), strict=True):
        number = int(numbers[start])
        part = {name: values[start:end] for name, values in columns.items()}
        yield Rows(number, str(file.relative_to(folder.root)), part, first_rows.get(number))


def first_rows(folder: LerobotFolder) -> dict[int, int]:
    """The ``index`` with which each episode should begin, by the list of episodes."""
    ends = itertools.accumulate((meta.length for meta in folder.episodes.values()), initial=0)
    return dict(zip(folder.episodes, ends, strict=False))


def _unreadable(file: Path, error: Exception) -> str:
    return f"{file} cannot be read ({' '.join(str(error).split())}); copy it again"


def _missing(folder: LerobotFolder, names: list[str], file: str) -> Iterator[Finding]:
    listed = [name for name, feature in folder.features.items() if feature["dtype"] != "video"]
    for name in dict.fromkeys((*listed, "episode_index", "task_index")):
        if name not in names and (name not in BOOKKEEPING or name in ("episode_index", "task_index")):
            yield Finding(
                ERROR, "missing-column", f"column {name} is not in {file}, info.json lists it",
                "record the data set again, or take the column out of info.json", file, name,
            )  # fmt: skip


def _type_problems(folder: LerobotFolder, name: str, column: pa.ChunkedArray, file: str) -> Iterator[Finding]:
    """Empty entries, vectors of another width and numbers of another kind than info.json says."""
    if column.null_count:
        yield Finding(
            ERROR, "empty-entries", f"column {name} has {column.null_count} empty entries",
            "record the episodes again or leave them out", file, name,
        )  # fmt: skip
        return
    column, widths = plain(column), []
    while is_list(column.type):
        # A row within a row may be empty: its width is None.
        widths.append(pc.unique(pc.list_value_length(column)).to_pylist())
        column = pc.list_flatten(column)
    kind = column.type
    if widths:
        declared = folder.features.get(name, {}).get("shape", [next(iter(each), 0) for each in widths])
        wanted = int(np.prod(declared))
        if any(len(each) != 1 or each[0] is None for each in widths) or _product(widths) != wanted:
            there = " by ".join(str(sorted(each, key=str)) for each in widths)
            yield Finding(
                ERROR, "wrong-width", f"column {name} has {there} entries a row, info.json says {wanted}",
                "record the data set again, or correct info.json", file, name,
            )  # fmt: skip
            return
    declared = folder.features.get(name, {}).get("dtype")
    stored = _kind(kind)
    if stored is None and declared == "string":
        return
    if stored is None or (declared is not None and stored != _kind_of_name(declared)):
        yield Finding(
            ERROR, "wrong-type", f"column {name} holds {kind}, info.json says {declared or 'numbers'}",
            "write the column with the type of info.json", file, name,
        )  # fmt: skip
    elif (
        declared is not None
        and {"float": "float32", "double": "float64"}.get(str(kind), str(kind)) != declared
    ):
        yield Finding(
            NOTE, "other-precision", f"column {name} holds {kind}, info.json says {declared}", "", file, name
        )


def _product(widths: list[list[int]]) -> int:
    return int(np.prod([each[0] for each in widths]))


def _kind(kind: pa.DataType) -> str | None:
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_floating(kind):
        return "float"
    return "int" if pa.types.is_integer(kind) else None


def _kind_of_name(name: str) -> str:
    return name.rstrip("0123456789").removeprefix("u")


def counts(folder: LerobotFolder, lengths: dict[int, int], rows: int, findings: Findings) -> None:
    """What info.json and the list of episodes count, against what is there.

    Args:
        folder: the data set.
        lengths: rows of each episode that was found.
        rows: of all files.
        findings: gets what differs.
    """
    mend = "copy the data set again, or correct the number"
    for key, there in (("total_frames", rows), ("total_episodes", len(lengths))):
        if key in folder.info and folder.info[key] != there:
            findings.add(
                Finding(
                    ERROR, "wrong-count", f"info.json says {key} {folder.info[key]}, there are {there}", mend,
                    "meta/info.json", key,
                )
            )  # fmt: skip
    if folder.episodic:
        files = {str(file) for file in (folder.root / "data").rglob("*.parquet")}
        for file in sorted(files - {str(file) for file in folder.data_files()}):
            name = str(Path(file).relative_to(folder.root))
            findings.add(
                Finding(
                    WARNING, "unlisted-rows", f"{name} belongs to no episode of the list: it is not read",
                    "add the episode to meta/episodes.jsonl, or delete the file", name,
                )
            )  # fmt: skip
    listed = {number: meta.length for number, meta in folder.episodes.items()}
    where = "meta/episodes.jsonl" if folder.episodic else "meta/episodes"
    for number in sorted(listed.keys() | lengths.keys()):
        if number not in lengths:
            message = f"episode {number} is in the list of episodes, its rows are not there"
        elif number not in listed:
            message = f"episode {number} is not in the list of episodes"
        elif listed[number] != lengths[number]:
            message = (
                f"episode {number} has {lengths[number]} rows, the list of episodes says {listed[number]}"
            )
        else:
            continue
        findings.add(Finding(ERROR, "wrong-length", message, mend, where, "", (number,)))
    ends = [number for number, length in lengths.items() if length < 2]
    if ends:
        findings.add(
            Finding(
                WARNING, "too-short", f"episode {ends[0]} has {lengths[ends[0]]} rows", "leave it out",
                "", "", tuple(ends),
            )
        )  # fmt: skip
