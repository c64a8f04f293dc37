"""Statistics of paired evaluations: closed forms, brute force, scipy, and planted dependence."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from deas_vla.rollouts.statistics import (
    mcnemar_exact,
    paired_difference,
    pearson,
    rank_against_oracle,
    ratio_interval,
    scene_sign_flip_exact,
    separation,
    share_of_headroom,
    spearman,
    wilson_interval,
)

pytestmark = pytest.mark.unit
stats = pytest.importorskip("scipy.stats")


def pairs(max_scenes: int, samples: int):
    shape = st.tuples(st.integers(1, max_scenes), st.integers(1, samples))
    return shape.flatmap(lambda s: st.tuples(arrays(bool, s), arrays(bool, s)))


@given(st.integers(0, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_rule_10_wilson_interval(counts, confidence):
    successes, episodes = counts
    low, high = wilson_interval(successes, episodes, confidence)
    assert 0 <= low <= high <= 1
    if episodes == 0:
        assert (low, high) == (0, 1)
        return
    assert low <= successes / episodes <= high
    # Wilson's closed form.
    rate, spread = successes / episodes, stats.norm.ppf(0.5 + confidence / 2) ** 2 / episodes
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4)) / (1 + spread)
    assert (low, high) == pytest.approx((max(0, centre - half), min(1, centre + half)), abs=1e-9)
    # The ends are where the score test is exactly at the boundary: Wilson's definition.
    z = stats.norm.ppf(0.5 + confidence / 2)
    for end in (low, high):
        if 0 < end < 1:
            assert abs(successes / episodes - end) == pytest.approx(z * math.sqrt(end * (1 - end) / episodes), rel=1e-6)


def test_wilson_refuses_impossible_counts():
    for bad in ((3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)):
        with pytest.raises(ValueError):
            wilson_interval(*bad)


@given(pairs(12, 3))
def test_rule_10_mcnemar_exact(both):
    a, b = both
    wins, losses = int((a & ~b).sum()), int((b & ~a).sum())
    tail = sum(math.comb(wins + losses, k) for k in range(min(wins, losses) + 1))
    assert mcnemar_exact(a, b) == pytest.approx(min(1.0, 2 * tail / 2 ** (wins + losses)), abs=1e-12)
    assert mcnemar_exact(a, b) == mcnemar_exact(b, a)


@given(pairs(8, 3))
def test_rule_10_scene_sign_flip_by_brute_force(both):
    a, b = both
    delta = a.sum(1).astype(int) - b.sum(1).astype(int)
    sums = [abs(np.dot(signs, delta)) for signs in itertools.product((-1, 1), repeat=len(delta))]
    expected = np.mean(np.array(sums) >= abs(delta.sum()))
    assert scene_sign_flip_exact(a, b) == pytest.approx(expected, abs=1e-12)


@given(pairs(40, 1))
def test_scene_sign_flip_is_mcnemar_with_one_draw(both):
    assert scene_sign_flip_exact(*both) == pytest.approx(mcnemar_exact(*both), abs=1e-12)


def test_large_evaluations_stay_exact():
    a, b = np.zeros((2000, 1), bool), np.zeros((2000, 1), bool)
    a[:1100], b[1100:] = True, True
    assert mcnemar_exact(a, b) == pytest.approx(stats.binomtest(1100, 2000).pvalue, rel=1e-9)
    assert scene_sign_flip_exact(a, b) == pytest.approx(stats.binomtest(1100, 2000).pvalue, rel=1e-6)


def test_bootstrap_interval_by_brute_force():
    """With three scenes all 27 resamples can be written down; so can their quantiles."""
    values = np.array([0.0, 1.0, -1.0])
    low, high = ratio_interval(values, np.ones(3), 0.8, 200_000, seed=0)
    means = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=3)])
    expected = np.quantile(means, [0.1, 0.9])
    assert (low, high) == pytest.approx(expected, abs=1e-9)


def test_rule_10_paired_difference_is_reproducible_and_antisymmetric():
    rng = np.random.default_rng(0)
    a, b = rng.random((50, 3)) < 0.6, rng.random((50, 3)) < 0.4
    result, mirrored = paired_difference(a, b), paired_difference(b, a)
    assert result == paired_difference(a, b)
    assert result["difference"] == pytest.approx(a.mean() - b.mean())
    assert mirrored["ci95"] == pytest.approx((-result["ci95"][1], -result["ci95"][0]))
    assert (mirrored["wins"], mirrored["losses"]) == (result["losses"], result["wins"])
    assert result["ci95"] != paired_difference(a, b, seed=1)["ci95"]


@pytest.mark.parametrize("difference", [-1, 0, 1])
@pytest.mark.parametrize("scenes", [1, 5, 100])
def test_rule_10_agreement_of_all_scenes_is_not_certainty(difference, scenes):
    """At the interval's ends, S scenes that all agree are just as unlikely as the confidence allows."""
    a, b = np.full((scenes, 2), difference > 0), np.full((scenes, 2), difference < 0)
    low, high = paired_difference(a, b)["ci95"]
    assert -1 <= low <= difference <= high <= 1
    for end, extreme in ((low, -1), (high, 1)):
        if extreme != difference:
            share = (end - difference) / (extreme - difference)
            assert (1 - share) ** scenes == pytest.approx(0.025)


def clustered(rng, scenes: int, samples: int):
    """Two methods of equal quality; which is better depends on the scene, alike in all its samples."""
    favour = rng.random((scenes, 1)) < 0.5
    luck = rng.random((scenes, samples)) < 0.9
    return favour & luck, ~favour & luck


