"""The rows of a data set, and every fault in them: the audit reports all, the reader refuses the first error."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.contract import Contract
from deas_vla.data.labels import SUCCESS_RULES, LabelRules
from deas_vla.data.lerobot import FRAME_MARKS
from deas_vla.data.lerobot.columns import ColumnFacts, against_columns
from deas_vla.data.lerobot.files import IMAGE_TYPES, as_declared, kind_of, read_table
from deas_vla.data.lerobot.findings import ERROR, WARNING, Finding, found
from deas_vla.data.lerobot.folder import EPISODES_WORTH_A_BAR, LerobotFolder, Rows, split_episodes
from deas_vla.data.lerobot.layout import KEYS, Layout, gather
from deas_vla.errors import UserError, as_user_error

LANGUAGE = "language"  # lists of what was said at a row, of any number: nothing here reads them
# Columns that number rows, episodes and instructions, whether info.json lists them or not.
COUNTERS = ("episode_index", "task_index", "frame_index", "index")
# Columns that are read where they are there and hold what they hold in data of this project; others may call a text so.
OPTIONAL = {
    "timestamp": ("float",),
    "next.done": ("bool", "int", "float"),
    "next.truncated": ("bool", "int", "float"),
    "frame.is_fresh": ("bool",),
    "frame.is_final": ("bool",),
    "scene": ("int",),
}
JITTER = 0.1  # a step that is off by less than this share of its length is jitter of a clock
RATE_TOLERANCE = 0.02  # the whole episode's rate may be off by this share


def read_rows(
    folder: LerobotFolder, layout: Layout, labels: LabelRules, *, others: bool = False, desc: str = ""
) -> Generator[Finding, None, list[Rows]]:
    """One pass over all rows; yields their faults.

    Returns the rows of each episode as they lie in the files, with the columns that are read, as info.json declares
    them; a column with a fault is left out. The layout is that of the contract, if there is one; the columns of
    `labels` must be in info.json. `others`: look into the columns that nothing here reads as well; their faults are
    warnings. `desc`: what a progress bar is called; none without.
    """
    used, tasks = _used(folder, layout, labels), None
    if not is_text(folder, layout.instruction):
        try:
            tasks = folder.tasks
        except UserError as error:
            yield found("missing-tasks", error)
    ends = itertools.accumulate((row["length"] for row in folder.episodes.values()), initial=0)
    first_index = dict(zip(folder.episodes, ends, strict=False))
    try:
        files = folder.data_files()
    except UserError as error:
        yield found("missing-rows", error)
        return []
    parts: list[Rows] = []
    lengths: dict[int, int] = {}
    total, few = 0, not desc or len(folder.episodes) < EPISODES_WORTH_A_BAR
    with tqdm(total=len(folder.episodes), desc=desc, disable=few, dynamic_ncols=True) as bar:
        for file, only in zip(files, folder.episodes if folder.episodic else itertools.repeat(None), strict=False):
            columns, rows = yield from _read_file(folder, layout, file, only, used, others)
            total += rows
            if "episode_index" not in columns:
                continue
            for part in split_episodes(file, columns, str(file.relative_to(folder.root))):
                if part.number in lengths:
                    yield fault(part, "episode-twice", f"it begins again in {part.file.name}", "episode_index")
                elif only not in (None, part.number):
                    yield fault(part, "wrong-number", f"it lies in the file of episode {only}", "episode_index")
                lengths[part.number] = lengths.get(part.number, 0) + len(part)
                yield from _episode(folder, layout, labels, part, tasks, first_index.get(part.number))
                parts.append(part)
                bar.update()
    yield from _counts(folder, lengths, total)
    return parts


def _used(folder: LerobotFolder, layout: Layout, labels: LabelRules) -> dict[str, dict]:
    """The columns that are read, and what info.json declares of them: dtype and shape."""
    used = {key: folder.features[key] for key in layout.keys}
    single = {key: folder.features[key] for key in labels.columns if key in folder.features}
    counters = set(COUNTERS) - ({"task_index"} if layout.instruction != "task_index" else set())
    single |= {key: {"dtype": "int64"} for key in counters}
    single[layout.instruction] = {"dtype": "string" if is_text(folder, layout.instruction) else "int64"}
    for key, kinds in OPTIONAL.items():
        if key in FRAME_MARKS and not folder.marks_frames:
            continue
        if key in folder.features and kind_of(folder.features[key]["dtype"]) in kinds:
            single.setdefault(key, folder.features[key])
    return used | {key: {"dtype": feature["dtype"], "shape": [1]} for key, feature in single.items()}


def is_text(folder: LerobotFolder, key: str) -> bool:
    """Whether the column of the instruction holds the sentences, not their numbers in the list of tasks."""
    return folder.features.get(key, {}).get("dtype") == "string"


def instruction_of(part: Rows, key: str, tasks: dict[int, str]) -> str | None:
    """The instruction of an episode, of its first row; None if the list of tasks lacks it."""
    first = part.columns[key].reshape(len(part))[0]
    return first if isinstance(first, str) else tasks.get(int(first))


def has_final(part: Rows) -> bool:
    """Whether the last row is an observation after the last action, as this project writes it: no step."""
    final = flat(part, "frame.is_final")
    return final is not None and bool(final[-1])


def steps_of(part: Rows, success: np.ndarray) -> int:
    """How many steps an episode has, whose (rows,) success is known.

    A success ends it, whatever was recorded after it. Without one its last row is the last observation, which a timeout
    bootstraps from: no step follows it.
    """
    return int(success.argmax()) + 1 if success.any() and not has_final(part) else len(part) - 1


def frames_of(part: Rows, success: np.ndarray, image_every: int = 1) -> np.ndarray:
    """(F,) the rows of an episode whose images are used.

    Data of this project say which images were rendered at their own row; of others every `image_every`-th is used, and
    the last observation.
    """
    fresh = flat(part, "frame.is_fresh")
    fresh = np.arange(len(part)) % image_every == 0 if fresh is None else fresh.copy()
    if has_final(part):
        return np.flatnonzero(fresh)
    if success.any():
        return np.flatnonzero(fresh[: steps_of(part, success)])
    fresh[-1] = True
    return np.flatnonzero(fresh)


def _read_file(
    folder: LerobotFolder, layout: Layout, file: Path, number: int | None, used: dict[str, dict], others: bool
) -> Generator[Finding, None, tuple[dict[str, np.ndarray], int]]:
    """The used columns of a file that can be read, and its rows; `number` is its episode, if it has only one."""
    import pyarrow.parquet as pq

    name = str(file.relative_to(folder.root))
    position = {"file": name, "episodes": () if number is None else (number,)}
    if not file.is_file():
        yield found("missing-rows", f"{name} is missing", **position)
        return {}, 0
    dtypes = {key: feature["dtype"] for key, feature in folder.features.items()}
    listed = [key for key, dtype in dtypes.items() if dtype != "video"]
    read = [key for key in listed if dtypes[key] not in (*IMAGE_TYPES, LANGUAGE)] if others else []
    try:
        with as_user_error(f"{file} cannot be read; copy it again"):
            there = pq.read_schema(file).names
        table = read_table(file, [key for key in dict.fromkeys((*used, *read)) if key in there])
    except UserError as error:
        yield found("broken-rows", error, **position)
        return {}, 0
    needed = [key for key in (*used, *layout.cameras.values()) if key in listed]
    needed = list(dict.fromkeys((*needed, "episode_index", layout.instruction)))
    for key in dict.fromkeys((*needed, *listed)) if others else needed:
        if key not in there:
            message = f"column {key} is not in {name}, info.json lists it"
            severity = "" if key in needed else WARNING
            yield found("missing-column", message, severity=severity, file=name, column=key)
    columns = {}
    for key in table.column_names:
        text = key == layout.instruction or key not in used
        values, code, what = as_declared(table.column(key), used.get(key) or folder.features[key], text=text)
        if code:
            severity = "" if key in used or values is not None else WARNING
            yield found(code, f"column {key} {what}", severity=severity, file=name, column=key)
        if key in used and values is not None:
            columns[key] = values
    if not len(table):
        # A file of v3 with no rows takes none away: the list of episodes says whether some are missing.
        yield found("no-rows", f"{name} has no rows", severity="" if folder.episodic else WARNING, **position)
        return {}, 0
    return columns, len(table)


def _counts(folder: LerobotFolder, lengths: dict[int, int], rows: int) -> Iterator[Finding]:
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


def column_facts(layout: Layout, parts: list[Rows]) -> dict[str, ColumnFacts]:
    """Facts of ``state`` and ``action``, in the order of a layout, over the episodes that have all of their columns."""
    parts = [part for part in parts if all(key in part.columns for key in layout.keys)]
    whole = {key: np.concatenate([part.columns[key] for part in parts]) for key in layout.keys if parts}
    facts = {what: whole and ColumnFacts.of(gather(getattr(layout, what), whole)) for what in KEYS}
    return {what: each for what, each in facts.items() if each}


def beyond_contract(facts: dict[str, ColumnFacts], contract: Contract, whose: str) -> Iterator[Finding]:
    """Numbers, as `column_facts` gives them, that a contract does not allow; `whose` it is, for the message."""
    for what, each in facts.items():
        yield from against_columns(each, getattr(contract, what), what, whose)


def _episode(
    folder: LerobotFolder,
    layout: Layout,
    labels: LabelRules,
    part: Rows,
    tasks: dict[int, str] | None,
    first_index: int | None,
) -> Iterator[Finding]:
    yield from numbering(part, first_index)
    yield from times(part, folder.rate_hz)
    yield from finite(part, layout, labels)
    if layout.instruction in part.columns and (tasks is not None or is_text(folder, layout.instruction)):
        yield from instruction(part, layout.instruction, tasks or {})
    if any(name not in part.columns for name in labels.columns):
        return
    if wrong := list(flags(part, labels)):
        yield from wrong
        return
    success, rewards = labels.of(part.columns, len(part))
    if steps_of(part, success) < 1:
        yield fault(part, "too-short", f"it has no steps: {len(part)} rows without success", severity=ERROR)
    elif not len(frames_of(part, success)):
        yield fault(part, "missing-image", "no row of it says that it has an image of its own", "frame.is_fresh")
    elif np.isfinite(rewards).all():
        yield from ends(part, *step_labels(part, labels), labels, "frame.is_final" in part.columns)
    if len(part) < 2:
        yield fault(part, "too-short", f"it has {len(part)} rows")


def fault(part: Rows, code: str, message: str, column: str = "", severity: str = "") -> Finding:
    """A finding about one episode."""
    position = {"file": part.name, "column": column, "episodes": (part.number,)}
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


def finite(part: Rows, layout: Layout, labels: LabelRules) -> Iterator[Finding]:
    """NaN and infinite numbers, by the name of their column."""
    named = [(position.name, position.key, position.index) for position in (*layout.state, *layout.action)]
    for name, key, index in (*named, *(("", key, 0) for key in (*labels.columns, "timestamp"))):
        if key not in part.columns or part.columns[key].dtype.kind != "f":
            continue
        values = part.columns[key].reshape(len(part), -1)[:, index]
        for row in np.flatnonzero(~np.isfinite(values))[:1]:
            kind = "NaN" if np.isnan(values[row]) else "infinite"
            yield fault(part, "not-finite", f"{f'{key} {name}'.strip()} is {kind} at row {row}", name or key)


def instruction(part: Rows, key: str, tasks: dict[int, str]) -> Iterator[Finding]:
    """An instruction, of the column `key`, that is not there, is empty or changes."""
    values, text = part.columns[key].reshape(len(part)), instruction_of(part, key, tasks)
    if text is None or not text.strip():
        problem = "is not in the list of tasks" if text is None else "is empty"
        yield fault(part, "missing-instruction", f"its instruction {values[0]} {problem}", key)
    if (values != values[0]).any():
        yield fault(part, "instruction-changes", "its instruction changes; only the first is used", key)


def flags(part: Rows, labels: LabelRules) -> Iterator[Finding]:
    """A column that says what succeeded and holds more than yes and no: a small probability is no success."""
    name = SUCCESS_RULES[labels.success]
    if name in (None, "next.reward"):
        return
    values = flat(part, name)
    for row in np.flatnonzero((values != 0) & (values != 1))[:1]:
        yield fault(part, "not-a-flag", f"{name} is {values[row]:g} at row {row}, neither 0 nor 1", name)


def step_labels(part: Rows, labels: LabelRules) -> tuple[np.ndarray, np.ndarray] | None:
    """(steps,) success and (steps,) reward, or None if their columns are absent."""
    steps = len(part) - has_final(part)
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
        # Held to the last row, it says that the end went on being recorded; else a second episode may follow.
        severity = WARNING if (done[ended:steps] != 0).all() else ""
        yield fault(part, "done-too-early", f"next.done at row {ended} of {steps}", "next.done", severity)
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
