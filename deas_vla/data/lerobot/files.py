"""Files of a LeRobot data set: info.json checked once, JSON, parquet and the images in it; faults are one line each."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deas_vla.errors import UserError, as_user_error, require

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_TYPES = ("image", "video")
# Pillow's modes with more than 8 bits a pixel and no colours, which it would clip: depth maps.
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def check_info(info: dict, path: Path, episodic: bool) -> None:
    """Refuses an info.json, read from `path`, that cannot be worked with; `episodic`: one file an episode (v2)."""

    def need(right: bool, key: str, wanted: str) -> None:
        if not right:
            raise UserError(f"{path}: {key} is not {wanted}; correct it, or copy the data set again")

    def need_path(key: str, *names: str) -> None:
        try:
            right = isinstance(info.get(key), str) and bool(info[key].format(**dict.fromkeys(names, 0)))
        except (LookupError, ValueError, AttributeError, TypeError):
            right = False
        need(right, key, f"a path of {', '.join(f'{{{name}}}' for name in names)}")

    fps, features = info.get("fps"), info.get("features")
    if not (type(fps) in (int, float) and 0 < fps < math.inf):
        fix = f"correct it, or say it: deas-vla declare {path.parents[1]} --rate=HZ"
        raise UserError(f"{path}: fps is not a number above 0; {fix}")
    need(_whole(info.get("chunks_size", 1)), "chunks_size", "a whole number above 0")
    need(isinstance(features, dict), "features", "an object of columns")
    for name, feature in features.items():
        key = f"features.{name}"
        right = isinstance(feature, dict) and {"dtype", "shape"} <= feature.keys()
        need(right, key, "an object with dtype and shape")
        dtype, shape, names = feature["dtype"], feature["shape"], feature.get("names")
        need(isinstance(dtype, str), f"{key}.dtype", "a text")
        right = isinstance(shape, list) and all(map(_whole, shape))
        need(right, f"{key}.shape", "a list of whole numbers above 0")
        need(isinstance(names, list | dict | None), f"{key}.names", "a list or an object")
        need(not isinstance(names, list) or _names(names), f"{key}.names", "a list of names")
        if dtype in IMAGE_TYPES:
            need(len(shape) == 3, f"{key}.shape", "that of an image, three numbers")
            need(not isinstance(names, list) or len(names) == 3, f"{key}.names", "three names")
        elif isinstance(names, dict) and not all(isinstance(value, list) for value in names.values()):
            positions = sorted(value for value in names.values() if isinstance(value, int))
            right = positions == list(range(len(names)))
            need(right, f"{key}.names", "an object of lists, or of each name's position from 0 on")
        elif isinstance(names, dict):
            need(all(map(_names, names.values())), f"{key}.names", "an object of lists of names")
    fields = ("episode_chunk", "episode_index") if episodic else ("chunk_index", "file_index")
    if episodic:
        need_path("data_path", *fields)
    else:
        need(isinstance(info.get("total_frames"), int), "total_frames", "a whole number")
    if any(feature["dtype"] == "video" for feature in features.values()):
        need_path("video_path", "video_key", *fields)


def _whole(value: object) -> bool:
    return type(value) is int and value > 0


def _names(values: list) -> bool:
    """Whether a list holds names, or lists of them: some tools write the list of all names as its only entry."""
    return all(_names(value) if isinstance(value, list) else isinstance(value, str | int | float) for value in values)


def is_depth(feature: dict) -> bool:
    """Whether a column of images holds depth maps: LeRobot says so, or its videos are grey with over 8 bits a pixel."""
    for notes in (feature.get("info"), feature.get("video_info")):
        if not isinstance(notes, dict):
            continue
        if notes.get("is_depth_map") or notes.get("video.is_depth_map") or deep_grey(notes.get("video.pix_fmt")):
            return True
    return False


@dataclass(frozen=True)
class VideoHeader:
    """What a video file says of itself: FFmpeg's name of the format of its pixels, and frames a second, or 0."""

    pixel_format: str
    rate_hz: float


def video_header(path: Path) -> VideoHeader:
    """The header of a video; a file without is a UserError. Read once for every state of the file."""
    return _video_header(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1024)