def test_rule_10_intervals_cover_with_draws_that_are_alike():
    """95 % intervals hold the truth about 95 times in 100; taking the samples for independent would not."""
    rng, covered, naive, repeats = np.random.default_rng(1), 0, 0, 300
    for _ in range(repeats):
        a, b = clustered(rng, 40, 4)
        low, high = paired_difference(a, b, resamples=500)["ci95"]
        covered += low <= 0 <= high
        low, high = paired_difference(a.reshape(-1, 1), b.reshape(-1, 1), resamples=500)["ci95"]
        naive += low <= 0 <= high
    assert 0.90 <= covered / repeats <= 0.985
    assert naive / repeats < 0.8


def test_rule_10_p_values_are_small_as_often_as_they_say():
    rng, repeats = np.random.default_rng(2), 400
    p = [scene_sign_flip_exact(*clustered(rng, 40, 4)) for _ in range(repeats)]
    assert np.mean(np.array(p) < 0.05) <= 0.075
    assert np.mean([mcnemar_exact(*clustered(rng, 40, 4)) < 0.05 for _ in range(repeats)]) > 0.2


def test_rule_10_no_verdict_without_evidence():
    for scenes in (1, 3, 4):
        few = np.ones((scenes, 1), bool)
        low, high = paired_difference(few, ~few)["ci95"]
        assert low < 0 < high == 1 and paired_difference(few, ~few)["verdict"] == "no_gain"
    # Five scenes, all won: the bootstrap interval excludes zero, the exact test knows better.
    won = np.ones((5, 2), bool)
    won[0, 0] = False
    result = paired_difference(won, np.zeros((5, 2), bool))
    assert result["ci95"][0] > 0 and result["p_value_scenes"] == 2 / 32 and result["verdict"] == "no_gain"
    many = np.ones((40, 1), bool)
    assert paired_difference(many, ~many)["verdict"] == "gain"
    assert paired_difference(~many, many)["verdict"] == "worse"
    assert paired_difference(many, many)["verdict"] == "no_gain"


def test_rule_10_unpaired_methods_are_refused():
    for a, b in ((np.ones((3, 2), bool), np.ones((3, 1), bool)), (np.ones((0, 1), bool), np.ones((0, 1), bool))):
        with pytest.raises(ValueError, match="same scenes and samples"):
            paired_difference(a, b)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_spearman_with_ties_agrees_with_scipy(points):
    x, y = np.array(points, float).T
    got = spearman(x, y)
    if len(points) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        assert got is None
    else:
        ranks = [(v[:, None] > v).sum(1) + ((v[:, None] == v).sum(1) + 1) / 2 for v in (x, y)]
        assert got == pytest.approx(stats.pearsonr(*ranks).statistic, abs=1e-12)
        assert got == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
        assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=25))
def test_separation_by_brute_force(points):
    good = [v for v, s in points if s]
    bad = [v for v, s in points if not s]
    got = separation(np.array([v for v, _ in points]), np.array([s for _, s in points], bool))
    if not good or not bad:
        assert got is None
    else:
        assert got == pytest.approx(np.mean([(g > b) + 0.5 * (g == b) for g in good for b in bad]))


def test_ranking_of_a_perfect_an_inverted_and_an_indifferent_critic():
    rng = np.random.default_rng(3)
    returns, scenes = rng.random((30, 8)), np.repeat(np.arange(10), 3)
    perfect = rank_against_oracle(3 * returns - 50, returns, scenes)
    assert (perfect["spearman"], perfect["regret"], perfect["captured"]) == pytest.approx((1, 0, 1))
    inverted = rank_against_oracle(-returns, returns, scenes)
    assert inverted["spearman"] == pytest.approx(-1)
    assert inverted["regret"] == pytest.approx(np.ptp(returns, axis=1).mean()) and inverted["captured"] < 0
    # One score for all: its "choice" must not depend on the order of the candidates.
    flat = rank_against_oracle(np.zeros_like(returns), returns, scenes)
    assert (flat["spearman"], flat["captured"]) == pytest.approx((0, 0)) and flat["regret"] == pytest.approx(
        flat["regret_random"]
    )


def test_ranking_leaves_out_decisions_that_say_nothing():
    returns = np.array([[1.0, 1.0, 1.0], [0.0, 1.0, 0.5]])
    scores = np.array([[3.0, 2.0, 1.0], [0.0, 2.0, 1.0]])
    ranking = rank_against_oracle(scores, returns, np.array([0, 1]))
    assert (ranking["decisions"], ranking["informative_decisions"]) == (2, 1) and ranking["spearman"] == pytest.approx(
        1
    )
    assert ranking["spearman_ci95"] is None  # one scene: nothing to resample
    nothing = rank_against_oracle(scores[:1], returns[:1], np.array([0]))
    assert nothing["informative_decisions"] == 0 and nothing["spearman"] is None and nothing["captured"] is None


def test_ranking_refuses_what_is_not_finite_or_does_not_fit():
    good = np.ones((2, 3))
    with pytest.raises(ValueError, match="finite"):
        rank_against_oracle(good * np.nan, good, np.arange(2))
    with pytest.raises(ValueError, match="scenes"):
        rank_against_oracle(good, good, np.arange(3))


def test_share_of_headroom():
    rng = np.random.default_rng(4)
    policy = rng.random((200, 1)) < 0.4
    oracle = policy | (rng.random((200, 1)) < 0.8)
    assert share_of_headroom(policy, oracle, oracle)[0] == 1
    assert share_of_headroom(policy, policy, oracle)[0] == 0
    half = np.where(np.arange(200)[:, None] < 100, oracle, policy)
    share, (low, high) = share_of_headroom(policy, half, oracle)
    expected = (half.mean() - policy.mean()) / (oracle.mean() - policy.mean())
    assert share == pytest.approx(expected) and low < share < high
    assert share_of_headroom(oracle, policy, oracle) == (None, None)
