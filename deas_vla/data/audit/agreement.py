"""Does a data set fit to another one, to a policy, to a critic?"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deas_vla.data.audit.columns import ColumnFacts, against_columns, unlike
from deas_vla.data.audit.findings import ERROR, ROBOTS, Finding, found
from deas_vla.data.contract import ACTION_STD_FLOOR, STATE_STD_FLOOR, Contract
from deas_vla.data.lerobot import EMPTY_CAMERA
from deas_vla.data.lerobot.files import IMAGE_TYPES
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import UNKNOWN, Layout, image_size
from deas_vla.data.lerobot.reader import own_contract
from deas_vla.errors import UserError
from deas_vla.files import read_json

FLOORS = {"state": STATE_STD_FLOOR, "action": ACTION_STD_FLOOR}


@dataclass(frozen=True)
class Reference:
    """Something that a data set must fit to.

    Attributes:
        name: what to call it in a message.
        contract: what it asks for; None for a policy of LeRobot's own, which knows sizes and no names.
        sizes: of such a policy, what goes in and comes out: its name in a data set to its size, (3, height, width)
            for a camera.
    """

    name: str
    contract: Contract | None
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def reference_at(folder: Path) -> Reference:
    """What a policy, a critic or an exported reranker asks for; the folder of a stage will do as well.

    Raises:
        UserError: if there is none.
    """
    folder = Path(folder)
    for position in (folder, folder / "policy", folder / "critic"):
        if (path := position / "contract.json").is_file():
            return Reference(f"policy {folder}", Contract.from_json(read_json(path), path))
        for name, kind in (("manifest.json", "reranker"), ("scorer.json", "critic")):
            if (path := position / name).is_file():
                contract = Contract.from_json(read_json(path).get("contract", {}), path)
                return Reference(f"{kind} {folder}", contract)
        if (path := position / "config.json").is_file() and "input_features" in (config := read_json(path)):
            features = config["input_features"] | config.get("output_features", {})
            sizes = {name: tuple(feature["shape"]) for name, feature in features.items()}
            return Reference(f"LeRobot policy {folder}", None, sizes)
    raise UserError(
        f"{folder} holds no policy (contract.json, or LeRobot's config.json), critic (scorer.json) or "
        "reranker (manifest.json); give the folder of one as --against"
    )


def differences(folder: LerobotFolder, layout: Layout, other: Reference, *, statistics: bool) -> Iterator[Finding]:
    """Every way in which a data set does not fit to what another asks for.

    Args:
        folder: the data set.
        layout: its columns.
        other: what it must fit to.
        statistics: whether normalisation statistics must be the same too: a policy's are, another data set's not.
    """
    if other.contract is None:
        for line in _other_sizes(folder, other.sizes):
            yield found("other-size", f"against {other.name}: {line}")
        return
    mine, declared = own_contract(folder, layout)
    theirs = other.contract if statistics else other.contract.with_statistics(None)
    if declared == _knows_no_units(theirs):
        # One side says names and no units: names, sizes and rate are compared, as the reader does.
        lines = layout.misfits(folder, theirs)
        if UNKNOWN not in (mine.embodiment, theirs.embodiment) and mine.embodiment != theirs.embodiment:
            lines.append(f"embodiment: {mine.embodiment} against {theirs.embodiment}")
    else:
        lines = mine.differences(theirs)
    for line in lines:
        code = "other-" + line.partition(":")[0].partition("[")[0].partition(" ")[0].removeprefix("observation.")
        yield Finding(ERROR, code.rstrip("s"), f"against {other.name}: {line}", ROBOTS)


def unlike_reference(facts: dict[str, ColumnFacts], contract: Contract, name: str) -> Iterator[Finding]:
    """Numbers that a contract's kinds and limits do not allow, and columns that look like others of it.

    Args:
        facts: of ``state`` and ``action``, in the contract's order.
        contract: of the policy or critic.
        name: what to call it.
    """
    for what, each in facts.items():
        columns, statistics = getattr(contract, what), contract.statistics
        yield from against_columns(each, columns, what, name)
        if statistics is not None:
            mean = np.array(getattr(statistics, f"{what}_mean"))
            std = np.array(getattr(statistics, f"{what}_std"))
            yield from unlike(each, columns, mean, std, FLOORS[what])


def _other_sizes(folder: LerobotFolder, sizes: dict[str, tuple[int, ...]]) -> Iterator[str]:
    """LeRobot feeds images of any size to any policy and does not say so."""
    for name, wanted in sizes.items():
        if name.startswith(EMPTY_CAMERA):
            continue
        if name not in folder.features:
            yield f"{name} is missing"
            continue
        image = folder.features[name]["dtype"] in IMAGE_TYPES
        mine = (3, *image_size(folder, name)) if image else tuple(folder.features[name]["shape"])
        if mine != wanted:
            yield f"{name} is {mine} against {wanted}"


def _knows_no_units(contract: Contract) -> bool:
    return all(column.unit == UNKNOWN for column in (*contract.state, *contract.action))
