"""What the numbers of each column look like over a whole data set, and whether its contract allows them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deas_vla.data.contract import Column
from deas_vla.data.lerobot.findings import Finding, found

LIMIT_TOLERANCE = 1e-3  # commands may be beyond their limits by rounding: this share of the range


@dataclass(frozen=True)
class ColumnFacts:
    """Mean, standard deviation and range of D columns, (D,) each, and their different values, if at most two."""

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


def against_columns(facts: ColumnFacts, columns: tuple[Column, ...], what: str, whose: str) -> Iterator[Finding]:
    """Numbers that the kinds and limits of a contract's columns (``state`` or ``action``) do not allow."""
    for column, values, least, most in zip(columns, facts.values, facts.low, facts.high, strict=True):
        low = -np.inf if column.low is None else column.low
        high = np.inf if column.high is None else column.high
        slack = LIMIT_TOLERANCE * (high - low) if np.isfinite(high - low) else 0.0
        if column.kind == "binary" and (values is None or not values <= {low, high}):
            seen = "many values" if values is None else " and ".join(f"{v:g}" for v in sorted(values))
            message = f"{what} {column.name} takes {seen} in [{least:g}, {most:g}], {whose} says that"
            yield found("not-binary", f"{message} it is {low:g} or {high:g}", column=column.name)
        elif column.kind != "binary" and (least < low - slack or most > high + slack):
            message = f"{what} {column.name} goes from {least:g} to {most:g}, {whose} allows {low:g} to {high:g}"
            yield found("out-of-range", message, column=column.name)
