"""Statistics of a paired evaluation: how sure may one be, from these episodes, that one method beats another?

Two noise samples of one scene resemble each other: what is resampled, and what is flipped, is always the whole scene.
"""

import numpy as np
from scipy import stats

RESAMPLES = 10_000
_BLOCK = 1_000_000  # indices drawn at a time: bounds memory, does not change the numbers

Interval = tuple[float, float]


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate (Wilson 1927); (0, 1) without an episode.

    ValueError if the counts do not fit together or the confidence is outside (0, 1).
    """
    if not 0 <= successes <= episodes or not 0 < confidence < 1:
        raise ValueError(f"{successes} successes of {episodes} episodes, confidence {confidence}")
    if episodes == 0:
        return 0.0, 1.0
    found = stats.binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    rate = successes / episodes
    return min(float(found.low), rate), max(float(found.high), rate)  # at 0 and 1 they are off by a rounding


def paired_difference(a: np.ndarray, b: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> dict:
    """Compares two methods over the same scenes and noise samples.

    Args:
        a, b: (S, D) bool, success of the method in scene s with noise sample d; (S,) is taken for one sample.
        resamples, seed: of the bootstrap; the same seed gives the same interval.

    Returns:
        ``difference``: success rate of a minus that of b, in [-1, 1].
        ``ci95``: bootstrap that resamples scenes; where all scenes agree, `agreement_interval`.
        ``p_value``: exact McNemar test over the discordant pairs; takes pairs for independent.
        ``p_value_scenes``: exact sign-flip test over scenes: the one to believe with several samples a scene.
        ``wins``, ``losses``: pairs in which only a, or only b, succeeded; of so many ``pairs`` and ``scenes``.
        ``verdict``: ``gain`` or ``worse`` where interval and scene-level test both say so, else ``no_gain``.

    Raises ValueError if the shapes differ or there is no pair.
    """
    a, b = _pairs(a, b)
    delta = a.astype(int) - b.astype(int)
    per_scene = delta.mean(1)
    if np.ptp(per_scene) == 0:
        low, high = agreement_interval(float(per_scene[0]), len(per_scene))
    else:
        low, high = ratio_interval(per_scene, np.ones(len(per_scene)), resamples=resamples, seed=seed)
    p_value_scenes, verdict = scene_sign_flip_exact(a, b), "no_gain"
    if p_value_scenes < 0.05 and not low <= 0 <= high:
        verdict = "gain" if low > 0 else "worse"
    return {
        "difference": float(delta.mean()),
        "ci95": (low, high),
        "p_value": mcnemar_exact(a, b),
        "p_value_scenes": p_value_scenes,
        "wins": int((delta > 0).sum()),
        "losses": int((delta < 0).sum()),
        "pairs": delta.size,
        "scenes": len(delta),
        "verdict": verdict,
    }


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value over the discordant pairs of two bool arrays (McNemar 1947, binomial form)."""
    a, b = _pairs(a, b)
    wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def scene_sign_flip_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value of the null hypothesis that the methods may be swapped within any scene.

    All 2^S ways of swapping are counted, by convolving the scenes' two outcomes: `scipy.stats.permutation_test`
    enumerates them, which ends at some 20 scenes, and draws at random beyond. With one sample a scene it is
    `mcnemar_exact`; with several it does not take the samples of a scene for independent. a and b are (S, D) bool.
    """
    a, b = _pairs(a, b)
    per_scene = a.sum(1) - b.sum(1)
    probability = np.ones(1)  # of each sum of differences, from −reach to reach
    for size in np.abs(per_scene[per_scene != 0]):
        probability = np.convolve(probability, [0.5, *np.zeros(2 * size - 1), 0.5])
    reach = len(probability) // 2
    as_extreme = np.abs(np.arange(-reach, reach + 1)) >= abs(int(per_scene.sum()))
    return float(min(1.0, probability[as_extreme].sum()))


def share_of_headroom(
    policy: np.ndarray, chosen: np.ndarray, oracle: np.ndarray
) -> tuple[float | None, Interval | None]:
    """(chosen − policy) / (oracle − policy): how much of an oracle's gain another method gains, and its interval.

    All three are (S, D) bool, success in the same scenes. The share is None if the oracle gains nothing; its bootstrap
    interval over scenes is None if that can happen in a resample, for then it would be arbitrary.
    """
    policy, chosen, oracle = (success.mean(1) for success in _pairs(policy, chosen, oracle))
    gain, headroom = chosen - policy, oracle - policy
    if headroom.sum() <= 0:
        return None, None
    return float(gain.sum() / headroom.sum()), ratio_interval(gain, headroom)


def rank_against_oracle(
    scores: np.ndarray, returns: np.ndarray, scenes: np.ndarray, *, resamples: int = RESAMPLES
) -> dict:
    """How well a critic orders N candidates, by what playing each of them really led to.

    Args:
        scores: (K, N) critic's score of each candidate at each of K decisions.
        returns: (K, N) the Monte-Carlo return that the oracle found, more is better.
        scenes: (K,) scene of each decision: what the bootstrap (`resamples`) resamples.

    Returns:
        ``decisions``, and ``informative_decisions``: those whose returns differ. The others say nothing and are left
        out of the rest, which is None without any:
        ``spearman`` and ``spearman_ci95``: mean of the rank correlations ``spearman_per_decision`` (a list).
        ``regret``: mean of the best return − the return of the critic's choice; ``regret_random``: of a random choice.
        ``captured`` and ``captured_ci95``: 1 − regret / regret_random: 1 is the oracle, 0 is chance.

    Raises ValueError if the shapes differ or a number is not finite.
    """
    scores, returns, scenes = np.asarray(scores, float), np.asarray(returns, float), np.asarray(scenes)
    if scores.ndim != 2 or scores.shape != returns.shape or scenes.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape}, returns {returns.shape}, scenes {scenes.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(returns).all()):
        raise ValueError("scores and returns must be finite")
    differs = np.ptp(returns, axis=1) > 0 if scores.size else np.zeros(len(scores), bool)
    found = {"decisions": len(scores), "informative_decisions": int(differs.sum()), "spearman_per_decision": []}
    if not differs.any():
        unknown = ("spearman", "spearman_ci95", "regret", "regret_random", "captured", "captured_ci95")
        return found | dict.fromkeys(unknown)
    scores, returns, scene = scores[differs], returns[differs], np.unique(scenes[differs], return_inverse=True)[1]
    # A critic that gives all candidates one score knows nothing: correlation 0, and any of them may be its choice.
    correlation = np.array([spearman(s, r) or 0.0 for s, r in zip(scores, returns, strict=True)])
    best, chosen = returns.max(1), scores == scores.max(1, keepdims=True)
    lost, lost_random = best - (returns * chosen).sum(1) / chosen.sum(1), best - returns.mean(1)

    def interval(above: np.ndarray, below: np.ndarray) -> Interval | None:
        return ratio_interval(np.bincount(scene, above), np.bincount(scene, below), resamples=resamples)

    return found | {
        "spearman": float(correlation.mean()),
        "spearman_ci95": interval(correlation, np.ones(len(scores))),
        "spearman_per_decision": correlation.tolist(),
        "regret": float(lost.mean()),
        "regret_random": float(lost_random.mean()),
        "captured": float(1 - lost.sum() / lost_random.sum()),
        "captured_ci95": interval(lost_random - lost, lost_random),
    }


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if x or y is constant (or has one entry)."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None if x or y is constant (or has one entry)."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def separation(values: np.ndarray, success: np.ndarray) -> float | None:
    """Chance in [0, 1] that a success has a higher value than a failure, ties half: the area under the ROC curve.

    `values` and `success` are (n,); 0.5 is no information, and without both outcomes there is None.
    """
    values, success = np.asarray(values), np.asarray(success, bool)
    if success.all() or not success.any():
        return None
    good, bad = values[success], values[~success]
    return float(stats.mannwhitneyu(good, bad, method="asymptotic").statistic / (len(good) * len(bad)))


def ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Percentile bootstrap of Σ numerator / Σ denominator over the S scenes; both are (S,), per scene.

    A denominator of ones gives a mean. None with fewer than two scenes, or if a resample's denominator is not positive.
    """
    if len(numerator) < 2:
        return None

    def ratio(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
        above, below = above.sum(axis), below.sum(axis)
        return np.divide(above, below, out=np.full(np.shape(below), np.inf), where=below > 0)

    with np.errstate(invalid="ignore"):  # of a resample without headroom, which is refused below
        found = stats.bootstrap(
            (np.asarray(numerator, float), np.asarray(denominator, float)),
            ratio,
            n_resamples=resamples,
            batch=max(1, _BLOCK // len(numerator)),
            paired=True,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    if not np.isfinite(found.bootstrap_distribution).all():
        return None
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def agreement_interval(difference: float, num_scenes: int) -> Interval:
    """95 % interval where all scenes have one and the same difference, of which a bootstrap would be certain.

    The share of scenes that behave otherwise, of which none was seen (Clopper and Pearson 1934, no events), is assumed
    to lie at the far end, −1 or 1.
    """
    share = float(stats.binomtest(0, num_scenes).proportion_ci(0.95, method="exact").high)
    return difference - share * (difference + 1), difference + share * (1 - difference)


def _pairs(*methods: np.ndarray) -> list[np.ndarray]:
    """The methods as (S, D) bool; refuses methods that were not played on the same scenes and samples."""
    methods = [np.asarray(method, bool) for method in methods]
    shapes = [method.shape for method in methods]
    if len(set(shapes)) != 1 or methods[0].ndim not in (1, 2) or methods[0].size == 0:
        raise ValueError(f"methods must be played on the same scenes and samples: {' and '.join(map(str, shapes))}")
    return [method.reshape(len(method), -1) for method in methods]
