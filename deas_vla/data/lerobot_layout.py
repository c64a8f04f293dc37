"""Which number of a LeRobot data set is which: names out of ``modality.json`` and ``info.json``.

GR00T cuts a vector into named groups: ``"left_arm": {"start": 0, "end": 7}``. A group is a name for its columns in
order, so ``left_arm.0`` to ``left_arm.6`` here; a contract may call the same seven ``left_arm.shoulder`` and so on.
Columns are therefore picked by group and place, in whatever order the groups lie in the files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.data.lerobot_folder import LerobotFolder
from deas_vla.data.lerobot_format import IMAGES
from deas_vla.errors import UserError

KEYS = {"state": "observation.state", "action": "action"}
# No data set of LeRobot's says in which unit its columns are.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Place:
    """Where one number of a state or an action is.

    Attributes:
        name: group and axis, or the name that info.json has for it.
        key: column of the parquet files.
        index: which entry of that column.
    """

    name: str
    key: str
    index: int

    @property
    def group(self) -> str:
        return self.name.rpartition(".")[0] or self.name


@dataclass(frozen=True)
class Layout:
    """Names of everything in a data set.

    Attributes:
        state: the columns of the state, as they lie in the files.
        action: the columns of the action.
        cameras: camera name to the column of its pictures.
        instruction: the column with the index of the sentence.
    """

    state: tuple[Place, ...]
    action: tuple[Place, ...]
    cameras: dict[str, str]
    instruction: str = "task_index"

    @classmethod
    def of(cls, folder: LerobotFolder) -> "Layout":
        """The layout that a data set describes.

        Raises:
            UserError: if modality.json and info.json disagree, or name nothing.
        """
        if folder.modality is not None:
            return _by_modality(folder)
        cameras = {
            key.removeprefix(IMAGES).removeprefix("observation."): key
            for key, feature in folder.features.items()
            if feature["dtype"] in ("image", "video")
        }
        return cls(_by_info(folder, "state"), _by_info(folder, "action"), cameras)

    @property
    def keys(self) -> list[str]:
        """The columns of the files that hold the state and the action."""
        return list(dict.fromkeys(place.key for place in (*self.state, *self.action)))

    def picked(self, contract: Contract) -> "Layout":
        """The columns and cameras of a contract, in its order, found by name.

        What the contract does not name is left out. `misfits` must be empty.
        """
        cameras = {camera.name: self.cameras[camera.name] for camera in contract.cameras}
        return replace(self.with_columns_of(contract), cameras=cameras)

    def with_columns_of(self, contract: Contract) -> "Layout":
        """The columns of a contract, in its order; `column_misfits` must be empty. The cameras stay."""
        return replace(
            self,
            state=tuple(_pick(self.state, contract.state)),
            action=tuple(_pick(self.action, contract.action)),
        )

    def misfits(self, folder: LerobotFolder, contract: Contract) -> list[str]:
        """Every way in which a data set does not have what a contract names, one line each."""
        lines = []
        if folder.rate_hz != contract.rate_hz:
            lines.append(f"rate: {folder.rate_hz:g} Hz against {contract.rate_hz:g} Hz")
        lines += self.column_misfits(folder, contract)
        for camera in contract.cameras:
            if camera.name not in self.cameras:
                lines.append(f"camera {camera.name} is missing")
                continue
            size, wanted = picture_size(folder, self.cameras[camera.name]), (camera.height, camera.width)
            if size != wanted:
                lines.append(f"camera {camera.name}: {(*size, 3)} against {(*wanted, 3)}")
        return lines

    def column_misfits(self, folder: LerobotFolder, contract: Contract) -> list[str]:
        """`misfits` of the state and the action alone."""
        if folder.modality is not None:
            return _other_groups("state", self.state, contract.state) + _other_groups(
                "action", self.action, contract.action
            )
        return [
            line
            for what, places in (("state", self.state), ("action", self.action))
            for line in _other_names(KEYS[what], [place.name for place in places], getattr(contract, what))
        ]

    def contract(self, folder: LerobotFolder) -> Contract:
        """What a data set says of itself, as a contract: names and rate, no units and no limits."""

        def columns(places: Iterable[Place]) -> tuple[Column, ...]:
            return tuple(Column(place.name, UNKNOWN) for place in places)

        return Contract(
            embodiment=str(folder.info.get("robot_type") or UNKNOWN),
            rate_hz=folder.rate_hz,
            state=columns(self.state),
            action=columns(self.action),
            cameras=tuple(Camera(name, *picture_size(folder, key)) for name, key in self.cameras.items()),
        )


def gather(places: tuple[Place, ...], columns: dict[str, np.ndarray]) -> np.ndarray:
    """(rows, len(places)) float32: the numbers at these places, in their order."""
    parts = [columns[place.key].reshape(len(columns[place.key]), -1)[:, place.index] for place in places]
    return np.stack(parts, 1).astype(np.float32)


def picture_size(folder: LerobotFolder, key: str) -> tuple[int, int]:
    """Height and width of a camera's pictures as info.json has them; some put the channels first."""
    shape, names = list(folder.features[key]["shape"]), folder.features[key].get("names")
    if isinstance(names, list) and "height" in names and "width" in names:
        return shape[names.index("height")], shape[names.index("width")]
    return (shape[1], shape[2]) if shape[0] == 3 and shape[-1] != 3 else (shape[0], shape[1])


