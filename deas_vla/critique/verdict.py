"""What the evidence adds up to: numbers with intervals over episodes, and a verdict in words.

Four questions, each of which can make reranking pointless: does the critic tell success from failure (before the
outcome is plain to see)? Do its values follow what was really collected? Do the policy's candidates differ in score by
more than the critic's networks differ about one of them? Does the best of N differ from the mean of N?
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from deas_vla.critique.evidence import Evidence

RESAMPLES = 2000
# Shares of an episode at which success and failure are told apart; the last frames show the outcome itself.
PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The verdict looks at the middle of an episode: at its beginning nothing has happened, at its end everything has.
MIDDLE = 2
# Fewer successes or failures say nothing.
FEWEST = 5
# Candidates' scores must differ by so many times what the networks differ about one of them.
CLEAR = 1.0
# The recommended N reaches this share of what the largest N adds to the mean score.
ENOUGH = 0.9


@dataclass
class Measured:
    """A number and its 95 % bootstrap interval over episodes."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass
class Critique:
    """What is known of a critic from E episodes.

    Attributes:
        successes, failures: E of each.
        auc: for each of `PROGRESS`, probability that V of a success is above that of a failure; 0.5 is blind.
        calibration: rank correlation between the score of what was played and what was collected from there on.
        bias: mean score minus mean return of successful episodes, in units of the critic's range.
        recorded: share of the candidates that the played chunk is scored above, in successes minus in failures.
        clarity: standard deviation of a frame's candidates' scores over the networks' disagreement about one of them;
            infinite for a critic of one network.
        gains: N to mean score of the best of N minus the mean candidate, in units of the critic's range.
        distance: root mean squared difference of two candidates' normalised commands.
        recommended: N, and the rule that chooses; 1 and ``first`` where reranking is not worth it.
        worth: None where there are too few episodes to tell.
        reasons: in words.
    """

    successes: int
    failures: int
    auc: list[Measured]
    calibration: Measured
    bias: Measured
    recorded: Measured
    clarity: Measured
    gains: dict[int, float]
    distance: Measured
    recommended: tuple[int, str]
    worth: bool | None
    reasons: list[str]


def judge(evidence: list[Evidence], score_range: tuple[float, float], seed: int = 0) -> Critique:
    """Adds up what a critic said of E episodes; `score_range`: its lowest and highest score."""
    rng, width = np.random.default_rng(seed), score_range[1] - score_range[0]
    good, bad = [e for e in evidence if e.success], [e for e in evidence if not e.success]
    auc = [_auc(good, bad, progress, rng) for progress in PROGRESS]
    calibration = _rank_correlation(evidence, rng)
    bias = _ratio([(e.score - e.monte_carlo).mean() / width for e in good], [1.0] * len(good), rng)
    recorded = _difference(*([float((e.score[:, None] > e.candidates).mean()) for e in es] for es in (good, bad)), rng)
    spread, apart = ([f(e).sum() for e in evidence] for f in (lambda e: e.candidates.std(1), lambda e: e.disagreement))
    clarity = _ratio(spread, apart, rng)
    distance = _ratio([e.distance.sum() for e in evidence], [len(e.distance) for e in evidence], rng)
    gains = {n: float(np.mean([best_of(e.candidates, n).mean() for e in evidence]) / width) for n in _numbers(evidence)}
    worth, reasons = _verdict(len(good), len(bad), auc[MIDDLE], clarity, gains)
    return Critique(
        len(good), len(bad), auc, calibration, bias, recorded, clarity, gains, distance,
        _recommended(gains, clarity) if worth else (1, "first"), worth, reasons,
    )  # fmt: skip


def best_of(candidates: np.ndarray, n: int) -> np.ndarray:
    """(M,) expected highest of n of N scores, (M, N), drawn without replacement, minus their mean."""
    count = candidates.shape[1]
    ranked = np.sort(candidates, 1)
    # The r-th lowest is the highest of n where the other n − 1 are among the r below it.
    chances = np.array([stats.hypergeom.pmf(n - 1, count - 1, rank, n - 1) for rank in range(count)]) * n / count
    return ranked @ chances - candidates.mean(1)


# ---- numbers ---------------------------------------------------------------------------------------------------


def _numbers(evidence: list[Evidence]) -> list[int]:
    count = evidence[0].candidates.shape[1]
    return [n for n in (2, 4, 8, 16, 32, 64) if n < count] + [count]


def _at(evidence: Evidence, progress: float) -> float:
    return float(evidence.value[np.abs(evidence.progress - progress).argmin()])


def _weights(count: int, rng: np.random.Generator) -> np.ndarray:
    """(RESAMPLES, count): how often each of some episodes is in a sample of as many, drawn with replacement."""
    return rng.multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)


def _measured(value: float, samples: np.ndarray) -> Measured:
    if not np.isfinite(samples).any():
        return Measured(float(value), float(value), float(value))
    return Measured(float(value), *np.quantile(samples[np.isfinite(samples)], (0.025, 0.975)).tolist())


NOTHING = Measured(np.nan, np.nan, np.nan)


