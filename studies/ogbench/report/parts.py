"""Parts of the results: a success rate, a difference, a curve, a calibration, each as JSON values."""

import numpy as np

from deas_vla.rollouts.statistics import spearman
from studies.grid import Cell, Grid, grid_difference, grid_mean, success_interval
from studies.ogbench.report.runs import DataSetRuns, Method, Run

POINTS = 40  # of a curve, at most
BINS = 10


def level(grid: Grid) -> dict | None:
    """Success over a grid of runs, with its interval and how many episodes it rests on.

    A seed's tasks share a behaviour policy, so that the unit of the interval is the seed.
    """
    if not grid:
        return None
    return {
        "success": grid_mean(grid),
        "ci95": success_interval(grid, shared=True),
        "successes": sum(int(cell.values.sum()) for cell in grid.values()),
        "episodes": sum(len(cell.values) for cell in grid.values()),
        "runs": len(grid),
        "seeds": len({seed for seed, _ in grid}),
        "tasks": len({task for _, task in grid}),
    }


def difference(a: Grid, b: Grid) -> dict | None:
    """a − b over the runs that both have, with a verdict: ahead, behind or undecided."""
    result = grid_difference(a, b, shared=True)
    if result is None:
        return None
    low, high = result.ci95
    return {**vars(result), "verdict": "ahead" if low > 0 else "behind" if high < 0 else "undecided"}


def success_curve(data: DataSetRuns, agent: str) -> dict | None:
    """Success during training, over the runs that have every point; the end is the final agent in the same scenes."""
    grids: dict[int, dict[tuple[int, int], Cell]] = {}
    for key, run in data.runs[agent].items():
        points = dict(run.curve)
        last = run.settings.get("training.steps")
        if points and last:
            alike = [_like(method, next(iter(run.curve.values()))) for method in run.methods.values()]
            points.update((last, end) for end in alike if end)
        for update, point in points.items():
            grids.setdefault(update, {})[key] = point.cell
    if not grids:
        return None
    keys = set.intersection(*(set(grid) for grid in grids.values()))
    levels = {update: level({key: grid[key] for key in keys}) for update, grid in sorted(grids.items())}
    return {"points": levels} if keys else None


def _like(method: Method, other: Method) -> Method | None:
    """A method in the scenes of another that was played in the same way; None if it was not."""
    same = (method.rule, method.candidates, method.execute) == (other.rule, other.candidates, other.execute)
    if not same or not set(other.scenes) <= set(method.scenes):
        return None
    rows = np.searchsorted(method.scenes, other.scenes)
    return Method(**{**vars(method), "scenes": other.scenes, "success": method.success[rows]})


def loss_curves(runs: dict[tuple[int, int], Run]) -> dict | None:
    """Mean over runs of every metric named ``loss`` or ``…_loss``, at the updates that all runs logged."""
    logs = [{line["step"]: line for line in run.metrics} for run in runs.values() if run.metrics]
    if not logs:
        return None
    steps = sorted(set.intersection(*(set(log) for log in logs)))
    if not steps:
        return None
    keep = np.unique(np.linspace(0, len(steps) - 1, min(POINTS, len(steps))).round().astype(int))
    steps = [steps[i] for i in keep]
    names = sorted({key for log in logs for line in log.values() for key in line if key.endswith("loss")})
    curves = {
        name: [float(np.mean([log[step][name] for log in logs])) for step in steps]
        for name in names
        if all(name in log[step] for log in logs for step in steps)
    }
    return {"runs": len(logs), "updates": steps, "losses": curves}


def calibration(runs: dict[tuple[int, int], Run], method: str | None) -> dict | None:
    """Q against the return that followed; bias and rank correlation are means over runs, bins are of all decisions."""
    q, returns, bias, bias_success, correlations = [], [], [], [], []
    for run in runs.values():
        if method not in run.methods:
            continue
        played = run.methods[method]
        known = np.isfinite(played.q) & np.isfinite(played.returns)
        if not known.any():
            continue
        gap = played.q - played.returns
        q.append(played.q[known])
        returns.append(played.returns[known])
        bias.append(gap[known].mean())
        won = known & played.success[played.decided_in]
        if won.any():
            bias_success.append(gap[won].mean())
        if (correlation := spearman(q[-1], returns[-1])) is not None:
            correlations.append(correlation)
    if not q:
        return None
    all_q, all_returns = np.concatenate(q), np.concatenate(returns)
    bins = [part for part in np.array_split(np.argsort(all_q, kind="stable"), BINS) if len(part)]
    return {
        "runs": len(q),
        "decisions": len(all_q),
        "mean_q": float(np.mean([values.mean() for values in q])),
        "mean_return": float(np.mean([values.mean() for values in returns])),
        "bias": float(np.mean(bias)),
        "bias_in_successes": float(np.mean(bias_success)) if bias_success else None,
        "rank_correlation": float(np.mean(correlations)) if correlations else None,
        "bins": [[float(all_q[part].mean()), float(all_returns[part].mean())] for part in bins],
    }
