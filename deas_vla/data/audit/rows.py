"""Faults in the rows of one episode: numbering, times, numbers that are none, rewards, success and the end."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deas_vla.data.audit.findings import ERROR, NOTE, WARNING, Finding
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.layout import Layout

# A step that is off by less than this share of its length is jitter of a clock.
JITTER = 0.1
# The whole episode's rate may be off by this share.
RATE_TOLERANCE = 0.02


@dataclass
class Rows:
    """The rows of one episode, as they are in the files.

    Attributes:
        number: the episode.
        file: where they are, below the data set's folder.
        columns: (rows,) or (rows, width) arrays; a column that could not be read is absent.
        first_index: what ``index`` should be in the first row; None if nothing says.
    """

    number: int
    file: str
    columns: dict[str, np.ndarray]
    first_index: int | None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def flat(self, name: str) -> np.ndarray | None:
        """(rows,) of a column with one number a row, or None if it is absent."""
        return self.columns[name].reshape(len(self)) if name in self.columns else None

    @property
    def steps(self) -> int:
        """Rows that are steps: all but an observation after the last action, as this project writes it."""
        final = self.flat("frame.is_final")
        return len(self) - int(final is not None and bool(final[-1]))

    def finding(
        self, severity: str, code: str, message: str, mend: str = "record it again or leave it out", column=""
    ):
        return Finding(
            severity, code, f"episode {self.number}: {message}", mend, self.file, column, (self.number,)
        )


def numbering(rows: Rows) -> Iterator[Finding]:
    """Rows that are lost or twice."""
    for name, first in (("frame_index", 0), ("index", rows.first_index)):
        values = rows.flat(name)
        if values is None or first is None:
            continue
        wrong = np.flatnonzero(values != np.arange(first, first + len(rows)))
        if len(wrong):
            row = int(wrong[0])
            # A part of a larger data set keeps the numbers that it had there.
            part = name == "index" and (np.diff(values) == 1).all()
            yield rows.finding(
                WARNING if part else ERROR,
                "index-elsewhere" if part else "index-gap",
                f"{name} is {int(values[row])} at row {row}, expected {first + row}",
                "number the rows anew"
                if part
                else "rows were lost or copied: record it again or leave it out",
                name,
            )
            return


def times(rows: Rows, rate_hz: float) -> Iterator[Finding]:
    """Timestamps that go back, and rates other than the declared one."""
    values = rows.flat("timestamp")
    if values is None or len(rows) < 2 or not np.isfinite(values).all():
        return
    steps = np.diff(values.astype(np.float64))
    if (steps <= 0).any():
        row = int((steps <= 0).argmax())
        yield rows.finding(
            ERROR,
            "timestamps-not-increasing",
            f"timestamp {values[row]:g} s at row {row} is followed by {values[row + 1]:g} s",
            column="timestamp",
        )
        return
    rate = float(1 / np.median(steps))
    if abs(rate / rate_hz - 1) > RATE_TOLERANCE:
        yield rows.finding(
            ERROR,
            "wrong-rate",
            f"its rows come at {rate:.4g} Hz, info.json says {rate_hz:g} Hz",
            "correct fps in info.json, or sample the episode anew",
            "timestamp",
        )
        return
    off = np.abs(steps * rate_hz - 1)
    if off.max() > JITTER:
        row = int(off.argmax())
        yield rows.finding(
            ERROR if off.max() > 0.5 else WARNING,
            "timestamp-gap",
            f"{steps[row] * 1e3:.1f} ms between rows {row} and {row + 1}, a step is {1e3 / rate_hz:.1f} ms",
            "steps were lost: sample the episode anew or leave it out",
            "timestamp",
        )
    if abs(values[0]) * rate_hz > JITTER:
        yield rows.finding(
            WARNING,
            "timestamps-start-late",
            f"timestamps start at {values[0]:g} s",
            "tools that look frames up by time show the wrong ones (this project counts rows): subtract the start",
            "timestamp",
        )


def finite(rows: Rows, layout: Layout) -> Iterator[Finding]:
    """NaN and infinite numbers, by the name of their column."""
    named = [(place.name, place.key, place.index) for place in (*layout.state, *layout.action)]
    named += [(key, key, 0) for key in ("next.reward", "timestamp")]
    for name, key, index in named:
        if key not in rows.columns or rows.columns[key].dtype.kind != "f":
            continue
        values = rows.columns[key].reshape(len(rows), -1)[:, index]
        bad = ~np.isfinite(values)
        if bad.any():
            row = int(bad.argmax())
            kind = "NaN" if np.isnan(values[row]) else "infinite"
            yield rows.finding(
                ERROR, "not-finite", f"{key} {name} is {kind} at row {row}".replace(f"{key} {key}", key),
                column=name,
            )  # fmt: skip


def rewards_and_end(rows: Rows, labels: LabelRules, ours: bool) -> Iterator[Finding]:
    """Success, reward and end that contradict each other."""
    if any(name not in rows.columns for name in labels.columns):
        return
    steps = rows.steps
    success, rewards = (values[:steps] for values in labels.of(rows.columns, len(rows)))
    if not steps or not np.isfinite(rewards).all():
        return
    yield from _success(rows, success, rewards, ours, labels)
    done, succeeded = rows.flat("next.done"), int(success.argmax()) if success.any() else steps
    ended = steps
    if done is not None:
        ended = int(done[:steps].argmax()) if done[:steps].any() else steps
        if ended < steps - 1 and ended < succeeded:
            yield rows.finding(
                ERROR, "done-too-early", f"next.done at row {ended} of {steps}", column="next.done"
            )
        if ended == succeeded == steps:
            yield rows.finding(
                NOTE,
                "end-not-marked",
                "no row has next.done or success: it is taken for cut off at its last row",
                column="next.done",
            )
    last = min(ended, succeeded)
    after = last + 1 + np.flatnonzero(rewards[last + 1 :])
    if len(after) and labels.reward == "column":
        # After a success the rows are not used; after an end by other means they are.
        yield rows.finding(
            ERROR if ended < steps - 1 else WARNING,
            "reward-after-end",
            f"next.reward is {rewards[after[0]]:g} at row {after[0]}, the episode ended at row {last}",
            "set rewards after the end to 0, or leave those rows out",
            "next.reward",
        )


def _success(
    rows: Rows, success: np.ndarray, rewards: np.ndarray, ours: bool, labels: LabelRules
) -> Iterator[Finding]:
    truncated = rows.flat("next.truncated")
    if truncated is not None and truncated.any() and success.any():
        yield rows.finding(ERROR, "both-ends", "it is both truncated and successful", column="next.truncated")
    if not success.any():
        return
    at = int(success.argmax())
    if at < len(success) - 1:
        yield rows.finding(
            ERROR if ours else WARNING,
            "rows-after-success",
            f"success at row {at}, {len(success) - 1 - at} rows follow; they are not used",
            "cut the episode at its success",
            labels.columns[-1] if labels.columns else "",
        )
    if not rewards[: at + 1].any() and labels.reward == "column":
        yield rows.finding(
            ERROR,
            "success-without-reward",
            f"success at row {at}, but every next.reward up to there is 0",
            "correct next.reward, or declare the reward as --reward=success",
            "next.reward",
        )
