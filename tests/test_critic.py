"""DeasCritic: configuration, networks, training on a chain, scores."""

import dataclasses

import pytest
import torch

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.critic.losses import future_loss, q_loss, td_target, value_loss
from deas_vla.errors import UserError

pytestmark = pytest.mark.unit

F, S, A = 7, 3, 2
SMALL = CriticConfig(horizon=4, hidden_dim=32, num_layers=2, head="hl_gauss", future_weight=0.0)


def make_critic(seed=0, **changes):
    torch.manual_seed(seed)
    return DeasCritic(dataclasses.replace(SMALL, **changes), F, S, A)


def make_batch(size=6, seed=1):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g)

    return CriticBatch(
        features=normal(size, F),
        state=normal(size, S),
        chunk=normal(size, 4, A),
        returns=-3 * torch.rand(size, generator=g),
        bootstrap=torch.full((size,), 0.99**4),
        next_features=normal(size, F),
        next_state=normal(size, S),
    )


def train(critic, batch, steps, lr=1e-3):
    optimizer = torch.optim.AdamW((p for p in critic.parameters() if p.requires_grad), lr=lr)
    for _ in range(steps):
        loss, metrics = critic(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.update_target()
    return metrics


# ---- configuration ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [("horizon", 0), ("reward_discount", 0.0), ("reward_discount", 1.1), ("bootstrap_discount", 1.0),
     ("expectile", 1.0), ("expectile", float("nan")), ("head", "softmax"), ("num_bins", 6),
     ("sigma_bins", 0.0), ("num_q", 0), ("polyak", 0.0), ("dropout", 1.0), ("reward_min", 0.0),
     ("reward_max", float("inf")), ("backup_horizon", 15), ("backup_horizon", -1), ("support", [-1.0]),
     ("support", [0.0, -1.0]), ("support", [-1.0, float("nan")]), ("support", [float("-inf"), 0.0])],
)  # fmt: skip
def test_bad_configuration_names_the_flag(field, value):
    with pytest.raises(UserError, match=f"critic.{field}="):
        CriticConfig(**({"head": "hl_gauss"} | {field: value}))


def test_rule_05_support_follows_the_steps_of_the_backup():
    """The chunk's length decides what Q sees, the backup's what a return can be."""
    n_step = CriticConfig(horizon=1, backup_horizon=16)
    assert (n_step.horizon, n_step.backup, CriticConfig().backup) == (1, 16, 16)
    assert n_step.value_head().low == CriticConfig().value_head().low
    assert n_step.value_head().low != CriticConfig(horizon=1).value_head().low


@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
def test_an_explicit_support_replaces_the_derived_one(head):
    critic = make_critic(head=head, support=[-100.0, 3.0])
    assert (critic.head.low, critic.head.high) == (-100.0, 3.0)
    target = torch.tensor([-101.0, -100.0, 3.0, 4.0])
    assert critic.head.outside(target).tolist() == [True, False, False, True]


# ---- networks --------------------------------------------------------------------------------------------


def reference_mlp(network, k, x):
    """One member of an ensemble, layer by layer with PyTorch's own modules."""
    first = network.observation.weight[k]
    if network.chunk is not None:
        first = torch.cat([first, network.chunk.weight[k]])
    layers = [(first, network.observation.bias[k])] + [(m.weight[k], m.bias[k]) for m in network.hidden]
    for (weight, bias), norm in zip(layers, network.norms, strict=True):
        x = torch.nn.functional.linear(x, weight.T, bias[0])
        x = torch.nn.functional.layer_norm(x, x.shape[-1:], norm.weight[k, 0], norm.bias[k, 0])
        x = torch.nn.functional.gelu(x)
    return torch.nn.functional.linear(x, network.output.weight[k].T, network.output.bias[k, 0])


