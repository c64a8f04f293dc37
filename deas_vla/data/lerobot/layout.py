"""Which column of a LeRobot data set is which: names out of ``modality.json`` and ``info.json``.

GR00T cuts a vector into named groups: ``"left_arm": {"start": 0, "end": 7}`` is ``left_arm.0`` to ``left_arm.6`` here;
a contract may call the same seven ``left_arm.shoulder`` and so on. Columns are picked by name where the contract uses
the data set's names, by group and position where it has its own, in whatever order the groups lie in the files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.data.lerobot import IMAGES, camera_name
from deas_vla.data.lerobot.files import IMAGE_TYPES, is_depth
from deas_vla.data.lerobot.folder import INFO, LerobotFolder
from deas_vla.errors import UserError

KEYS = {"state": "observation.state", "action": "action"}
UNKNOWN = "unknown"  # no data set of LeRobot's says in which unit its columns are


@dataclass(frozen=True)
class Position:
    """Where one number of a state or an action is: entry `index` of the column `key` of the parquet files."""

    name: str  # group and axis, or the name that info.json has for it
    key: str
    index: int


@dataclass(frozen=True)
class Layout:
    """Names of everything in a data set, state and action in the order of the files."""

    state: tuple[Position, ...]
    action: tuple[Position, ...]
    cameras: dict[str, str]  # name to the column of its images
    instruction: str = "task_index"  # the column with the instruction's index in the list of tasks

    @classmethod
    def of(cls, folder: LerobotFolder) -> "Layout":
        """The layout that a data set describes; if modality.json and info.json disagree, a UserError."""
        layout = _by_modality(folder) if folder.modality is not None else cls._by_info(folder)
        return replace(layout, cameras=_renamed(layout.cameras, folder.declared.get("cameras", "")))

    @classmethod
    def _by_info(cls, folder: LerobotFolder) -> "Layout":
        cameras = {}
        for key, feature in folder.features.items():
            if feature["dtype"] not in IMAGE_TYPES or is_depth(feature):
                continue
            if (before := cameras.setdefault(camera_name(key), key)) != key:
                both = f"{before} and {key} are both camera {camera_name(key)}"
                raise UserError(f"{folder.root / INFO}: {both}; rename one of these columns")
        return cls(_by_info(folder, "state"), _by_info(folder, "action"), cameras)

    @property
    def keys(self) -> list[str]:
        """The columns of the files that hold the state and the action."""
        return list(dict.fromkeys(position.key for position in (*self.state, *self.action)))

    def with_columns_of(self, contract: Contract) -> "Layout":
        """The columns of a contract, in its order, and its cameras; `column_misfits` must be empty."""
        cameras = {camera.name: self.cameras[camera.name] for camera in contract.cameras if camera.name in self.cameras}
        vectors = {what: tuple(_pick(getattr(self, what), getattr(contract, what))) for what in KEYS}
        return replace(self, **vectors, cameras=cameras)

    def misfits(self, folder: LerobotFolder, contract: Contract) -> list[str]:
        """Every way in which a data set does not have what a contract names, one line each."""
        lines = self.column_misfits(folder, contract)
        if folder.rate_hz != contract.rate_hz:
            lines.insert(0, f"rate: {folder.rate_hz:g} Hz against {contract.rate_hz:g} Hz")
        for camera in contract.cameras:
            wanted = (camera.height, camera.width)
            if camera.name in depth_cameras(folder):
                lines.append(f"camera {camera.name} holds depth maps, which are not read: leave it out of the contract")
            elif camera.name not in self.cameras:
                lines.append(f"camera {camera.name} is missing")
            elif (size := image_size(folder, self.cameras[camera.name])) != wanted:
                lines.append(f"camera {camera.name}: {(*size, 3)} against {(*wanted, 3)}")
        return lines

    def column_misfits(self, folder: LerobotFolder, contract: Contract) -> list[str]:
        """`misfits` of the state and the action alone."""
        other = _other_names if folder.modality is None else _other_groups
        return [line for what in KEYS for line in other(what, getattr(self, what), getattr(contract, what))]

    def contract(self, folder: LerobotFolder) -> Contract:
        """What a data set says of itself, as a contract: names and rate, no units and no limits."""
        robot = folder.declared.get("robot") or str(folder.info.get("robot_type") or UNKNOWN)
        state, action = (tuple(Column(each.name, UNKNOWN) for each in part) for part in (self.state, self.action))
        cameras = tuple(Camera(name, *image_size(folder, key)) for name, key in self.cameras.items())
        return Contract(robot, folder.rate_hz, state, action, cameras)


def gather(positions: tuple[Position, ...], columns: dict[str, np.ndarray]) -> np.ndarray:
    """(rows, len(positions)) float32: the numbers at these positions, in their order."""
    parts = [columns[each.key].reshape(len(columns[each.key]), -1)[:, each.index] for each in positions]
    return np.stack(parts, 1).astype(np.float32)


def image_size(folder: LerobotFolder, key: str) -> tuple[int, int]:
    """Height and width of a camera's images as info.json has them; some put the channels first."""
    shape, names = list(folder.features[key]["shape"]), folder.features[key].get("names")
    if isinstance(names, list) and "height" in names and "width" in names:
        return shape[names.index("height")], shape[names.index("width")]
    return (shape[1], shape[2]) if shape[0] == 3 and shape[-1] != 3 else (shape[0], shape[1])


