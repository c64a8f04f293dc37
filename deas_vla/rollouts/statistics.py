"""Statistics of a paired evaluation: how sure may one be, from these episodes, that one method beats another?

Every method plays the same scenes with the same noise seeds, several samples a scene (design rule 10). Two samples of
one scene resemble each other, so what is resampled, and what is flipped, is always the whole scene.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
_BLOCK = 1_000_000  # indices drawn at a time: bounds memory, does not change the numbers

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedDifference:
    """Success rate of method a minus that of method b, over the same scenes and noise.

    Attributes:
        difference: mean of a − b, in [-1, 1].
        ci95: bootstrap interval that resamples scenes; where all scenes agree, see `agreement_interval`.
        p_value: exact McNemar test over the discordant pairs (takes pairs for independent).
        p_value_scenes: exact sign-flip test over scenes; equals `p_value` when there is one sample a scene, and is
            the one to believe when there are several.
        wins: pairs in which only a succeeded.
        losses: pairs in which only b succeeded.
        pairs: number of pairs.
        scenes: number of scenes.
    """

    difference: float
    ci95: Interval
    p_value: float
    p_value_scenes: float
    wins: int
    losses: int
    pairs: int
    scenes: int

    @property
    def verdict(self) -> str:
        """``gain`` or ``worse`` where interval and scene-level test both say so, else ``no_gain``."""
        low, high = self.ci95
        if self.p_value_scenes < 0.05 and low > 0:
            return "gain"
        if self.p_value_scenes < 0.05 and high < 0:
            return "worse"
        return "no_gain"


@dataclass(frozen=True)
class Ranking:
    """How well a critic orders candidates whose true values an oracle knows.

    Attributes:
        decisions: decisions that were scored.
        informative: decisions in which the true values differ; the others say nothing and are left out below.
        spearman: mean rank correlation over the informative decisions, or None without any.
        spearman_ci95: bootstrap interval over scenes, or None.
        regret: mean of (best true value − true value of the critic's choice).
        regret_random: the same for a choice at random.
        captured: 1 − regret / regret_random: 1 is the oracle, 0 is chance, below 0 is worse than chance.
        captured_ci95: bootstrap interval over scenes, or None.
        per_decision: (informative,) the rank correlations themselves.
    """

    decisions: int
    informative: int
    spearman: float | None
    spearman_ci95: Interval | None
    regret: float | None
    regret_random: float | None
    captured: float | None
    captured_ci95: Interval | None
    per_decision: np.ndarray


def wilson_interval(successes: int, episodes: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a success rate (Wilson 1927); (0, 1) without an episode.

    Raises:
        ValueError: if the counts do not fit together or the confidence is outside (0, 1).
    """
    if not 0 <= successes <= episodes or not 0 < confidence < 1:
        raise ValueError(f"{successes} successes of {episodes} episodes, confidence {confidence}")
    if episodes == 0:
        return 0.0, 1.0
    found = stats.binomtest(successes, episodes).proportion_ci(confidence, method="wilson")
    rate = successes / episodes
    return min(float(found.low), rate), max(float(found.high), rate)  # at 0 and 1 they are off by a rounding


def paired_difference(
    a: np.ndarray, b: np.ndarray, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """Compares two methods over the same scenes and noise samples.

    Args:
        a: (S, D) bool, success of method a in scene s with noise sample d; (S,) is taken for one sample.
        b: the same for method b.
        confidence: of the interval.
        resamples: bootstrap resamples.
        seed: of the resampling; the same seed gives the same interval.

    Raises:
        ValueError: if the shapes differ or there is no pair.
    """
    a, b = _pairs(a, b)
    delta = a.astype(np.int64) - b.astype(np.int64)
    per_scene = delta.mean(1)
    if np.ptp(per_scene) == 0:
        ci = agreement_interval(float(per_scene[0]), len(per_scene), confidence)
    else:
        ci = ratio_interval(per_scene, np.ones(len(per_scene)), confidence, resamples, seed)
    return PairedDifference(
        difference=float(delta.mean()),
        ci95=ci,
        p_value=mcnemar_exact(a, b),
        p_value_scenes=scene_sign_flip_exact(a, b),
        wins=int((delta > 0).sum()),
        losses=int((delta < 0).sum()),
        pairs=delta.size,
        scenes=len(delta),
    )


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value over the discordant pairs of two bool arrays (McNemar 1947, binomial form)."""
    a, b = _pairs(a, b)
    wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def scene_sign_flip_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value of the null hypothesis that the methods may be swapped within any scene.

    All 2^S ways of swapping are counted, by convolving the scenes' two outcomes: `scipy.stats.permutation_test`
    enumerates them, which ends at some 20 scenes, and draws at random beyond. With one sample a scene it is
    `mcnemar_exact`; with several it does not take the samples of a scene for independent.

    Args:
        a: (S, D) bool, success of method a.
        b: (S, D) bool, success of method b.
    """
    a, b = _pairs(a, b)
    per_scene = a.sum(1).astype(np.int64) - b.sum(1).astype(np.int64)
    probability = np.ones(1)  # of each sum of differences, from −reach to reach
    for size in np.abs(per_scene[per_scene != 0]):
        swap = np.zeros(2 * size + 1)
        swap[[0, -1]] = 0.5
        probability = np.convolve(probability, swap)
    reach = len(probability) // 2
    as_extreme = np.abs(np.arange(-reach, reach + 1)) >= abs(int(per_scene.sum()))
    return float(min(1.0, probability[as_extreme].sum()))


def share_of_headroom(
    policy: np.ndarray, chosen: np.ndarray, oracle: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float | None, Interval | None]:
    """How much of what an oracle gains over the policy another method gains: (chosen − policy) / (oracle − policy).

    Args:
        policy: (S, D) bool success of the policy.
        chosen: (S, D) bool success of the method in question, for example best-of-N.
        oracle: (S, D) bool success of the oracle.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Returns:
        The share and its bootstrap interval over scenes. The share is None if the oracle gains nothing; the interval
        is None if that can happen in a resample, for then it would be arbitrary.
    """
    policy, chosen = _pairs(policy, chosen)
    policy, oracle = _pairs(policy, oracle)
    gain, headroom = chosen.mean(1) - policy.mean(1), oracle.mean(1) - policy.mean(1)
    if headroom.sum() <= 0:
        return None, None
    return float(gain.sum() / headroom.sum()), ratio_interval(gain, headroom, 0.95, resamples, seed)


def rank_against_oracle(
    scores: np.ndarray, truth: np.ndarray, scenes: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Ranking:
    """Compares a critic's scores of N candidates with what playing each of them really led to.

    Args:
        scores: (K, N) critic's score of each candidate at each of K decisions.
        truth: (K, N) the Monte-Carlo return that the oracle found, more is better.
        scenes: (K,) scene of each decision: what the bootstrap resamples.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: if the shapes differ or a number is not finite.
    """
    scores, truth, scenes = np.asarray(scores, np.float64), np.asarray(truth, np.float64), np.asarray(scenes)
    if scores.ndim != 2 or scores.shape != truth.shape or scenes.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape}, true values {truth.shape}, scenes {scenes.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(truth).all()):
        raise ValueError("scores and true values must be finite")
    differs = np.ptp(truth, axis=1) > 0 if scores.size else np.zeros(len(scores), bool)
    decisions, scores, truth, scenes = len(scores), scores[differs], truth[differs], scenes[differs]
    if not len(scores):
        return Ranking(decisions, 0, None, None, None, None, None, None, np.zeros(0))
    # A critic that gives all candidates one score knows nothing: correlation 0, and any of them may be its choice.
    correlation = np.array([spearman(s, t) or 0.0 for s, t in zip(scores, truth, strict=True)])
    best, chosen = truth.max(1), scores == scores.max(1, keepdims=True)
    regret = best - (truth * chosen).sum(1) / chosen.sum(1)
    regret_random = best - truth.mean(1)
    code = np.unique(scenes, return_inverse=True)[1]
    count, total, lost, lost_random = (
        np.bincount(code, weights) for weights in (np.ones(len(code)), correlation, regret, regret_random)
    )
    return Ranking(
        decisions=decisions,
        informative=len(scores),
        spearman=float(correlation.mean()),
        spearman_ci95=ratio_interval(total, count, 0.95, resamples, seed),
        regret=float(regret.mean()),
        regret_random=float(regret_random.mean()),
        captured=float(1 - regret.sum() / regret_random.sum()),
        captured_ci95=ratio_interval(lost_random - lost, lost_random, 0.95, resamples, seed),
        per_decision=correlation,
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if x or y is constant (or has one entry)."""
    return pearson(stats.rankdata(x), stats.rankdata(y))


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None if x or y is constant (or has one entry)."""
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))


def separation(values: np.ndarray, success: np.ndarray) -> float | None:
    """Chance that a success has a higher value than a failure, ties half (area under the ROC curve).

    Args:
        values: (n,) for example the critic's value at one time step.
        success: (n,) bool, how the episode ended.

    Returns:
        A number in [0, 1], 0.5 for no information; None unless both outcomes occur.
    """
    values, success = np.asarray(values), np.asarray(success, bool)
    if success.all() or not success.any():
        return None
    good, bad = values[success], values[~success]
    return float(stats.mannwhitneyu(good, bad, method="asymptotic").statistic / (len(good) * len(bad)))


def ratio_interval(
    numerator: np.ndarray, denominator: np.ndarray, confidence: float, resamples: int, seed: int
) -> Interval | None:
    """Percentile bootstrap of Σ numerator / Σ denominator, resampling the S scenes with replacement.

    Args:
        numerator: (S,) per scene.
        denominator: (S,) per scene; ones give a mean.
        confidence: of the interval.
        resamples: how many.
        seed: of the resampling.

    Returns:
        (low, high), or None with fewer than two scenes, or if some resample's denominator is not positive.
    """
    if len(numerator) < 2:
        return None

    def ratio(above: np.ndarray, below: np.ndarray, axis: int) -> np.ndarray:
        above, below = above.sum(axis), below.sum(axis)
        return np.divide(above, below, out=np.full(np.shape(below), np.inf), where=below > 0)

    with np.errstate(invalid="ignore"):  # of a resample without headroom, which is refused below
        found = stats.bootstrap(
            (np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)),
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


def agreement_interval(difference: float, num_scenes: int, confidence: float = 0.95) -> Interval:
    """Interval where all scenes have one and the same difference.

    There a bootstrap interval is a point, and claims certainty, be it of a single scene. The share of scenes that
    behave otherwise, of which none was seen (Clopper and Pearson 1934, no events), is assumed to lie at the far end,
    −1 or 1.
    """
    share = float(stats.binomtest(0, num_scenes).proportion_ci(confidence, method="exact").high)
    return difference - share * (difference + 1), difference + share * (1 - difference)


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both methods as (S, D) bool; refuses methods that were not played on the same scenes and samples."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or a.ndim not in (1, 2) or a.size == 0:
        raise ValueError(f"methods must be played on the same scenes and samples: {a.shape} and {b.shape}")
    return (a[:, None], b[:, None]) if a.ndim == 1 else (a, b)
