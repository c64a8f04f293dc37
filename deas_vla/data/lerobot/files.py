"""Files of a LeRobot data set: info.json checked once, JSON, parquet and the images in it; faults are one line each."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deas_vla.errors import UserError, as_user_error

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_TYPES = ("image", "video")


def check_info(info: dict, path: Path, episodic: bool) -> None:
    """Refuses an info.json that cannot be worked with; nobody asks again.

    Args:
        info: its content.
        path: where it is, for the message.
        episodic: whether the data set has one file an episode (v2).

    Raises:
        UserError: naming the file and the key.
    """
    for key, wanted in _wrong_keys(info, episodic):
        raise UserError(f"{path}: {key} is not {wanted}; correct it, or copy the data set again")


def _wrong_keys(info: dict, episodic: bool) -> Iterator[tuple[str, str]]:
    """Keys that are not what they should be, and what that is; the first one stops the reader."""
    fps = info.get("fps")
    if type(fps) not in (int, float) or not 0 < fps < math.inf:
        yield "fps", "a number above 0"
    if not _whole(info.get("chunks_size", 1)):
        yield "chunks_size", "a whole number above 0"
    features = info.get("features")
    if not isinstance(features, dict):
        yield "features", "an object of columns"
    for name, feature in features.items():
        yield from _wrong_feature(f"features.{name}", feature)
    fields = dict.fromkeys(("episode_chunk", "episode_index") if episodic else ("chunk_index", "file_index"), 0)
    if episodic and not _formats(info.get("data_path"), fields):
        yield "data_path", f"a path of {_braces(fields)}"
    if not episodic and not isinstance(info.get("total_frames"), int):
        yield "total_frames", "a whole number"
    fields = {"video_key": "", **fields}
    videos = any(feature["dtype"] == "video" for feature in features.values())
    if videos and not _formats(info.get("video_path"), fields):
        yield "video_path", f"a path of {_braces(fields)}"


def _wrong_feature(key: str, feature: object) -> Iterator[tuple[str, str]]:
    if not isinstance(feature, dict) or not {"dtype", "shape"} <= feature.keys():
        yield key, "an object with dtype and shape"
    dtype, shape, names = feature["dtype"], feature["shape"], feature.get("names")
    if not isinstance(dtype, str):
        yield f"{key}.dtype", "a text"
    if not isinstance(shape, list) or not all(map(_whole, shape)):
        yield f"{key}.shape", "a list of whole numbers above 0"
    if not isinstance(names, list | dict | None):
        yield f"{key}.names", "a list or an object"
    if dtype in IMAGE_TYPES:
        if len(shape) != 3:
            yield f"{key}.shape", "that of an image, three numbers"
        if isinstance(names, list) and len(names) != 3:
            yield f"{key}.names", "three names"
    elif isinstance(names, dict) and not all(isinstance(value, list) for value in names.values()):
        # Each name to its position.
        positions = [value for value in names.values() if isinstance(value, int)]
        if sorted(positions) != list(range(len(names))):
            yield f"{key}.names", "an object of lists, or of each name's position from 0 on"


def _whole(value: object) -> bool:
    return type(value) is int and value > 0


def _formats(template: object, fields: dict) -> bool:
    """Whether a path can be made of these fields and no others."""
    try:
        return isinstance(template, str) and bool(template.format(**fields))
    except (LookupError, ValueError, AttributeError, TypeError):
        return False


def _braces(fields: dict) -> str:
    return ", ".join(f"{{{name}}}" for name in fields)


def read_table(file: Path, columns: list[str] | None = None, *, full: bool = False) -> pa.Table:
    """A parquet file, or some of its columns.

    Args:
        file: the file.
        columns: which; None: all.
        full: whether empty entries are refused, which numpy would silently make False or NaN.

    Raises:
        UserError: if it is missing or cut off, lacks a column, or has an empty entry where none may be.
    """
    import pyarrow.parquet as pq

    with as_user_error(f"{file} cannot be read; copy it again"):
        table = pq.read_table(file, columns=columns, partitioning=None)
    for name in table.column_names if full else ():
        if count := table.column(name).null_count:
            raise UserError(
                f"{file}: column {name} has {count} empty entries; record the episodes again or leave them out"
            )
    return table


def read_lines(path: Path, **needed: type) -> list[dict]:
    """The objects of a ``.jsonl`` file, each with the needed keys, of these types."""
    with as_user_error(f"{path} cannot be read; copy it again"):
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        wrong = [] if isinstance(line, dict) else ["not an object"]
        for key, kind in needed.items() if not wrong else ():
            if not isinstance(line.get(key), kind):
                wrong.append(f"{key} is {line[key]!r}" if key in line else f"no {key} in it")
        if wrong:
            raise UserError(f"{path}, line {number}: {wrong[0]}; copy the data set again")
    return lines


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) or, for lists of one length, lists of lists among them, (rows, numbers in a row)."""
    values = array = plain(column).combine_chunks()
    while is_list(values.type):
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    if values is array:
        return numbers
    return numbers.reshape(len(array), -1) if len(array) else numbers.reshape(0, 0)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as lists of lists where a library registered a type of its own for tables of numbers."""
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def read_images(file: Path, key: str, wanted: np.ndarray, images: np.ndarray) -> None:
    """Decodes the images in these rows of a parquet file, and no others, into (F, height, width, 3) uint8."""
    import pyarrow.parquet as pq
    from PIL import Image

    first, done = 0, 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(1024, columns=[key]):
            encoded = batch.column(0).field("bytes")
            while done < len(wanted) and wanted[done] < first + len(batch):
                where = f"{file}, {key}, row {int(wanted[done])}"
                with as_user_error(f"{where}: not an image; copy the data set again", SyntaxError):
                    stored = io.BytesIO(encoded[int(wanted[done]) - first].as_py())
                    image = np.asarray(Image.open(stored).convert("RGB"))
                if image.shape != images.shape[1:]:
                    raise UserError(f"{where}: image is {image.shape}, info.json says {images.shape[1:]}")
                images[done] = image
                done += 1
            first += len(batch)