def depth_cameras(folder: LerobotFolder) -> set[str]:
    """Cameras of depth maps, which are no colours: they are left out, by whatever name a contract may have for them."""
    keys = {key for key, feature in folder.features.items() if feature["dtype"] in IMAGE_TYPES and is_depth(feature)}
    named = _objects(folder, f"{folder.root}, modality.json", "video") if folder.modality is not None else {}
    return {camera_name(key) for key in keys} | {
        name for name, video in named.items() if video.get("original_key", IMAGES + name) in keys
    }


def feature_names(feature: dict) -> list[str] | None:
    """The names of a column's entries in info.json: a list, lists in an object, or an object from name to position.

    Two arms may have joints of one name: where names in an object are not unique, each is ``group.name``.
    """
    names = feature.get("names")
    if names is None:
        return None
    if not isinstance(names, dict):
        return list(map(str, _flat(names)))
    if all(isinstance(position, int) for position in names.values()):
        return sorted(names, key=names.get)
    pairs = [(group, str(name)) for group, members in names.items() for name in _flat(members)]
    own = [name for _, name in pairs]
    return own if len(set(own)) == len(own) else [f"{group}.{name}" for group, name in pairs]


def named_pairs(text: str) -> dict[str, str]:
    """``NAME=OTHER,NAME=OTHER`` of the flags ``--cameras``; a text that is no such list is a UserError."""
    pairs = [part.partition("=") for part in text.split(",") if part]
    if wrong := [name for name, _, other in pairs if not (name and other)]:
        raise UserError(f"--cameras: {wrong[0] or text} is not NAME=OTHER, for example wrist=camera1")
    return {name: other for name, _, other in pairs}


def _renamed(cameras: dict[str, str], text: str) -> dict[str, str]:
    """Cameras under the names that their user gave them."""
    given = named_pairs(text)
    if unknown := given.keys() - cameras:
        raise UserError(f"--cameras: no camera is called {min(unknown)}; they are {', '.join(cameras)}")
    renamed = {given.get(name, name): key for name, key in cameras.items()}
    if len(renamed) < len(cameras):
        raise UserError(f"--cameras={text} gives two cameras one name")
    return renamed


def _flat(names: list) -> list:
    return [one for name in names for one in (_flat(name) if isinstance(name, list) else [name])]


def _by_info(folder: LerobotFolder, what: str) -> tuple[Position, ...]:
    key = KEYS[what]
    if key not in folder.features:
        fix = f"record it, or give info.json its name among {', '.join(sorted(folder.features))}"
        raise UserError(f"{folder.root}: column {key} is missing; {fix}")
    width = int(np.prod(folder.features[key]["shape"]))
    names = feature_names(folder.features[key])
    if names is None:
        raise UserError(f"{folder.root}: {key}: its columns have no names; write them into info.json")
    if len(names) != width:
        raise UserError(f"{folder.root}: {key} has {width} columns and {len(names)} names in info.json; correct them")
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        fix = "give each column a name of its own"
        raise UserError(f"{folder.root / INFO}: two columns of {key} are called {twice[0]}; {fix}")
    return tuple(Position(name, key, index) for index, name in enumerate(names))


