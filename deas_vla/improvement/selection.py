"""Which of N candidate chunks is played: rules that look at the critic's values, and some at the chunks themselves.

The argmax over N candidates looks for the best chunk and for the largest error of the critic at once; the more
candidates, the more of the second (over-optimisation). The rules below differ in what they hold against a high score.
Errors that are peculiar to one network (lower_bound), to one chunk (smoothed, denoised) or to rare chunks (dense) are
mended by what they look at; quantile and consensus limit how hard is chosen, and so need no such guess: their choice
has a limit in N that is no greedier than the best of m.
All are functions of one decision: the order of the candidates, other decisions in the batch, and a shift or a positive
scale of the critic's values change nothing, and one candidate is the policy itself (design rule 8).

Distances between chunks have no unit: every action column is divided by its spread among the candidates, and the root
mean square distance between two candidates is 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from deas_vla.errors import UserError

if TYPE_CHECKING:  # best_of_n imports this file
    from deas_vla.improvement.best_of_n import NoiseKey

RuleName = Literal[
    "first", "random", "best", "worst", "lower_bound", "softmax",
    "quantile", "dense", "smoothed", "denoised", "consensus",
]  # fmt: skip

# Below this a spread counts as none: the scores, or a column of the candidates, are all the same.
TINY = 1e-8


@dataclass
class SelectionConfig:
    """Which of the candidates is played."""

    # the rule: consensus (best-of-N up to as_best_of candidates, and unlike it better with more), best (largest score),
    # lower_bound, softmax, quantile, dense, smoothed, denoised; first (the policy alone), random and worst are
    # controls. The score is the smallest value of the critic's networks
    rule: RuleName = "consensus"
    # lower_bound: standard deviations of the networks that are taken off their mean
    pessimism: float = 1.0
    # softmax: temperature, in standard deviations of the candidates' scores; 0 is best
    temperature: float = 0.3
    # quantile and consensus: m, how hard to choose, as the best of m would; up to m candidates they are best
    as_best_of: int = 8
    # dense: weight of the log density of a chunk among the candidates, against its score in standard deviations
    density_weight: float = 1.0
    # dense, smoothed, denoised and consensus: width of the kernel over chunks, in units of the candidates' distance
    bandwidth: float = 0.6
    # denoised: variance of the critic's error that is peculiar to one chunk, against what nearby chunks share
    error: float = 1.0
    # the noise that candidates are made of is multiplied by this, for every rule; 1 is the policy as it was trained
    noise_scale: float = 1.0

    def __post_init__(self):
        known = RuleName.__args__
        if self.rule not in known:
            raise UserError(f"selection.rule={self.rule!r} is unknown; choose {', '.join(known)}")
        for name, holds, rule in (
            ("pessimism", self.pessimism >= 0, "at least 0"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("as_best_of", self.as_best_of >= 1, "at least 1"),
            ("density_weight", self.density_weight >= 0, "at least 0"),
            ("bandwidth", self.bandwidth > 0, "above 0"),
            ("error", self.error >= 0, "at least 0"),
            ("noise_scale", self.noise_scale >= 0, "at least 0"),
        ):
            if not holds:
                raise UserError(f"selection.{name}={getattr(self, name)} must be {rule}")


def select(
    config: SelectionConfig,
    rule: str,
    q_values: Tensor | None,
    chunks: Tensor,
    keys: "Sequence[NoiseKey]",
    scores: Tensor | None = None,
) -> Tensor:
    """Chooses one of N candidates for each of B decisions.

    Args:
        config: the numbers of the rules; its own `rule` is not looked at.
        rule: name of the rule.
        q_values: (K, B, N) values of the candidates by each of the critic's networks; None without a critic.
        chunks: (B, N, h, A) the candidates, in any units.
        keys: B names of the decisions: all that a random choice depends on.
        scores: (B, N) what the scorer makes of these values; None: their minimum over the networks.

    Returns:
        (B,) int64 index.

    Raises:
        UserError: if there is no such rule, or it needs a critic and there is none.
    """
    if rule not in RULES:
        raise UserError(f"selection rule {rule!r} is unknown; choose {', '.join(RULES)}")
    if q_values is None and rule not in WITHOUT_CRITIC:
        raise UserError(
            f"the rule '{rule}' needs a critic; without one there are {' and '.join(WITHOUT_CRITIC)}"
        )
    if scores is None and q_values is not None:
        scores = q_values.amin(0)
    return RULES[rule](config, scores, q_values, chunks, keys)


# ---- by score alone --------------------------------------------------------------------------------------------


def lower_bound(q_values: Tensor, pessimism: float) -> Tensor:
    """(K, B, N) values to the (B,) best of mean − k · standard deviation over the K networks.

    With k = 0 it is their mean; with K = 2 and k = 1 their minimum, which makes it `best`; with K = 1 it is `best`
    for every k. It helps as far as networks that are wrong about a chunk disagree about it.
    """
    return (q_values.mean(0) - pessimism * q_values.std(0, correction=0)).argmax(1)


def softmax(scores: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Draws a candidate with probability ∝ exp(score / (temperature · spread of the scores)).

    Temperature 0 is `best`, infinity a random candidate. The law of the choice has a limit in N, the policy tilted by
    the exponential of its score: a large N cannot go further than that.

    Args:
        scores: (B, N).
        gumbel: (B, N) standard Gumbel numbers, one for each candidate.
        temperature: in standard deviations of a row's scores.
    """
    return (standardised(scores) + temperature * gumbel).argmax(1)


