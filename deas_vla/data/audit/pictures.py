"""Videos and pictures that are missing, broken, too short, of another size or rate, or show nothing.

Frames are counted from a video's packets and decoded at both its ends; pictures in parquet files are checked by
their checksums. Neither is kept: the memory is that of a few frames.
"""

import io
import itertools
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deas_vla.data.audit.findings import ERROR, WARNING, Finding, of_error
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout, image_size
from deas_vla.data.video import VideoFacts, video_facts
from deas_vla.errors import UserError

# A picture whose numbers vary less than this shows one colour.
FLAT = 2.0
# Pictures are read from parquet files so many rows at a time.
ROWS = 64


@lru_cache(maxsize=16)
def _facts(path: Path, modified_ns: int) -> VideoFacts:
    """Files of v3 hold many episodes, one after the other."""
    return video_facts(path)


def episode_videos(folder: LerobotFolder, layout: Layout, number: int, rows: int) -> Iterator[Finding]:
    """Faults in the videos of one episode.

    Args:
        folder: the data set.
        layout: which cameras count.
        number: the episode.
        rows: how many rows, hence frames, it has.
    """
    if number not in folder.episodes:
        return  # its list of episodes lacks this one: found elsewhere
    for camera, key in layout.cameras.items():
        if folder.features[key]["dtype"] != "video":
            continue
        path, begin = folder.video(key, number)
        yield from _video(folder, camera, key, number, rows, path, begin)


def _video(
    folder: LerobotFolder, camera: str, key: str, number: int, rows: int, path: Path, begin: float
) -> Iterator[Finding]:
    place = {"file": _below(folder, path), "column": camera, "episodes": (number,)}
    if not path.is_file():
        yield Finding(
            ERROR, "missing-video", f"episode {number}: {path.name} of camera {camera} is missing",
            "copy the data set again", **place,
        )  # fmt: skip
        return
    try:
        facts = _facts(path, path.stat().st_mtime_ns)
    except UserError as error:
        yield of_error(error, "broken-video", **place)
        return
    size = image_size(folder, key)
    if (facts.height, facts.width) != size:
        yield Finding(
            ERROR, "wrong-image-size",
            f"camera {camera} is {facts.height}x{facts.width} pixels, info.json says {size[0]}x{size[1]}",
            "correct info.json, or scale the video", **place,
        )  # fmt: skip
    if facts.rate_hz and abs(facts.rate_hz / folder.rate_hz - 1) > 0.01:
        yield Finding(
            ERROR, "wrong-video-rate",
            f"camera {camera} has {facts.rate_hz:g} frames a second, info.json says {folder.rate_hz:g}",
            "encode the video at the rate of the rows", **place,
        )  # fmt: skip
    yield from _length(folder, camera, number, rows, begin, facts, place)
    if facts.first.std() < FLAT and facts.last.std() < FLAT:
        yield Finding(
            WARNING, "flat-video", f"camera {camera} shows one colour in its first and last frame",
            "look at the video: was the camera covered, or never drawn?", **place,
        )  # fmt: skip


def _length(
    folder: LerobotFolder, camera: str, number: int, rows: int, begin: float, facts: VideoFacts, place: dict
) -> Iterator[Finding]:
    first = round(begin * folder.rate_hz)
    if first + rows > facts.frames:
        yield Finding(
            ERROR, "short-video",
            f"episode {number} has {rows} rows, camera {camera} has {max(facts.frames - first, 0)} frames for them",
            "record it again or leave it out", **place,
        )  # fmt: skip
    elif folder.episodic and facts.frames > rows:
        yield Finding(
            WARNING, "long-video",
            f"episode {number} has {rows} rows, camera {camera} has {facts.frames} frames",
            "look whether frames and rows belong together: frame n is taken for row n", **place,
        )  # fmt: skip


def unused_cameras(folder: LerobotFolder, layout: Layout) -> Iterator[Finding]:
    """Cameras that info.json lists and modality.json does not, without files."""
    for key, feature in folder.features.items():
        if feature["dtype"] != "video" or key in layout.cameras.values():
            continue
        if not any(folder.video(key, number)[0].is_file() for number in itertools.islice(folder.episodes, 3)):
            yield Finding(
                WARNING, "camera-without-video", f"info.json lists camera {key}, there are no files of it",
                "remove it from info.json: LeRobot's own reader stops there", "meta/info.json", key,
            )  # fmt: skip


def stored_pictures(
    folder: LerobotFolder, layout: Layout, file: Path, numbers: np.ndarray
) -> Iterator[Finding]:
    """Faults in the pictures inside one parquet file.

    Args:
        folder: the data set.
        layout: which cameras count.
        file: the file.
        numbers: (rows,) the episode of each row.
    """
    for camera, key in layout.cameras.items():
        if folder.features[key]["dtype"] != "image":
            continue
        size, row, before = image_size(folder, key), 0, b""
        with pq.ParquetFile(file) as parquet:
            if key not in parquet.schema_arrow.names:
                continue  # found with the other missing columns
            for batch in parquet.iter_batches(ROWS, columns=[key]):
                for encoded in _bytes(batch.column(0)):
                    # A held picture is the last one again.
                    problem = None if encoded == before and encoded else _problem(encoded, size)
                    if problem:
                        number = int(numbers[row])
                        yield Finding(
                            ERROR, problem[0], f"episode {number}: camera {camera} at row {row} of the file "
                            f"{problem[1]}", "copy the data set again, or record the episode again",
                            _below(folder, file), camera, (number,),
                        )  # fmt: skip
                    row, before = row + 1, encoded


def _bytes(column: pa.Array) -> Iterator[bytes | None]:
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = column.field("bytes")
    for value in column:
        yield value.as_py()


def _problem(encoded: object, size: tuple[int, int]) -> tuple[str, str] | None:
    from PIL import Image

    if not isinstance(encoded, bytes):
        return "missing-image", "has no picture"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            height, width = image.height, image.width
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        return "broken-image", f"is not a picture ({' '.join(str(error).split())})"
    if (height, width) != size:
        return "wrong-image-size", f"is {height}x{width} pixels, info.json says {size[0]}x{size[1]}"
    return None


def _below(folder: LerobotFolder, path: Path) -> str:
    return str(path.relative_to(folder.root))
