"""The agents: closed forms with planted networks, what may flow where, and what all of them promise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from deas_vla.config import parse
from deas_vla.critic.critic import DeasCritic
from deas_vla.critic.heads import HLGauss, Scalar, return_bounds
from deas_vla.errors import UserError
from studies.ogbench.agents.agent import Draws, TaskFacts
from studies.ogbench.agents.bc import FilteredBcConfig, best_options
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.deas import critic_batch
from studies.ogbench.agents.dqc import DqcConfig, distillation_loss
from studies.ogbench.agents.one_step import ActorConfig, OneStepActor, frozen
from studies.ogbench.agents.registry import AGENTS
from studies.ogbench.transitions import OptionBatch

pytestmark = pytest.mark.unit

S, A, B = 3, 2, 8
FACTS = TaskFacts(S, A, reward_min=-2.0, lowest_return=-37.0)
ACTORS = ("fql", "qc_fql", "deas_onestep")
COUPLED = ("qc", "qc_fql", "fql")


def make(name, behaviour=None, seed=0, critic=None, **settings):
    """A small agent of this name; `critic` and `settings` change its configuration."""
    torch.manual_seed(seed)
    config_class, agent_class = AGENTS[name]
    config = config_class(**settings)
    config.critic = replace(config.critic, hidden_dim=16, num_layers=2, **(critic or {}))
    if hasattr(config, "num_samples") and "num_samples" not in settings:
        config.num_samples = 4
    if behaviour is None:
        behaviour = FlowPolicy(S, config.critic.horizon, A, 16, 2, 3).requires_grad_(False)
    return agent_class(config, FACTS, behaviour).train()


def options(horizon, rows=B, seed=0, bootstrap=0.9):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    batch = OptionBatch(rand(rows, S), 2 * rand(rows, horizon, A) - 1, -5 * rand(rows), torch.full((rows,), bootstrap),
                        rand(rows, S))  # fmt: skip
    batch.bootstrap[::3] = 0.0
    return batch


def draws(step=0, rows=B, share=None):
    return Draws(0, step, rows, share or slice(0, rows))


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], msg=name, **tolerance)


class PlantedQ(nn.Module):
    """Networks of known values: a function of (B, S) states and (B, N, H·A) chunks to (K, B, N)."""

    def __init__(self, head, function):
        super().__init__()
        self.head, self.function = head, function
        self.anchor = nn.Parameter(torch.zeros(()))

    def forward(self, observation, chunks, drop=False):
        value = self.function(observation, chunks)
        scaled = (2 * value - self.head.low - self.head.high) / (self.head.high - self.head.low)
        return scaled.unsqueeze(-1) + self.anchor


class NoisePolicy(FlowPolicy):
    """Proposes the noise itself, clipped and scaled."""

    def __init__(self, horizon, scale=1.0):
        super().__init__(S, horizon, A, 4, 1, 1)
        self.scale = scale

    def sample(self, observation, noise):
        return (self.scale * noise).clamp(-1, 1)


# ---- Q-chunking ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["mean", "min"])
@pytest.mark.parametrize("samples", [1, 5])
def test_qc_target_is_the_target_value_of_the_chunk_that_the_online_networks_prefer(aggregate, samples):
    agent = make("qc", NoisePolicy(5), aggregate=aggregate, num_samples=samples)

    def online(observation, chunks):
        return torch.stack([-2 - chunks[..., 0], -3 - 2 * chunks[..., 3] * observation[:, :1]])

    def target(observation, chunks):
        return torch.stack([-9 + chunks.sum(-1) / 10, -10 + 2 * chunks[..., 1] + observation[:, 1:2]])

    agent.q, agent.target_q = PlantedQ(agent.head, online), PlantedQ(agent.head, target)
    together = {"mean": lambda q: sum(q) / len(q), "min": min}[aggregate]
    batch = options(5)
    # What follows a success is never looked at.
    batch.next_observation[batch.bootstrap == 0] = torch.nan
    noise = draws().normal(samples, 5, A)
    expected = []
    for b in range(B):
        value = 0.0
        if batch.bootstrap[b] > 0:
            state = batch.next_observation[b : b + 1]
            chunks = [chunk.clamp(-1, 1).view(1, 1, -1) for chunk in noise[b]]
            scores = [together(online(state, chunk).flatten().tolist()) for chunk in chunks]
            best = chunks[int(np.argmax(scores))]
            value = together(target(state, best).flatten().tolist())
        expected.append(float(batch.returns[b]) + float(batch.bootstrap[b]) * value)
    expected = torch.tensor(expected)
    losses, metrics = agent.critic_loss(batch, draws())
    torch.testing.assert_close(metrics["target"], expected.mean())
    half_range = (agent.head.high - agent.head.low) / 2
    q = online(batch.observation, batch.chunk.flatten(1).unsqueeze(1)).squeeze(2)
    torch.testing.assert_close(losses, ((q - expected) / half_range).square().mean(0))


def test_qc_target_does_not_depend_on_how_many_are_sampled_at_once(monkeypatch):
    agent, batch = make("qc"), options(5)
    whole = agent.loss(batch, draws())[0]
    monkeypatch.setattr("studies.ogbench.agents.qc.CANDIDATES_AT_ONCE", 4)
    torch.testing.assert_close(agent.loss(batch, draws())[0], whole)


@pytest.mark.parametrize("name", COUPLED)
def test_nothing_is_sampled_where_all_options_ended_in_success(name):
    agent = make(name)
    batch = options(agent.horizon, bootstrap=0.0)
    batch.next_observation[:] = torch.nan
    loss, metrics = agent.loss(batch, draws())
    torch.testing.assert_close(metrics["target"], batch.returns.mean())
    assert torch.isfinite(loss)


# ---- rule 4 --------------------------------------------------------------------------------------------------


def critic_target(agent, batch):
    """Gradients of the critic, which hold its targets."""
    agent.zero_grad()
    agent.loss(batch, draws())[0].backward()
    return {name: grad for name, grad in gradients(agent).items() if not name.startswith("actor.")}


@pytest.mark.parametrize("name", AGENTS)
def test_rule_04_only_coupled_targets_change_with_the_actor(name):
    """The actor is the one-step policy where there is one, and the behaviour policy otherwise."""
    agent = make(name)
    batch = options(agent.horizon)
    before = critic_target(agent, batch)
    actor = agent.actor if name in ACTORS else agent.behaviour
    with torch.no_grad():
        for weight in actor.parameters():
            weight.add_(0.3)
    after = critic_target(agent, batch)
    if name in COUPLED:
        assert any(not torch.allclose(before[key], after[key]) for key in before)
    else:
        same(before, after, rtol=0, atol=0)


@pytest.mark.parametrize("name", ACTORS)
def test_rule_04_the_gradients_of_actor_and_critic_do_not_mix(name):
    grads = {}
    for case, alpha, shift in (("plain", 1.0, 0.0), ("alpha", 1000.0, 0.0), ("returns", 1.0, -3.0)):
        agent = make(name, actor=ActorConfig(alpha=alpha, hidden_dim=16, num_layers=2))
        batch = options(agent.horizon)
        batch.returns += shift
        agent.loss(batch, draws())[0].backward()
        assert all(weight.grad is None for weight in agent.behaviour.parameters())
        own = gradients(agent)
        grads[case] = {kind: {k: g for k, g in own.items() if k.startswith("actor.") == (kind == "actor")}
                       for kind in ("actor", "critic")}  # fmt: skip
    # The weight of the distillation changes the actor's gradient only, the recorded reward the critic's only.
    same(grads["plain"]["critic"], grads["alpha"]["critic"], rtol=0, atol=0)
    same(grads["plain"]["actor"], grads["returns"]["actor"], rtol=0, atol=0)
    for case, kind in (("alpha", "actor"), ("returns", "critic")):
        assert any(not torch.allclose(grads[case][kind][k], g) for k, g in grads["plain"][kind].items())


def test_a_frozen_network_passes_gradients_to_its_inputs_only():
    agent = make("qc")
    observation, chunks = torch.rand(4, S), torch.rand(4, 1, 10, requires_grad=True)
    out = frozen(agent.q)(observation, chunks)
    torch.testing.assert_close(out, agent.q(observation, chunks))
    out.sum().backward()
    assert chunks.grad.abs().sum() > 0
    assert all(weight.grad is None for weight in agent.q.parameters())


# ---- the one-step policy -------------------------------------------------------------------------------------


def peak(observation, chunks):
    """K = 2 values with their mean highest where all numbers are 0.5."""
    return -5 * torch.stack([(chunks - 0.2).square().sum(-1), (chunks - 0.8).square().sum(-1)])


def test_no_q_is_gained_by_leaving_the_range_of_actions():
    actor = OneStepActor(ActorConfig(alpha=0.0), FACTS, 2)
    with torch.no_grad():
        actor.output.bias.fill_(3.0)
    noise = torch.randn(4, 1, 2, A)
    losses, metrics = actor.loss(torch.rand(4, S), noise, NoisePolicy(2), lambda s, c: c.sum(-1).expand(2, -1, -1))
    losses.mean().backward()
    torch.testing.assert_close(metrics["actor_q"], torch.tensor(4.0))
    assert all(not weight.grad.any() for weight in actor.parameters())
    assert (actor.sample(torch.rand(4, S), noise) == 1).all()


def test_normalised_q_does_not_depend_on_the_unit_of_the_reward():
    grads = []
    for unit in (1.0, 100.0):
        torch.manual_seed(0)
        actor = OneStepActor(ActorConfig(1.0, normalize_q=True), FACTS, 2)
        losses, _ = actor.loss(
            torch.rand(4, S), torch.randn(4, 1, 2, A), NoisePolicy(2), lambda s, c, u=unit: u * peak(s, c)
        )
        losses.mean().backward()
        grads.append(gradients(actor))
    same(*grads)


# ---- decoupled Q-chunking ------------------------------------------------------------------------------------

HEADS = {"hl_gauss": HLGauss(-10.0, 0.0, 101, 0.75), "scalar": Scalar(-10.0, 0.0)}


def expectile(values, level):
    low, high = values.min().item(), values.max().item()
    for _ in range(60):
        m = (low + high) / 2
        up, down = level * (values - m).clamp_min(0).sum(), (1 - level) * (m - values).clamp_min(0).sum()
        low, high = (m, high) if up > down else (low, m)
    return m


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("optimism", [0.5, 0.8, 0.95])
def test_what_is_distilled_is_the_expectile_of_the_continuations(head, optimism):
    """Three continuations of one beginning: at rest is m with κ Σ (q − m)₊ = (1 − κ) Σ (m − q)₊, and no other."""
    q = torch.tensor([-8.0, -4.0, -1.0])
    m = expectile(q, optimism)
    target = head.target(q)
    teacher = (target if head.num_logits == 1 else target.clamp_min(1e-12).log())[None, :, None]
    weight = torch.where(q >= m, optimism, 1 - optimism)
    mixture = (weight[:, None] * target).sum(0) / weight.sum()
    rest = mixture if head.num_logits == 1 else mixture.clamp_min(1e-12).log()
    assert head.mean(rest).item() == pytest.approx(m, abs=2e-3)

    def gradient(logits):
        logits = logits.clone().requires_grad_()
        distillation_loss(head, logits.expand(1, 3, 1, -1), teacher, optimism).mean().backward()
        return logits.grad

    assert gradient(rest).abs().max() < 1e-5
    teacher.requires_grad_()
    gradient(rest)
    assert teacher.grad is None
    # Elsewhere it is not at rest: one continuation alone is moved away from.
    for alone in target:
        logits = alone if head.num_logits == 1 else alone.clamp_min(1e-12).log()
        assert gradient(logits).abs().max() > 1e-3


def test_dqc_what_is_not_played_yet_is_not_seen():
    agent = make("dqc", lengths=[1, 3], value_length=3)
    state, chunks = torch.rand(4, S), torch.rand(4, 6, 5, A)
    for length in (1, 3, 5):
        value = agent.q_values(state, chunks[:, :, :length])
        assert value.shape == (2, 4, 6)
    # A beginning that was played is told from one that is cut off, also where its actions are zero.
    zeros = torch.zeros(4, 6, 2, A)
    longer = agent.q_values(state, torch.cat([chunks[:, :, :1], zeros], 2))
    assert not torch.allclose(agent.q_values(state, chunks[:, :, :1]), longer)
    with pytest.raises(UserError, match=r"can play 1, 3, 5 actions of a chunk, not 2: train it with 2 among"):
        agent.q_values(state, chunks[:, :, :2])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--critic.horizon=1"], "critic.horizon=1 must be at least 2"),
        (["--lengths=1,5"], "numbers from 1 to 4"),
        (["--lengths=2"], "value_length=1 must be one of"),
        (["--optimism=1"], "optimism=1"),
        (["--critic.dropout=0.1"], "dropout must be 0"),
    ],
)
def test_dqc_settings_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        parse(DqcConfig, flags)


@pytest.mark.parametrize("flag", ["--share=0", "--discount=1", "--discount=0"])
def test_filtered_cloning_needs_a_share_and_a_discount_that_say_something(flag):
    with pytest.raises(UserError, match=flag[2:].split("=")[0]):
        parse(FilteredBcConfig, [flag])


def test_dqc_lengths_follow_the_horizon():
    assert parse(DqcConfig, ["--critic.horizon=8"]).partial_lengths == [1, 4]
    assert parse(DqcConfig, ["--critic.horizon=8", "--lengths=4,1,2", "--value_length=8"]).partial_lengths == [1, 2, 4]
    assert parse(DqcConfig, ["--critic.horizon=2"]).partial_lengths == [1]


# ---- what all agents promise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_the_same_draws_give_the_same_loss_and_two_processes_compute_what_one_does(name):
    agent = make(name)
    batch = options(agent.horizon)
    grads = []
    for shares in ([slice(0, B)], [slice(0, B)], [slice(0, B // 2), slice(B // 2, B)]):
        agent.zero_grad()
        for share in shares:
            part = OptionBatch(**{key: value[share] for key, value in vars(batch).items()})
            loss, _ = agent(part, draws(share=share))
            (loss / len(shares)).backward()
        grads.append(gradients(agent))
    same(grads[0], grads[1], rtol=0, atol=0)
    same(grads[0], grads[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", COUPLED)
def test_another_step_draws_other_chunks(name):
    agent = make(name)
    batch = options(agent.horizon)
    targets = [agent.loss(batch, draws(step))[1]["target"] for step in (0, 0, 1)]
    assert targets[0] == targets[1] != targets[2]


@pytest.mark.parametrize("name", AGENTS)
def test_target_networks_move_by_polyak_averaging_only(name):
    agent = make(name, critic={"polyak": 0.25})
    state = agent.state_dict()
    copies = {key: key.replace("target_q", "q") if "target_q" in key else key.replace("target", "partial")
              for key in state if "target" in key}  # fmt: skip
    for online in copies.values():
        state[online].add_(1.0)
    before = {key: value.clone() for key, value in state.items()}
    agent.after_step()
    for key, value in agent.state_dict().items():
        expected = before[key]
        if key in copies:
            expected = 0.75 * before[key] + 0.25 * before[copies[key]]
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("name", AGENTS)
def test_save_and_load(name, tmp_path):
    agent = make(name)
    agent.save(tmp_path, {"agent": name})
    other = make(name, behaviour=agent.behaviour, seed=1).load(tmp_path)
    same(agent.state_dict(), other.state_dict(), rtol=0, atol=0)
    state, noise = torch.rand(4, S), torch.randn(4, 3, agent.horizon, A)
    chunks = agent.propose(state, noise)
    assert chunks.shape == noise.shape
    assert chunks.abs().max() <= 1
    torch.testing.assert_close(other.propose(state, noise), chunks)
    # The first of many candidates are what few would be.
    torch.testing.assert_close(agent.propose(state, noise[:, :1]), chunks[:, :1])
    q_values = agent.q_values(state, chunks)
    assert q_values.shape == (2, 4, 3)
    torch.testing.assert_close(other.q_values(state, chunks), q_values)
    assert (agent.value(state) is None) == (name in COUPLED)

    with pytest.raises(UserError, match="another configuration"):
        make(name, critic={"num_q": 3}).load(tmp_path)
    file = tmp_path / "agent.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="cut off"):
        agent.load(tmp_path)
    with pytest.raises(UserError, match="train this agent first"):
        agent.load(tmp_path / "nowhere")


def test_the_registry_has_the_horizons_and_returns_of_the_papers():
    facts = {
        name: (a.horizon, a.backup, a.reward_discount, a.bootstrap_discount) for name in AGENTS if (a := make(name))
    }
    assert facts == {
        "deas": (5, 5, 0.9, 0.99),
        "deas_onestep": (5, 5, 0.9, 0.99),
        "dqc": (5, 5, 0.9, 0.99),
        "iql": (1, 1, 0.99, 0.99),
        "nstep_iql": (1, 5, 0.99, 0.99),
        "qc": (5, 5, 0.99, 0.99),
        "qc_fql": (5, 5, 0.99, 0.99),
        "fql": (1, 1, 0.99, 0.99),
    }
    for name, (config_class, _) in AGENTS.items():
        assert config_class().critic.horizon == facts[name][0]


@pytest.mark.parametrize("name", ["deas", "qc"])
@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
def test_the_range_of_the_values_is_a_choice(name, head):
    critic = {"head": head, "reward_discount": 0.9}
    lows = {}
    for rule in ("possible", "published", "data"):
        agent = make(name, critic=critic, support=rule)
        network_head = agent.critic.head if name == "deas" else agent.head
        assert type(network_head) is {"hl_gauss": HLGauss, "scalar": Scalar}[head]
        assert network_head.high == 0
        lows[rule] = network_head.low
    assert lows["published"] == pytest.approx(-200)
    assert lows["data"] == -37
    assert lows["possible"] == return_bounds(5, 0.9, 0.99, -2.0, 0.0)[0]


@pytest.mark.parametrize("name", ["deas", "iql", "nstep_iql"])
def test_deas_and_iql_are_the_critic_of_the_robot_policies(name):
    agent = make(name)
    critic = DeasCritic(agent.critic_config, 0, S, A)
    critic.load_state_dict(agent.critic.state_dict())
    batch = options(agent.horizon)
    loss, metrics = agent.loss(batch, draws())
    expected, expected_metrics = critic.train().loss(critic_batch(batch))
    torch.testing.assert_close(loss, expected)
    same(metrics, expected_metrics)


# ---- behaviour cloning ---------------------------------------------------------------------------------------


def test_best_options_are_the_share_with_the_highest_returns():
    returns = np.array([-3.0, -1.0, -2.0, -1.0, -5.0, 0.0, -4.0, -1.0])
    assert best_options(returns, 0.125).tolist() == [5]
    assert best_options(returns, 0.5).tolist() == [1, 3, 5, 7]
    assert best_options(returns, 1.0).tolist() == list(range(8))
    assert best_options(returns, 0.001).tolist() == [5]
