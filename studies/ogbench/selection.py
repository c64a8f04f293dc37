"""Selection rules that only the OGBench study compares: each guesses how the critic errs, and corrects for that.

Errors that are peculiar to one chunk (smoothed), or to rare chunks (dense), are corrected by what the rule looks at;
quantile and softmax limit how hard is chosen. Importing this file adds them to the rules of the package.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deas_vla.errors import require_ranges
from deas_vla.improvement.selection import RULES, TINY, Candidates, Rule, SelectionConfig, kernel

StudyRule = Literal[
    "first", "random", "best", "worst", "lower_bound", "consensus", "softmax", "quantile", "dense", "smoothed",
]  # fmt: skip


@dataclass
class StudySelection(SelectionConfig):
    """Which of the candidates is played, with the rules of the study."""

    # the rule
    rule: StudyRule = "consensus"
    # softmax: temperature, in standard deviations of the candidates' scores; 0 is best
    temperature: float = 0.3
    # dense: weight of the log density of a chunk among the candidates, against its score in standard deviations
    density_weight: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_ranges(self, "selection.", {"at least 0": "temperature density_weight"})


def softmax(scores: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Draws a candidate with probability ∝ exp(score / (temperature · standard deviation of the scores)).

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


def standardised(scores: Tensor) -> Tensor:
    """(B, N) scores to mean 0 and standard deviation 1 in every row; 0 where they are all the same."""
    centred = scores - scores.mean(1, keepdim=True)
    return centred / centred.square().mean(1, keepdim=True).sqrt().clamp_min(TINY)


def _softmax(config: SelectionConfig, seen: Candidates) -> Tensor:
    gumbel = np.stack([key.generator(2).gumbel(size=seen.chunks.shape[1]) for key in seen.keys])
    return softmax(seen.scores, torch.from_numpy(gumbel).to(seen.scores), config.temperature)


RULES |= {
    "softmax": Rule(_softmax, ("temperature",)),
    "quantile": Rule(lambda config, seen: quantile(seen.scores, config.as_best_of), ("as_best_of",)),
    "dense": Rule(
        lambda config, seen: dense(seen.scores, seen.chunks, config.bandwidth, config.density_weight),
        ("bandwidth", "density_weight"),
    ),
    "smoothed": Rule(lambda config, seen: smoothed(seen.scores, seen.chunks, config.bandwidth), ("bandwidth",)),
}
