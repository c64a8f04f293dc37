"""Where in its videos an episode lies, and what the packets and headers of a file say, without decoding it whole."""

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from deas_vla.data.lerobot.files import video_header
from deas_vla.data.lerobot.findings import Finding, found
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout
from deas_vla.errors import UserError, as_user_error, require


@dataclass(frozen=True)
class VideoFacts:
    """What a video file holds."""

    times: np.ndarray  # (frames,) s, increasing: counted from its packets, not what the header says
    size: tuple[int, int]  # height and width
    rate_hz: float  # by its header, or 0
    pixel_format: str  # FFmpeg's name

    def gap(self, wanted: np.ndarray) -> np.ndarray:
        """(rows,) s from each wanted second to the nearest frame."""
        after = np.searchsorted(self.times, wanted).clip(1, max(len(self.times) - 1, 1))
        near = self.times[[after - 1, np.minimum(after, len(self.times) - 1)]]
        return np.abs(near - wanted).min(0)


@lru_cache(maxsize=16)
def video_facts(path: Path, modified_ns: int) -> VideoFacts:
    """Facts of a video, cached, as it may hold many episodes; one without, or damaged at an end, is a UserError."""
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
        seconds = np.sort(np.array(times, np.float64)) * float(stream.time_base)
        return VideoFacts(seconds, (first.height, first.width), float(stream.average_rate or 0), first.format.name)


def video_ends(folder: LerobotFolder, key: str) -> dict[int, float | None]:
    """The second at which the next episode begins in the file of each episode's video; None in the last, and of v2."""
    places: dict[Path, list[tuple[float, int]]] = {}
    for number in () if folder.episodic else folder.episodes:
        try:
            path, begin = folder.video(key, number)
        except UserError:
            continue  # found where the episode is looked at
        places.setdefault(path, []).append((begin, number))
    ends: dict[int, float | None] = dict.fromkeys(folder.episodes)
    for place in places.values():
        ends |= {number: after for (_, number), (after, _) in itertools.pairwise(sorted(place))}
    return ends


def misplaced(folder: LerobotFolder, layout: Layout, parts: list[Rows]) -> Iterator[Finding]:
    """Episodes in whose place of a video, by its seconds, other frames than those of their rows may be."""
    for camera, key in layout.cameras.items():
        if folder.features[key]["dtype"] != "video":
            continue
        ends = video_ends(folder, key)
        for part in (part for part in parts if part.number in folder.episodes):
            position = {"file": "meta/episodes", "column": camera, "episodes": (part.number,)}
            try:
                path, begin = folder.video(key, part.number)
            except UserError as error:
                yield found("missing-video", error, **position)
                continue
            header = None
            with suppress(UserError, OSError):  # found where it is decoded
                header = video_header(path)
            end, message = ends[part.number], f"episode {part.number} has {len(part)} rows, camera {camera} has"
            if end is not None and (frames := (end - begin) * folder.rate_hz) < len(part) - 0.5:
                there = f"{round(frames)} frames up to the next episode in {path.name}"
                yield found("short-video", f"{message} {there}", **position)
            elif header and other_rate(header.rate_hz, folder.rate_hz):
                # As many frames as rows belong together whatever the clock; among more, seconds and numbers disagree.
                times = video_facts(path, path.stat().st_mtime_ns).times + 0.5 / folder.rate_hz
                if (count := int(((times >= begin) & (times < (end or np.inf))).sum())) != len(part):
                    rates = f"{header.rate_hz:g} a second, info.json says {folder.rate_hz:g}"
                    yield found("wrong-video-rate", f"{message} {count} frames, {rates}", **position)


def other_rate(rate_hz: float, rows_hz: float) -> bool:
    """Whether a video has another rate than its rows; 0 is an unknown one."""
    return bool(rate_hz) and abs(rate_hz / rows_hz - 1) > 0.01