def _video_header(path: Path, modified_ns: int) -> VideoHeader:
    av = require("av", "lerobot")
    broken = f"{path} cannot be decoded; copy it again"
    with as_user_error(broken, av.FFmpegError, IndexError), av.open(str(path)) as container:
        stream = container.streams.video[0]
        return VideoHeader(str(stream.codec_context.pix_fmt), float(stream.average_rate or 0))


def deep_grey(pixel_format: object) -> bool:
    """Whether pixels of this format, by FFmpeg's name, are grey and have more than 8 bits: ``gray12le``."""
    return str(pixel_format).startswith("gray") and pixel_format not in ("gray", "gray8", "gray8a")


def read_table(file: Path, columns: list[str] | None = None) -> pa.Table:
    """A parquet file, or some of its columns."""
    import pyarrow.parquet as pq

    with as_user_error(f"{file} cannot be read; copy it again"):
        return pq.read_table(file, columns=columns, partitioning=None)


def refuse_empty(file: Path, table: pa.Table) -> None:
    """Refuses empty entries in a table of a file, which numpy would make False or NaN."""
    for name in table.column_names:
        if count := table.column(name).null_count:
            fix = "record the episodes again or leave them out"
            raise UserError(f"{file}: column {name} has {count} empty entries; {fix}")


