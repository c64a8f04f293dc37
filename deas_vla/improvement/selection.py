"""Which of N candidate chunks is played.

The argmax over N finds the best chunk and the critic's largest error alike; ``lower_bound`` distrusts what its networks
disagree about, ``consensus`` limits how hard is chosen. The order of candidates, other decisions of the batch, and a
shift or positive scale of the values change nothing, and one candidate is the policy itself (design rule 8).
Shapes: B decisions, N candidates, K networks of the critic, h steps, A action columns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deas_vla.errors import UserError, require_ranges, unknown

RuleName = Literal["first", "random", "best", "worst", "lower_bound", "consensus"]

# What candidates are made of, wherever they are made: the policy's noise times this. With less noise a policy plays
# nearer to its mean and succeeds more often.
CANDIDATE_NOISE = 0.5
EXECUTE_STEPS = 16  # actions of a chunk that are played before the policy decides again

# Below this a standard deviation counts as none: the scores, or a column of the candidates, are all the same.
TINY = 1e-8


@dataclass(frozen=True)
class NoiseKey:
    """Names one decision; the same key always gives the same candidates, in any batch and any process."""

    seed: int
    scene: int  # names the episode: a hash of its first observation (`episode_ids`), or the number of a scene
    sample: int  # of the same episode once more with other noise; negative ones are of continuations in a branch
    decision: int  # its number in the episode

    def generator(self, stream: int) -> np.random.Generator:
        """The random numbers of a choice; not those that made the candidates, or the choice would depend on them."""
        numbers = (self.seed, self.scene, self.sample, self.decision, stream)
        # NumPy takes no negative numbers.
        return np.random.default_rng([number % (1 << 64) for number in numbers])


@dataclass
class SelectionConfig:
    """Which of the candidates is played."""

    # the rule: consensus (best-of-N up to as_best_of candidates, and unlike it better with more), best (largest score),
    # lower_bound; first (the policy alone), random and worst are controls
    rule: RuleName = "consensus"
    pessimism: float = 1.0  # lower_bound: standard deviations of the networks that are taken off their mean
    as_best_of: int = 8  # consensus: m, how hard to choose, as the best of m would; up to m candidates it is best
    bandwidth: float = 0.6  # consensus: width of the kernel over chunks, in units of the candidates' distance
    # the noise that candidates are made of is multiplied by this, for every rule; 1 is the policy as it was trained
    noise_scale: float = 1.0

    def __post_init__(self):
        if self.rule not in RULES:
            raise UserError(f"selection.rule={self.rule!r}: {unknown('rule', str(self.rule), RULES)}")
        ranges = {"at least 0": "pessimism noise_scale", "at least 1": "as_best_of", "above 0": "bandwidth"}
        require_ranges(self, "selection.", ranges)


class Candidates(NamedTuple):
    """Arguments of `select`."""

    scores: Tensor | None
    q_values: Tensor | None
    chunks: Tensor
    keys: Sequence[NoiseKey]


class Rule(NamedTuple):
    """A way to choose (B,) int64 candidates, and the fields of `SelectionConfig` that it heeds."""

    choose: Callable[[SelectionConfig, Candidates], Tensor]
    hyper_parameters: tuple[str, ...] = ()
    needs_scorer: bool = True


def select(
    config: SelectionConfig,
    rule: str,
    q_values: Tensor | None,
    chunks: Tensor,
    keys: Sequence[NoiseKey],
    scores: Tensor | None = None,
) -> Tensor:
    """(B,) int64: one of N candidates, (B, N, h, A) in any units, for each of B decisions.

    The rule is `rule`, not that of the configuration. `q_values`: (K, B, N) of the candidates, None without a scorer;
    `scores`: (B, N) what the scorer makes of them, None: their minimum over the networks. A random choice depends on
    the keys alone.
    """
    chosen = rule_named(rule, q_values is not None)
    if scores is None and q_values is not None:
        scores = q_values.amin(0)
    return chosen.choose(config, Candidates(scores, q_values, chunks, keys))


def rule_named(name: str, scored: bool) -> Rule:
    """The rule of that name; refuses an unknown one, and one that needs scores where there are none."""
    if name not in RULES:
        raise UserError(unknown("selection rule", name, RULES))
    if RULES[name].needs_scorer and not scored:
        fix = "train one with recipes/train_critic.py; without one there are first and random"
        raise UserError(f"the rule '{name}' needs a critic: {fix}")
    return RULES[name]


def lower_bound(q_values: Tensor, pessimism: float) -> Tensor:
    """(K, B, N) values to the (B,) best of mean − k · standard deviation over the K networks.

    With k = 0 it is their mean; with K = 2 and k = 1 their minimum, which makes it `best`; with K = 1 it is `best`
    for every k. It helps as far as networks that are wrong about a chunk disagree about it.
    """
    return (q_values.mean(0) - pessimism * q_values.std(0, correction=0)).argmax(1)


def consensus(scores: Tensor, chunks: Tensor, bandwidth: float, as_best_of: int) -> Tensor:
    """The mode of the chunks that the best of m would play.

    Every candidate votes for the chunks around it, with the probability that it is the best of m drawn from the N.
    Up to N = m one candidate has all the votes: `best`. Beyond, the votes come nearer to the law of the best of m,
    and the choice to the mode of that law, where an error of the critic about single chunks has no weight. A small
    bandwidth makes it `best` for every N; towards infinity it takes the chunk nearest to the mean of the best of m.
    """
    votes = best_of_weights(scores, as_best_of).unsqueeze(2)
    return (kernel(chunks, bandwidth).to(scores) @ votes).squeeze(2).argmax(1)


def squared_distances(chunks: Tensor) -> Tensor:
    """(B, N, h, A) chunks to (B, N, N) squared distances, whose mean over pairs is 1 (or 0 where all are the same).

    They have no unit: every action column is divided by its standard deviation among the candidates.
    """
    centred = chunks - chunks.mean(1, keepdim=True)
    std = centred.square().mean((1, 2), keepdim=True).sqrt()
    points = (centred / std.clamp_min(TINY)).flatten(2)
    squares = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").square()
    pairs = max(chunks.shape[1] * (chunks.shape[1] - 1), 1)
    return squares / (squares.sum((1, 2), keepdim=True) / pairs).clamp_min(TINY)


def kernel(chunks: Tensor, bandwidth: float) -> Tensor:
    """(B, N, h, A) chunks to (B, N, N) Gaussian weights in [0, 1], 1 on the diagonal."""
    return (-0.5 * squared_distances(chunks) / bandwidth**2).exp()


def best_of_weights(scores: Tensor, m: int) -> Tensor:
    """(B, N) probability that a candidate has the highest score of m drawn from the N without replacement.

    Of the C(N, m) subsets, a candidate with r better ones is the best in C(N − 1 − r, m − 1).
    """
    count = scores.shape[1]
    m = min(m, count)
    weights = [math.comb(count - 1 - rank, m - 1) / math.comb(count, m) for rank in range(count)]
    ranks = scores.argsort(stable=True, dim=1, descending=True).argsort(1)
    return torch.tensor(weights, dtype=torch.float64).to(scores)[ranks]


def _random(config: SelectionConfig, seen: Candidates) -> Tensor:
    picks = [key.generator(1).integers(seen.chunks.shape[1]) for key in seen.keys]
    return torch.tensor(picks, device=seen.chunks.device)


RULES: dict[str, Rule] = {
    "first": Rule(lambda config, seen: seen.chunks.new_zeros(len(seen.chunks), dtype=torch.long), (), False),
    "random": Rule(_random, (), False),
    "best": Rule(lambda config, seen: seen.scores.argmax(1)),
    "worst": Rule(lambda config, seen: seen.scores.argmin(1)),
    "lower_bound": Rule(lambda config, seen: lower_bound(seen.q_values, config.pessimism), ("pessimism",)),
    "consensus": Rule(
        lambda config, seen: consensus(seen.scores, seen.chunks, config.bandwidth, config.as_best_of),
        ("bandwidth", "as_best_of"),
    ),
}
