"""Choosing among candidates: what every rule keeps, its limits, and that the robust ones do not lose with N."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import NoiseKey
from deas_vla.improvement.selection import (
    RULES,
    SelectionConfig,
    best_of_weights,
    consensus,
    lower_bound,
    select,
    squared_distances,
)

pytestmark = pytest.mark.unit

CONFIG = SelectionConfig()
NAMES = ("first", "random", "best", "worst", "lower_bound", "consensus")
BY_SCORE = [name for name in NAMES if RULES[name].needs_scorer]
seeds = st.integers(0, 10_000)
# Each of these runs once a rule.
few = settings(max_examples=15)


def decision(seed: int, count: int, batch: int = 3, networks: int = 3) -> tuple[Tensor, Tensor, list[NoiseKey]]:
    """Opinions, chunks and keys; the columns of the chunks have units of very different size."""
    generator = torch.Generator().manual_seed(seed)
    q_values = torch.randn(networks, batch, count, generator=generator)
    chunks = torch.randn(batch, count, 4, 3, generator=generator) * torch.tensor([1.0, 0.01, 30.0])
    return q_values, chunks, [NoiseKey(seed, scene, 0, 0) for scene in range(batch)]


# ---- what every rule keeps -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", NAMES)
def test_rule_08_one_candidate_is_the_policy(rule):
    assert select(CONFIG, rule, *decision(0, 1)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("rule", BY_SCORE)
@few
@given(seed=seeds, count=st.integers(2, 40))
def test_the_order_of_the_candidates_does_not_matter(rule, seed, count):
    q_values, chunks, keys = decision(seed, count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    index = select(CONFIG, rule, q_values[:, :, order], chunks[:, order], keys)
    assert torch.equal(order[index], select(CONFIG, rule, q_values, chunks, keys))


@pytest.mark.parametrize("rule", NAMES)
@few
@given(seed=seeds, count=st.integers(1, 20))
def test_a_decision_does_not_depend_on_the_others(rule, seed, count):
    q_values, chunks, keys = decision(seed, count)
    alone = [select(CONFIG, rule, q_values[:, [b]], chunks[[b]], [keys[b]]) for b in range(3)]
    assert torch.equal(torch.cat(alone), select(CONFIG, rule, q_values, chunks, keys))


@pytest.mark.parametrize("rule", BY_SCORE)
@few
@given(seed=seeds, shift=st.floats(-100, 100), scale=st.floats(0.1, 100))
def test_the_scale_of_values_does_not_matter(rule, seed, shift, scale):
    q_values, chunks, keys = decision(seed, 16)
    q_values = q_values.double()
    index = select(CONFIG, rule, q_values, chunks, keys)
    assert torch.equal(select(CONFIG, rule, scale * q_values + shift, chunks, keys), index)


@pytest.mark.parametrize("rule", BY_SCORE)
@few
@given(seed=seeds, unit=st.floats(0.01, 100))
def test_the_units_of_actions_do_not_matter(rule, seed, unit):
    q_values, chunks, keys = decision(seed, 16)
    units = torch.tensor([1.0, unit, 1 / unit])
    moved = chunks.double() * units + torch.tensor([0.0, 3 * unit, -unit])
    assert torch.equal(
        select(CONFIG, rule, q_values, moved, keys), select(CONFIG, rule, q_values, chunks.double(), keys)
    )


@pytest.mark.parametrize("rule", BY_SCORE)
def test_candidates_that_are_all_the_same_are_no_problem(rule):
    q_values, chunks, keys = torch.full((2, 3, 8), -4.0), torch.ones(3, 8, 4, 3), decision(0, 8)[2]
    assert ((index := select(CONFIG, rule, q_values, chunks, keys)) >= 0).all() and (index < 8).all()
    # A column that does not move says nothing; those that do still count.
    chunks[:, :, :, 0] = torch.arange(8.0)[None, :, None]
    assert squared_distances(chunks).isfinite().all()


# ---- what a rule is --------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_limits_are_the_best_candidate(seed):
    q_values, chunks, keys = decision(seed, 24)
    best = select(CONFIG, "best", q_values, chunks, keys)
    scores = q_values.amin(0)
    assert torch.equal(scores.gather(1, best[:, None])[:, 0], scores.amax(1))
    assert torch.equal(consensus(scores, chunks, 0.02, as_best_of=8), best)
    assert torch.equal(consensus(scores, chunks, 0.3, as_best_of=24), best)


@given(seed=seeds, count=st.integers(1, 8))
def test_as_best_of_m_is_best_up_to_m(seed, count):
    q_values, chunks, keys = decision(seed, count)
    config = replace(CONFIG, as_best_of=8)
    assert torch.equal(
        select(config, "consensus", q_values, chunks, keys), select(config, "best", q_values, chunks, keys)
    )


@given(seed=seeds)
def test_two_networks_one_deviation_apart_are_their_minimum(seed):
    q_values = decision(seed, 16, networks=2)[0].double()
    assert torch.equal(lower_bound(q_values, 1.0), q_values.amin(0).argmax(1))
    assert torch.equal(lower_bound(q_values, 0.0), q_values.mean(0).argmax(1))
    assert torch.equal(lower_bound(q_values[:1], 3.0), q_values[0].argmax(1))


@given(seed=seeds, m=st.integers(1, 16))
def test_a_wide_kernel_takes_the_chunk_nearest_to_the_mean_winner(seed, m):
    q_values, chunks, _ = decision(seed, 16)
    scores, chunks = q_values.amin(0).double(), chunks.double()
    centred = chunks - chunks.mean(1, keepdim=True)
    points = (centred / centred.square().mean((1, 2), keepdim=True).sqrt()).flatten(2)
    mean = torch.einsum("bn,bnd->bd", best_of_weights(scores, m), points)
    expected = (points - mean[:, None]).square().sum(2).argmin(1)
    assert torch.equal(consensus(scores, chunks, bandwidth=300.0, as_best_of=m), expected)


@given(count=st.integers(1, 30), m=st.integers(1, 30))
def test_votes_are_the_odds_of_being_the_best_of_m(count, m):
    m = min(m, count)
    weights = best_of_weights(torch.arange(count, dtype=torch.float64)[None], m)[0]
    # In ascending order: with r candidates below it, one wins C(r, m − 1) of the C(N, m) samples.
    expected = [math.comb(r, m - 1) / math.comb(count, m) for r in range(count)]
    assert weights.tolist() == pytest.approx(expected)


def test_a_chunk_that_only_one_noise_makes_is_suspicious():
    """Twenty chunks around 0 with scores around 1, and one far away that the critic likes a little better."""
    generator = torch.Generator().manual_seed(0)
    chunks = torch.cat([0.1 * torch.randn(1, 20, 4, 3, generator=generator), torch.full((1, 1, 4, 3), 2.0)], 1)
    scores = torch.cat([1 + 0.1 * torch.randn(1, 20, generator=generator), torch.full((1, 1), 1.5)], 1)
    assert scores.argmax(1).item() == 20
    assert consensus(scores, chunks, 0.3, 8).item() != 20


def test_a_random_choice_can_be_made_in_a_branch():
    """Continuations have negative samples, which NumPy refuses as seeds; other keys choose as they always did."""
    _, chunks, _ = decision(0, 8, batch=64)
    keys = [NoiseKey(1, scene, -1, 0) for scene in range(64)]
    index = select(CONFIG, "random", None, chunks, keys)
    assert torch.equal(index, select(CONFIG, "random", None, chunks, keys)) and len(index.unique()) > 4
    other = [replace(key, sample=-2) for key in keys]
    assert not torch.equal(index, select(CONFIG, "random", None, chunks, other))
    assert NoiseKey(3, 5, 1, 2).generator(1).integers(1000) == np.random.default_rng((3, 5, 1, 2, 1)).integers(1000)


def test_scores_of_the_scorer_count_where_they_are_not_the_minimum():
    q_values, chunks, keys = decision(0, 16)
    index = select(CONFIG, "best", q_values, chunks, keys, scores=q_values.mean(0))
    assert torch.equal(index, q_values.mean(0).argmax(1))
    assert not torch.equal(index, select(CONFIG, "best", q_values, chunks, keys))


# ---- over-optimisation -----------------------------------------------------------------------------------------


def chosen_value(rule: str, count: int, *, peculiar: float = 0.0, shared: float = 0.0) -> float:
    """Mean true value of the chunk a rule plays, over decisions in which the critic is wrong.

    The true value of a chunk falls with its distance from a goal of its own for each decision.

    Args:
        rule: of selection.
        count: N.
        peculiar: size of an error that is independent for every candidate, with heavy tails (Student's t with 2
            degrees of freedom).
        shared: size of an error that nearby chunks share: far out along one direction, where the policy seldom goes,
            the critic expects too much.
    """
    generator = torch.Generator().manual_seed(7)
    chunks = torch.randn(300, 128, 2, 1, generator=generator)
    goal = torch.randn(300, 1, 2, 1, generator=generator)
    value = -(chunks - goal).square().sum((2, 3))
    normal = torch.randn(300, 128, generator=generator)
    chi = torch.randn(300, 128, 2, generator=generator).square().sum(2) / 2
    beyond = (chunks[:, :, 0, 0] - 1).clamp_min(0)
    scores = value + peculiar * normal / chi.sqrt() + shared * beyond.square()
    config = SelectionConfig(bandwidth=0.3)
    keys = [NoiseKey(0, scene, 0, 0) for scene in range(300)]
    index = select(config, rule, scores[None, :, :count], chunks[:, :count], keys)
    return value.gather(1, index[:, None]).mean().item()


@pytest.mark.parametrize("rule", ["consensus"])
def test_errors_of_single_chunks_do_not_grow_with_n(rule):
    few, many = (chosen_value("best", count, peculiar=1.0) for count in (8, 128))
    assert many < few - 0.2
    values = [chosen_value(rule, count, peculiar=1.0) for count in (1, 8, 32, 128)]
    assert values[1] > values[0] + 0.3
    assert min(values[2:]) > values[1] - 0.05 and values[3] > many + 0.3


@pytest.mark.parametrize("rule", ["consensus"])
def test_errors_that_nearby_chunks_share_do_not_grow_with_n(rule):
    """Averages over neighbours do not mend these; a limit to how hard is chosen does."""
    for loser in ("best", "lower_bound"):
        assert chosen_value(loser, 128, shared=6.0) < chosen_value(loser, 8, shared=6.0) - 0.3
    values = [chosen_value(rule, count, shared=6.0) for count in (8, 32, 128)]
    assert min(values) > values[0] - 0.05


@pytest.mark.parametrize("rule", ["best", "consensus"])
def test_a_perfect_critic_makes_every_rule_gain(rule):
    assert chosen_value(rule, 128) > chosen_value(rule, 1) + 1


# ---- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("rule", "bset"), ("pessimism", -1.0), ("as_best_of", 0), ("bandwidth", 0.0), ("noise_scale", -0.1)],
)
def test_numbers_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=rf"selection\.{field}="):
        SelectionConfig(**{field: value})


@pytest.mark.parametrize("rule", NAMES)
def test_a_rule_says_when_it_needs_a_critic(rule):
    _, chunks, keys = decision(0, 4)
    if rule not in BY_SCORE:
        assert (select(CONFIG, rule, None, chunks, keys) < 4).all()
    else:
        with pytest.raises(UserError, match="needs a critic"):
            select(CONFIG, rule, None, chunks, keys)


def test_an_unknown_rule_is_refused():
    with pytest.raises(UserError, match=r"unknown selection rule 'greedy'.*first, random, best"):
        select(CONFIG, "greedy", *decision(0, 4))
