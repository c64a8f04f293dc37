"""HL-Gauss and scalar heads: the support, the target, the mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deas_vla.critic.heads import HLGauss, Scalar, return_bounds

pytestmark = pytest.mark.unit


def head_of(horizon=16, reward_discount=0.9, bootstrap_discount=0.99, low=-1.0, high=0.0, bins=101, sigma=0.75):
    bounds = return_bounds(horizon, reward_discount, bootstrap_discount, low, high)
    return HLGauss(*bounds, bins, sigma)


heads = st.builds(
    head_of,
    horizon=st.integers(1, 50),
    reward_discount=st.floats(0.5, 1.0),
    bootstrap_discount=st.floats(0.5, 0.999),
    low=st.sampled_from([-4.0, -1.0, 0.0]),
    high=st.sampled_from([0.5, 1.0, 3.0]),
    bins=st.integers(21, 201),
    sigma=st.floats(0.6, 1.2),
)


@settings(max_examples=100, deadline=None)
@given(heads, st.floats(0, 1))
def test_a_return_survives_the_round_trip(head, where):
    value = torch.tensor(head.low + where * (head.high - head.low))
    target = head.target(value)
    assert target.shape == (head.num_logits,)
    assert (target >= 0).all()
    torch.testing.assert_close(target.sum(), torch.tensor(1.0), atol=1e-6, rtol=0)
    # What training reaches is the logarithm of the target; its mean is the return, to a hundredth of a bin.
    error = head.mean(target.clamp_min(1e-30).log()) - value
    assert error.abs() < 0.01 * head.bin_width


@settings(max_examples=50, deadline=None)
@given(heads, st.floats(allow_nan=False, width=32))
def test_any_return_has_a_finite_target(head, value):
    value = torch.tensor(value)
    target = head.target(value)
    assert torch.isfinite(target).all()
    assert torch.equal(target, head.target(value.clamp(head.low, head.high)))
    assert head.outside(value) == (not head.low <= value.item() <= head.high)
    assert torch.isfinite(head.loss(torch.zeros(head.num_logits), target))


def brute_force_bounds(horizon, reward_discount, bootstrap_discount, rewards):
    """Extreme returns of one option of any length and ending, then full options, as far as γ₂ reaches."""
    extremes = [0.0]
    for reward in rewards:
        for steps in range(1, horizon + 1):
            first = sum(reward * reward_discount**k for k in range(steps))
            extremes.append(first)
            total, scale = first, bootstrap_discount**steps
            while scale > 1e-9:
                total += scale * sum(reward * reward_discount**k for k in range(horizon))
                scale *= bootstrap_discount**horizon
            extremes.append(total)
    return min(extremes), max(extremes)


@pytest.mark.parametrize(
    ("horizon", "reward_discount", "bootstrap_discount", "rewards"),
    [(16, 0.9, 0.99, (-1, 0)), (4, 0.9, 0.99, (-1, 0)), (1, 0.9, 0.9, (-1, 0)), (8, 1.0, 0.98, (-3, 0)),
     (16, 0.9, 0.99, (0, 1)), (16, 0.9, 0.99, (-1, 2)), (16, 0.9, 0.99, (-2, -1)), (5, 0.5, 0.95, (0.5, 1))],
)  # fmt: skip
def test_rule_05_support_follows_from_discounts(horizon, reward_discount, bootstrap_discount, rewards):
    bounds = return_bounds(horizon, reward_discount, bootstrap_discount, *rewards)
    expected = brute_force_bounds(horizon, reward_discount, bootstrap_discount, rewards)
    assert bounds == pytest.approx(expected, rel=1e-6, abs=1e-6)

    head = HLGauss(*bounds, num_bins=101, sigma_bins=0.75)
    assert head.support_low < head.low < head.high < head.support_high
    for extreme in bounds:  # both extreme returns can be a mean
        mean = head.mean(head.target(torch.tensor(extreme)).log())
        assert mean.item() == pytest.approx(extreme, abs=1e-3 * head.bin_width)
    beyond = torch.tensor([bounds[0] - 1, bounds[0] / 2 + bounds[1] / 2, bounds[1] + 1])
    assert head.outside(beyond).tolist() == [True, False, True]


def test_rule_05_support_holds_the_published_numbers():
    """Endless failure at the settings of the publications, which took −1/(1 − γ₂) for it, twice as much."""

    def forever(horizon, bootstrap):
        return -(1 - 0.9**horizon) / 0.1 / (1 - bootstrap**horizon)

    published = {(16, 0.99): -54.8, (16, 0.999): -513, (8, 0.999): -714, (4, 0.99): -87.3, (50, 0.995): -44.9}
    for (horizon, bootstrap), value in published.items():
        low, high = return_bounds(horizon, 0.9, bootstrap, -1.0, 0.0)
        assert forever(horizon, bootstrap) == pytest.approx(value, rel=2e-3)
        assert low <= forever(horizon, bootstrap) <= 0.9 * low  # a few short steps are all that can be worse
        assert high == 0.0


def test_bins_are_those_of_the_definition():
    head = HLGauss(-10.0, 0.0, num_bins=26, sigma_bins=0.75)
    assert head.bin_width == pytest.approx(0.5)  # 26 bins less two margins of 3
    assert (head.support_low, head.support_high) == pytest.approx((-11.5, 1.5))
    edges = head.edges()
    normal = torch.distributions.Normal(-4.2, head.sigma)
    torch.testing.assert_close(
        head.target(torch.tensor(-4.2)), normal.cdf(edges[1:]) - normal.cdf(edges[:-1]), atol=1e-6, rtol=0
    )


def test_too_few_bins_are_refused():
    with pytest.raises(ValueError, match="margins alone take 6 bins"):
        HLGauss(-1.0, 0.0, num_bins=7, sigma_bins=0.75)
    with pytest.raises(ValueError, match="must be below"):
        Scalar(0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.floats(-50, -1), st.floats(0, 30), st.floats(0, 1))
def test_scalar_head_round_trip(low, high, where):
    head = Scalar(low, high)
    value = torch.tensor(low + where * (high - low))
    target = head.target(value)
    assert target.shape == (1,)
    assert target.abs() <= 1 + 1e-5
    torch.testing.assert_close(head.mean(target), value.clamp(low, high), atol=1e-4, rtol=0)
    assert head.mean(head.target(torch.tensor(low - 5))).item() == pytest.approx(low, abs=1e-4)
    assert head.loss(target, target) == 0
    assert head.loss(target + 0.5, target).item() == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("head", [HLGauss(-55.0, 0.0, 101, 0.75), Scalar(-55.0, 0.0)])
def test_half_precision_logits_are_computed_in_float32(head):
    logits = torch.linspace(-1, 1, head.num_logits).bfloat16()
    assert head.mean(logits).dtype == torch.float32
    torch.testing.assert_close(head.mean(logits), head.mean(logits.float()), atol=0, rtol=0)
    assert head.target(torch.tensor(-3.0).bfloat16()).dtype == torch.float32
