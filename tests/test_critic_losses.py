"""The losses of detached value learning: closed forms, and what may flow where."""

import inspect

import pytest
import torch

from deas_vla.critic import losses
from deas_vla.critic.heads import HLGauss, Scalar, return_bounds
from deas_vla.critic.losses import q_loss, smallest_head, td_target, value_loss

pytestmark = pytest.mark.unit

H, G1, G2 = 16, 0.9, 0.99
BOUNDS = return_bounds(H, G1, G2, -1.0, 0.0)
HEADS = {"hl_gauss": HLGauss(*BOUNDS, 101, 0.75), "scalar": Scalar(*BOUNDS)}
STUCK = -(1 - G1**H) / ((1 - G1) * (1 - G2**H))


@pytest.fixture(params=HEADS)
def head(request):
    return HEADS[request.param]


def logits_of(head, values):
    """Logits whose mean is a value and whose prediction is its regression target."""
    target = head.target(torch.as_tensor(values))
    return target if head.num_logits == 1 else target.clamp_min(1e-12).log()


# ---- rule 3 ----------------------------------------------------------------------------------------------


def options(rewards, succeeded):
    """(returns, bootstrap, next state) of the option at every step of an episode, step by step as rule 3 has
    it.
    """
    rows = []
    for t in range(len(rewards)):
        collected, m = 0.0, 0
        while m < H and t + m < len(rewards):
            collected += G1**m * rewards[t + m]
            m += 1
        terminated = succeeded and t + m == len(rewards)
        rows.append((collected, 0.0 if terminated else G2**m, t + m))
    returns, bootstrap, end = zip(*rows, strict=True)
    return torch.tensor(returns), torch.tensor(bootstrap), torch.tensor(end)


def test_rule_03_the_target():
    # Twenty steps, reward -1 but for the last one; written out once by hand.
    next_value = torch.tensor([-10.0, -10.0, -10.0])
    full = -sum(0.9**k for k in range(16))
    timed_out = -sum(0.9**k for k in range(3))
    succeeded = -sum(0.9**k for k in range(2))
    y = td_target(
        returns_B=torch.tensor([full, timed_out, succeeded]),
        bootstrap_B=torch.tensor([0.99**16, 0.99**3, 0.0]),
        next_value_B=next_value,
    )
    # A full option is discounted by γ₂¹⁶, one cut short at 3 steps by γ₂³, a success is worth what it
    # collected.
    torch.testing.assert_close(y, torch.tensor([full - 8.514578, timed_out - 9.70299, succeeded]))

    returns, bootstrap, end = options([-1.0] * 19 + [0.0], succeeded=True)
    torch.testing.assert_close(bootstrap, torch.tensor([0.99**16] * 4 + [0.0] * 16))
    assert td_target(returns, bootstrap, torch.full((20,), -50.0))[-1] == 0
    _, bootstrap, end = options([-1.0] * 20, succeeded=False)
    torch.testing.assert_close(bootstrap, 0.99 ** (end - torch.arange(20)).float())


def test_rule_03_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        td_target(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1))


# ---- rule 4 ----------------------------------------------------------------------------------------------


def test_rule_04_detached(head):
    """Only recorded options enter, and every target is a constant for the gradient."""
    for function in (td_target, smallest_head, value_loss, q_loss):
        names = set(inspect.signature(function).parameters)
        assert names <= {
            "head", "returns_B", "bootstrap_B", "next_value_B", "v_logits_BM", "q_logits_KBM", "target_q_logits_KBM",
            "target_B", "expectile",
        }  # fmt: skip
    assert "rand" not in inspect.getsource(losses)

    returns, bootstrap, next_value = (torch.rand(3).requires_grad_() for _ in range(3))
    y = td_target(returns, bootstrap, next_value)
    assert not y.requires_grad

    v_logits, q_logits, target_q_logits = (
        torch.randn(*shape, head.num_logits).requires_grad_() for shape in ((3,), (2, 3), (2, 3))
    )
    value_loss(head, v_logits, target_q_logits, 0.7).sum().backward()
    assert target_q_logits.grad is None
    assert (v_logits.grad.abs().sum(-1) > 0).all()
    target = torch.full((3,), -20.0).requires_grad_()
    q_loss(head, q_logits, target).sum().backward()
    assert target.grad is None
    assert (q_logits.grad.abs().sum(-1) > 0).all()


def test_rule_04_detached_v_follows_the_head_with_the_smaller_mean(head):
    """Chosen for each sample; the whole distribution is followed, not a projection of its mean."""
    means = torch.tensor([[-10.0, -40.0, -30.0], [-20.0, -5.0, -30.5]])
    q_logits = logits_of(head, means)
    chosen, mean = smallest_head(head, q_logits)
    torch.testing.assert_close(mean, torch.tensor([-20.0, -40.0, -30.5]), atol=2e-3, rtol=0)
    expected = torch.stack([q_logits[1, 0], q_logits[0, 1], q_logits[1, 2]])
    torch.testing.assert_close(chosen, head.prediction(expected))

    # Without an expectile (τ = 1/2), V is at rest exactly where its prediction is the chosen one.
    v_logits = expected.clone().requires_grad_()
    value_loss(head, v_logits, q_logits, 0.5).sum().backward()
    torch.testing.assert_close(v_logits.grad, torch.zeros_like(expected), atol=1e-6, rtol=0)


