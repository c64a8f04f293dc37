"""The critic's losses and gradients against the equations, written out plainly in float64."""

import pytest
import torch
import torch.nn.functional as F

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic

pytestmark = pytest.mark.unit

FEATURES, STATE, HORIZON, ACTION, BATCH = 4, 3, 5, 2, 32


def plain_network(weights, name, k, x):
    """Network k of an ensemble: Linear, LayerNorm, GELU, …, Linear."""

    def of(key):
        return weights[f"{name}.{key}"][k]

    first = of("observation.weight")
    if f"{name}.chunk.weight" in weights:
        first = torch.cat([first, of("chunk.weight")])
    x = x @ first + of("observation.bias")
    layers = sum(key.startswith(f"{name}.norms.") and key.endswith("weight") for key in weights)
    for layer in range(layers):
        if layer:
            x = x @ of(f"hidden.{layer - 1}.weight") + of(f"hidden.{layer - 1}.bias")
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        x = x * of(f"norms.{layer}.weight") + of(f"norms.{layer}.bias")
        x = x * (1 + torch.erf(x / 2**0.5)) / 2
    return x @ of("output.weight") + of("output.bias")


def plain_loss(critic, weights, batch):
    """L_V + L_Q for HL-Gauss, sample by sample."""
    config, head = critic.config, critic.head
    edges = head.support_low + head.bin_width * torch.arange(config.num_bins + 1, dtype=torch.float64)
    centres = (edges[1:] + edges[:-1]) / 2
    state = torch.cat([batch.features, batch.state], -1)
    following = torch.cat([batch.next_features, batch.next_state], -1)
    option = torch.cat([state, batch.chunk.flatten(1)], -1)

    def mean(logits):
        return logits.softmax(-1) @ centres

    y = (batch.returns + batch.bootstrap * mean(plain_network(weights, "v", 0, following))).detach()
    y = y.clamp(head.low, head.high)[:, None]
    mass = torch.distributions.Normal(y, head.sigma).cdf(edges).diff(dim=-1)
    mass = mass / mass.sum(-1, keepdim=True)
    v = plain_network(weights, "v", 0, state)
    targets = [plain_network(weights, "target_q", k, option) for k in range(config.num_q)]
    losses = []
    for i in range(len(y)):
        lowest = min((target[i] for target in targets), key=lambda logits: mean(logits).item())
        leaning = config.expectile if mean(lowest) >= mean(v[i]) else 1 - config.expectile
        losses.append(leaning * F.cross_entropy(v[i], lowest.softmax(-1).detach()))
    value_losses = torch.stack(losses)
    q_losses = [
        F.cross_entropy(plain_network(weights, "q", k, option), mass, reduction="none")
        for k in range(config.num_q)
    ]
    return ((value_losses + sum(q_losses) / config.num_q) * batch.weight).mean()


@pytest.mark.parametrize("num_q", [1, 2, 3])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_losses_and_gradients_are_those_of_the_equations(num_q, num_layers):
    torch.manual_seed(num_q)
    config = CriticConfig(horizon=HORIZON, hidden_dim=64, num_layers=num_layers, num_q=num_q)
    critic = DeasCritic(config, FEATURES, STATE, ACTION)
    with torch.no_grad():
        for parameter in critic.parameters():  # scales of one and shifts of zero could be swapped unseen
            parameter += 0.2 * torch.randn_like(parameter)
    batch = CriticBatch(
        features=torch.randn(BATCH, FEATURES),
        state=torch.randn(BATCH, STATE),
        chunk=torch.randn(BATCH, HORIZON, ACTION),
        returns=-4 * torch.rand(BATCH),
        bootstrap=torch.where(torch.rand(BATCH) < 0.2, 0.0, 0.95),
        next_features=torch.randn(BATCH, FEATURES),
        next_state=torch.randn(BATCH, STATE),
        weight=2 * torch.rand(BATCH),
    )
    loss, _ = critic(batch)
    loss.backward()

    weights = {name: p.detach().double().requires_grad_() for name, p in critic.named_parameters()}
    exact = CriticBatch(**{name: value.double() for name, value in vars(batch).items() if value is not None})
    expected = plain_loss(critic, weights, exact)
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, atol=0, rtol=2e-6)
    for name, parameter in critic.named_parameters():
        gradient = weights[name].grad
        if name.startswith("target_q"):
            assert parameter.grad is None and gradient is None
            continue
        # Rounding of float32, against the largest number of the same tensor.
        difference = (parameter.grad - gradient).abs().max() / gradient.abs().max()
        assert difference < 2e-5, f"{name} differs by {difference:.1e} of its largest gradient"
