"""What the numbers of each column look like over a whole data set, and what contradicts that."""

import itertools
from collections.abc import Iterator

import numpy as np

from deas_vla.data.contract import ACTION_STD_FLOOR, STATE_STD_FLOOR, Column, Statistics
from deas_vla.data.lerobot.columns import ColumnFacts
from deas_vla.data.lerobot.files import read_lines
from deas_vla.data.lerobot.findings import ERROR, Finding, found
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Position, feature_names
from deas_vla.errors import UserError
from deas_vla.files import read_json

# Statistics that were computed from these very numbers agree better than this, in standard deviations.
STATISTICS_TOLERANCE = 0.1
ROUNDING = 1e-3
FLOORS = {"state": STATE_STD_FLOOR, "action": ACTION_STD_FLOOR}
ALL, EACH = "meta/stats.json", "meta/episodes_stats.jsonl"


def signatures(facts: ColumnFacts, positions: tuple[Position, ...], what: str, declared: bool) -> Iterator[Finding]:
    """Columns that never move, and columns that look binary where nothing says that they are."""
    still, binary = (
        [position.name for i, position in enumerate(positions) if facts.signature(i) == signature]
        for signature in ("constant", "binary")
    )
    if still:
        message = f"{len(still)} of {len(positions)} {what} columns never move: {_list(still)}"
        yield found(f"constant-{what}", message, column=still[0])
    if binary and what == "action" and not declared:
        yield found("looks-binary", f"{what} columns with two values only: {_list(binary)}", column=binary[0])


def unlike(facts: ColumnFacts, columns: tuple[Column, ...], what: str, statistics: Statistics) -> Iterator[Finding]:
    """Columns (``state`` or ``action``), in a policy's order, that look like others of it or in other units."""
    names = [column.name for column in columns]
    mean, std = (np.array(getattr(statistics, f"{what}_{each}")) for each in ("mean", "std"))
    own_std = np.maximum(facts.std, FLOORS[what])  # as the policy's statistics have it for columns that hardly move
    # Distance of the data's column i from the policy's column j, in standard deviations and in factors of e.
    shift = np.abs(facts.mean[:, None] - mean) / np.maximum(std, own_std[:, None])
    scale = np.abs(np.log(own_std[:, None] / std))
    distance = shift + scale
    own = distance.diagonal()
    swapped = set()
    for i, j in itertools.combinations(range(len(names)), 2):
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
    """Statistics of these columns that a data set brings along and that are missing, unreadable, or not of its numbers.

    v2.0 and v3 have them in ``stats.json``, v2.1 has them in ``episodes_stats.jsonl``.
    """
    whole, each = None, {}
    try:
        if (folder.root / ALL).is_file():
            whole = read_json(folder.root / ALL)
        if (folder.root / EACH).is_file():
            lines = read_lines(folder.root / EACH, episode_index=int, stats=dict)
            each = {line["episode_index"]: line["stats"] for line in lines}
    except UserError as error:
        yield found("broken-statistics", error)
        return
    if whole is None and not each:
        yield found("no-statistics", f"there is no {ALL}", file=ALL)
    stored = [(EACH, (part.number,), [part], each.get(part.number, {})) for part in parts]
    stored += [(ALL, (), parts, whole)] if whole is not None and parts else []
    for key, (file, episodes, members, statistics) in itertools.product(keys, stored):
        if key not in statistics and file == EACH:
            continue
        position = {"file": file, "column": key, "episodes": episodes}
        facts = ColumnFacts.of(np.concatenate([part.columns[key].reshape(len(part), -1) for part in members]))
        if key not in statistics:
            yield found("wrong-statistics", f"{ALL} has no statistics of {key}", severity=ERROR, **position)
        elif facts is not None:
            names = feature_names(folder.features[key])
            try:
                wrong, severity = _differences(facts, statistics[key], key, names)
            except (AttributeError, TypeError, ValueError) as error:
                yield found("broken-statistics", f"the statistics of {key} are not numbers ({error})", **position)
                continue
            if wrong:
                yield found("wrong-statistics", wrong, severity=severity, **position)


def _differences(facts: ColumnFacts, stored: dict, key: str, names: list[str] | None) -> tuple[str, str]:
    """How the stored statistics of a column differ from the data, or "", and how severe it is."""
    if names is None or len(names) != len(facts.mean):
        names = [f"{key}.{i}" for i in range(len(facts.mean))]
    # Some tools compute in float32: a column far from 0 loses the last digits of its std.
    size = np.maximum(np.abs(facts.low), np.abs(facts.high))
    slack = STATISTICS_TOLERANCE * facts.std + ROUNDING * size + 1e-6
    # Other extremes alone are what a part of a larger data set has; another mean or std is another normalisation.
    severity, wrong, example = "", {}, ""
    for what, mine in facts.numbers.items():
        theirs = np.asarray(stored.get(what, mine), np.float64).ravel()
        if theirs.shape != mine.shape:
            return f"{what} of {key} has {theirs.size} entries, the data {mine.size} columns", ERROR
        # Not `>`: a NaN in the file is wrong too.
        for i in np.flatnonzero(~(np.abs(theirs - mine) <= slack)):
            severity = ERROR if what in ("mean", "std") else severity
            wrong[names[i]] = None
            example = example or f"{what} of {names[i]} is {theirs[i]:g}, of the data {mine[i]:g}"
    return f"{key}: {_list(list(wrong))} differ from the data; {example}" if wrong else "", severity


def _list(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