def _by_info(folder: LerobotFolder, what: str) -> tuple[Place, ...]:
    key = KEYS[what]
    if key not in folder.features:
        present = ", ".join(sorted(folder.features))
        raise UserError(f"{folder.root}: column {key} is missing; its columns are {present}")
    width = int(np.prod(folder.features[key]["shape"]))
    names = folder.features[key].get("names")
    if isinstance(names, dict):  # lists in a dictionary: LeRobot has both
        names = [name for group in names.values() for name in group]
    if names is None:
        raise UserError(f"{folder.root}: {key}: its columns have no names; write them into info.json")
    if len(names) != width:
        raise UserError(f"{folder.root}: {key} has {width} columns and {len(names)} names in info.json")
    return tuple(Place(str(name), key, index) for index, name in enumerate(names))


def _by_modality(folder: LerobotFolder) -> Layout:
    modality, where = folder.modality, f"{folder.root}, modality.json"
    vectors = {}
    for what in KEYS:
        groups = modality.get(what)
        if not groups:
            raise UserError(f"{where}: no {what} in it; write down its groups of columns")
        vectors[what] = tuple(
            place
            for name, group in sorted(groups.items(), key=lambda item: item[1].get("start", 0))
            for place in _group(folder, where, KEYS[what], name, group)
        )
    cameras = {
        name: video.get("original_key", IMAGES + name) for name, video in modality.get("video", {}).items()
    }
    for name, key in cameras.items():
        if key not in folder.features:
            raise UserError(f"{where}: camera {name} is in column {key}, which info.json does not have")
    sentences = [name for name in modality.get("annotation", {}) if name.endswith("task_description")]
    instruction = "task_index"
    if sentences:
        instruction = modality["annotation"][sentences[0]].get("original_key", f"annotation.{sentences[0]}")
    return Layout(vectors["state"], vectors["action"], cameras, instruction)


def _group(folder: LerobotFolder, where: str, key: str, name: str, group: dict) -> list[Place]:
    key = group.get("original_key", key)
    if key not in folder.features:
        raise UserError(f"{where}: group {name} is in column {key}, which info.json does not have")
    start, end, width = group.get("start"), group.get("end"), int(np.prod(folder.features[key]["shape"]))
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= width):
        raise UserError(
            f"{where}: group {name} goes from {start} to {end}, {key} has {width} columns; correct it"
        )
    return [Place(f"{name}.{index - start}", key, index) for index in range(start, end)]


def _groups(names: Iterable[str]) -> dict[str, int]:
    found = {}
    for name in names:
        group = name.rpartition(".")[0] or name
        found[group] = found.get(group, 0) + 1
    return found


def _other_groups(what: str, places: tuple[Place, ...], columns: tuple[Column, ...]) -> list[str]:
    mine, wanted = _groups(place.name for place in places), _groups(column.name for column in columns)
    return [
        f"{what}: group {name} has {mine.get(name, 0)} columns against {count}"
        for name, count in wanted.items()
        if mine.get(name) != count
    ]


def _other_names(key: str, names: list[str], columns: tuple[Column, ...]) -> list[str]:
    wanted = [column.name for column in columns]
    if names == wanted:
        return []
    different = [f"{a} against {b}" for a, b in zip(names, wanted, strict=False) if a != b]
    return [f"{key}: {'; '.join([f'{len(names)} columns against {len(wanted)}', *different])}"]


def _pick(places: tuple[Place, ...], columns: tuple[Column, ...]) -> Iterable[Place]:
    """The n-th column of a group is the n-th place of that group."""
    by_group: dict[str, list[Place]] = {}
    for place in places:
        by_group.setdefault(place.group, []).append(place)
    taken = dict.fromkeys(by_group, 0)
    for column in columns:
        group = column.name.rpartition(".")[0] or column.name
        yield by_group[group][taken[group]]
        taken[group] += 1
