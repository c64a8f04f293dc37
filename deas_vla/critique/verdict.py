"""What the evidence adds up to: numbers with intervals over episodes, a verdict in words, and one number, the score.

Reranking is worth it if the critic orders the policy's chunks by how well they end. No recording shows that: of each
state it holds one chunk and what came of it. So the rule asks four questions that recordings can answer, each of which
makes reranking pointless if the answer is no. They are necessary, not sufficient: whether the verdict predicts a gain
is measured by studies/critique/correlation.py.

1. *Are there enough episodes?* Five successes and five failures (`FEWEST`): told apart without an error by a blind
   critic in one case of 252; of three and three it would be one of 20. Where all are told apart, an interval over so
   few episodes has no width, so nothing but their number guards against luck.
2. *Does it see how an episode will end?* AUC of V half-way (`MIDDLE`). V, because Q of different states is of
   different chunks. Half-way, because at the start nothing has happened and at the end the images show the outcome:
   there, a critic that only knows what success looks like would pass. The lower end of the interval must be above a
   half: a blind critic passes once in 40 times.
3. *Is what it says about candidates more than its networks' noise?* Only differences within a state choose, so each
   network's mean over the candidates is taken off first; a value in which the networks differ for all candidates alike
   (of the demo's critic most of it) does no harm. The correlation of two networks about these differences estimates
   what is common to them, and by the Spearman-Brown formula R = Kρ / (1 + (K − 1) ρ) the reliability of their mean (of
   their minimum, about that). Choosing by a score of reliability R gains √R of what its common part could, and of what
   the score promises, R is kept. The rule wants ρ above 0 beyond doubt and R of one half (`CLEAR`), 71 % of the gain.
   A ratio of the candidates' spread to the networks' disagreement is no such test: for K = 2 it is above 1 for pure
   noise. Networks that learned from the same data share errors, which R does not see. A critic of one network is not
   refused for it.
4. *Is there anything to choose from?* The best of N must have a higher score than the mean candidate.

The score is their product: what the best of N promises, times R, times 2 AUC − 1; 0 for a critic that is blind, agrees
with itself in nothing, or has nothing to choose from, and of the largest N. What is only reported: calibration and bias
(a constant or a monotone error changes no choice), and where the recorded chunk stands among the candidates. In
rollouts of the policy itself that would be the most direct evidence, better in successes than in failures, but its
differences are small against their intervals, and a demonstrator's chunks are none of the policy's. If it is the wrong
way round beyond doubt, the verdict says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy import stats

from deas_vla.critique.evidence import Evidence
from deas_vla.improvement.selection import best_of_weights

RESAMPLES = 2000
# Shares of an episode at which success and failure are told apart; the last frames show the outcome itself.
PROGRESS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The verdict looks at the middle of an episode: at its beginning nothing has happened, at its end everything has.
MIDDLE = 2
FEWEST = 5  # fewer successes or failures say nothing
# Share of the variance of candidates' scores that the networks must have in common; from the second on, enough to take
# the highest score of many, which is else often the luckiest.
CLEAR, SURE = 0.5, 0.8
ENOUGH = 0.9  # the recommended N reaches this share of what the largest N adds to the mean score


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
    """What is known of a critic from episodes."""

    successes: int
    failures: int
    auc: list[Measured]  # at each `PROGRESS`, probability that V of a success is above a failure's; 0.5 is blind
    calibration: Measured  # rank correlation of the score of what was played and what was collected from there on
    bias: Measured  # mean score minus mean return of successful episodes, in units of the critic's range
    recorded: Measured  # share of the candidates that the played chunk is scored above, in successes minus failures
    agreement: Measured  # ρ, correlation of two networks about how candidates differ; NaN for one network
    reliability: Measured  # R, of all networks together; 1 for one network
    gains: dict[int, float]  # N to mean score of the best of N minus the mean candidate, in units of the range
    distance: Measured  # root mean squared difference of two candidates' normalised commands
    recommended: tuple[int, str] = (1, "first")  # N, and the rule that chooses, where reranking is worth it
    score: float = 0.0  # what the best of the largest N promises, as far as it can be believed, in units of the range
    worth: bool | None = None  # None where there are too few episodes to tell
    reasons: list[str] = field(default_factory=list)  # in words


def judge(evidence: list[Evidence], score_range: tuple[float, float], seed: int = 0) -> Critique:
    """Adds up what a critic said of E episodes; `score_range`: its lowest and highest score."""
    rng, width = np.random.default_rng(seed), score_range[1] - score_range[0]
    good, bad = [e for e in evidence if e.success], [e for e in evidence if not e.success]
    auc = [_over_pairs(_above, *([_at(e, p) for e in es] for es in (good, bad)), rng) for p in PROGRESS]
    calibration = _rank_correlation(evidence, rng)
    bias = _ratio([(e.score - e.monte_carlo).mean() / width for e in good], [1.0] * len(good), rng)
    ranks = ([float((e.score[:, None] > e.candidates).mean()) for e in episodes] for episodes in (good, bad))
    recorded = _over_pairs(np.subtract, *ranks, rng)
    agreement = _ratio([e.covariance.sum() for e in evidence], [e.variance.sum() for e in evidence], rng)
    reliability = _reliability(agreement, evidence[0].networks)
    distance = _ratio([e.distance.sum() for e in evidence], [len(e.distance) for e in evidence], rng)
    count = evidence[0].candidates.shape[1]
    sizes = [n for n in (2, 4, 8, 16, 32, 64) if n < count] + [count]
    gains = {n: float(np.mean([best_of(e.candidates, n).mean() for e in evidence]) / width) for n in sizes}
    found = Critique(len(good), len(bad), auc, calibration, bias, recorded, agreement, reliability, gains, distance)
    found.score = max(gains.values()) * reliability.value * max(0.0, 2 * auc[MIDDLE].value - 1)
    found.worth, found.reasons = _verdict(found)
    if found.worth:
        enough = min(n for n, gain in gains.items() if gain >= ENOUGH * max(gains.values()))
        found.recommended = enough, "best" if reliability.value >= SURE else "consensus"
    return found


def best_of(candidates: np.ndarray, n: int) -> np.ndarray:
    """(M,) expected highest of n of N scores, (M, N), drawn without replacement, minus their mean."""
    scores = torch.from_numpy(candidates).double()
    return ((best_of_weights(scores, n) * scores).sum(1) - scores.mean(1)).numpy()


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


def _above(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a > b) + 0.5 * (a == b)


def _over_pairs(compare: Callable, good: list[float], bad: list[float], rng: np.random.Generator) -> Measured:
    """Mean of what `compare` makes of the number of a success and that of a failure, over all pairs of the two."""
    if not good or not bad:
        return NOTHING
    each = compare(np.array(good)[:, None], np.array(bad))
    samples = (_weights(len(good), rng) @ each * _weights(len(bad), rng)).sum(1) / each.size
    return _measured(each.mean(), samples)


def _ratio(above: list[float], below: list[float], rng: np.random.Generator) -> Measured:
    """The sum of the one over the sum of the other, both an episode; infinite where the other is 0."""
    if not above:
        return NOTHING
    weights, (over, under) = _weights(len(above), rng), np.array([above, below], float)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _measured(np.divide(over.sum(), under.sum()), (weights @ over) / (weights @ under))


def _reliability(agreement: Measured, networks: int) -> Measured:
    """Of the mean of K networks, by the Spearman-Brown formula, which grows with the correlation of two."""
    if networks == 1:
        return Measured(1.0, 1.0, 1.0)
    common = (max(0.0, each) for each in (agreement.value, agreement.low, agreement.high))
    return Measured(*(networks * each / (1 + (networks - 1) * each) for each in common))


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


def _verdict(found: Critique) -> tuple[bool | None, list[str]]:
    if min(found.successes, found.failures) < FEWEST:
        seen = f"{found.successes} successes and {found.failures} failures that the critic was not trained on"
        fix = f"{FEWEST} of each at least, some 20 for narrow intervals; hold more out (--held_out) or record more"
        return None, [f"{seen} are too few to tell: {fix}"]
    auc, agreement, reliability, gains = found.auc[MIDDLE], found.agreement, found.reliability, found.gains
    reasons, worth = [], True
    if auc.low > 0.5:
        reasons.append(f"half-way through an episode it tells success from failure: AUC {auc}")
    else:
        worth = False
        reasons.append(f"half-way through an episode it does not tell success from failure beyond doubt: AUC {auc}")
    if np.isnan(agreement.value):
        reasons.append("it has one network, or gives all candidates one score: nothing says how sure it is of them")
    elif agreement.low > 0 and reliability.value >= CLEAR:
        reasons.append(f"its networks agree about the candidates: {reliability} of the differences are common to them")
    else:
        worth = False
        reasons.append(f"its networks do not agree about the candidates: {reliability} of the differences are common")
    most = max(gains)
    if gains[most] <= 0:
        worth = False
        reasons.append("all candidates of the policy have the same score: there is nothing to choose from")
    else:
        reasons.append(f"the best of {most} is scored {gains[most]:.1%} of the critic's range above the mean candidate")
    if found.recorded.high < 0:
        unlike = f"but chunks that were played in failures rank higher than in successes ({found.recorded}): look why"
        reasons.append(unlike)
    return worth, reasons


VERDICTS = {None: "cannot be told", True: "worth reranking", False: "not worth reranking"}


def text_of(critique: Critique) -> str:
    """The critique in plain lines, the verdict first."""
    lines = [f"Verdict: {VERDICTS[critique.worth]}.", *(f"  {reason}." for reason in critique.reasons)]
    if critique.worth:
        lines.append(f"  Recommended: {recommendation(critique)}.")
    return "\n".join([*lines, *(f"{name}: {value}." for name, value in numbers(critique).items())])


def recommendation(critique: Critique) -> str:
    return "{} candidates, rule {}".format(*critique.recommended)


def numbers(critique: Critique) -> dict[str, str]:
    """Every number with its interval, by what it is."""
    shares = ", ".join(f"{p:.0%}: {auc}" for p, auc in zip(PROGRESS, critique.auc, strict=True))
    return {
        "Episodes it was not trained on": f"{critique.successes} successes, {critique.failures} failures",
        "Success against failure (AUC of V) by progress": shares,
        "Scores against Monte-Carlo returns, rank correlation": str(critique.calibration),
        "Mean score minus mean return of successes, in the critic's range": str(critique.bias),
        "Candidates that the played chunk beats, in successes minus in failures": str(critique.recorded),
        "Two networks about how candidates differ, correlation": str(critique.agreement),
        "Common to the networks, share of the differences": str(critique.reliability),
        "Distance between candidates, in standard deviations of the commands": str(critique.distance),
        "Best of N above the mean candidate, in the critic's range": ", ".join(
            f"{n}: {gain:.1%}" for n, gain in critique.gains.items()
        ),
        "Score of the critic (studies/critique)": f"{critique.score:.2%}",
    }