def _by_modality(folder: LerobotFolder) -> Layout:
    where = f"{folder.root}, modality.json"
    vectors = {}
    for what, key in KEYS.items():
        groups = _objects(folder, where, what)
        if not groups:
            raise UserError(f"{where}: no {what} in it; write down its groups of columns")
        found = [_group(folder, where, key, name, group) for name, group in groups.items()]
        found.sort(key=lambda positions: positions[0].index)
        vectors[what] = tuple(position for positions in found for position in positions)
    videos = _objects(folder, where, "video")
    cameras = {name: video.get("original_key", IMAGES + name) for name, video in videos.items()}
    for name, key in cameras.items():
        _require_column(folder, where, f"camera {name}", key)
        if folder.features[key]["dtype"] not in IMAGE_TYPES:
            raise UserError(f"{where}: camera {name} is in column {key}, which holds no images; correct it")
    cameras = {name: key for name, key in cameras.items() if not is_depth(folder.features[key])}
    notes = _objects(folder, where, "annotation")
    name = next((name for name in notes if name.endswith("task_description")), None)
    if name is None:
        return Layout(**vectors, cameras=cameras)
    instruction = notes[name].get("original_key", f"annotation.{name}")
    _require_column(folder, where, f"annotation {name}", instruction)
    return Layout(**vectors, cameras=cameras, instruction=instruction)


def _objects(folder: LerobotFolder, where: str, what: str) -> dict[str, dict]:
    """A part of modality.json: an object of objects; empty if it is not there."""
    part = folder.modality.get(what, {})
    if not isinstance(part, dict) or not all(isinstance(value, dict) for value in part.values()):
        raise UserError(f"{where}: {what} is not an object of objects; correct it")
    return part


def _require_column(folder: LerobotFolder, where: str, what: str, key: object) -> None:
    if not isinstance(key, str) or key not in folder.features:
        raise UserError(f"{where}: {what} is in column {key}, which info.json does not have; correct it")


def _group(folder: LerobotFolder, where: str, key: str, name: str, group: dict) -> list[Position]:
    key = group.get("original_key", key)
    _require_column(folder, where, f"group {name}", key)
    start, end, width = group.get("start"), group.get("end"), int(np.prod(folder.features[key]["shape"]))
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= width):
        raise UserError(f"{where}: group {name} goes from {start} to {end}, {key} has {width} columns; correct it")
    return [Position(f"{name}.{index - start}", key, index) for index in range(start, end)]


def _group_of(name: str) -> str:
    return name.rpartition(".")[0] or name


def _by_group(positions: Iterable[Position | Column]) -> dict[str, list[Position | Column]]:
    found = {}
    for position in positions:
        found.setdefault(_group_of(position.name), []).append(position)
    return found


def _other_groups(what: str, positions: tuple[Position, ...], columns: tuple[Column, ...]) -> list[str]:
    lines, mine = [], _by_group(positions)
    for group, wanted in _by_group(columns).items():
        own = [position.name for position in mine.get(group, [])]
        foreign = [column.name for column in wanted if column.name not in own]
        if len(own) != len(wanted):
            lines.append(f"{what}: group {group} has {len(own)} columns against {len(wanted)}")
        elif 0 < len(foreign) < len(wanted):
            # Neither names nor positions say which column the rest is.
            lines.append(
                f"{what}: group {group} mixes names of the data set ({', '.join(own)}) with others "
                f"({', '.join(foreign)}): use its names for all columns of the group or for none"
            )
    return lines


def _other_names(what: str, positions: tuple[Position, ...], columns: tuple[Column, ...]) -> list[str]:
    names, wanted = [position.name for position in positions], [column.name for column in columns]
    if names == wanted:
        return []
    different = [f"{a} against {b}" for a, b in zip(names, wanted, strict=False) if a != b]
    return [f"{KEYS[what]}: {'; '.join([f'{len(names)} columns against {len(wanted)}', *different])}"]


def _pick(positions: tuple[Position, ...], columns: tuple[Column, ...]) -> Iterable[Position]:
    """A column whose name the data set has is that one; else the n-th of a group is its n-th position."""
    by_name = {position.name: position for position in positions}
    in_order = {group: iter(members) for group, members in _by_group(positions).items()}
    for column in columns:
        nth = next(in_order[_group_of(column.name)])
        yield by_name.get(column.name, nth)
