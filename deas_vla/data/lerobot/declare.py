"""What a data set of others does not say itself, asked for once and stored beside it: units, limits, success, reward.

LeRobot's data sets have names of columns and no units, so a policy that was trained on one knows none, and a robot,
which does, refuses it (design rule 7).
"""

from collections.abc import Iterable
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from pathlib import Path

from deas_vla.data.contract import Column, Contract
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot import FORMAT, SIDECAR
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import UNKNOWN, Layout
from deas_vla.errors import UserError
from deas_vla.files import write_json


def declare_dataset(
    root: Path, contract: Contract, *, source: str = "demonstration", labels: LabelRules = RECORDED
) -> None:
    """Writes ``meta/deas_vla.json`` beside a data set of others, once; `source`: ``demonstration`` or ``rollout``."""
    path = Path(root) / SIDECAR
    if path.exists():
        raise UserError(f"{path} says already what its columns mean; delete it to declare it anew")
    sidecar = {"format": FORMAT, "source": source, "contract": contract.to_json(), "labels": asdict(labels)}
    write_json(path, sidecar)


def declared_contract(root: Path, units: str, limits: str = "", binary: str = "") -> Contract:
    """The contract of a data set with the units and limits that its user gives.

    Columns are named by patterns, of which the first that fits counts: ``*.pos`` are all that end with ``.pos``.
    `units` is one for all columns or ``PATTERN=UNIT,PATTERN=UNIT``; `limits`, of actions, ``PATTERN=LOW:HIGH,…``;
    `binary` patterns of actions that take their two limits and nothing between. Raises UserError if a column has no
    unit, a binary one no limits, or a pattern fits no column.
    """
    folder = LerobotFolder(root)
    contract = Layout.of(folder).contract(folder)
    columns = [column.name for column in (*contract.state, *contract.action)]
    actions = [column.name for column in contract.action]
    unit_of = _rules("--units", units if "=" in units else f"*={units}", columns)
    range_of = _rules("--limits", limits, actions)
    is_binary = _rules("--binary", ",".join(f"{name}=yes" for name in binary.split(",") if name), actions)
    unknown = [name for name in dict.fromkeys(columns) if unit_of(name) in (None, "", UNKNOWN)]
    if unknown:
        raise UserError(f"the unit of {', '.join(unknown)} is not given; add --units={unknown[0]}=UNIT,…")

    def action(column: Column) -> Column:
        low, high = _range(column.name, range_of(column.name))
        if is_binary(column.name) and low is None:
            raise UserError(f"--binary: {column.name} has no limits; add --limits={column.name}=0:1")
        kind = "binary" if is_binary(column.name) else "continuous"
        return replace(column, unit=unit_of(column.name), kind=kind, low=low, high=high)

    state = tuple(replace(column, unit=unit_of(column.name)) for column in contract.state)
    return replace(contract, state=state, action=tuple(map(action, contract.action)))


def _rules(flag: str, text: str, names: Iterable[str]):
    """``PATTERN=VALUE,…`` as a function from a name to the value of the first pattern that fits, or None."""
    pairs = [part.partition("=")[::2] for part in text.split(",") if part]
    for pattern, _ in pairs:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"{flag}: no column is called {pattern}; they are {', '.join(dict.fromkeys(names))}")
    return lambda name: next((value for pattern, value in pairs if fnmatchcase(name, pattern)), None)


def _range(name: str, text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        return None, None
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise UserError(f"--limits: {name}={text} is not LOW:HIGH, for example {name}=-1:1") from None
    if not low < high:
        raise UserError(f"--limits: {name}={text}: the lower limit must be below the upper one")
    return low, high
