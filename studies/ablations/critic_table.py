"""How well critics choose, judged against the Monte-Carlo returns of candidates: numbers and one table."""

from dataclasses import dataclass

import numpy as np

from deas_vla.report.summary import point_range, points
from deas_vla.rollouts.statistics import Interval, rank_against_oracle, ratio_interval
from studies.markdown import table

RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """One critic against Monte-Carlo returns, or the mean over several critics of one kind.

    Attributes:
        spearman: rank correlation of scores and mean returns within a decision, mean over decisions.
        spearman_ci95: bootstrap interval over scenes.
        gain: success of the chosen candidate minus that of a random one, as shares.
        gain_ci95: bootstrap interval over scenes.
        headroom: gain as a share of what choosing by half of the continuations gains in the other half.
        worst: success of the candidate with the lowest score minus that of a random one.
    """

    spearman: float
    spearman_ci95: Interval | None
    gain: float
    gain_ci95: Interval | None
    headroom: float | None
    worst: float


def score(q_values: np.ndarray, returns: np.ndarray, success: np.ndarray, scene: np.ndarray) -> Score:
    """Judges scores of candidates.

    Args:
        q_values: (C, D, N) scores by C critics.
        returns: (D, N, K) return of each continuation.
        success: (D, N, K) bool.
        scene: (D,) what the bootstrap resamples.
    """
    monte_carlo, rate = returns.mean(2), success.mean(2)
    rankings = [rank_against_oracle(one, monte_carlo, scene, resamples=RESAMPLES) for one in q_values]
    chosen = _chosen_by_each(q_values, rate) - rate.mean(1)
    worst = _chosen_by_each(-q_values, rate) - rate.mean(1)
    possible = _possible(returns, success)
    low, high = np.mean([ranking["spearman_ci95"] or (np.nan, np.nan) for ranking in rankings], 0)
    return Score(
        spearman=float(np.mean([ranking["spearman"] or 0.0 for ranking in rankings])),
        spearman_ci95=(float(low), float(high)) if np.isfinite(low) else None,
        gain=float(chosen.mean()),
        gain_ci95=_interval(chosen, scene),
        headroom=float(chosen.sum() / possible.sum()) if possible.sum() > 0 else None,
        worst=float(worst.mean()),
    )


def gain_over(q_values: np.ndarray, others: np.ndarray, success: np.ndarray, scene: np.ndarray) -> dict:
    """How much more choosing by these critics gains than by others, in the same decisions.

    The luck of a decision is in both and cancels: the interval is narrower than those of the two gains.

    Args:
        q_values, others: (C, D, N) and (C', D, N) scores.
        success: (D, N, K) bool.
        scene: (D,) what the bootstrap resamples.

    Returns:
        ``difference``, a share, and ``ci95``.
    """
    rate = success.mean(2)
    more = _chosen_by_each(q_values, rate) - _chosen_by_each(others, rate)
    return {"difference": float(more.mean()), "ci95": _interval(more, scene)}


def possible_gain(returns: np.ndarray, success: np.ndarray, scene: np.ndarray) -> dict:
    """What a perfect critic could gain in one decision, from below: chosen by half of the continuations.

    Args:
        returns: (D, N, K), K at least 2.
        success: (D, N, K) bool.
        scene: (D,).
    """
    gain = _possible(returns, success)
    return {"gain": float(gain.mean()), "ci95": _interval(gain, scene), "success": float(success.mean())}


def ablation_table(results: dict) -> str:
    """The Markdown table of an ablation, best first.

    Args:
        results: ``decisions``, ``scenes``, ``possible`` and ``variants``: name to flags, critics, seconds, score, and
            ``over_default`` as `gain_over` gives it, None for the default itself.
    """
    rows = []
    for name, entry in sorted(results["variants"].items(), key=lambda item: -item[1]["score"]["gain"]):
        mine, over = entry["score"], entry["over_default"]
        rows.append(
            [
                f"`{name}`",
                f"**{points(mine['gain'], 1)}**{_range(mine['gain_ci95'])}",
                over and points(over["difference"], 1) + _range(over["ci95"]),
                None if mine["headroom"] is None else f"{100 * mine['headroom']:.0f} %",
                f"{mine['spearman']:.2f}{_correlations(mine['spearman_ci95'])}",
                points(mine["worst"], 1),
                entry["critics"],
                f"{entry['seconds']:.0f}",
            ]
        )
    header = [
        "variant",
        "gain of best-of-N",
        "over the default",
        "of headroom",
        "rank correlation",
        "worst-of-N",
        "critics",
        "s each",
    ]
    return table(header, rows)


def _chosen(scores: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """(D,) success rate of the candidate with the highest score; the mean of those that share it."""
    best = scores == scores.max(1, keepdims=True)
    return (rate * best).sum(1) / best.sum(1)


def _chosen_by_each(q_values: np.ndarray, rate: np.ndarray) -> np.ndarray:
    """(C, D, N) scores to the (D,) mean over critics of `_chosen`."""
    return np.mean([_chosen(one, rate) for one in q_values], 0)


def _possible(returns: np.ndarray, success: np.ndarray) -> np.ndarray:
    half = returns.shape[2] // 2
    a, b = slice(0, half), slice(half, None)
    gains = [
        _chosen(returns[..., one].mean(2), success[..., other].mean(2)) - success[..., other].mean((1, 2))
        for one, other in ((a, b), (b, a))
    ]
    return np.mean(gains, 0)


def _interval(values: np.ndarray, scene: np.ndarray) -> Interval | None:
    _, code = np.unique(scene, return_inverse=True)
    count, total = np.bincount(code), np.bincount(code, values)
    return ratio_interval(total, count, resamples=RESAMPLES) if len(count) > 1 else None


def _range(interval: list | None) -> str:
    return f" ({point_range(interval)})" if interval else ""


def _correlations(interval: list | None) -> str:
    return " ({:.2f} to {:.2f})".format(*interval).replace("-", "−") if interval else ""
