"""Does a data set fit to another one, to a policy, to a critic?"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.data.contract import Contract
from deas_vla.data.lerobot import EMPTY_CAMERA
from deas_vla.data.lerobot.files import IMAGE_TYPES
from deas_vla.data.lerobot.findings import Finding, found
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import UNKNOWN, Layout, image_size
from deas_vla.data.lerobot.reader import own_contract
from deas_vla.errors import UserError
from deas_vla.files import read_json

HINT = "use data, policy and critic of one robot and one order of columns, or convert the data"


@dataclass(frozen=True)
class Reference:
    """Something that a data set must fit to."""

    name: str  # what to call it in a message
    contract: Contract | None
    # All that a policy of LeRobot's own knows: (3, height, width) of a camera, (columns,) of a vector.
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)


def reference_at(folder: Path) -> Reference:
    """What a policy, a critic, an exported reranker or a stage's folder asks for; UserError if there is none."""
    folder = Path(folder)
    for position in (folder, folder / "policy", folder / "critic"):
        for name, kind in (("contract.json", "policy"), ("manifest.json", "reranker"), ("scorer.json", "critic")):
            if (path := position / name).is_file():
                value = read_json(path)
                contract = value if kind == "policy" else value.get("contract", {})
                return Reference(f"{kind} {folder}", Contract.from_json(contract, path))
        if (path := position / "config.json").is_file() and "input_features" in (config := read_json(path)):
            features = config["input_features"] | config.get("output_features", {})
            sizes = {name: tuple(feature["shape"]) for name, feature in features.items()}
            return Reference(f"LeRobot policy {folder}", None, sizes)
    raise UserError(
        f"{folder} holds no policy (contract.json, or LeRobot's config.json), critic (scorer.json) or "
        "reranker (manifest.json); give the folder of one as --against"
    )


def differences(folder: LerobotFolder, layout: Layout, other: Reference) -> Iterator[Finding]:
    """Every way in which a data set, with the columns of `layout`, does not fit to what another asks for."""
    theirs = other.contract
    if theirs is None:
        lines = list(_other_sizes(folder, other.sizes))
    else:
        mine, declared = own_contract(folder, layout)
        if declared == all(column.unit == UNKNOWN for column in (*theirs.state, *theirs.action)):
            # One side says names and no units: names, sizes and rate are compared, as the reader does.
            lines = layout.misfits(folder, theirs)
            if UNKNOWN not in (mine.embodiment, theirs.embodiment) and mine.embodiment != theirs.embodiment:
                lines.append(f"embodiment: {mine.embodiment} against {theirs.embodiment}")
        else:
            lines = mine.differences(theirs)
    for line in lines:
        # A line begins with what differs: "state[0]: …", "camera left …".
        what = "size" if theirs is None else re.match(r"(?:observation\.)?(\w+?)s?\b", line)[1]
        yield found(f"other-{what}", f"against {other.name}: {line}", hint=HINT)


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
