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
        F.cross_entropy(plain_network(weights, "q", k, option), mass, reduction="none") for k in range(config.num_q)
    ]
    return (value_losses + sum(q_losses) / config.num_q).mean()


@pytest.mark.parametrize("num_q", [1, 2, 3])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_losses_and_gradients_are_those_of_the_equations(num_q, num_layers):
    torch.manual_seed(num_q)
    config = CriticConfig(
        horizon=HORIZON, hidden_dim=64, num_layers=num_layers, num_q=num_q, head="hl_gauss", future_weight=0.0,
    )  # fmt: skip
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


# (loss, value_loss, q_loss, value, q, upward) at steps 1, 6 and 12 of a training, by the code at commit c649ede, which
# had the losses written out inside DeasCritic.
BEFORE = {
    "hl_gauss": [
        [8.356727600097656, 2.9103522300720215, 5.446375370025635, -44.818603515625, -50.734519958496094, 0.5625],
        [8.297224044799805, 2.9378974437713623, 5.359326362609863, -44.40533447265625, -51.493865966796875, 0.5625],
        [7.663974761962891, 2.442523717880249, 5.2214508056640625, -43.046875, -50.18303298950195, 0.375],
    ],
    "scalar": [
        [7.167788982391357, 1.9803186655044556, 3.2016794681549072, -55.98716735839844, -104.24174499511719, 0.1875],
        [5.358187198638916, 1.5820600986480713, 1.3741110563278198, -61.66997146606445, -94.02435302734375, 0.1875],
        [4.710899353027344, 1.6421639919281006, 1.0227630138397217, -90.6427230834961, -72.21581268310547, 0.25],
    ],
}


@pytest.mark.parametrize("head", BEFORE)
def test_a_training_is_the_same_as_before_the_losses_moved(head):
    features, state, action, horizon, size = 5, 3, 2, 4, 16
    config = CriticConfig(
        horizon=horizon, hidden_dim=32, num_layers=2, head=head, future_weight=float(head == "scalar")
    )
    critic = DeasCritic(config, features, state, action)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in sorted(critic.named_parameters()):
        scale = 1.0 if "norms" in name and "weight" in name else 0.0
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator) + scale
    optimizer = torch.optim.AdamW([p for p in critic.parameters() if p.requires_grad], lr=1e-3)
    found = []
    for step in range(12):
        g = torch.Generator().manual_seed(100 + step)
        batch = CriticBatch(
            features=torch.randn(size, features, generator=g),
            state=torch.randn(size, state, generator=g),
            chunk=torch.randn(size, horizon, action, generator=g),
            returns=-3 * torch.rand(size, generator=g),
            bootstrap=torch.where(torch.rand(size, generator=g) < 0.2, 0.0, 0.99**4),
            next_features=torch.randn(size, features, generator=g),
            next_state=torch.randn(size, state, generator=g),
        )
        loss, metrics = critic(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        critic.update_target()
        names = ("loss", "value_loss", "q_loss", "value", "q", "upward")
        found.append([float(metrics[name]) for name in names])
    torch.testing.assert_close(
        torch.tensor([found[0], found[5], found[11]]), torch.tensor(BEFORE[head]), rtol=1e-5, atol=1e-5
    )
