"""Faults in the parquet files of a data set, read one at a time, and in the rows of one episode."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deas_vla.data.audit.findings import ERROR, WARNING, Finding, found
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.files import IMAGE_TYPES, is_list, plain, read_table, to_numpy
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout
from deas_vla.errors import UserError, as_user_error

if TYPE_CHECKING:
    import pyarrow as pa

# Lists of what was said at a row, of any number: nothing here reads them.
LANGUAGE = "language"
# What the rules of this project and LeRobot read besides the columns that info.json lists.
NEEDED = ("episode_index", "task_index")
BOOKKEEPING = (*NEEDED, "frame_index", "index", "timestamp")
# A step that is off by less than this share of its length is jitter of a clock.
JITTER = 0.1
# The whole episode's rate may be off by this share.
RATE_TOLERANCE = 0.02

# ---- files ------------------------------------------------------------------------------------------------------


def read_file(folder: LerobotFolder, file: Path, number: int | None) -> Generator[Finding, None, dict[str, np.ndarray]]:
    """The columns of a file that can be read, images left out; `number` is its episode, if it has only one."""
    import pyarrow.parquet as pq

    name = str(file.relative_to(folder.root))
    position = {"file": name, "episodes": () if number is None else (number,)}
    if not file.is_file():
        yield found("missing-rows", f"{name} is missing", **position)
        return {}
    dtypes = {key: feature["dtype"] for key, feature in folder.features.items()}
    read = [key for key, dtype in dtypes.items() if dtype not in (*IMAGE_TYPES, LANGUAGE)]
    try:
        with as_user_error(f"{file} cannot be read; copy it again"):
            there = pq.read_schema(file).names
        table = read_table(file, [key for key in dict.fromkeys((*read, *BOOKKEEPING)) if key in there])
    except UserError as error:
        yield found("broken-rows", error, **position)
        return {}
    listed = [key for key, dtype in dtypes.items() if dtype != "video" and key not in BOOKKEEPING]
    for key in (*listed, *NEEDED):
        if key not in there:
            yield found("missing-column", f"column {key} is not in {name}, info.json lists it", file=name, column=key)
    columns = {}
    for key in table.column_names:
        code, what = _type_problem(folder.features.get(key, {}), table.column(key))
        if code:
            yield found(code, f"column {key} {what}", file=name, column=key)
        if code in ("", "other-precision"):
            columns[key] = to_numpy(table.column(key))
    if len(table):
        return columns
    yield found("no-rows", f"{name} has no rows", **position)
    return {}


def _type_problem(feature: dict, column: pa.ChunkedArray) -> tuple[str, str]:
    """Empty entries, vectors of another width or numbers of another kind than info.json says: code and message."""
    import pyarrow.compute as pc

    if column.null_count:
        return "empty-entries", f"has {column.null_count} empty entries"
    column, widths, wanted = plain(column), [], math.prod(feature.get("shape", [1]))
    while is_list(column.type):
        # A row within a row may be empty: its width is None.
        widths.append(pc.unique(pc.list_value_length(column)).to_pylist())
        column = pc.list_flatten(column)
    uniform = all(len(each) == 1 and each[0] is not None for each in widths)
    if widths and not (uniform and math.prod(each[0] for each in widths) == wanted):
        there = " by ".join(str(sorted(each, key=str)) for each in widths)
        return "wrong-width", f"has {there} entries a row, info.json says {wanted}"
    stored = {"float": "float32", "double": "float64"}.get(str(column.type), str(column.type))
    declared = feature.get("dtype")
    number = _kind(stored) in ("bool", "float", "int")
    if declared in ((None, stored) if number else ("string",)):
        return "", ""
    code = "other-precision" if number and _kind(stored) == _kind(declared) else "wrong-type"
    return code, f"holds {column.type}, info.json says {declared or 'numbers'}"


def _kind(dtype: str) -> str:
    """``float32`` and ``float64`` are floats, ``uint8`` and ``int64`` are ints."""
    return dtype.rstrip("0123456789").removeprefix("u")


def counts(folder: LerobotFolder, lengths: dict[int, int], rows: int) -> Iterator[Finding]:
    """What info.json and the list of episodes count, against the rows that each episode and all files have."""
    for key, there in (("total_frames", rows), ("total_episodes", len(lengths))):
        if (said := folder.info.get(key, there)) != there:
            message = f"info.json says {key} {said}, there are {there}"
            yield found("wrong-count", message, file="meta/info.json", column=key)
    if folder.episodic:
        for file in sorted(set((folder.root / "data").rglob("*.parquet")) - set(folder.data_files())):
            name = str(file.relative_to(folder.root))
            yield found("unlisted-rows", f"{name} belongs to no episode of the list: it is not read", file=name)
    where = "meta/episodes.jsonl" if folder.episodic else "meta/episodes"
    listed = {number: row["length"] for number, row in folder.episodes.items()}
    for number in sorted(listed.keys() | lengths.keys()):
        there, said = lengths.get(number, "no readable"), listed.get(number, "nothing")
        if there != said:
            message = f"episode {number} has {there} rows, the list of episodes says {said}"
            yield found("wrong-length", message, file=where, episodes=(number,))
    if short := tuple(number for number, length in lengths.items() if length < 2):
        yield found("too-short", f"episode {short[0]} has {lengths[short[0]]} rows", episodes=short)


# ---- one episode ------------------------------------------------------------------------------------------------


def fault(part: Rows, code: str, message: str, column: str = "", severity: str = "") -> Finding:
    """A finding about one episode."""
    position = {"file": str(part.file), "column": column, "episodes": (part.number,)}
    return found(code, f"episode {part.number}: {message}", severity=severity, **position)


def flat(part: Rows, name: str) -> np.ndarray | None:
    """(rows,) of a column with one number a row, or None if it is absent."""
    return part.columns[name].reshape(len(part)) if name in part.columns else None


def numbering(part: Rows, first_index: int | None) -> Iterator[Finding]:
    """Rows that are lost or twice; `first_index` is what ``index`` should be in the first row, None if unknown."""
    for name, first in (("frame_index", 0), ("index", first_index)):
        values = flat(part, name)
        if values is None or first is None:
            continue
        wrong = np.flatnonzero(values != np.arange(first, first + len(part)))
        if len(wrong):
            # A part of a larger data set keeps the numbers that it had there.
            elsewhere = name == "index" and (np.diff(values) == 1).all()
            message = f"{name} is {int(values[wrong[0]])} at row {wrong[0]}, expected {first + wrong[0]}"
            yield fault(part, "index-elsewhere" if elsewhere else "index-gap", message, name)
            return


def times(part: Rows, rate_hz: float) -> Iterator[Finding]:
    """Timestamps that go back, and rates other than the declared one."""
    values = flat(part, "timestamp")
    if values is None or len(part) < 2 or not np.isfinite(values).all():
        return
    steps = np.diff(values.astype(np.float64))
    off = np.abs(steps * rate_hz - 1)
    if (steps <= 0).any():
        row = int((steps <= 0).argmax())
        message = f"timestamp {values[row]:g} s at row {row} is followed by {values[row + 1]:g} s"
        yield fault(part, "timestamps-not-increasing", message, "timestamp")
    elif abs((rate := float(1 / np.median(steps))) / rate_hz - 1) > RATE_TOLERANCE:
        message = f"its rows come at {rate:.4g} Hz, info.json says {rate_hz:g} Hz"
        yield fault(part, "wrong-rate", message, "timestamp")
    else:
        if off.max() > JITTER:
            row = int(off.argmax())
            message = f"{steps[row] * 1e3:.1f} ms between rows {row} and {row + 1}, a step is {1e3 / rate_hz:.1f} ms"
            yield fault(part, "timestamp-gap", message, "timestamp", ERROR if off.max() > 0.5 else "")
        if abs(values[0]) * rate_hz > JITTER:
            yield fault(part, "timestamps-start-late", f"timestamps start at {values[0]:g} s", "timestamp")


def finite(part: Rows, layout: Layout) -> Iterator[Finding]:
    """NaN and infinite numbers, by the name of their column."""
    named = [(position.name, position.key, position.index) for position in (*layout.state, *layout.action)]
    for name, key, index in (*named, ("", "next.reward", 0), ("", "timestamp", 0)):
        if key not in part.columns or part.columns[key].dtype.kind != "f":
            continue
        values = part.columns[key].reshape(len(part), -1)[:, index]
        for row in np.flatnonzero(~np.isfinite(values))[:1]:
            kind = "NaN" if np.isnan(values[row]) else "infinite"
            yield fault(part, "not-finite", f"{f'{key} {name}'.strip()} is {kind} at row {row}", name or key)


def instruction(part: Rows, key: str, tasks: dict[int, str]) -> Iterator[Finding]:
    """An instruction, of the column `key`, that is not there, is empty or changes."""
    numbers = flat(part, key)
    if numbers is None:
        return
    if not (text := tasks.get(int(numbers[0]))):
        problem = "is not in the list of tasks" if text is None else "is empty"
        yield fault(part, "missing-instruction", f"its instruction {int(numbers[0])} {problem}", key)
    if (numbers != numbers[0]).any():
        yield fault(part, "instruction-changes", "its instruction changes; only the first is used", key)


def step_labels(part: Rows, labels: LabelRules) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps,) success and (steps,) reward, or None if their columns are absent."""
    # An observation after the last action, as this project writes it, is no step.
    final = flat(part, "frame.is_final")
    steps = len(part) - int(final is not None and bool(final[-1]))
    if not steps or any(name not in part.columns for name in labels.columns):
        return None
    success, rewards = labels.of(part.columns, len(part))
    return success[:steps], rewards[:steps]


