"""Weighted imitation: the weights in closed form, which chunks they are given to, and what is imitated of a chunk."""

import re

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from policy_example import small_policy
from reranker_example import small_scorer

from deas_vla.data.frames import FrameTable
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.errors import UserError
from deas_vla.training import imitation
from deas_vla.training.imitation import (
    AdvantageWeighting,
    Examples,
    FlowImitation,
    advantage_weights,
    advantages_among,
    imitation_batches,
)
from deas_vla.training.loop import TrainingConfig, make_accelerator
from recipes.finetune_policy import FinetunePolicyConfig, what_to_imitate

pytestmark = pytest.mark.unit


def test_advantage_weights_have_the_closed_form():
    advantages = torch.tensor([-1.0, 0.0, 1.0])
    weights = advantage_weights(advantages, AdvantageWeighting(temperature=2.0, maximum=20.0))
    assert weights.mean() == pytest.approx(1)
    assert (weights / weights[1]).tolist() == pytest.approx(np.exp([-0.5, 0, 0.5]).tolist(), rel=1e-5)


def test_advantage_weights_do_not_depend_on_the_scale_of_rewards():
    advantages = torch.randn(100, generator=torch.Generator().manual_seed(0))
    weighting = AdvantageWeighting()
    torch.testing.assert_close(
        advantage_weights(advantages, weighting), advantage_weights(7 * advantages - 30, weighting)
    )


def test_advantage_weights_are_those_that_the_words_say():
    """It was called the improvement step of MPO, whose weights are normalised in each state; these never were.

    One mean and one standard deviation: a state whose proposals differ more in score gets more weight in all.
    """
    advantages = torch.tensor([[-1.0, 0.0, 1.0], [-0.1, 0.0, 0.1], [-2.0, 0.0, 2.0]])
    weights = advantage_weights(advantages, AdvantageWeighting(temperature=0.5, maximum=20.0))
    expected = (advantages / (0.5 * advantages.std())).exp().clamp_max(20)
    torch.testing.assert_close(weights, expected / expected.mean())
    of_a_state = weights.sum(1)
    assert of_a_state[1] < of_a_state[0] < of_a_state[2]
    for words in (imitation.__doc__, AdvantageWeighting.__doc__, advantage_weights.__doc__):
        assert not re.search(r"\bMPO\b|Abdolmaleki", words)


def test_advantage_weights_are_capped():
    advantages = torch.zeros(1000)
    advantages[0] = 1000.0
    weights = advantage_weights(advantages, AdvantageWeighting(temperature=0.5, maximum=5.0))
    assert weights[0] / weights[1] == pytest.approx(5.0, rel=0.1)
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize(
    "values", [{"temperature": 0.0}, {"maximum": 0.5}, {"proposals": 1}, {"frames": 0}, {"noise_scale": 0.0}]
)
def test_impossible_weightings_are_refused(values):
    with pytest.raises(UserError):
        AdvantageWeighting(**values)


@pytest.fixture(scope="module")
def asked():
    """A demonstration and two rollouts, with a policy and its critic."""
    rng = np.random.default_rng(0)
    sources = (("demonstration", True), ("rollout", True), ("rollout", False))
    episodes = [example_episode(rng, 12, success, source=source) for source, success in sources]
    policy = small_policy()
    scorer = small_scorer(policy)
    options = build_options(
        episodes, example_contract(), horizon=policy.horizon, reward_discount=0.9, bootstrap_discount=0.99,
        reward=RewardSpec(),
    )  # fmt: skip
    return episodes, FrameTable.of(episodes), options, policy, scorer


def imitated(asked, folder, **weighting):
    _, frames, options, policy, scorer = asked
    scorer.save(folder / "critic")
    config = FinetunePolicyConfig(method="advantage_weighted", weighting=AdvantageWeighting(**weighting))
    return what_to_imitate(
        make_accelerator(), config, {"critic": folder}, policy, frames, options, folder
    )  # fmt: skip


