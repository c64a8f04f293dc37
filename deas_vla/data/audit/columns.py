"""What the numbers of each column look like over a whole data set, and what contradicts that."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deas_vla.data.audit.findings import ERROR, Finding, found, of_error
from deas_vla.data.contract import Column
from deas_vla.data.lerobot.files import read_lines
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Position
from deas_vla.errors import UserError
from deas_vla.files import read_json

# Statistics that were computed from these very numbers agree better than this, in standard deviations.
STATISTICS_TOLERANCE = 0.1
ROUNDING = 1e-3
# Commands may be beyond their limits by rounding: this share of the range.
LIMIT_TOLERANCE = 1e-3
ALL, EACH = "meta/stats.json", "meta/episodes_stats.jsonl"


@dataclass(frozen=True)
class ColumnFacts:
    """Moments, range and, where they are few, the different values of D columns.

    Attributes:
        mean: (D,) mean.
        std: (D,) standard deviation.
        low: (D,) smallest value.
        high: (D,) largest value.
        values: for each column its different values, or None if there are more than two.
    """

    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray
    values: list[set[float] | None]

    @classmethod
    def of(cls, rows: np.ndarray) -> "ColumnFacts | None":
        """Facts of (T, D) rows, those that are not finite left out; None if none is left."""
        rows = rows[np.isfinite(rows).all(1)].astype(np.float64)
        if not len(rows):
            return None
        values = [set(np.unique(column).tolist()) for column in rows.T]
        few = [None if len(each) > 2 else each for each in values]
        return cls(rows.mean(0), rows.std(0), rows.min(0), rows.max(0), few)

    @property
    def numbers(self) -> dict[str, np.ndarray]:
        """(D,) each, by the names that LeRobot's statistics have."""
        return {"mean": self.mean, "std": self.std, "min": self.low, "max": self.high}

    def signature(self, i: int) -> str:
        """``constant``, ``binary`` or ``range``."""
        values = self.values[i]
        return "range" if values is None else ("constant", "binary")[len(values) - 1]

    def as_json(self, names: list[str]) -> list[dict]:
        """One object a column."""
        return [
            {"name": name, "signature": self.signature(i)} | {k: float(v[i]) for k, v in self.numbers.items()}
            for i, name in enumerate(names)
        ]


def against_columns(facts: ColumnFacts, columns: tuple[Column, ...], what: str, whose: str) -> Iterator[Finding]:
    """Numbers that the kinds and limits of a contract's columns (``state`` or ``action``) do not allow."""
    for i, column in enumerate(columns):
        low = -np.inf if column.low is None else column.low
        high = np.inf if column.high is None else column.high
        values, range_ = facts.values[i], (facts.low[i], facts.high[i])
        if column.kind == "binary":
            if values is None or not values <= {low, high}:
                seen = "many values" if values is None else " and ".join(f"{v:g}" for v in sorted(values))
                message = f"{what} {column.name} takes {seen} in [{range_[0]:g}, {range_[1]:g}], {whose} says that"
                yield found("not-binary", f"{message} it is {low:g} or {high:g}", column=column.name)
            continue
        slack = LIMIT_TOLERANCE * (high - low) if np.isfinite(high - low) else 0.0
        if range_[0] < low - slack or range_[1] > high + slack:
            message = f"{what} {column.name} goes from {range_[0]:g} to {range_[1]:g}, {whose} allows"
            yield found("out-of-range", f"{message} {low:g} to {high:g}", column=column.name)


def signatures(facts: ColumnFacts, positions: tuple[Position, ...], what: str, declared: bool) -> Iterator[Finding]:
    """Columns that never move, and columns that look binary where nothing says that they are."""
    named = {"constant": [], "binary": [], "range": []}
    for i, position in enumerate(positions):
        named[facts.signature(i)].append(position.name)
    if still := named["constant"]:
        message = f"{len(still)} of {len(positions)} {what} columns never move: {_list(still)}"
        yield found(f"constant-{what}", message, column=still[0])
    if (binary := named["binary"]) and what == "action" and not declared:
        yield found("looks-binary", f"{what} columns with two values only: {_list(binary)}", column=binary[0])