def test_rule_04_detached_target_is_categorical():
    """A two-peaked Q is followed as it is: a re-projection of its mean would be one Gaussian between the
    peaks.
    """
    head = HEADS["hl_gauss"]
    two_peaks = (head.target(torch.tensor(-50.0)) + head.target(torch.tensor(-2.0))) / 2
    v_logits = torch.zeros(1, head.num_logits, requires_grad=True)
    value_loss(head, v_logits, two_peaks.clamp_min(1e-12).log().expand(2, 1, -1), 0.5).sum().backward()
    # The gradient of a cross-entropy is prediction − target: it tells what the target was.
    target = v_logits.softmax(-1) - 2 * v_logits.grad
    torch.testing.assert_close(target[0], two_peaks, atol=1e-5, rtol=0)


# ---- weights and reductions ------------------------------------------------------------------------------


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_expectile_weights(head, expectile):
    value = logits_of(head, [-30.0, -30.0, -30.0])
    above_and_below = logits_of(head, [[-29.9, -30.1, -30.0]])
    plain = head.loss(value, head.prediction(above_and_below[0]))
    expected = torch.tensor([expectile, 1 - expectile, expectile]) * plain  # a tie counts as above
    torch.testing.assert_close(value_loss(head, value, above_and_below, expectile), expected)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_v_rests_at_the_expectile_of_two_chunks(head, expectile):
    """Chunks worth −10 and −40, equally often: V = (τ·(−10) + (1 − τ)·(−40)), for both heads."""
    q_logits = logits_of(head, [[-10.0, -40.0]])
    v_logits = torch.zeros(1, head.num_logits, requires_grad=True)
    optimizer = torch.optim.Adam([v_logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        value_loss(head, v_logits.expand(2, -1), q_logits, expectile).mean().backward()
        optimizer.step()
    assert head.mean(v_logits[0]).item() == pytest.approx(-10 * expectile - 40 * (1 - expectile), abs=0.1)


def test_q_loss_averages_the_networks_and_shares_the_target(head):
    q_logits = torch.randn(3, 5, head.num_logits)
    y = torch.linspace(-50, 0, 5)
    losses = q_loss(head, q_logits, y)
    assert losses.shape == (5,)
    for i in range(5):
        expected = sum(head.loss(q_logits[k, i], head.target(y[i])) for k in range(3)) / 3
        torch.testing.assert_close(losses[i], expected)


def test_a_target_beyond_the_support_gives_a_finite_loss(head):
    q_logits = torch.randn(2, 2, head.num_logits, requires_grad=True)
    losses = q_loss(head, q_logits, torch.tensor([-1e30, float("inf")]))
    losses.sum().backward()
    assert torch.isfinite(losses).all() and torch.isfinite(q_logits.grad).all()


# ---- the tabular chain -----------------------------------------------------------------------------------


def closed_form(returns, bootstrap, end, final_value):
    """Solves V(t) = returns(t) + bootstrap(t) · V(end(t)) backwards from the last observation."""
    values = torch.zeros(len(returns) + 1)
    values[-1] = final_value
    for t in reversed(range(len(returns))):
        values[t] = returns[t] + bootstrap[t] * values[end[t]]
    return values[:-1]


def learn_table(head, returns, bootstrap, end, polyak=0.2):
    """V and the smaller Q of tables of logits that the losses trained; one recorded chunk a state."""
    count = len(returns)
    v_logits = torch.zeros(count, head.num_logits, requires_grad=True)
    q_logits = torch.zeros(2, count, head.num_logits, requires_grad=True)
    target_q = q_logits.detach().clone()
    # The tails of a softmax need Adam's rescaling; on a plain quadratic that very rescaling goes unstable.
    if head.num_logits > 1:
        optimizer, steps = torch.optim.Adam([v_logits, q_logits], lr=0.1), 1500
    else:
        optimizer, steps = torch.optim.SGD([v_logits, q_logits], lr=0.5), 700
    for _ in range(steps):
        with torch.no_grad():
            next_value = head.mean(v_logits)[end.clamp_max(count - 1)]
        y = td_target(returns, bootstrap, next_value)
        loss = value_loss(head, v_logits, target_q, 0.7) + q_loss(head, q_logits, y)
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        with torch.no_grad():
            target_q.lerp_(q_logits, polyak)
    with torch.no_grad():
        return head.mean(v_logits), head.mean(q_logits).amin(0)


def test_tabular_chain_matches_the_closed_form(head):
    """An episode of 300 steps that succeeds, one that times out into a sink."""
    returns, bootstrap, end = options([-1.0] * 299 + [0.0], succeeded=True)
    success = closed_form(returns, bootstrap, end, final_value=0.0)
    for t, published in ((0, -52.2), (150, -42.9), (284, -7.9), (299, 0.0)):
        assert success[t].item() == pytest.approx(published, abs=0.06)
    # A 40-step failure whose last observation is a state in which the robot stays stuck (the row after it).
    failed_returns, failed_bootstrap, failed_end = options([-1.0] * 40, succeeded=False)
    failure = closed_form(failed_returns, failed_bootstrap, failed_end, final_value=STUCK)
    # The worst state of all reaches the support's own lower bound.
    assert failure.min().item() == pytest.approx(head.low, abs=1e-4)
    assert abs(STUCK + 54.8) < 0.05

    stuck = torch.tensor([-sum(G1**k for k in range(H))])
    value, q = learn_table(
        head,
        torch.cat([returns, failed_returns, stuck]),
        torch.cat([bootstrap, failed_bootstrap, torch.tensor([G2**H])]),
        torch.cat([end, 300 + failed_end, torch.tensor([340])]),
    )
    expected = torch.cat([success, failure, torch.tensor([STUCK])])
    torch.testing.assert_close(value, expected, atol=0.15, rtol=0)
    torch.testing.assert_close(q, expected, atol=0.15, rtol=0)
    assert value[284:300].diff().min() > 0  # rises to the very last step before success
