"""Statistics of a benchmark: tasks that are fixed, trainings that are few, scenes that are many.

One run is one training seed on one task; it is a cell of the grid, and what was measured in its scenes are the cell's
values. Tasks are the benchmark itself and count alike. The unit of an interval is the training (design rule 10): the
means of runs differ by their scenes too, so that a t interval over them covers both. A bootstrap over three seeds
never leaves their range and covers 75 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

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


def grid_interval(grid: Grid, *, shared: bool = False, confidence: float = 0.95) -> Interval:
    """t interval of `grid_mean` over the means of runs, with tasks as strata (Welch 1947, Satterthwaite 1946).

    With a single training, or where all runs have the same mean, it is a bootstrap over scenes: an interval for this
    training, not for another.

    Args:
        grid: at least one cell. A task with one run is taken to vary as the others do.
        shared: a seed's runs share a training (one policy for many tasks), so that the unit is the seed.
        confidence: of the interval, in (0, 1).
    """
    of_task: dict[int, list[float]] = {}
    for (_, task), cell in sorted(grid.items()):
        of_task.setdefault(task, []).append(float(cell.values.mean()))
    if shared:
        of_seed: dict[int, list[float]] = {}
        for (number, task), cell in sorted(grid.items()):
            of_seed.setdefault(number, []).append(float(cell.values.mean()) - np.mean(of_task[task]))
        strata = [[float(np.mean(one)) for one in of_seed.values()]]
    else:
        strata = list(of_task.values())
    variance = [np.var(means, ddof=1) for means in strata if len(means) > 1]
    if not variance or max(variance) < 1e-12:
        return _scene_interval(grid, confidence)
    errors = [(np.var(m, ddof=1) if len(m) > 1 else np.mean(variance)) / len(m) for m in strata]
    below = sum(error**2 / (len(m) - 1) for error, m in zip(errors, strata, strict=True) if len(m) > 1)
    low, high = stats.t.interval(
        confidence, sum(errors) ** 2 / below, grid_mean(grid), np.sqrt(sum(errors)) / len(strata)
    )
    return float(low), float(high)


def success_interval(grid: Grid, **options) -> Interval:
    """`grid_interval` of a success rate; Wilson's where every episode ended alike and nothing varies."""
    values = np.concatenate([cell.values for cell in grid.values()]).astype(np.float64)
    if np.ptp(values) == 0 and values[0] in (0, 1):
        return wilson_interval(int(values.sum()), len(values))
    low, high = grid_interval(grid, **options)
    return max(low, 0.0), min(high, 1.0)


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
        key: Cell(a[key].scenes, a[key].values.astype(np.float64) - b[key].values.astype(np.float64)) for key in common
    }
    delta = np.concatenate([cell.values for cell in grid.values()])
    if np.ptp(delta) == 0:
        # An interval of equal numbers is a point; this one says how far so many pairs can be trusted.
        ci = agreement_interval(float(delta[0]), len(delta))
    else:
        low, high = grid_interval(grid, **options)
        ci = max(low, -1.0), min(high, 1.0)
    return GridDifference(
        difference=grid_mean(grid),
        ci95=ci,
        wins=int((delta > 0).sum()),
        losses=int((delta < 0).sum()),
        pairs=len(delta),
        runs=len(common),
        seeds=len({number for number, _ in common}),
    )


def _scene_interval(grid: Grid, confidence: float, seed: int = 0) -> Interval:
    """Percentile bootstrap of `grid_mean` over each task's scenes; one that several seeds played is one scene."""
    of_task: dict[int, dict[int, list[float]]] = {}
    for (_, task), cell in sorted(grid.items()):
        for scene, value in zip(cell.scenes, cell.values, strict=True):
            of_task.setdefault(task, {}).setdefault(scene, []).append(float(value))
    rng, total = np.random.default_rng(seed), np.zeros(RESAMPLES)
    for by_scene in of_task.values():
        means = np.array([np.mean(values) for values in by_scene.values()])
        total += means[rng.integers(len(means), size=(RESAMPLES, len(means)))].mean(1)
    low, high = np.quantile(total / len(of_task), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