def unlike(
    facts: ColumnFacts, columns: tuple[Column, ...], mean: np.ndarray, std: np.ndarray, floor: float
) -> Iterator[Finding]:
    """Columns that look like others of the policy: swapped, or with other units.

    Args:
        facts: of the data's columns, in the policy's order.
        columns: the policy's.
        mean: (D,) the policy's mean of each column.
        std: (D,) the policy's standard deviation of each column.
        floor: the smallest that such a standard deviation can be.
    """
    names = [column.name for column in columns]
    own_std = np.maximum(facts.std, floor)  # as the policy's statistics have it for columns that hardly move
    # Distance of the data's column i from the policy's column j, in standard deviations and in factors of e.
    shift = np.abs(facts.mean[:, None] - mean) / np.maximum(std, own_std[:, None])
    scale = np.abs(np.log(own_std[:, None] / std))
    distance = shift + scale
    own = np.diag(distance)
    swapped = set()
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            if own[i] + own[j] > 3.0 and distance[i, j] + distance[j, i] < 0.2 * (own[i] + own[j]):
                swapped |= {i, j}
                message = f"{names[i]} looks like the policy's {names[j]}, and the other way round: mean"
                numbers = f"{facts.mean[i]:.3g} and {facts.mean[j]:.3g}, the policy's {mean[i]:.3g} and {mean[j]:.3g}"
                yield found("looks-swapped", f"{message} {numbers}", column=names[i])
    for i in np.flatnonzero((shift.diagonal() > 3.0) | (scale.diagonal() > 2.5)):
        if i not in swapped:
            message = f"{names[i]} has mean {facts.mean[i]:.3g} and std {facts.std[i]:.3g}, the policy's data"
            yield found("unlike-policy", f"{message} {mean[i]:.3g} and {std[i]:.3g}", column=names[i])


def stored_statistics(folder: LerobotFolder, keys: list[str], parts: list[Rows]) -> Iterator[Finding]:
    """Faults in the statistics that a data set brings along: missing, unreadable, or not those of its numbers.

    Args:
        folder: the data set; ``stats.json`` of v2.0 and v3, ``episodes_stats.jsonl`` of v2.1.
        keys: columns whose statistics matter: those that policies normalise.
        parts: the episodes, each with these columns.
    """
    whole, each = None, {}
    try:
        if (folder.root / ALL).is_file():
            whole = read_json(folder.root / ALL)
        if (folder.root / EACH).is_file():
            lines = read_lines(folder.root / EACH, episode_index=int, stats=dict)
            each = {line["episode_index"]: line["stats"] for line in lines}
    except UserError as error:
        yield of_error(error, "broken-statistics")
        return
    if whole is None and not each:
        yield found("no-statistics", f"there is no {ALL}", file=ALL)
    for key in keys:
        stored = [(EACH, (part.number,), [part], each.get(part.number, {})) for part in parts]
        stored += [(ALL, (), parts, whole)] if whole is not None and parts else []
        for file, episodes, members, statistics in stored:
            position = {"file": file, "column": key, "episodes": episodes}
            if key not in statistics:
                if file == ALL:
                    message = f"{ALL} has no statistics of {key}"
                    yield found("wrong-statistics", message, severity=ERROR, **position)
                continue
            rows = np.concatenate([part.columns[key].reshape(len(part), -1) for part in members])
            if (facts := ColumnFacts.of(rows)) is None:
                continue
            try:
                yield from _differences(folder, facts, statistics[key], position)
            except (AttributeError, TypeError, ValueError) as error:
                message = f"the statistics of {key} are not numbers ({error})"
                yield found("broken-statistics", message, **position)


def _differences(folder: LerobotFolder, facts: ColumnFacts, stored: dict, position: dict) -> list[Finding]:
    key = position["column"]
    names, width = folder.features[key].get("names"), len(facts.mean)
    if not isinstance(names, list) or len(names) != width:
        names = [f"{key}.{i}" for i in range(width)]
    # Some tools compute in float32: a column far from 0 loses the last digits of its std.
    size = np.maximum(np.abs(facts.low), np.abs(facts.high))
    slack = STATISTICS_TOLERANCE * facts.std + ROUNDING * size + 1e-6
    # Other extremes alone are what a part of a larger data set has; another mean or std is another normalisation.
    severity, wrong, example = "", [], ""
    for what, mine in facts.numbers.items():
        theirs = np.asarray(stored.get(what, mine), np.float64).ravel()
        if theirs.shape != mine.shape:
            message = f"{what} of {key} has {theirs.size} entries, the data {mine.size} columns"
            return [found("wrong-statistics", message, severity=ERROR, **position)]
        # Not `>`: a NaN in the file is wrong too.
        for i in np.flatnonzero(~(np.abs(theirs - mine) <= slack)):
            severity = ERROR if what in ("mean", "std") else severity
            wrong.append(names[i])
            example = example or f"{what} of {names[i]} is {theirs[i]:g}, of the data {mine[i]:g}"
    if not wrong:
        return []
    message = f"{key}: {_list(list(dict.fromkeys(wrong)))} differ from the data; {example}"
    return [found("wrong-statistics", message, severity=severity, **position)]


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
