"""Frames out of video files, by number: decoded with PyAV, one frame in memory at a time."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError, require


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds.

    Attributes:
        frames: how many, counted, not what its header says.
        height: of a frame in pixels.
        width: of a frame in pixels.
        rate_hz: frames a second.
        first: (h, w, 3) uint8, its first frame.
        last: (h, w, 3) uint8, its last frame.
    """

    frames: int
    height: int
    width: int
    rate_hz: float
    first: np.ndarray
    last: np.ndarray


def video_facts(path: Path) -> VideoFacts:
    """Counts a video's frames from its packets and decodes both its ends: milliseconds for most, not seconds.

    Raises:
        UserError: if the file is missing, or damaged at one of these places.
    """
    with _opened(path) as container:
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
            raise UserError(f"{path} cannot be decoded; copy it again")
        return VideoFacts(
            frames=len(times),
            height=first.height,
            width=first.width,
            rate_hz=float(stream.average_rate or 0),
            first=first.to_ndarray(format="rgb24"),
            last=last.to_ndarray(format="rgb24"),
        )


@contextmanager
def _opened(path: Path) -> Iterator:
    """A video file, open for a block; every error of the decoder becomes one line that names the file."""
    av = require("av", "lerobot")
    if not path.is_file():
        raise UserError(f"{path} is missing; copy the data set again")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path} holds no video; copy it again")
            yield container
    except (av.FFmpegError, OSError) as error:
        raise UserError(
            f"{path} cannot be decoded ({' '.join(str(error).split())}); copy it again"
        ) from error
