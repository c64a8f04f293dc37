"""The agents learn small problems whose answers are known: seconds of training, so not of the unit tier."""

from dataclasses import replace

import pytest
import torch
from test_agents import FACTS, A, NoisePolicy, S, draws, make, options, peak

from deas_vla.critic.critic import CriticConfig
from studies.ogbench.agents.bc import BehaviourCloning, FlowConfig
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.dqc import DqcConfig
from studies.ogbench.agents.one_step import ActorConfig, OneStepActor
from studies.ogbench.agents.registry import AGENTS
from studies.ogbench.transitions import OptionBatch


@pytest.mark.parametrize("name", AGENTS)
def test_training_fits_the_targets_and_the_target_networks_follow(name):
    agent = make(name, critic={"bootstrap_discount": 0.9, "reward_discount": 0.9})
    batch = options(agent.horizon, rows=16, bootstrap=0.0)
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], 1e-2)
    losses = []
    copies = [key for key in agent.state_dict() if "target" in key]
    before = {key: agent.state_dict()[key].clone() for key in copies}
    for step in range(60):
        loss, metrics = agent.loss(batch, draws(step, 16))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        agent.after_step()
        assert not any(value.requires_grad or value.ndim for value in metrics.values())
        q = agent.q_values(batch.observation, batch.chunk.unsqueeze(1)).squeeze(2)
        losses.append((q - batch.returns).square().mean().item())
    assert losses[-1] < 0.3 * losses[0]
    assert copies
    assert all(not torch.equal(before[key], agent.state_dict()[key]) for key in copies)