def test_the_policy_is_asked_in_the_rollouts(asked, tmp_path):
    episodes, frames, options, policy, *_ = asked
    examples = imitated(asked, tmp_path, proposals=3, frames=5)
    assert examples.chunk.shape == (15, policy.horizon, policy.contract.action_dim)
    rows = examples.start_frame.view(5, 3)
    assert (rows == rows[:, :1]).all() and len(rows[:, 0].unique()) == 5
    assert all(episodes[i].source == "rollout" for i in frames.episode[rows[:, 0]].tolist())
    assert set(rows[:, 0].tolist()) <= set(options.start_frame.tolist())
    # More noise, other chunks; the same settings, the same chunks.
    again, louder = (
        imitated(asked, tmp_path / n, proposals=3, frames=5, noise_scale=s) for n, s in (("a", 0.5), ("b", 1))
    )
    assert torch.equal(again.chunk, examples.chunk) and torch.equal(again.weight, examples.weight)
    assert not torch.equal(louder.chunk, examples.chunk)


def test_weights_of_proposals_follow_the_critic_at_each_frame(asked, tmp_path):
    _, frames, _, policy, scorer = asked
    examples = imitated(asked, tmp_path, proposals=4, frames=6, maximum=1e9)
    rows = examples.start_frame.view(6, 4)[:, 0]
    observation = frames.observation(rows)
    encoded = scorer.encode(policy.encode(observation), observation)
    scores = scorer.score(encoded, examples.chunk.view(6, 4, *examples.chunk.shape[1:]))
    assert torch.equal(scores.argsort(1), examples.weight.view(6, 4).argsort(1))
    assert examples.weight.mean() == pytest.approx(1, rel=1e-5)


def test_advantages_among_chunks_do_not_depend_on_where_one_is(asked):
    _, frames, _, policy, scorer = asked
    observation = frames.observation(torch.arange(4))
    encoded = scorer.encode(policy.encode(observation), observation)
    chunks = torch.randn(4, 5, policy.horizon, policy.contract.action_dim)
    advantages = advantages_among(scorer, encoded, chunks, batch_size=3)
    assert advantages.shape == (4, 5) and advantages.mean(1).abs().max() < 1e-5
    scores = scorer.score(encoded, chunks)
    torch.testing.assert_close(advantages, scores - scores.mean(1, keepdim=True), rtol=1e-4, atol=1e-5)


def test_without_proposals_recorded_chunks_are_weighted(asked, tmp_path):
    _, _, options, *_ = asked
    examples = imitated(asked, tmp_path, proposals=0)
    assert torch.equal(examples.chunk, options.chunk)
    assert torch.equal(examples.start_frame, options.start_frame)
    assert examples.weight.unique().numel() > 1


def batches_of(asked, examples, size=16):
    frames = asked[1]
    config = TrainingConfig(batch_size=size)
    return imitation_batches(make_accelerator(), frames, examples, config, flow_samples=1, max_shift=0, seed=0)


def test_steps_after_an_episodes_end_are_not_imitated(asked):
    """Padding was imitated: the last command was repeated past the success that it had brought."""
    policy, episodes = asked[3], [example_episode(np.random.default_rng(1), 10, True)]
    options = build_options(
        episodes, example_contract(), horizon=policy.horizon, reward_discount=0.9, bootstrap_discount=0.99,
        reward=RewardSpec(),
    )  # fmt: skip
    asked = (episodes, FrameTable.of(episodes), options, policy, None)
    assert (~options.valid).any()
    wild = torch.where(options.valid[..., None], options.chunk, torch.full_like(options.chunk, 7.0))
    weight = (~options.valid).any(1).float()  # those that have padding
    losses = []
    for chunk in (options.chunk, wild):
        examples = Examples(options.start_frame, chunk, options.valid, weight)
        batches = batches_of(asked, examples)
        with torch.no_grad():
            losses.append(FlowImitation(policy)(*batches(0))[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    observation, chunks, noise, time, _ = batches(0)
    with torch.no_grad():
        whole = policy(observation, chunks, noise, time).mean().item()
    assert abs(whole - losses[0]) > 0.1  # what stands there would have mattered


def test_chunks_are_drawn_in_proportion_to_their_weights(asked):
    _, _, options, *_ = asked
    weight = torch.zeros(len(options))
    weight[:3] = torch.tensor([1.0, 2.0, 5.0])
    examples = Examples.recorded(options, weight)
    probabilities = torch.from_numpy(examples.probabilities())
    assert probabilities[:3].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8]) and probabilities[3:].sum() == 0