def read_episodes(file: Path, optional: list[str]) -> list[dict]:
    """The rows of a file of ``meta/episodes``: its ``episode_index``, ``length`` and what it has of the optional."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    numbers = ["episode_index", "length"]
    with as_user_error(f"{file} cannot be read; copy it again"):
        there = [name for name in optional if name in pq.read_schema(file).names]
    table = read_table(file, [*numbers, *there])
    refuse_empty(file, table.select(numbers))
    for name in table.column_names:
        kind = pa.float64() if name.endswith("_timestamp") else pa.int64()
        with as_user_error(f"{file}: {name} holds {table.schema.field(name).type}, no numbers; copy it again"):
            table = table.set_column(table.column_names.index(name), name, table.column(name).cast(kind))
    return table.to_pylist()


def read_tasks(file: Path) -> list[tuple[int, str]]:
    """Index and instruction of each task in a ``tasks.parquet``.

    The instructions are the table's index in pandas, as LeRobot writes it, or the column ``task``; columns beside them
    are nobody's. Raises UserError if there are none, if two columns may be meant, or if they are no texts.
    """
    import pyarrow as pa

    table = read_table(file)
    index = (table.schema.pandas_metadata or {}).get("index_columns", [])
    # A range that pandas does not store is an object here, not a name.
    named = [name for name in (*index, "task", "__index_level_0__") if isinstance(name, str)]
    names = [name for name in dict.fromkeys(named) if name in table.column_names and _is_text(table.column(name).type)]
    if not names or "task_index" not in table.column_names:
        raise UserError(f"{file}: no task_index or no instructions in it; copy the data set again")
    if len(names) > 1:
        raise UserError(f"{file}: instructions may be {' or '.join(names)}; keep one of the two")
    table = table.select(["task_index", names[0]])
    refuse_empty(file, table)
    with as_user_error(f"{file}: task_index holds no whole numbers; copy the data set again"):
        numbers = table.column("task_index").cast(pa.int64()).to_pylist()
    return list(zip(numbers, table.column(names[0]).cast(pa.string()).to_pylist(), strict=True))


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def read_lines(path: Path, **needed: type) -> list[dict]:
    """The objects of a ``.jsonl`` file, each with the needed keys, of these types."""
    with as_user_error(f"{path} cannot be read; copy it again"):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        wrong = "" if isinstance(line, dict) else "not an object"
        for key, kind in needed.items() if not wrong else ():
            if not isinstance(line.get(key), kind):
                wrong = f"{key} is {line[key]!r}" if key in line else f"no {key} in it"
        if wrong:
            raise UserError(f"{path}, line {number}: {wrong}; copy the data set again")
    return lines


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as lists of lists where a library registered a type of its own for tables of numbers."""
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def as_declared(column: pa.ChunkedArray, feature: dict, *, text: bool = True) -> tuple[np.ndarray | None, str, str]:
    """A column as info.json declares it, cast without loss, as LeRobot casts the columns of all files to one type.

    `feature` has its dtype and shape; `text`: it may hold texts. Returns (rows,) or (rows, numbers in a row), or None;
    the code of what is wrong with it, and what that is, or "".
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    # Where a column is a table of numbers a row: the rows of all rows, and so on down to the numbers.
    leaf, widths, wanted = plain(column), [], math.prod(feature.get("shape", [1]))
    empty = leaf.null_count
    while is_list(leaf.type) and not empty:
        widths.append(pc.unique(pc.list_value_length(leaf)).to_pylist())
        leaf = pc.list_flatten(leaf)
        empty = leaf.null_count
    if empty:
        return None, "empty-entries", f"has {empty} empty entries"
    uniform = all(len(each) == 1 for each in widths)
    if len(column) and not (uniform and math.prod(each[0] for each in widths) == wanted):
        there = " by ".join(str(sorted(each)) for each in widths) or "single"
        return None, "wrong-width", f"has {there} entries a row, info.json says {wanted}"
    stored, declared = _NAMES.get(str(leaf.type), str(leaf.type)), feature["dtype"]
    if (kind_of(stored), kind_of(declared)) == ("string", "string") and text:
        cast = leaf.cast(pa.string())
    else:
        try:
            if not {kind_of(stored), kind_of(declared)} <= {"bool", "int", "float"}:
                raise TypeError
            cast = leaf.cast(pa.from_numpy_dtype(np.dtype(declared)))
            # A flag that is neither 0 nor 1 would become True.
            if declared == "bool" and not pc.all(pc.equal(cast.cast(leaf.type), leaf), min_count=0).as_py():
                raise TypeError
        except (TypeError, pa.ArrowException):
            return None, "wrong-type", f"holds {leaf.type}, info.json says {declared}"
    values = cast.combine_chunks().to_numpy(zero_copy_only=False)
    values = values.reshape(len(column), -1) if widths and len(column) else values
    return values, "" if stored == declared else "other-precision", f"holds {leaf.type}, info.json says {declared}"


# Arrow's names of what numpy, and info.json, call otherwise.
_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64", "large_string": "string"}


def kind_of(dtype: str) -> str:
    """``float32`` and ``float64`` are floats, ``uint8`` and ``int64`` are ints."""
    return dtype.rstrip("0123456789").removeprefix("u")


def is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def read_images(file: Path, key: str, wanted: np.ndarray, images: np.ndarray) -> None:
    """Decodes the images in these rows of a parquet file, and no others, into (F, height, width, 3) uint8."""
    import pyarrow.parquet as pq

    first, done = 0, 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(1024, columns=[key]):
            while done < len(wanted) and wanted[done] < first + len(batch):
                stored = batch.column(0)[int(wanted[done]) - first].as_py()
                decode_image(image_bytes(stored), images[done], f"{file}, {key}, row {int(wanted[done])}")
                done += 1
            first += len(batch)


def image_bytes(stored: object) -> bytes | None:
    """The image file in an entry of a column of images: an object with ``bytes``, or these alone."""
    encoded = stored.get("bytes") if isinstance(stored, dict) else stored
    return encoded if isinstance(encoded, bytes) else None


def decode_image(encoded: bytes | None, image: np.ndarray, where: str) -> None:
    """Decodes an image file into (height, width, 3) uint8; UserError, naming `where`, if it is another or none."""
    from PIL import Image

    if encoded is None:
        raise UserError(f"{where}: there is no image; copy the data set again")
    with as_user_error(f"{where}: not an image; copy the data set again", Exception):  # each format has its own
        stored = Image.open(io.BytesIO(encoded))
        deep = stored.mode in DEEP_MODES
        decoded = np.asarray(stored.convert("RGB"))
    if deep:
        fix = "mark it in info.json as LeRobot does (info: is_depth_map), and it is left out"
        raise UserError(f"{where}: a depth map ({stored.mode}), no colours; {fix}")
    if decoded.shape != image.shape:
        fix = "correct info.json, or scale the images"
        raise UserError(f"{where}: image is {decoded.shape}, info.json says {image.shape}; {fix}")
    image[:] = decoded
