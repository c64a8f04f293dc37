"""Faults in the rows of one episode: numbering, times, numbers that are none, rewards, success and the end."""

from collections.abc import Iterator

import numpy as np

from deas_vla.data.audit.findings import ERROR, WARNING, Finding, found
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.folder import Rows
from deas_vla.data.lerobot.layout import Layout

# A step that is off by less than this share of its length is jitter of a clock.
JITTER = 0.1
# The whole episode's rate may be off by this share.
RATE_TOLERANCE = 0.02


def flat(rows: Rows, name: str) -> np.ndarray | None:
    """(rows,) of a column with one number a row, or None if it is absent."""
    return rows.columns[name].reshape(len(rows)) if name in rows.columns else None


def steps_of(rows: Rows) -> int:
    """Rows that are steps: all but an observation after the last action, as this project writes it."""
    final = flat(rows, "frame.is_final")
    return len(rows) - int(final is not None and bool(final[-1]))


def fault(rows: Rows, code: str, message: str, column: str = "", severity: str = "") -> Finding:
    """A finding about one episode, whose file is named as `rows` has it."""
    position = {"file": str(rows.file), "column": column, "episodes": (rows.number,)}
    return found(code, f"episode {rows.number}: {message}", severity=severity, **position)


def numbering(rows: Rows, first_index: int | None) -> Iterator[Finding]:
    """Rows that are lost or twice; `first_index` is what ``index`` should be in the first row, None if unknown."""
    for name, first in (("frame_index", 0), ("index", first_index)):
        values = flat(rows, name)
        if values is None or first is None:
            continue
        wrong = np.flatnonzero(values != np.arange(first, first + len(rows)))
        if len(wrong):
            # A part of a larger data set keeps the numbers that it had there.
            part = name == "index" and (np.diff(values) == 1).all()
            message = f"{name} is {int(values[wrong[0]])} at row {wrong[0]}, expected {first + wrong[0]}"
            yield fault(rows, "index-elsewhere" if part else "index-gap", message, name)
            return


def times(rows: Rows, rate_hz: float) -> Iterator[Finding]:
    """Timestamps that go back, and rates other than the declared one."""
    values = flat(rows, "timestamp")
    if values is None or len(rows) < 2 or not np.isfinite(values).all():
        return
    steps = np.diff(values.astype(np.float64))
    if (steps <= 0).any():
        row = int((steps <= 0).argmax())
        message = f"timestamp {values[row]:g} s at row {row} is followed by {values[row + 1]:g} s"
        yield fault(rows, "timestamps-not-increasing", message, "timestamp")
        return
    rate = float(1 / np.median(steps))
    if abs(rate / rate_hz - 1) > RATE_TOLERANCE:
        message = f"its rows come at {rate:.4g} Hz, info.json says {rate_hz:g} Hz"
        yield fault(rows, "wrong-rate", message, "timestamp")
        return
    off = np.abs(steps * rate_hz - 1)
    if off.max() > JITTER:
        row = int(off.argmax())
        message = f"{steps[row] * 1e3:.1f} ms between rows {row} and {row + 1}, a step is {1e3 / rate_hz:.1f} ms"
        yield fault(rows, "timestamp-gap", message, "timestamp", ERROR if off.max() > 0.5 else "")
    if abs(values[0]) * rate_hz > JITTER:
        yield fault(rows, "timestamps-start-late", f"timestamps start at {values[0]:g} s", "timestamp")


def finite(rows: Rows, layout: Layout) -> Iterator[Finding]:
    """NaN and infinite numbers, by the name of their column."""
    named = [(position.name, position.key, position.index) for position in (*layout.state, *layout.action)]
    named += [("", key, 0) for key in ("next.reward", "timestamp")]
    for name, key, index in named:
        if key not in rows.columns or rows.columns[key].dtype.kind != "f":
            continue
        values = rows.columns[key].reshape(len(rows), -1)[:, index]
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            kind = "NaN" if np.isnan(values[row]) else "infinite"
            yield fault(rows, "not-finite", f"{f'{key} {name}'.strip()} is {kind} at row {row}", name or key)


def rewards_and_end(rows: Rows, labels: LabelRules, ours: bool) -> Iterator[Finding]:
    """Success, reward and end that contradict each other; `ours` is written by this project and ends with success."""
    steps = steps_of(rows)
    if any(name not in rows.columns for name in labels.columns) or not steps:
        return
    success, rewards = (values[:steps] for values in labels.of(rows.columns, len(rows)))
    if not np.isfinite(rewards).all():
        return
    succeeded = int(success.argmax()) if success.any() else steps
    yield from _success(rows, success, rewards, labels, succeeded, ours)
    done, ended = flat(rows, "next.done"), steps
    if done is not None:
        ended = int(done[:steps].argmax()) if done[:steps].any() else steps
        if ended < steps - 1 and ended < succeeded:
            yield fault(rows, "done-too-early", f"next.done at row {ended} of {steps}", "next.done")
        if ended == succeeded == steps:
            message = "no row has next.done or success: it is taken for cut off at its last row"
            yield fault(rows, "end-not-marked", message, "next.done")
    last = min(ended, succeeded)
    after = last + 1 + np.flatnonzero(rewards[last + 1 :])
    if len(after) and labels.reward == "column":
        # After a success the rows are not used; after an end by other means they are.
        message = f"next.reward is {rewards[after[0]]:g} at row {after[0]}, the episode ended at row {last}"
        severity = ERROR if ended < steps - 1 else WARNING
        yield fault(rows, "reward-after-end", message, "next.reward", severity)


def _success(
    rows: Rows, success: np.ndarray, rewards: np.ndarray, labels: LabelRules, at: int, ours: bool
) -> Iterator[Finding]:
    truncated = flat(rows, "next.truncated")
    if truncated is not None and truncated.any() and success.any():
        yield fault(rows, "both-ends", "it is both truncated and successful", "next.truncated")
    if at < len(success) - 1:
        message = f"success at row {at}, {len(success) - 1 - at} rows follow; they are not used"
        column = labels.columns[-1] if labels.columns else ""
        yield fault(rows, "rows-after-success", message, column, ERROR if ours else "")
    if success.any() and not rewards[: at + 1].any() and labels.reward == "column":
        message = f"success at row {at}, but every next.reward up to there is 0"
        yield fault(rows, "success-without-reward", message, "next.reward")
