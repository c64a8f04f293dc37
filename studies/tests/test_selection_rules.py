"""The study's own selection rules: what each is, its limits, and that the robust ones do not lose with N."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from test_selection import chosen_value, decision, few, seeds
from torch import Tensor

from deas_vla.errors import UserError
from deas_vla.improvement.selection import NoiseKey, select
from studies.ogbench.selection import StudySelection, dense, quantile, smoothed, softmax

pytestmark = pytest.mark.unit
CONFIG = StudySelection()
RULES = ("softmax", "quantile", "dense", "smoothed")


def gumbel(batch: int, count: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gumbel(size=(batch, count))).float()


@pytest.mark.parametrize("rule", RULES)
@few
@given(seed=seeds)
def test_what_every_rule_keeps(rule, seed):
    assert select(CONFIG, rule, *decision(seed, 1)).tolist() == [0, 0, 0]
    q_values, chunks, keys = decision(seed, 16)
    q_values, chunks = q_values.double(), chunks.double()
    index = select(CONFIG, rule, q_values, chunks, keys)
    assert torch.equal(select(CONFIG, rule, 3 * q_values - 7, chunks, keys), index)
    alone = [select(CONFIG, rule, q_values[:, [b]], chunks[[b]], [keys[b]]) for b in range(3)]
    assert torch.equal(torch.cat(alone), index)
    if rule != "softmax":
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(order[select(CONFIG, rule, q_values[:, :, order], chunks[:, order], keys)], index)
    with pytest.raises(UserError, match="needs a critic"):
        select(CONFIG, rule, None, chunks, keys)


@given(seed=seeds)
def test_limits_are_the_best_candidate(seed):
    q_values, chunks, keys = decision(seed, 24)
    best, scores = select(CONFIG, "best", q_values, chunks, keys), q_values.amin(0)
    assert torch.equal(softmax(scores, gumbel(3, 24), 0.0), best)
    assert torch.equal(dense(scores, chunks, 0.3, weight=0.0), best)
    for narrow in (dense(scores, chunks, 0.02, 1.0), smoothed(scores, chunks, 0.02)):
        assert torch.equal(narrow, best)
    assert torch.equal(quantile(scores, as_best_of=24), best)


@given(seed=seeds)
def test_a_wide_kernel_follows_the_covariance_of_chunk_and_score(seed):
    q_values, chunks, _ = decision(seed, 16)
    scores, chunks = q_values.amin(0).double(), chunks.double()
    centred = chunks - chunks.mean(1, keepdim=True)
    points = (centred / centred.square().mean((1, 2), keepdim=True).sqrt()).flatten(2)
    covariance = torch.einsum("bn,bnd->bd", scores - scores.mean(1, keepdim=True), points)
    expected = torch.einsum("bnd,bd->bn", points, covariance).argmax(1)
    assert torch.equal(smoothed(scores, chunks, bandwidth=300.0), expected)


def test_the_expected_quantile_does_not_move_with_n():
    """Scores uniform in [0, 1]: the score chosen is the quantile reached. Best goes to 1, quantile stays at 8/9."""
    scores = torch.rand(4000, 128, generator=torch.Generator().manual_seed(0))
    for count in (8, 16, 32, 128):
        some = scores[:, :count]
        reached = some.gather(1, quantile(some, 8)[:, None]).mean()
        assert reached == pytest.approx(8 / 9, abs=0.02)
    assert scores.amax(1).mean() > 0.98


def test_softmax_draws_from_its_law_and_repeats_itself():
    scores = torch.tensor([[0.0, 1.0, 2.0, 4.0]]).expand(6000, 4)
    chunks = torch.zeros(6000, 4, 1, 1)
    keys = [NoiseKey(0, scene, sample, d) for scene in range(100) for sample in range(3) for d in range(20)]
    config = replace(CONFIG, temperature=0.7)
    picks = select(config, "softmax", scores[None], chunks, keys)
    assert torch.equal(picks, select(config, "softmax", scores[None], chunks, keys))
    expected = torch.softmax(scores[0] / (0.7 * scores[0].std(correction=0)), 0)
    shares = torch.bincount(picks, minlength=4) / 6000
    assert (shares - expected).abs().max() < 4 * 0.5 / math.sqrt(6000)


@pytest.mark.parametrize("rule", ["quantile", "smoothed"])
def test_errors_of_single_chunks_do_not_grow_with_n(rule):
    values = [chosen_value(rule, count, peculiar=1.0) for count in (1, 8, 32, 128)]
    assert values[1] > values[0] + 0.3
    assert min(values[2:]) > values[1] - 0.05


def test_errors_that_nearby_chunks_share_do_not_grow_with_n():
    """Averages over neighbours do not help against these; a limit to how hard is chosen does."""
    assert chosen_value("smoothed", 128, shared=6.0) < chosen_value("smoothed", 8, shared=6.0) - 0.3
    values = [chosen_value("quantile", count, shared=6.0) for count in (8, 32, 128)]
    assert min(values) > values[0] - 0.05


@pytest.mark.parametrize(("field", "value"), [("temperature", -0.1), ("density_weight", -1.0), ("rule", "bset")])
def test_hyper_parameters_out_of_range_are_refused(field, value):
    with pytest.raises(UserError, match=rf"selection\.{field}="):
        StudySelection(**{field: value})