def test_qc_learns_a_chain_and_its_optimism_grows_with_n():
    """One state that never ends, reward −1 a step; the chunk's first number pays up to 1 of it back each option.

    The value of the best of N chunks is that of more reward per option the larger N is; for N = 1 it is the mean.
    """
    values = {}
    for samples in (1, 8):
        torch.manual_seed(0)
        horizon, critic = 1, {"horizon": 1, "bootstrap_discount": 0.5, "reward_discount": 0.5, "polyak": 0.2}
        agent = make("qc", NoisePolicy(horizon), critic=critic, num_samples=samples)
        optimizer = torch.optim.Adam(agent.parameters(), 1e-2)
        for step in range(300):
            chunk = draws(step, 32).normal(horizon, A).clamp(-1, 1)
            state = torch.ones(32, S)
            batch = OptionBatch(state, chunk, chunk[:, 0, 0] / 2 - 0.5, torch.full((32,), 0.5), state)
            agent.loss(batch, draws(1000 + step, 32))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
            agent.after_step()
        chunks = torch.zeros(1, 1, horizon, A)
        values[samples] = agent.q_values(torch.ones(1, S), chunks).mean().item()
    # Q(s, 0) = −1/2 + 1/2 V; V = r̄ + 1/2 V with r̄ the mean reward of the chosen chunk.
    noise = torch.randn(20000, 8, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    for samples, value in values.items():
        chosen = (noise[:, :samples].amax(1) / 2 - 0.5).mean().item()
        assert value == pytest.approx(-0.5 + 0.5 * 2 * chosen, abs=0.06)


def train_actor(alpha, q_values, steps=400, **settings):
    torch.manual_seed(0)
    behaviour = FlowPolicy(S, 2, A, 16, 2, 4).requires_grad_(False)
    actor = OneStepActor(ActorConfig(alpha, hidden_dim=32, num_layers=2, **settings), FACTS, 2)
    optimizer = torch.optim.Adam(actor.parameters(), 3e-3)
    for step in range(steps):
        numbers = draws(step, 64)
        observation, noise = numbers.uniform(S), numbers.normal(1, 2, A)
        actor.loss(observation, noise, behaviour, q_values)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    observation, noise = torch.rand(256, S), torch.randn(256, 3, 2, A)
    return actor.sample(observation, noise), behaviour.sample(observation, noise)


def test_a_large_alpha_gives_the_flow_map_and_none_the_best_chunk():
    held, flow = train_actor(1e4, peak)
    assert (held - flow).square().mean() < 0.02 * flow.var()
    free, _ = train_actor(0.0, peak, steps=200)
    torch.testing.assert_close(free, torch.full_like(free, 0.5), atol=0.15, rtol=0)


@pytest.mark.parametrize("value_length", [1, 4])
@pytest.mark.parametrize("name", ["hl_gauss", "scalar"])
def test_dqc_partial_critic_is_optimistic_over_continuations(name, value_length):
    """One state; chunks begin with 0 or 1. What began with 0 was worth −1 or −5 by its third action, with 1 −4."""
    critic = {"horizon": 4, "head": name, "polyak": 0.2, "support": [-10.0, 0.0], "expectile": 0.5}
    config = DqcConfig(critic=replace(CriticConfig(**critic), hidden_dim=32, num_layers=2), lengths=[1, 2, 3],
                       value_length=value_length)  # fmt: skip
    torch.manual_seed(0)
    agent = AGENTS["dqc"][1](replace(config, support="possible"), FACTS, NoisePolicy(4))
    chunks = torch.zeros(3, 4, A)
    chunks[1, 2] = 1.0
    chunks[2, 0] = 1.0
    returns = torch.tensor([-1.0, -5.0, -4.0])
    state = torch.ones(3, S)
    batch = OptionBatch(state, chunks, returns, torch.zeros(3), torch.full((3, S), 9.0))
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], 1e-2)
    for _ in range(300):
        agent.loss(batch, draws())[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        agent.after_step()

    def value(length):
        return agent.q_values(state, chunks[:, None, :length]).squeeze(2)

    best = 0.8 * -1 + 0.2 * -5
    expected = {
        1: [best, best, -4.0],
        2: [best, best, -4.0],
        # After the third action nothing is open: the partial critic agrees with the chunk critic.
        3: [-1.0, -5.0, -4.0],
        4: [-1.0, -5.0, -4.0],
    }
    for length, values in expected.items():
        torch.testing.assert_close(value(length), torch.tensor(values).expand(2, -1), atol=0.25, rtol=0)
    # With τ = 1/2, V is the mean over what was recorded of the critic that it follows.
    mean = sum(expected[value_length]) / 3
    assert agent.value(state[:1]).item() == pytest.approx(mean, abs=0.25)


def test_behaviour_cloning_learns_both_modes_of_the_data():
    """In state 0 chunks are all −0.6 or all 0.6, in state 1 all 0.2."""
    torch.manual_seed(0)
    clone = BehaviourCloning(FlowConfig(hidden_dim=64, num_layers=2, flow_steps=10), 2, FACTS)
    optimizer = torch.optim.Adam(clone.parameters(), 3e-3)
    for step in range(600):
        generator = torch.Generator().manual_seed(step)
        kind = torch.randint(2, (128,), generator=generator).float()
        sign = 2 * torch.randint(2, (128,), generator=generator) - 1
        level = torch.where(kind == 1, 0.2, 0.6 * sign)
        state = kind[:, None].expand(-1, S)
        batch = OptionBatch(state, level[:, None, None].expand(-1, 2, A), level, level, state)
        clone.loss(batch, draws(step, 128))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    state = torch.tensor([0.0, 1.0])[:, None].expand(-1, S)
    chunks = clone.propose(state, torch.randn(2, 400, 2, A, generator=torch.Generator().manual_seed(0)))
    near = (chunks[0].abs() - 0.6).abs().amax((1, 2)) < 0.2
    assert near.float().mean() > 0.85
    assert 0.35 < (chunks[0, near, 0, 0] > 0).float().mean() < 0.65
    assert ((chunks[1] - 0.2).abs() < 0.15).float().mean() > 0.9
    assert clone.q_values(state, chunks) is None
    assert clone.value(state) is None
