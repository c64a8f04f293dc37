"""Cameras that are covered, frozen, swapped or late: by a few small images of a few episodes.

Of each sampled episode the images of one stretch are decoded, where the state moves most, and made GRID x GRID pixels.
Scores and alarms are those of compared.py.

Shapes: E sampled episodes, F images of one, P = 3 GRID² numbers of a small image.
"""

import itertools
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from deas_vla.data.audit.compared import FEWEST, odd_ones
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


@dataclass(frozen=True)
class Film:
    """What one camera shows of one episode: small images (F, P), states (F, S) in standard deviations, and whether all
    images show one colour.
    """

    number: int
    images: np.ndarray
    states: np.ndarray
    flat: bool


def sample_films(
    folder: LerobotFolder, layout: Layout, parts: list[tuple[Rows, np.ndarray]], episodes: int
) -> tuple[dict[str, list[Film]], float]:
    """Films of each camera of so many episodes, evenly among all, and the seconds from one image to the next.

    `parts` are all episodes, in the order of the files, each with its (F,) rows whose images are shown.
    """
    parts = [(part, shown) for part, shown in parts if len(shown)]
    states = [gather(layout.state, part.columns) for part, _ in parts]
    scale = np.concatenate(states).std(0) if parts else np.ones(1)
    scale = np.maximum(scale, 1e-3 * scale.max() + 1e-9)
    chosen = np.unique(np.linspace(0, len(parts) - 1, min(episodes, len(parts))).round().astype(int))
    films: dict[str, list[Film]] = {camera: [] for camera in layout.cameras}
    total = len(chosen) * len(films)
    with tqdm(total=total, desc=f"audit {folder.root.name}: cameras", unit="film", delay=2, dynamic_ncols=True) as bar:
        for (camera, key), i in itertools.product(layout.cameras.items(), chosen):
            part, shown = parts[i]
            with suppress(UserError):  # found where files are checked
                films[camera].append(_film(folder, key, part, shown, states[i] / scale))
            bar.update()
    steps = np.concatenate([np.diff(shown) for _, shown in parts] or [[]])
    return films, float(np.median(steps) if len(steps) else 1) / folder.rate_hz


def compare_films(films: dict[str, list[Film]], step_s: float) -> Iterator[Finding]:
    """Faults of cameras, by what `sample_films` gives."""
    for camera, of_camera in films.items():
        yield from _blind(camera, of_camera)
    yield from _swapped(films)
    yield from _late(films, step_s)


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
    return Film(part.number, small.reshape(length, -1), states[rows], flat)


def _blind(camera: str, films: list[Film]) -> Iterator[Finding]:
    """Films of one colour, and films that stand still while the robot moves."""
    moving = [film for film in films if len(film.images) > 1 and np.abs(np.diff(film.states, axis=0)).max() > 1e-3]
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


def _late(films: dict[str, list[Film]], step_s: float) -> Iterator[Finding]:
    """Cameras whose images change after the state does: against the state, against each other, or in some episodes."""
    furthest = int(np.clip(round(0.6 / step_s), 2, 12))
    lags, known = np.arange(-furthest, furthest + 1), {}
    for camera, of_camera in films.items():
        long = [film for film in of_camera if len(film.images) > 2 * furthest + 4]
        if len(long) < FEWEST:
            continue
        told = _explained(long, lags)  # (L fitted, L, E)
        fitted = np.array([told[k, k].mean() for k in range(len(lags))])
        best = int(fitted.argmax())
        own = np.array([told[k, k] for k in range(len(lags))]).argmax(0)
        # Images from which nobody can tell how the robot moved say nothing about when.
        if fitted[best] < 0.2 or (np.abs(own - best) <= 1).mean() < 0.6:
            continue
        known[camera] = lags[best] * step_s
        each = told[best]
        other = np.where(np.abs(lags[:, None] - lags[best]) >= 2, each, -np.inf)
        score = np.log((1 - each[best]) / (1 - other.max(0)).clip(1e-3))
        for i in odd_ones(score, np.log(1.5), np.log(1.5)):
            late = (lags[int(other[:, i].argmax())] - lags[best]) * step_s
            message = f"camera {camera} is {abs(late):.2g} s {'later' if late > 0 else 'earlier'} than in most episodes"
            yield found("camera-late", message, column=camera, episodes=(long[i].number,))
    for camera, late in known.items():
        least = min(known.values())
        if late > LATE_S:
            yield found("camera-late", f"camera {camera} shows what the state was {late:.2g} s ago", column=camera)
        elif late - least >= max(LATER_S, 1.5 * step_s):
            first = min(known, key=known.get)
            yield found("camera-late", f"camera {camera} is {late - least:.2g} s later than {first}", column=camera)


def _explained(films: list[Film], lags: np.ndarray) -> np.ndarray:
    """(L fitted, L, E) how much of the state's movement the images explain, in episodes that the fit has not seen.

    A ridge regression from changes of the images to changes of the state so many images before, in the directions in
    which each changes most; fitted at one lag, applied at each.
    """
    images, states = ([np.diff(getattr(film, key), axis=0) for film in films] for key in ("images", "states"))
    reduced = []
    for changes, kept in ((images, 8), (states, 3)):
        axes = np.linalg.svd(np.concatenate(changes), full_matrices=False)[2][:kept].T
        reduced.append([(each - each.mean(0)) @ axes for each in changes])
    at = [[_at_lag(x, y, lag) for x, y in zip(*reduced, strict=True)] for lag in lags]
    told = np.empty((len(lags), len(lags), len(films)))
    for fit, fold in itertools.product(range(len(lags)), (0, 1)):
        seen = [pair for i, pair in enumerate(at[fit]) if i % 2 != fold]
        x, y = (np.concatenate(part) for part in zip(*seen, strict=True))
        gram = x.T @ x
        weight = np.linalg.solve(gram + (1e-2 * np.trace(gram) / len(gram) + 1e-9) * np.eye(len(gram)), x.T @ y)
        for apply, i in itertools.product(range(len(lags)), range(fold, len(films), 2)):
            x, y = at[apply][i]
            told[fit, apply, i] = 1 - ((y - x @ weight) ** 2).sum() / ((y**2).sum() + 1e-9)
    return told.clip(-1, 1)


def _at_lag(images: np.ndarray, states: np.ndarray, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Changes of images, and those of the state so many images before."""
    return images[max(lag, 0) : len(images) + min(lag, 0)], states[max(-lag, 0) : len(states) - max(lag, 0)]
