"""Videos and images that are missing, broken, too short, of another size or rate, or show nothing.

Frames are counted from a video's packets and decoded at both its ends, with PyAV: milliseconds, where LeRobot's decoder
would have to decode every frame to count them. Images in parquet files are checked by their checksums. Neither is kept.
"""

import io
import itertools
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from deas_vla.data.lerobot.findings import WARNING, Finding, found
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout, image_size
from deas_vla.errors import UserError, as_user_error, require

# An image whose numbers vary less than this shows one colour.
FLAT = 2.0
# Images are read from parquet files so many rows at a time.
ROWS = 64


@lru_cache(maxsize=16)
def _video_facts(path: Path, modified_ns: int) -> tuple[int, tuple[int, int], float, bool]:
    """Frames (counted, not what the header says), (height, width), frames a second, whether both ends show one colour.

    Cached, since a file of v3 holds many episodes. One that holds no video, or is damaged there, is a UserError.
    """
    av = require("av", "lerobot")
    broken = f"{path} cannot be decoded; copy it again"
    with as_user_error(broken, av.FFmpegError), av.open(str(path)) as container:
        if not container.streams.video:
            raise UserError(f"{path} holds no video; copy it again")
        stream = container.streams.video[0]
        times = [packet.pts for packet in container.demux(stream) if packet.size]
        if not times or None in times:
            raise UserError(f"{path} holds no frames with times; record it again")
        # Frames are stored in the order in which they are decoded, not shown.
        container.seek(max(times), stream=stream)
        last = next(iter(deque(container.decode(stream), maxlen=1)), None)
        container.seek(min(times), stream=stream)
        first = next(container.decode(stream), None)
        if first is None or last is None:
            raise UserError(broken)
        flat = all(frame.to_ndarray(format="rgb24").std() < FLAT for frame in (first, last))
        return len(times), (first.height, first.width), float(stream.average_rate or 0), flat


def episode_videos(folder: LerobotFolder, layout: Layout, number: int, rows: int) -> Iterator[Finding]:
    """Faults in the videos of one episode of so many rows, hence frames."""
    if number not in folder.episodes:
        return  # its list of episodes lacks this one: found elsewhere
    for camera, key in layout.cameras.items():
        if folder.features[key]["dtype"] == "video":
            yield from _video(folder, camera, key, number, rows)


def _video(folder: LerobotFolder, camera: str, key: str, number: int, rows: int) -> Iterator[Finding]:
    try:
        path, begin = folder.video(key, number)
    except UserError as error:
        yield found("missing-video", error, file="meta/episodes", column=camera, episodes=(number,))
        return
    position = {"file": str(path.relative_to(folder.root)), "column": camera, "episodes": (number,)}
    if not path.is_file():
        yield found("missing-video", f"episode {number}: {path.name} of camera {camera} is missing", **position)
        return
    try:
        frames, size, rate_hz, flat = _video_facts(path, path.stat().st_mtime_ns)
    except UserError as error:
        yield found("broken-video", error, **position)
        return
    if other := _other_size(size, folder, key):
        yield found("wrong-image-size", f"camera {camera} {other}", **position)
    if rate_hz and abs(rate_hz / folder.rate_hz - 1) > 0.01:
        message = f"camera {camera} has {rate_hz:g} frames a second, info.json says {folder.rate_hz:g}"
        yield found("wrong-video-rate", message, **position)
    own = frames - round(begin * folder.rate_hz)
    message = f"episode {number} has {rows} rows, camera {camera} has {max(own, 0)} frames"
    if own < rows:
        yield found("short-video", f"{message} for them", **position)
    elif folder.episodic and own > rows:
        yield found("long-video", message, **position)
    if flat:
        yield found("flat-video", f"camera {camera} shows one colour in its first and last frame", **position)


def unused_cameras(folder: LerobotFolder, layout: Layout) -> Iterator[Finding]:
    """Cameras that info.json lists and modality.json does not, without files."""
    for key, feature in folder.features.items():
        if feature["dtype"] != "video" or key in layout.cameras.values():
            continue
        if not any(_has_video(folder, key, number) for number in itertools.islice(folder.episodes, 3)):
            message = f"info.json lists camera {key}, there are no files of it"
            yield found("camera-without-video", message, file="meta/info.json", column=key)


def _has_video(folder: LerobotFolder, key: str, number: int) -> bool:
    try:
        return folder.video(key, number)[0].is_file()
    except UserError:
        return False


def stored_images(
    folder: LerobotFolder, layout: Layout, file: Path, episodes: list[tuple[Rows, np.ndarray]]
) -> Iterator[Finding]:
    """Faults in the images inside one parquet file.

    `episodes` are all that lie in it, each with its (F,) rows whose images are shown: a fault in another image is a
    warning.
    """
    import pyarrow.parquet as pq

    numbers = np.concatenate([np.full(len(part), part.number) for part, _ in episodes])
    shown = np.concatenate([np.isin(np.arange(len(part)), frames) for part, frames in episodes])
    for camera, key in layout.cameras.items():
        if folder.features[key]["dtype"] != "image":
            continue
        row, before = 0, b""
        with pq.ParquetFile(file) as parquet:
            if key not in parquet.schema_arrow.names:
                continue  # found with the other missing columns
            for value in (value for batch in parquet.iter_batches(ROWS, columns=[key]) for value in batch.column(0)):
                value = value.as_py()
                encoded = value.get("bytes") if isinstance(value, dict) else value
                # A repeated image is the last one again.
                code, what = ("", "") if encoded and encoded == before else _problem(encoded, folder, key)
                if code:
                    number = int(numbers[row])
                    message = f"episode {number}: camera {camera} at row {row} of the file {what}"
                    position = {"file": episodes[0][0].name, "column": camera, "episodes": (number,)}
                    yield found(code, message, severity="" if shown[row] else WARNING, **position)
                row, before = row + 1, b"" if code else encoded


def _problem(encoded: object, folder: LerobotFolder, key: str) -> tuple[str, str]:
    """Code and message of what is wrong with an image."""
    from PIL import Image

    if not isinstance(encoded, bytes):
        return "missing-image", "has no image"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            size = image.height, image.width
            image.verify()
    except (OSError, SyntaxError, ValueError) as error:
        return "broken-image", f"is not an image ({error})"
    other = _other_size(size, folder, key)
    return "wrong-image-size" if other else "", other


def _other_size(size: tuple[int, int], folder: LerobotFolder, key: str) -> str:
    wanted = image_size(folder, key)
    return "" if size == wanted else "is {}x{} pixels, info.json says {}x{}".format(*size, *wanted)
