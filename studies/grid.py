"""Statistics of a benchmark: tasks that are fixed, training seeds that are few, scenes that are many.

One run is one training seed on one task; it is a cell of the grid, and what was measured in its scenes are the cell's
values. Tasks are the benchmark itself and count alike; seeds and scenes are samples, and both are resampled.
"""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from deas_vla.rollouts.statistics import RESAMPLES, Interval, agreement_interval, wilson_interval


@dataclass(frozen=True)
class Cell:
    """What one run measured.

    Attributes:
        scenes: (S,) the scenes' numbers, ascending.
        values: (S,) one number a scene: 0 or 1 for success, −1 to 1 for a difference.
    """

    scenes: tuple[int, ...]
    values: np.ndarray


Grid = Mapping[tuple[int, int], Cell]  # (seed, task) to its cell; runs that are missing are not in it


@dataclass(frozen=True)
class GridDifference:
    """Method a minus method b over the runs that both have, scene by scene.

    Attributes:
        difference: mean of a − b, in [-1, 1].
        ci95: as `grid_interval`.
        wins: pairs in which only a succeeded.
        losses: pairs in which only b succeeded.
        pairs: number of pairs.
        runs: runs (seed and task) that both methods have.
        seeds: training seeds among them.
    """

    difference: float
    ci95: Interval
    wins: int
    losses: int
    pairs: int
    runs: int
    seeds: int


def grid_mean(grid: Grid) -> float:
    """Mean over tasks of the mean over seeds of a cell's mean."""
    by_task: dict[int, list[float]] = {}
    for (_, task), cell in sorted(grid.items()):
        by_task.setdefault(task, []).append(float(cell.values.mean()))
    return float(np.mean([np.mean(means) for means in by_task.values()]))


def grid_interval(
    grid: Grid, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Percentile bootstrap of `grid_mean` that resamples training seeds and scenes.

    Each resample draws the seeds with replacement, the same draw for all tasks (a seed's tasks share what was trained
    once), and the scenes of each task with replacement, the same draw for all seeds that played the same scenes; a
    value counts as often as its seed and its scene were drawn together (the pigeonhole bootstrap, Owen 2007, which
    errs on the wide side). With one seed only the scenes vary. Resamples in which a task has no run are left out;
    there are none where no run is missing.

    Args:
        grid: at least one cell.
        confidence: of the interval, in (0, 1).
        resamples: how many.
        seed: of the resampling; the same seed gives the same interval.
    """
    seeds = sorted({number for number, _ in grid})
    drawn = np.random.default_rng(seed).multinomial(
        len(seeds), np.full(len(seeds), 1 / len(seeds)), resamples
    )
    total = np.zeros(resamples)
    tasks = sorted({task for _, task in grid})
    for task in tasks:
        above, below = np.zeros(resamples), np.zeros(resamples)
        for column, number in enumerate(seeds):
            if cell := grid.get((number, task)):
                # Not through BLAS: its threads cost more than they save here, and round by their number.
                weights = _scene_weights(task, cell.scenes, resamples, seed)
                means = np.einsum("rs,s->r", weights, cell.values.astype(np.float32))
                above += drawn[:, column] * means
                below += drawn[:, column]
        total += np.divide(above, below, out=np.full(resamples, math.nan), where=below > 0)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(total / len(tasks), [tail, 1 - tail])
    return float(low), float(high)


def success_interval(grid: Grid, **options) -> Interval:
    """`grid_interval` of a success rate; Wilson's where every episode ended alike and a bootstrap would be a point."""
    values = np.concatenate([cell.values for cell in grid.values()]).astype(np.float64)
    if np.ptp(values) == 0 and values[0] in (0, 1):
        return wilson_interval(int(values.sum()), len(values))
    return grid_interval(grid, **options)


def grid_difference(a: Grid, b: Grid, **options) -> GridDifference | None:
    """Compares two methods over the runs that both have; None if they share none.

    Raises:
        ValueError: if a run of both was played in different scenes: then there are no pairs.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    for key in common:
        if a[key].scenes != b[key].scenes:
            raise ValueError(f"seed {key[0]}, task {key[1]}: the two methods were played in different scenes")
    grid = {
        key: Cell(a[key].scenes, a[key].values.astype(np.float64) - b[key].values.astype(np.float64))
        for key in common
    }
    delta = np.concatenate([cell.values for cell in grid.values()])
    if np.ptp(delta) == 0:
        # A bootstrap of equal numbers is a point; this interval says how far so many pairs can be trusted.
        ci = agreement_interval(float(delta[0]), len(delta))
    else:
        ci = grid_interval(grid, **options)
    return GridDifference(
        difference=grid_mean(grid),
        ci95=ci,
        wins=int((delta > 0).sum()),
        losses=int((delta < 0).sum()),
        pairs=len(delta),
        runs=len(common),
        seeds=len({number for number, _ in common}),
    )


@lru_cache(maxsize=256)
def _scene_weights(task: int, scenes: tuple[int, ...], resamples: int, seed: int) -> np.ndarray:
    """(resamples, S) share of each scene in each resample: one draw for all that is measured in these scenes."""
    mark = zlib.crc32(np.asarray(scenes, np.int64).tobytes())
    rng = np.random.default_rng((seed, task, mark))
    counts = rng.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), resamples)
    return (counts / len(scenes)).astype(np.float32)
