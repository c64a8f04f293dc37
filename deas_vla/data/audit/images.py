"""Videos and images that are missing, broken, too short, or of another size or rate.

Frames are counted from a video's packets and decoded at both its ends, with PyAV: milliseconds, where LeRobot's decoder
would have to decode every frame to count them. Images in parquet files are checked by their checksums. Neither is kept.
"""

import io
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from deas_vla.data.lerobot.files import DEEP_MODES, deep_grey, image_bytes
from deas_vla.data.lerobot.findings import WARNING, Finding, found
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout, image_size
from deas_vla.data.lerobot.videos import other_rate, video_facts
from deas_vla.errors import UserError, is_out_of_memory

# Images are read from parquet files so many rows at a time.
ROWS = 64


def episode_videos(
    folder: LerobotFolder, layout: Layout, part: Rows, ends: dict[str, dict[int, float | None]]
) -> Iterator[Finding]:
    """Faults in the videos of one episode; `ends` is `videos.video_ends` of each column."""
    if part.number not in folder.episodes:
        return  # its list of episodes lacks this one: found elsewhere
    for camera, key in layout.cameras.items():
        if folder.features[key]["dtype"] == "video":
            yield from _video(folder, camera, key, part, ends[key].get(part.number))


def _video(folder: LerobotFolder, camera: str, key: str, part: Rows, end: float | None) -> Iterator[Finding]:
    number, rows, rate_hz = part.number, len(part), folder.rate_hz
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
        facts = video_facts(path, path.stat().st_mtime_ns)
    except UserError as error:
        yield found("broken-video", error, **position)
        return
    if other := _other_size(facts.size, folder, key):
        yield found("wrong-image-size", f"camera {camera} {other}", **position)
    if deep_grey(facts.pixel_format):
        yield found("depth-map", f"camera {camera} has pixels of format {facts.pixel_format}", **position)
    own = (len(facts.times) if end is None else round(end * rate_hz)) - round(begin * rate_hz)
    counted = f"episode {number} has {rows} rows, camera {camera} has {max(own, 0)} frames"
    rates = f"camera {camera} has {facts.rate_hz:g} frames a second, info.json says {rate_hz:g}"
    other = other_rate(facts.rate_hz, rate_hz)
    wanted = begin + np.arange(rows) / rate_hz
    gap = facts.gap(wanted)
    if (gap * rate_hz < 0.499).all():  # frames are looked up by their times, within half a step
        if other:
            yield found("wrong-video-rate", rates, severity=WARNING, **position)
        if own > rows:
            yield found("long-video", counted, **position)
    elif other:
        yield found("wrong-video-rate", rates, **position)
    elif own < rows:
        yield found("short-video", f"{counted} for them", **position)
    else:
        row = int(gap.argmax())
        times = f"episode {number}: camera {camera} has no frame at {wanted[row]:g} s, where row {row} is"
        yield found("video-times", f"{times}: the nearest is {gap[row] * 1e3:.0f} ms away", **position)


def unused_cameras(folder: LerobotFolder, layout: Layout) -> Iterator[Finding]:
    """Cameras that info.json lists and modality.json does not, without files."""
    for key, feature in folder.features.items():
        if feature["dtype"] != "video" or key in layout.cameras.values():
            continue
        paths = []
        with suppress(UserError):
            paths = [folder.video(key, number)[0] for number in itertools.islice(folder.episodes, 3)]
        if not any(path.is_file() for path in paths):
            message = f"info.json lists camera {key}, there are no files of it"
            yield found("camera-without-video", message, file="meta/info.json", column=key)


def stored_images(
    folder: LerobotFolder,
    layout: Layout,
    file: Path,
    episodes: list[tuple[Rows, np.ndarray]],
    advance: Callable[[int], object],
) -> Iterator[Finding]:
    """Faults in the images inside one parquet file.

    `episodes` are all that lie in it, each with its (F,) rows whose images are shown: a fault in another image is a
    warning. `advance` is told how many were looked at.
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
                encoded = image_bytes(value.as_py())
                # A repeated image is the last one again.
                code, what = ("", "") if encoded and encoded == before else _problem(encoded, folder, key)
                if code:
                    number = int(numbers[row])
                    message = f"episode {number}: camera {camera} at row {row} of the file {what}"
                    position = {"file": episodes[0][0].name, "column": camera, "episodes": (number,)}
                    yield found(code, message, severity="" if shown[row] else WARNING, **position)
                row, before = row + 1, b"" if code else encoded
                advance(1)


def _problem(encoded: bytes | None, folder: LerobotFolder, key: str) -> tuple[str, str]:
    """Code and message of what is wrong with an image."""
    if encoded is None:
        return "missing-image", "has no image"
    try:
        size, mode = _checked(encoded)
    except Exception as error:  # each format has its own errors
        if is_out_of_memory(error):
            raise
        return "broken-image", f"is not an image ({error})"
    if mode in DEEP_MODES:
        return "depth-map", f"is a depth map ({mode}), no colours"
    other = _other_size(size, folder, key)
    return "wrong-image-size" if other else "", other


def _checked(encoded: bytes) -> tuple[tuple[int, int], str]:
    """(height, width) and Pillow's mode of an image that can be decoded; an exception of its format if it cannot."""
    from PIL import Image

    with suppress(Exception), Image.open(io.BytesIO(encoded)) as image:
        if image.format == "PNG":
            # It has checksums, which are read in a fraction of the time. One that lacks its end only can be decoded.
            image.verify()
            return (image.height, image.width), image.mode
    with Image.open(io.BytesIO(encoded)) as image:
        image.load()
        return (image.height, image.width), image.mode


def _other_size(size: tuple[int, int], folder: LerobotFolder, key: str) -> str:
    wanted = image_size(folder, key)
    return "" if size == wanted else "is {}x{} pixels, info.json says {}x{}".format(*size, *wanted)
