"""What the numbers of each column look like over a whole data set, in one pass, and what contradicts that."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from deas_vla.data.audit.findings import ERROR, NOTE, WARNING, Finding
from deas_vla.data.contract import Column
from deas_vla.data.lerobot.layout import Position

# Statistics that were computed from these very numbers agree better than this, in standard deviations.
STATISTICS_TOLERANCE = 0.1
ROUNDING = 1e-3
# Commands may be beyond their limits by rounding: this share of the range.
LIMIT_TOLERANCE = 1e-3


@dataclass
class ColumnFacts:
    """Moments, range and, while they are few, the different values of D columns.

    Attributes:
        count: rows seen.
        mean: (D,) mean.
        spread: (D,) sum of squared distances from the mean.
        low: (D,) smallest value.
        high: (D,) largest value.
        values: for each column its different values, or None once there are more than two.
    """

    count: int = 0
    mean: np.ndarray | None = None
    spread: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    values: list[set[float] | None] = field(default_factory=list)

    def add(self, rows: np.ndarray) -> None:
        """(T, D) more rows; those that are not finite are left out."""
        rows = rows[np.isfinite(rows).all(1)].astype(np.float64)
        if not len(rows):
            return
        if self.mean is None:
            width = rows.shape[1]
            self.mean, self.spread = np.zeros(width), np.zeros(width)
            self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)
            self.values = [set() for _ in range(width)]
        # Two sets of moments joined: exact, and no number is squared before its mean is taken off.
        mean, count = rows.mean(0), self.count + len(rows)
        distance = mean - self.mean
        self.spread += ((rows - mean) ** 2).sum(0) + distance**2 * self.count * len(rows) / count
        self.mean = self.mean + distance * len(rows) / count
        self.count = count
        self.low, self.high = np.minimum(self.low, rows.min(0)), np.maximum(self.high, rows.max(0))
        for i, values in enumerate(self.values):
            if values is not None:
                values |= set(np.unique(rows[:, i])[:3].tolist())
                if len(values) > 2:
                    self.values[i] = None

    @property
    def std(self) -> np.ndarray:
        """(D,) standard deviation."""
        return np.sqrt(self.spread / max(self.count, 1))

    def signature(self, i: int) -> str:
        """``constant``, ``binary`` or ``range``."""
        values = self.values[i]
        return "range" if values is None else ("constant", "binary")[len(values) - 1]

    def as_json(self, names: list[str]) -> list[dict]:
        """One object a column."""
        if self.mean is None:
            return []
        return [
            {
                "name": name,
                "signature": self.signature(i),
                "min": float(self.low[i]),
                "max": float(self.high[i]),
                "mean": float(self.mean[i]),
                "std": float(self.std[i]),
            }
            for i, name in enumerate(names)
        ]


def against_columns(
    facts: ColumnFacts, columns: tuple[Column, ...], what: str, whose: str
) -> Iterator[Finding]:
    """Numbers that a column's kind and limits do not allow.

    Args:
        facts: of these columns.
        columns: as a contract has them.
        what: ``state`` or ``action``.
        whose: contract, for the message.
    """
    if facts.mean is None:
        return
    for i, column in enumerate(columns):
        low, high = (
            (-np.inf if column.low is None else column.low),
            (np.inf if column.high is None else column.high),
        )
        if column.kind == "binary":
            values = facts.values[i]
            if values is None or not values <= {low, high}:
                seen = "many values" if values is None else " and ".join(f"{v:g}" for v in sorted(values))
                yield Finding(
                    ERROR, "not-binary",
                    f"{what} {column.name} takes {seen} in [{facts.low[i]:g}, {facts.high[i]:g}], {whose} says that "
                    f"it is {low:g} or {high:g}",
                    "look whether columns were swapped or scaled; threshold it when recording",
                    column=column.name,
                )  # fmt: skip
            continue
        slack = LIMIT_TOLERANCE * (high - low) if np.isfinite(high - low) else 0.0
        if facts.low[i] < low - slack or facts.high[i] > high + slack:
            yield Finding(
                ERROR, "out-of-range",
                f"{what} {column.name} goes from {facts.low[i]:g} to {facts.high[i]:g}, {whose} allows "
                f"{low:g} to {high:g}",
                "look whether columns were swapped or have another unit; correct the data or the limits",
                column=column.name,
            )  # fmt: skip


def signatures(
    facts: ColumnFacts, places: tuple[Position, ...], what: str, declared: bool
) -> Iterator[Finding]:
    """Columns that never move, and columns that look binary where nothing says that they are."""
    if facts.mean is None:
        return
    names = [place.name for place in places]
    still = [name for i, name in enumerate(names) if facts.signature(i) == "constant"]
    if still:
        yield Finding(
            WARNING if what == "action" else NOTE,
            f"constant-{what}",
            f"{len(still)} of {len(names)} {what} columns never move: {_list(still)}",
            "leave them out of the contract, or look whether they were recorded",
            column=still[0],
        )
    binary = [name for i, name in enumerate(names) if facts.signature(i) == "binary"]
    if binary and what == "action" and not declared:
        yield Finding(
            NOTE,
            "looks-binary",
            f"{what} columns with two values only: {_list(binary)}",
            "declare them binary in the contract, or candidates between the two values will be scored",
            column=binary[0],
        )


def against_statistics(
    facts: ColumnFacts, key: str, names: list[str], stored: dict, file: str, episodes: tuple[int, ...] = ()
) -> Iterator[Finding]:
    """Statistics in the data set's own files that are not those of its numbers.

    Args:
        facts: of the column `key` of the parquet files, entry by entry.
        key: which one.
        names: of its entries.
        stored: ``mean``, ``std``, ``min`` and ``max``, as far as the file has them.
        file: which file, below the data set's folder.
        episodes: whose statistics they are; empty: of all.
    """
    if facts.mean is None:
        return
    mend = "compute the statistics anew: policies would be trained with a wrong normalisation"
    # Other extremes alone are what a part of a larger data set has; another mean or spread is another normalisation.
    severity, wrong, example = WARNING, [], ""
    for what, mine in (("mean", facts.mean), ("std", facts.std), ("min", facts.low), ("max", facts.high)):
        theirs = np.asarray(stored.get(what, mine), np.float64).ravel()
        if theirs.shape != mine.shape:
            yield Finding(
                ERROR, "wrong-statistics",
                f"{what} of {key} has {theirs.size} entries, the data {mine.size} columns",
                mend, file, key, episodes,
            )  # fmt: skip
            return
        # Some tools compute in float32: a column far from 0 loses the last digits of its spread.
        slack = STATISTICS_TOLERANCE * facts.std + ROUNDING * np.maximum(
            np.abs(facts.low), np.abs(facts.high)
        )
        # Not `>`: a NaN in the file is wrong too.
        for i in np.flatnonzero(~(np.abs(theirs - mine) <= slack + 1e-6)):
            severity = ERROR if what in ("mean", "std") else severity
            wrong.append(names[i])
            example = example or f"{what} of {names[i]} is {theirs[i]:g}, of the data {mine[i]:g}"
    if wrong:
        wrong = list(dict.fromkeys(wrong))
        yield Finding(
            severity, "wrong-statistics", f"{key}: {_list(wrong)} differ from the data; {example}", mend, file, key,
            episodes,
        )  # fmt: skip


def unlike(
    facts: ColumnFacts, columns: tuple[Column, ...], mean: np.ndarray, std: np.ndarray, floor: float
) -> Iterator[Finding]:
    """Columns that look like others' of the policy: swapped, or with other units.

    Args:
        facts: of the data's columns, in the policy's order.
        columns: the policy's.
        mean: (D,) the policy's mean of each column.
        std: (D,) the policy's standard deviation of each column.
        floor: the smallest that such a standard deviation can be.
    """
    if facts.mean is None:
        return
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
                yield Finding(
                    ERROR, "looks-swapped",
                    f"{names[i]} looks like the policy's {names[j]}, and the other way round: mean "
                    f"{facts.mean[i]:.3g} and {facts.mean[j]:.3g}, the policy's {mean[i]:.3g} and {mean[j]:.3g}",
                    "look at the order in which the columns were recorded",
                    column=names[i],
                )  # fmt: skip
    for i in np.flatnonzero((shift.diagonal() > 3.0) | (scale.diagonal() > 2.5)):
        if i not in swapped:
            yield Finding(
                WARNING, "unlike-policy",
                f"{names[i]} has mean {facts.mean[i]:.3g} and std {facts.std[i]:.3g}, the policy's data "
                f"{mean[i]:.3g} and {std[i]:.3g}",
                "look whether its unit, sign or zero is another",
                column=names[i],
            )  # fmt: skip


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