def quantile(scores: Tensor, as_best_of: int) -> Tensor:
    """The candidate at the rank that the best of m has on average.

    The best of m candidates lies, on average, at the fraction m / (m + 1) of the policy's own distribution of
    scores, and the r-th lowest of N at r / (N + 1). So r is the whole number nearest to m (N + 1) / (m + 1): up to
    N = m that is the best, and beyond, the expected fraction stays where it is while its variance falls like 1 / N.
    What grows with N is only the knowledge of where the quantile lies.
    """
    count = scores.shape[1]
    rank = min(max(round(as_best_of * (count + 1) / (as_best_of + 1)), 1), count)
    return scores.argsort(stable=True, dim=1)[:, rank - 1]


# ---- by score and by the other candidates ----------------------------------------------------------------------


def dense(scores: Tensor, chunks: Tensor, bandwidth: float, weight: float) -> Tensor:
    """The best of score + weight · log density, the density being that of the candidates around a chunk.

    Anti-exploration: a chunk that the policy seldom proposes is one the critic has seldom seen, whatever it says of
    it. Weight 0 is `best`, weight infinity the mode of the policy; a small bandwidth makes all densities equal, which
    is `best` again. The density is a mean over the candidates, so it has a limit in N.
    """
    return (standardised(scores) + weight * kernel(chunks, bandwidth).mean(2).log()).argmax(1)


def smoothed(scores: Tensor, chunks: Tensor, bandwidth: float) -> Tensor:
    """The best of the scores averaged over the chunks around each: a chunk is as good as its neighbourhood.

    A kernel regression over the candidates (Nadaraya, Watson). Bandwidth 0 is `best`; towards infinity all averages
    become equal, and their order that of the chunks along the covariance of chunk and score.
    """
    weights = kernel(chunks, bandwidth).to(scores)
    # Relative to the row's mean, or small differences between large values would drown in rounding.
    return ((weights @ standardised(scores).unsqueeze(2)).squeeze(2) / weights.sum(2)).argmax(1)


def denoised(scores: Tensor, chunks: Tensor, bandwidth: float, error: float) -> Tensor:
    """The best of the scores as a Gaussian process explains them, which takes some of each for error.

    The part of a score that its neighbours share is believed, the part of its own is shrunk by the assumed variance
    of the error (kernel ridge regression). Unlike `smoothed` it does not pull a chunk at the border of the candidates
    towards the middle. Error 0 is `best`, and so is bandwidth 0.
    """
    weights = kernel(chunks, bandwidth).double()
    values = standardised(scores).double().unsqueeze(2)
    if error == 0:
        return values.squeeze(2).argmax(1)
    noise = error * torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
    return (weights @ torch.linalg.solve(weights + noise, values)).squeeze(2).argmax(1)


def consensus(scores: Tensor, chunks: Tensor, bandwidth: float, as_best_of: int) -> Tensor:
    """The mode of the chunks that the best of m would play.

    Every candidate votes for the chunks around it, with the probability that it is the best of m drawn from the N.
    Up to N = m one candidate has all the votes: `best`. Beyond, the votes come nearer to the law of the best of m,
    and the winner to the mode of that law, where an error of the critic about single chunks has no weight. A small
    bandwidth makes it `best` for every N; towards infinity it takes the chunk nearest to the mean of the best of m.
    """
    votes = best_of_weights(scores, as_best_of).unsqueeze(2)
    return (kernel(chunks, bandwidth).to(scores) @ votes).squeeze(2).argmax(1)