def _auc(good: list[Evidence], bad: list[Evidence], progress: float, rng: np.random.Generator) -> Measured:
    if not good or not bad:
        return NOTHING
    a, b = np.array([_at(e, progress) for e in good]), np.array([_at(e, progress) for e in bad])
    above = (a[:, None] > b).astype(float) + 0.5 * (a[:, None] == b)
    samples = (_weights(len(a), rng) @ above * _weights(len(b), rng)).sum(1) / above.size
    return _measured(above.mean(), samples)


def _ratio(above: list[float], below: list[float], rng: np.random.Generator) -> Measured:
    """The sum of the one over the sum of the other, both an episode; infinite where the other is 0."""
    if not above:
        return NOTHING
    weights, (over, under) = _weights(len(above), rng), np.array([above, below], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _measured(np.divide(over.sum(), under.sum()), (weights @ over) / (weights @ under))


def _difference(good: list[float], bad: list[float], rng: np.random.Generator) -> Measured:
    if not good or not bad:
        return NOTHING
    a, b = np.array(good), np.array(bad)
    samples = _weights(len(a), rng) @ a / len(a) - _weights(len(b), rng) @ b / len(b)
    return _measured(a.mean() - b.mean(), samples)


def _rank_correlation(evidence: list[Evidence], rng: np.random.Generator) -> Measured:
    """Spearman's; the bootstrap resamples episodes and leaves each frame the rank that it has among all."""
    x, y = (stats.rankdata(np.concatenate([getattr(e, name) for e in evidence])) for name in ("score", "monte_carlo"))
    episode = np.repeat(np.arange(len(evidence)), [len(e.score) for e in evidence])
    moments = np.stack([np.bincount(episode, each) for each in (np.ones_like(x), x, y, x * x, y * y, x * y)])

    def correlation(weights: np.ndarray) -> np.ndarray:
        n, *sums = weights @ moments.T if weights.ndim == 1 else (weights @ moments.T).T
        mx, my, xx, yy, xy = (each / n for each in sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            return (xy - mx * my) / np.sqrt((xx - mx**2) * (yy - my**2))

    return _measured(correlation(np.ones(len(evidence))), correlation(_weights(len(evidence), rng)))


# ---- words -----------------------------------------------------------------------------------------------------


def _verdict(
    successes: int, failures: int, auc: Measured, clarity: Measured, gains: dict[int, float]
) -> tuple[bool | None, list[str]]:
    if min(successes, failures) < FEWEST:
        return None, [
            f"{successes} successes and {failures} failures that the critic was not trained on are too few to tell: "
            f"{FEWEST} of each at least, some 20 for narrow intervals; hold more out (--held_out) or record more"
        ]
    reasons, worth = [], True
    if auc.low > 0.5:
        reasons.append(f"half-way through an episode it tells success from failure: AUC {auc}")
    else:
        worth = False
        reasons.append(f"half-way through an episode it does not tell success from failure beyond doubt: AUC {auc}")
    if clarity.value >= CLEAR:
        reasons.append(f"the policy's candidates differ in score {clarity} times as much as its networks disagree")
    else:
        worth = False
        reasons.append(f"its networks disagree about one candidate more than the candidates differ: {clarity}")
    most = max(gains)
    if gains[most] <= 0:
        worth = False
        reasons.append("all candidates of the policy have the same score: there is nothing to choose from")
    else:
        reasons.append(f"the best of {most} is scored {gains[most]:.1%} of the critic's range above the mean candidate")
    return worth, reasons


def _recommended(gains: dict[int, float], clarity: Measured) -> tuple[int, str]:
    enough = min(n for n, gain in gains.items() if gain >= ENOUGH * max(gains.values()))
    # Where the networks' noise is near the differences, the highest score is often the luckiest.
    return enough, "best" if clarity.value >= 2 * CLEAR else "consensus"


def text_of(critique: Critique) -> str:
    """The critique in plain lines, the verdict first."""
    verdicts = {None: "cannot be told", True: "worth reranking", False: "not worth reranking"}
    lines = [f"Verdict: {verdicts[critique.worth]}."]
    lines += [f"  {reason}." for reason in critique.reasons]
    if critique.worth:
        number, rule = critique.recommended
        lines.append(f"  Recommended: {number} candidates, rule {rule}.")
    lines.append(f"Episodes it was not trained on: {critique.successes} successes, {critique.failures} failures.")
    shares = ", ".join(f"{p:.0%}: {auc}" for p, auc in zip(PROGRESS, critique.auc, strict=True))
    lines.append(f"Success against failure (AUC of V) by progress: {shares}.")
    lines.append(f"Scores against Monte-Carlo returns, rank correlation: {critique.calibration}.")
    lines.append(f"Mean score minus mean return of successes, in the critic's range: {critique.bias}.")
    lines.append(f"Candidates that the played chunk beats, in successes minus in failures: {critique.recorded}.")
    lines.append(f"Candidates' spread of scores over the networks' disagreement: {critique.clarity}.")
    lines.append(f"Distance between candidates, in standard deviations of the commands: {critique.distance}.")
    best = ", ".join(f"{n}: {gain:.1%}" for n, gain in critique.gains.items())
    lines.append(f"Best of N above the mean candidate, in the critic's range: {best}.")
    return "\n".join(lines)
