"""Is info.json of a LeRobot data set what it should be? Its types are looked at once, here; nobody asks again."""

import math
from pathlib import Path

from deas_vla.errors import UserError

PICTURES = ("image", "video")


def check_info(info: dict, path: Path, episodic: bool) -> None:
    """Refuses an info.json that cannot be worked with.

    Args:
        info: its content.
        path: where it is, for the message.
        episodic: whether the data set has one file an episode (v2).

    Raises:
        UserError: naming the file and the key.
    """

    def require(holds: bool, key: str, wanted: str) -> None:
        if not holds:
            raise UserError(f"{path}: {key} is not {wanted}; correct it, or copy the data set again")

    for key in ("features", "fps", "data_path" if episodic else "total_frames"):
        if key not in info:
            raise UserError(f"{path}: no {key} in it; copy the data set again")
    fps = info["fps"]
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    require(number and math.isfinite(fps) and fps > 0, "fps", "a number above 0")
    require(_whole(info.get("chunks_size", 1)), "chunks_size", "a whole number above 0")
    require(isinstance(info["features"], dict), "features", "an object of columns")
    for name, feature in info["features"].items():
        _check_feature(name, feature, require)
    if episodic:
        numbers = {"episode_chunk": 0, "episode_index": 0}
        require(_formats(info["data_path"], numbers), "data_path", f"a path of {_braces(numbers)}")
    else:
        require(isinstance(info["total_frames"], int), "total_frames", "a whole number")
        numbers = {"chunk_index": 0, "file_index": 0}
    if any(feature["dtype"] == "video" for feature in info["features"].values()):
        fields = {"video_key": "", **numbers}
        require(_formats(info.get("video_path"), fields), "video_path", f"a path of {_braces(fields)}")


def _check_feature(name: str, feature: object, require) -> None:
    key = f"features.{name}"
    require(
        isinstance(feature, dict) and {"dtype", "shape"} <= feature.keys(),
        key,
        "an object with dtype and shape",
    )
    dtype, shape, names = feature["dtype"], feature["shape"], feature.get("names")
    require(isinstance(dtype, str), f"{key}.dtype", "a text")
    require(
        isinstance(shape, list) and all(map(_whole, shape)), f"{key}.shape", "a list of whole numbers above 0"
    )
    require(names is None or isinstance(names, list | dict), f"{key}.names", "a list or an object")
    if dtype in PICTURES:
        require(len(shape) == 3, f"{key}.shape", "that of a picture, three numbers")
        require(not isinstance(names, list) or len(names) == 3, f"{key}.names", "three names")
    elif isinstance(names, dict):
        values = list(names.values())
        places = all(isinstance(value, int) for value in values) and sorted(values) == list(
            range(len(values))
        )
        lists = all(isinstance(value, list) for value in values)
        require(places or lists, f"{key}.names", "an object of lists, or of each name's place from 0 on")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _formats(template: object, fields: dict) -> bool:
    """Whether a path can be made of these fields and no others."""
    try:
        return isinstance(template, str) and bool(template.format(**fields))
    except (LookupError, ValueError, AttributeError, TypeError):
        return False


def _braces(fields: dict) -> str:
    return ", ".join(f"{{{name}}}" for name in fields)