def test_ensemble_is_k_separate_networks():
    critic = make_critic(num_q=3, num_layers=3)
    with torch.no_grad():
        for norm in critic.q.norms:  # at their initial values a scale or a shift could be swapped unseen
            norm.weight.normal_()
            norm.bias.normal_()
    batch = make_batch()
    observation = torch.cat([batch.features, batch.state], -1)
    logits = critic.q(observation, batch.chunk.flatten(1).unsqueeze(1))
    for k in range(3):
        expected = reference_mlp(critic.q, k, torch.cat([observation, batch.chunk.flatten(1)], -1))
        torch.testing.assert_close(logits[k, :, 0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(critic.v(observation)[0], reference_mlp(critic.v, 0, observation))
    assert not torch.allclose(logits[0], logits[1])


@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
def test_scores_of_candidates_are_those_of_single_chunks(head):
    critic = make_critic(head=head)
    batch = make_batch()
    train(critic, batch, 3)  # so that the online and the target networks differ
    chunks = torch.randn(6, 5, 4, A)
    q_values = critic.q_values(batch.features, batch.state, chunks)
    assert q_values.shape == (2, 6, 5)
    observation = torch.cat([batch.features, batch.state], -1)
    torch.testing.assert_close(q_values, critic.head.mean(critic.q(observation, chunks.flatten(2))))
    for n in range(5):
        alone = critic.q_values(batch.features, batch.state, chunks[:, n : n + 1])
        torch.testing.assert_close(q_values[:, :, n], alone[:, :, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        critic.score(batch.features, batch.state, chunks), torch.minimum(q_values[0], q_values[1])
    )
    value = critic.value(batch.features, batch.state)
    assert value.shape == (6,) and not value.requires_grad and not q_values.requires_grad


def test_rule_06_other_items_of_the_batch_change_no_score():
    critic = make_critic()
    batch, other = make_batch(seed=1), make_batch(seed=2)
    chunks = torch.randn(6, 5, 4, A)
    scores = critic.score(batch.features, batch.state, chunks)
    features, state, candidates = other.features.clone(), other.state.clone(), torch.randn(6, 5, 4, A)
    features[3], state[3], candidates[3] = batch.features[3], batch.state[3], chunks[3]
    assert torch.equal(critic.score(features, state, candidates)[3], scores[3])


def test_wrong_shapes_are_refused():
    critic, batch = make_critic(), make_batch()
    with pytest.raises(ValueError, match=r"this critic takes \(B, N, 4, 2\)"):
        critic.score(batch.features, batch.state, torch.zeros(6, 1, 5, A))
    with pytest.raises(ValueError, match=r"this critic takes \(B, 7\) and \(B, 3\)"):
        critic.value(batch.state, batch.features)


# ---- training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
def test_loss_is_the_equations_on_target_and_online_networks(head):
    critic = make_critic(head=head)
    train(critic, make_batch(seed=5), 3)  # so that the online and the target networks differ
    batch = make_batch()
    loss, metrics = critic(batch)

    observation = torch.cat([batch.features, batch.state], -1)
    next_observation = torch.cat([batch.next_features, batch.next_state], -1)
    chunk = batch.chunk.flatten(1).unsqueeze(1)
    y = td_target(batch.returns, batch.bootstrap, critic.head.mean(critic.v(next_observation)[0]))
    v_losses = value_loss(critic.head, critic.v(observation)[0], critic.target_q(observation, chunk).squeeze(2), 0.7)
    q_losses = q_loss(critic.head, critic.q(observation, chunk).squeeze(2), y)
    torch.testing.assert_close(loss, (v_losses + q_losses).mean())
    torch.testing.assert_close(metrics["q_loss"], q_losses.mean())
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


def test_future_loss_is_the_error_in_what_followed():
    predicted = torch.tensor([[[1.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [9.0, 9.0]]])
    change = torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    losses = future_loss(predicted, change, torch.tensor([True, False]))
    torch.testing.assert_close(losses, torch.tensor([(0 + 4 + 1 + 0) / 4, 0.0]))


@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
def test_the_future_joins_the_loss_and_changes_no_value(head):
    """It is added to the published losses, reaches Q's hidden layers, and no observation after a success counts."""
    plain, critic = make_critic(head=head), make_critic(head=head, future_weight=0.5)
    critic.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch()
    batch.bootstrap[0] = 0.0
    (without, _), (loss, metrics) = plain(batch), critic(batch)
    torch.testing.assert_close(loss, without + 0.5 * metrics["future_loss"])
    chunks = batch.chunk.unsqueeze(1)
    assert torch.equal(
        critic.score(batch.features, batch.state, chunks), plain.score(batch.features, batch.state, chunks)
    )
    gradient = torch.autograd.grad(loss, critic.q.hidden[0].weight)[0]
    assert not torch.equal(gradient, torch.autograd.grad(without, plain.q.hidden[0].weight)[0])

    other = dataclasses.replace(batch, next_features=batch.next_features.clone())
    other.next_features[0] += 100
    torch.testing.assert_close(critic(other)[0], loss)
    other.next_features[1] += 100
    assert critic(other)[1]["future_loss"] > 10 * metrics["future_loss"]


def test_it_learns_where_chunks_lead():
    """The observation moves by what the chunk adds up to: predicted after training."""
    critic = make_critic(head="scalar", future_weight=1.0)
    batch = make_batch(64)
    move = batch.chunk.sum(1)
    batch.next_features, batch.next_state = batch.features.clone(), batch.state.clone()
    batch.next_state[:, :A] += move
    before = critic(batch)[1]["future_loss"]
    assert train(critic, batch, 300, lr=3e-3)["future_loss"] < 0.05 * before


def test_rule_04_detached_networks():
    """V learns from L_V alone and Q from L_Q alone; target networks never; nothing random is drawn."""
    critic = make_critic()
    batch = make_batch()
    for field in ("features", "state", "chunk", "returns", "bootstrap", "next_features", "next_state"):
        getattr(batch, field).requires_grad_()
    critic(batch)[0].backward()
    assert all(p.grad is not None for p in [*critic.v.parameters(), *critic.q.parameters()])
    assert all(p.grad is None and not p.requires_grad for p in critic.target_q.parameters())
    for field in ("returns", "bootstrap", "next_features", "next_state"):
        assert getattr(batch, field).grad is None, field

    # A change of V's weights moves Q's loss (through y), but no gradient of Q's loss reaches V.
    observation, next_observation = (torch.randn(4, F + S) for _ in range(2))
    y = td_target(torch.zeros(4), torch.ones(4), critic.head.mean(critic.v(next_observation)[0]))
    losses = q_loss(critic.head, critic.q(observation, torch.randn(4, 1, 4 * A)).squeeze(2), y)
    grads = torch.autograd.grad(losses.sum(), list(critic.v.parameters()), allow_unused=True)
    assert all(grad is None for grad in grads)

    before = torch.get_rng_state()
    critic(make_batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_polyak_follows_its_closed_form():
    critic = make_critic(polyak=0.1)
    start = [p.clone() for p in critic.target_q.parameters()]
    with torch.no_grad():
        for p in critic.q.parameters():
            p.add_(1.0)
    for _ in range(7):
        critic.update_target()
    for target, begin in zip(critic.target_q.parameters(), start, strict=True):
        torch.testing.assert_close(target, begin + 1 - 0.9**7)
    with pytest.raises(UserError, match="float32"):
        critic.bfloat16().update_target()


def test_dropout_acts_only_on_what_is_trained():
    critic = make_critic(dropout=0.5).train()
    batch = make_batch()
    assert critic(batch)[0] != critic(batch)[0]
    # Targets and scores never drop, even while the module trains.
    features, state, chunks = batch.features, batch.state, batch.chunk.unsqueeze(1)
    assert torch.equal(critic.score(features, state, chunks), critic.score(features, state, chunks))
    calls = []
    for name in ("v", "q", "target_q"):
        network = getattr(critic, name)

        def record(observation, chunks=None, drop=False, name=name, within=network.hidden_units):
            calls.append((name, drop, torch.is_grad_enabled()))
            return within(observation, chunks, drop)

        network.hidden_units = record
    critic(batch)
    assert sorted(calls) == [("q", True, True), ("target_q", False, False), ("v", False, False), ("v", True, True)]
    critic.eval()
    assert critic(batch)[0] == critic(batch)[0]


def test_training_is_deterministic():
    runs = []
    for _ in range(2):
        critic = make_critic(dropout=0.1)
        train(critic, make_batch(), 5)
        runs.append(critic.state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    other = make_critic(seed=3, dropout=0.1).state_dict()
    assert not torch.equal(runs[0]["q.output.weight"], other["q.output.weight"])