# ---- parts -----------------------------------------------------------------------------------------------------


def standardised(scores: Tensor) -> Tensor:
    """(B, N) scores to mean 0 and standard deviation 1 in every row; 0 where they are all the same."""
    centred = scores - scores.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(TINY)


def squared_distances(chunks: Tensor) -> Tensor:
    """(B, N, h, A) chunks to (B, N, N) squared distances, whose mean over pairs is 1 (or 0 where all are the same)."""
    centred = chunks - chunks.mean(1, keepdim=True)
    spread = centred.square().mean((1, 2), keepdim=True).sqrt()
    points = (centred / spread.clamp_min(TINY)).flatten(2)
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    pairs = max(chunks.shape[1] * (chunks.shape[1] - 1), 1)
    return squares / (squares.sum((1, 2), keepdim=True) / pairs).clamp_min(TINY)


def kernel(chunks: Tensor, bandwidth: float) -> Tensor:
    """(B, N, h, A) chunks to (B, N, N) Gaussian weights in [0, 1], 1 on the diagonal."""
    return (-0.5 * squared_distances(chunks) / bandwidth**2).exp()


def best_of_weights(scores: Tensor, m: int) -> Tensor:
    """(B, N) probability that a candidate has the highest score of m drawn from the N without replacement.

    Of the C(N, m) draws, those in which the candidate with r better ones wins are C(N − 1 − r, m − 1).
    """
    count = scores.shape[1]
    m = min(m, count)
    weights = np.ones(count)
    for rank in range(count - 1):
        below = count - 1 - rank
        weights[rank + 1] = weights[rank] * max(below - m + 1, 0) / below
    places = scores.argsort(stable=True, dim=1, descending=True).argsort(1)
    return torch.from_numpy(weights / weights.sum()).to(scores)[places]


def keyed(key: "NoiseKey", stream: int) -> np.random.Generator:
    """The random numbers of one decision; not those that made its candidates, or the pick would depend on them."""
    return np.random.default_rng((key.seed, key.scene, key.sample, key.decision, stream))


# ---- registry --------------------------------------------------------------------------------------------------


def _first(
    config: SelectionConfig, scores: Tensor | None, q_values: Tensor | None, chunks: Tensor, keys
) -> Tensor:
    return torch.zeros(len(chunks), dtype=torch.long, device=chunks.device)


def _random(
    config: SelectionConfig, scores: Tensor | None, q_values: Tensor | None, chunks: Tensor, keys
) -> Tensor:
    return torch.tensor([keyed(key, 1).integers(chunks.shape[1]) for key in keys], device=chunks.device)


def _softmax(config: SelectionConfig, scores: Tensor, q_values: Tensor, chunks: Tensor, keys) -> Tensor:
    gumbel = np.stack([keyed(key, 2).gumbel(size=chunks.shape[1]) for key in keys])
    return softmax(scores, torch.from_numpy(gumbel).to(scores), config.temperature)


Rule = Callable[[SelectionConfig, Tensor | None, Tensor | None, Tensor, "Sequence[NoiseKey]"], Tensor]
WITHOUT_CRITIC = ("first", "random")
# The numbers of `SelectionConfig` that a rule heeds; a rule that is not here heeds none.
NUMBERS = {
    "lower_bound": ("pessimism",),
    "softmax": ("temperature",),
    "quantile": ("as_best_of",),
    "dense": ("bandwidth", "density_weight"),
    "smoothed": ("bandwidth",),
    "denoised": ("bandwidth", "error"),
    "consensus": ("bandwidth", "as_best_of"),
}
RULES: dict[str, Rule] = {
    "first": _first,
    "random": _random,
    "best": lambda c, s, q, x, keys: s.argmax(1),
    "worst": lambda c, s, q, x, keys: s.argmin(1),
    "lower_bound": lambda c, s, q, x, keys: lower_bound(q, c.pessimism),
    "softmax": _softmax,
    "quantile": lambda c, s, q, x, keys: quantile(s, c.as_best_of),
    "dense": lambda c, s, q, x, keys: dense(s, x, c.bandwidth, c.density_weight),
    "smoothed": lambda c, s, q, x, keys: smoothed(s, x, c.bandwidth),
    "denoised": lambda c, s, q, x, keys: denoised(s, x, c.bandwidth, c.error),
    "consensus": lambda c, s, q, x, keys: consensus(s, x, c.bandwidth, c.as_best_of),
}
