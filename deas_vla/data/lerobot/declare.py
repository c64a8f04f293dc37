"""What a data set of others does not say itself, asked for once and stored beside it.

LeRobot's data sets have names of columns and no units, so a policy that was trained on one knows none, and a robot,
which does, refuses it (design rule 7). Each fact is given by the flag of its name, one at a time or all at once.
"""

from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from deas_vla.data.contract import Column, Contract
from deas_vla.data.episodes import SOURCES
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot import FORMAT, SIDECAR
from deas_vla.data.lerobot.folder import DECLARED, LerobotFolder, read_sidecar
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


def declare_facts(root: Path, facts: dict[str, str]) -> None:
    """Writes down what a user says of a data set, beside what was said before.

    `facts`: name of a flag of `deas-vla declare` to its value. Raises UserError if one was said otherwise before, or
    does not fit the data set.
    """
    folder = with_facts(root, facts)
    said = folder.declared
    sidecar = {"format": FORMAT, DECLARED: said, "contract": declared_contract(folder).to_json()}
    if source := said.get("source"):
        if source not in SOURCES:
            raise UserError(f"--source={source} is none of {', '.join(SOURCES)}")
        sidecar["source"] = source
    labels = {field.name: said[field.name] for field in fields(LabelRules) if field.name in said}
    if labels:
        sidecar["labels"] = asdict(LabelRules(**labels))
    write_json(folder.root / SIDECAR, sidecar)


def with_facts(root: Path, facts: dict[str, str]) -> LerobotFolder:
    """A data set as it is with these facts, too; one that says them otherwise already is a UserError."""
    path, sidecar = Path(root) / SIDECAR, read_sidecar(root)
    before = sidecar.get(DECLARED, {})
    if facts and sidecar and not before:
        raise UserError(f"{path} says already what its columns mean; leave --{next(iter(facts))} out")
    for name, value in facts.items():
        if before.get(name, value) != value:
            raise UserError(f"{path} has --{name}={before[name]} already; leave the flag out, or delete that file")
    return LerobotFolder(root, before | facts)


def declared_contract(folder: LerobotFolder) -> Contract:
    """The contract of a data set with what is declared of it.

    Columns are named by patterns, of which the first that fits counts: ``*.pos`` are all that end with ``.pos``.
    ``units`` is one for all columns or ``PATTERN=UNIT,PATTERN=UNIT``; ``limits``, of actions, ``PATTERN=LOW:HIGH,…``;
    ``binary`` patterns of actions that take their two limits and nothing between. Raises UserError if a column has no
    unit among those given, a binary one no limits, or a pattern fits no column.
    """
    said, contract = folder.declared, Layout.of(folder).contract(folder)
    columns = [column.name for column in (*contract.state, *contract.action)]
    actions = [column.name for column in contract.action]
    units = said.get("units", UNKNOWN)
    unit_of = _rules("units", units if "=" in units else f"*={units}", columns)
    range_of = _rules("limits", said.get("limits", ""), actions)
    is_binary = _rules("binary", said.get("binary", ""), actions, "yes")
    unknown = [name for name in dict.fromkeys(columns) if unit_of(name) in (None, "", UNKNOWN)]
    if unknown and "units" in said:
        raise UserError(f"the unit of {', '.join(unknown)} is not given; add --units={unknown[0]}=UNIT,…")

    def action(column: Column) -> Column:
        low, high = _range(column.name, range_of(column.name))
        if is_binary(column.name) and low is None:
            raise UserError(f"--binary: {column.name} has no limits; add --limits={column.name}=0:1")
        kind = "binary" if is_binary(column.name) else "continuous"
        return replace(column, unit=unit_of(column.name), kind=kind, low=low, high=high)

    state = tuple(replace(column, unit=unit_of(column.name)) for column in contract.state)
    return replace(contract, state=state, action=tuple(map(action, contract.action)))


def _rules(flag: str, text: str, names: Iterable[str], value: str = ""):
    """``PATTERN=VALUE,…`` as a function from a name to the value of the first pattern that fits, or None."""
    pairs = [part.partition("=")[::2] for part in text.split(",") if part]
    for pattern, _ in pairs:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"--{flag}: no column is called {pattern}; they are {', '.join(dict.fromkeys(names))}")
    return lambda name: next((given or value for pattern, given in pairs if fnmatchcase(name, pattern)), None)


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