def ends(
    part: Rows, success: np.ndarray, rewards: np.ndarray, labels: LabelRules, succeeds_last: bool
) -> Iterator[Finding]:
    """Success, reward (of `step_labels`) and end that contradict each other.

    `succeeds_last`: a success must be the last step, as this project writes it.
    """
    steps, recorded = len(success), labels.reward == "column"
    done, truncated = flat(part, "next.done"), flat(part, "next.truncated")
    succeeded, ended = _first(success), steps if done is None else _first(done[:steps])
    if truncated is not None and truncated.any() and success.any():
        yield fault(part, "both-ends", "it is both truncated and successful", "next.truncated")
    if succeeded < steps - 1:
        message = f"success at row {succeeded}, {steps - 1 - succeeded} rows follow; they are not used"
        column = labels.columns[-1] if labels.columns else ""
        yield fault(part, "rows-after-success", message, column, ERROR if succeeds_last else "")
    if recorded and success.any() and not rewards[: succeeded + 1].any():
        message = f"success at row {succeeded}, but every next.reward up to there is 0"
        yield fault(part, "success-without-reward", message, "next.reward")
    if ended < steps - 1 and ended < succeeded:
        yield fault(part, "done-too-early", f"next.done at row {ended} of {steps}", "next.done")
    if done is not None and ended == succeeded == steps:
        message = "no row has next.done or success: it is taken for cut off at its last row"
        yield fault(part, "end-not-marked", message, "next.done")
    last = min(ended, succeeded)
    after = last + 1 + np.flatnonzero(rewards[last + 1 :])
    if recorded and len(after):
        # After a success the rows are not used; after an end by other means they are.
        message = f"next.reward is {rewards[after[0]]:g} at row {after[0]}, the episode ended at row {last}"
        yield fault(part, "reward-after-end", message, "next.reward", ERROR if ended < steps - 1 else WARNING)


def _first(flags: np.ndarray) -> int:
    """The first row that is set, or how many rows there are."""
    return int(np.append(flags != 0, True).argmax())
