"""Statistics of a paired evaluation: how sure may one be, from these episodes, that one method beats another?

Every method plays the same scenes with the same noise seeds, several samples a scene (design rule 10). Two samples of
one scene resemble each other, so what is resampled, and what is flipped, is always the whole scene.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

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
    """Wilson's score interval of a success rate (Wilson 1927).

    Args:
        successes: number of successes.
        episodes: number of episodes; none gives (0, 1).
        confidence: in (0, 1).

    Returns:
        (low, high), both in [0, 1]; they hold the rate even at 0 and at all successes.

    Raises:
        ValueError: if the counts do not fit together or the confidence is outside (0, 1).
    """
    if not 0 <= successes <= episodes:
        raise ValueError(f"{successes} successes of {episodes} episodes")
    z = _quantile(confidence)
    if episodes == 0:
        return 0.0, 1.0
    rate, spread = successes / episodes, z * z / episodes
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / episodes + spread / (4 * episodes))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == episodes else min(1.0, centre + half)
    return low, high


def paired_difference(
    a: np.ndarray,
    b: np.ndarray,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
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
    per_scene, num_scenes = delta.mean(1), len(delta)
    if np.ptp(per_scene) == 0:
        ci = agreement_interval(float(per_scene[0]), num_scenes, confidence)
    else:
        ci = ratio_interval(per_scene, np.ones(num_scenes), confidence, resamples, seed)
    return PairedDifference(
        difference=float(delta.mean()),
        ci95=ci,
        p_value=mcnemar_exact(a, b),
        p_value_scenes=scene_sign_flip_exact(a, b),
        wins=int((delta > 0).sum()),
        losses=int((delta < 0).sum()),
        pairs=delta.size,
        scenes=num_scenes,
    )


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value over the discordant pairs (McNemar 1947, binomial form).

    Args:
        a: bool, any shape, success of method a.
        b: bool, same shape, success of method b in the same scene with the same noise.

    Returns:
        min(1, 2 · P[X ≤ min(wins, losses)]) with X ~ Binomial(wins + losses, ½); 1 without a discordant pair.
    """
    a, b = _pairs(a, b)
    wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
    discordant = wins + losses
    tail = sum(math.comb(discordant, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def scene_sign_flip_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p-value of the null hypothesis that the methods may be swapped within any scene.

    All 2^S ways of swapping the methods scene by scene are counted (the scenes' differences are whole numbers, so by
    adding one scene at a time). With one sample a scene it is `mcnemar_exact`; with several it does not take
    the samples of a scene for independent.

    Args:
        a: (S, D) bool, success of method a.
        b: (S, D) bool, success of method b.
    """
    a, b = _pairs(a, b)
    per_scene = a.sum(1).astype(np.int64) - b.sum(1).astype(np.int64)
    sizes = np.abs(per_scene[per_scene != 0])
    reach = int(sizes.sum())
    probability = np.zeros(2 * reach + 1)  # of the sum being index - reach
    probability[reach] = 1.0
    for size in sizes:
        moved = np.zeros_like(probability)
        moved[size:] += 0.5 * probability[: len(probability) - size]
        moved[: len(probability) - size] += 0.5 * probability[size:]
        probability = moved
    observed = abs(int(per_scene.sum()))
    as_extreme = np.abs(np.arange(-reach, reach + 1)) >= observed
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
    gain = chosen.mean(1) - policy.mean(1)
    headroom = oracle.mean(1) - policy.mean(1)
    if headroom.sum() <= 0:
        return None, None
    return float(gain.sum() / headroom.sum()), ratio_interval(gain, headroom, 0.95, resamples, seed)


def rank_against_oracle(
    scores: np.ndarray,
    returns: np.ndarray,
    scenes: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranking:
    """Compares a critic's scores of N candidates with what playing each of them really led to.

    Args:
        scores: (D, N) critic's score of each candidate at each of D decisions.
        returns: (D, N) what the oracle found, more is better.
        scenes: (D,) scene of each decision: what the bootstrap resamples.
        resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        ValueError: if the shapes differ or a number is not finite.
    """
    scores, returns = np.asarray(scores, np.float64), np.asarray(returns, np.float64)
    scenes = np.asarray(scenes)
    if scores.ndim != 2 or scores.shape != returns.shape or scenes.shape != scores.shape[:1]:
        raise ValueError(f"scores {scores.shape}, returns {returns.shape}, scenes {scenes.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(returns).all()):
        raise ValueError("scores and true values must be finite")
    differs = np.ptp(returns, axis=1) > 0 if scores.size else np.zeros(len(scores), bool)
    decisions, scores, returns, scenes = len(scores), scores[differs], returns[differs], scenes[differs]
    if not len(scores):
        return Ranking(decisions, 0, None, None, None, None, None, None, np.zeros(0))
    # A critic that gives all candidates one score has no opinion: correlation 0, and any of them may be its choice.
    correlation = np.array([spearman(s, t) or 0.0 for s, t in zip(scores, returns, strict=True)])
    best, chosen = returns.max(1), scores == scores.max(1, keepdims=True)
    regret = best - (returns * chosen).sum(1) / chosen.sum(1)
    regret_random = best - returns.mean(1)
    _, code = np.unique(scenes, return_inverse=True)
    count, total, lost, lost_random = (
        np.bincount(code, weights) for weights in (np.ones(len(code)), correlation, regret, regret_random)
    )
    enough = len(count) > 1
    return Ranking(
        decisions=decisions,
        informative=len(scores),
        spearman=float(correlation.mean()),
        spearman_ci95=ratio_interval(total, count, 0.95, resamples, seed) if enough else None,
        regret=float(regret.mean()),
        regret_random=float(regret_random.mean()),
        captured=float(1 - regret.sum() / regret_random.sum()),
        captured_ci95=ratio_interval(lost_random - lost, lost_random, 0.95, resamples, seed)
        if enough
        else None,
        per_decision=correlation,
    )


def spearman(x: np.ndarray, y: np.ndarray) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None if x or y is constant (or has one entry)."""
    return pearson(ranks(x), ranks(y))


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson's correlation; None if x or y is constant (or has one entry)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def ranks(x: np.ndarray) -> np.ndarray:
    """(n,) ranks from 1; equal values share the mean of their ranks."""
    _, code, count = np.unique(np.asarray(x), return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[code]


def separation(values: np.ndarray, success: np.ndarray) -> float | None:
    """Chance that a success has a higher value than a failure, ties half (area under the ROC curve).

    Args:
        values: (n,) for example the critic's value at one time step.
        success: (n,) bool, how the episode ended.

    Returns:
        A number in [0, 1], 0.5 for no information; None unless both outcomes occur.
    """
    success = np.asarray(success, bool)
    good, bad = int(success.sum()), int((~success).sum())
    if not good or not bad:
        return None
    return float((ranks(values)[success].sum() - good * (good + 1) / 2) / (good * bad))


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
        (low, high), or None if some resample's denominator is not positive.
    """
    numerator, denominator = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    num_scenes, rng, ratios = len(numerator), np.random.default_rng(seed), []
    _quantile(confidence)
    step = max(1, _BLOCK // num_scenes)
    for start in range(0, resamples, step):
        drawn = rng.integers(num_scenes, size=(min(step, resamples - start), num_scenes))
        below = denominator[drawn].sum(1)
        if (below <= 0).any():
            return None
        ratios.append(numerator[drawn].sum(1) / below)
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(ratios), [tail, 1 - tail])
    return float(low), float(high)


def agreement_interval(difference: float, num_scenes: int, confidence: float = 0.95) -> Interval:
    """Interval where all scenes have one and the same difference.

    There a bootstrap interval is a point, and claims certainty, be it of a single scene. If a share s of all scenes
    behaved otherwise, none of S would show it with probability (1 − s)^S: the largest s that this does not exclude
    (Clopper and Pearson 1934, no events) is assumed to lie at the far end, −1 or 1.
    """
    _quantile(confidence)
    share = 1 - ((1 - confidence) / 2) ** (1 / num_scenes)
    return difference - share * (difference + 1), difference + share * (1 - difference)


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is outside (0, 1)")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _pairs(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both methods as (S, D) bool; refuses methods that were not played on the same scenes and samples."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    if a.shape != b.shape or a.ndim not in (1, 2) or a.size == 0:
        raise ValueError(
            f"methods must be played on the same scenes and samples: shapes {a.shape} and {b.shape}"
        )
    return (a[:, None], b[:, None]) if a.ndim == 1 else (a, b)
