"""Cameras that are covered, frozen, swapped or late: by a few small images of a few episodes.

Of each sampled episode the images of one stretch are decoded, where the state moves most, and made GRID x GRID pixels.
Scores and alarms are those of compared.py and shifts.py.

Shapes: E sampled episodes, T rows and F images of one, S columns, P = 3 GRID² numbers of a small image.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from deas_vla.data.audit.shifts import CLEAR, FEWEST, Design, likelihoods, odd_ones, odd_shifts, reduced
from deas_vla.data.lerobot.findings import ERROR, WARNING, Finding, found
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout, gather, image_size
from deas_vla.errors import UserError

GRID = 8
# Images of an episode that are looked at.
FRAMES = 48
# An image whose numbers vary less than this shows one colour; a small image that changes less has not changed.
FLAT, STILL = 2.0, 0.05
# A lone camera may be so late, as those of real robots are; one of two only so much later than the other.
LATE_S, LATER_S = 0.5, 0.1
# How late is looked for, and in how many images at least.
FURTHEST_S, SHORTEST = 0.6, 8


@dataclass(frozen=True)
class Film:
    """What one camera shows of one episode: small images (F, P), the rows (F,) that they are of, the states (T, S) of
    all rows in standard deviations, and whether all images show one colour.
    """

    number: int
    images: np.ndarray
    rows: np.ndarray
    states: np.ndarray
    flat: bool


def sample_films(
    folder: LerobotFolder, layout: Layout, parts: list[tuple[Rows, np.ndarray]], episodes: int
) -> dict[str, list[Film]]:
    """Films of each camera of so many episodes, evenly among all.

    `parts` are all episodes, in the order of the files, each with its (F,) rows whose images are shown.
    """
    read = [(part, shown, gather(layout.state, part.columns)) for part, shown in parts if len(shown)]
    read = [each for each in read if np.isfinite(each[2]).all()]  # others are found with the rows
    scale = np.concatenate([states for _, _, states in read]).std(0) if read else np.ones(1)
    scale = np.maximum(scale, 1e-3 * scale.max() + 1e-9)
    chosen = np.unique(np.linspace(0, len(read) - 1, min(episodes, len(read))).round().astype(int))
    films: dict[str, list[Film]] = {camera: [] for camera in layout.cameras}
    wanted, desc = list(itertools.product(layout.cameras.items(), chosen)), f"audit {folder.root.name}: cameras"
    for (camera, key), i in tqdm(wanted, desc=desc, unit="film", delay=2, dynamic_ncols=True):
        part, shown, states = read[i]
        with suppress(UserError):  # found where files are checked
            films[camera].append(_film(folder, key, part, shown, states / scale))
    return films


def compare_films(films: dict[str, list[Film]], rate_hz: float) -> Iterator[Finding]:
    """Faults of cameras, by what `sample_films` gives of a data set of so many rows a second."""
    for camera, of_camera in films.items():
        yield from _blind(camera, of_camera)
    yield from _swapped(films)
    yield from _late(films, rate_hz)


def _film(folder: LerobotFolder, key: str, part: Rows, shown: np.ndarray, states: np.ndarray) -> Film:
    speed = np.linalg.norm(np.diff(states[shown], axis=0), axis=1)
    length = min(FRAMES, len(shown))
    start = int(np.convolve(speed, np.ones(max(length - 1, 1)), "valid").argmax()) if length > 1 else 0
    rows = shown[start : start + length]
    height, width = image_size(folder, key)
    (images,) = folder.images(key, (height, width), [part], [rows])
    flat = all(float(image.std()) < FLAT for image in images[:: max(length // 4, 1)])
    high, wide = max(height // GRID, 1), max(width // GRID, 1)
    cut = images[:, : high * GRID, : wide * GRID]
    small = cut.reshape(length, -1, high, cut.shape[2] // wide, wide, 3).mean((2, 4), dtype=np.float32)
    return Film(part.number, small.reshape(length, -1), rows, states, flat)


def _blind(camera: str, films: list[Film]) -> Iterator[Finding]:
    """Films of one colour, and films that stand still while the robot moves."""
    moving = [film for film in films if (np.abs(np.diff(film.states[film.rows], axis=0)) > 1e-3).any()]
    change = [float(np.abs(np.diff(film.images, axis=0)).max()) for film in moving]
    flat = [film.number for film in films if film.flat]
    still = [film.number for film, each in zip(moving, change, strict=True) if each < STILL and not film.flat]
    for code, what, which, among in (
        ("flat-camera", "shows one colour", flat, films),
        ("frozen-camera", "stands still while the robot moves", still, moving),
    ):
        if which:
            # Where it is so in most, it may be meant: a camera that is not used, or sees no robot.
            severity = WARNING if len(which) > len(among) / 2 or len(among) < FEWEST else ERROR
            message = f"camera {camera} {what} in {len(which)} of the {len(among)} episodes that were looked at"
            yield found(code, message, column=camera, episodes=tuple(which), severity=severity)


def _swapped(films: dict[str, list[Film]]) -> Iterator[Finding]:
    """Two cameras each of which shows, in some episodes, what the other shows in most."""
    for one, other in itertools.combinations(films, 2):
        pairs = [(a, b) for a, b in itertools.product(films[one], films[other]) if a.number == b.number]
        if len(pairs) < FEWEST:
            continue
        views = np.array([[film.images.mean(0) for film in pair] for pair in pairs])  # (E, 2, P)
        usual = np.median(views, 0)
        asis, swapped = (np.abs(views - each).mean((1, 2)) + 0.1 for each in (usual, usual[::-1]))
        which = odd_ones(np.log(asis / swapped), np.log(1.5), np.log(1.2))
        if len(which):
            message = f"cameras {one} and {other} are swapped in {len(which)} of {len(pairs)} episodes"
            yield found("cameras-swapped", message, column=one, episodes=tuple(pairs[i][0].number for i in which))


def _late(films: dict[str, list[Film]], rate_hz: float) -> Iterator[Finding]:
    """Cameras whose images change after the state does: against the state, against each other, or in some episodes."""
    gaps = np.concatenate([np.diff(film.rows) for film in itertools.chain(*films.values())] or [[]])
    step = float(np.median(gaps)) if len(gaps) else 1.0  # from one image to the next, in rows
    furthest, known = max(FURTHEST_S * rate_hz, 4 * step), {}
    lags = np.unique(np.linspace(-furthest, furthest, 25).round().astype(int))
    for camera, of_camera in films.items():
        long = [film for film in of_camera if len(film.images) >= SHORTEST]
        if len(long) < FEWEST:
            continue
        design, changes = _seen(long)
        everyone = np.zeros(len(long), bool)
        fitted = [likelihoods(design, changes, lag, [lag], everyone).sum() for lag in lags.tolist()]
        usual = int(lags[np.argmax(fitted)])
        score, odd = odd_shifts(design, changes, usual, lags, 2 * step)
        for i, lag in odd.items():
            late = (lag - usual) / rate_hz
            message = f"camera {camera} is {abs(late):.2g} s {'later' if late > 0 else 'earlier'} than in most episodes"
            yield found("camera-late", message, column=camera, episodes=(long[i].number,))
        # Images from which nobody can tell how the robot moved say nothing about when.
        if np.median(score) < -CLEAR:
            known[camera] = usual / rate_hz
    for camera, late in known.items():
        least = min(known.values())
        if late > LATE_S:
            yield found("camera-late", f"camera {camera} shows what the state was {late:.2g} s ago", column=camera)
        elif late - least >= max(LATER_S, 2 * step / rate_hz):
            first = min(known, key=known.get)
            yield found("camera-late", f"camera {camera} is {late - least:.2g} s later than {first}", column=camera)


def _seen(films: list[Film]) -> tuple[Design, list[np.ndarray]]:
    """What changes from image to image, explained by what the state does over the same time, some rows before."""
    states = reduced([film.states for film in films], 6)

    def design(i: int, lag: int | None) -> np.ndarray:
        # Beyond its ends the robot is taken to stand still.
        rows = (films[i].rows - (lag or 0)).clip(0, len(states[i]) - 1)
        return np.diff(states[i][rows], axis=0) * (lag is not None)

    return design, reduced([np.diff(film.images, axis=0) for film in films], 8)
