"""Choosing among candidates: N = 1 is the policy, candidates are nested, methods are paired."""

import numpy as np
import pytest
import torch
from rollout_example import CONTRACT, HORIZON, LinePolicy, LineWorkers, MovesRight

from deas_vla.data.observation import Observation, episode_ids
from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.rollouts.play import Job, play_episodes

pytestmark = pytest.mark.unit
KEYS = [NoiseKey(0, scene, 0, 0) for scene in (3, 8, 11)]


def observation() -> Observation:
    return Observation.stack(LineWorkers().reset([0, 1, 2], [3, 8, 11]))


def decider(rule="first", n=1, policy=None, critic=True):
    policy = policy or LinePolicy()
    return BestOfN(policy, n, rule, MovesRight(policy) if critic else None)


@pytest.mark.parametrize("rule", ["first", "best", "worst", "random"])
def test_rule_08_n_is_1_is_the_policy(rule):
    alone = decider("first", critic=False).choose(observation(), KEYS)
    chosen = decider(rule).choose(observation(), KEYS)
    assert torch.equal(chosen.commands, alone.commands)
    noise = torch.stack([candidate_noise(0, k.scene, 0, 0, 1, HORIZON, 2) for k in KEYS])
    assert torch.equal(alone.commands, CONTRACT.to_command(noise)[:, 0])


def test_rule_08_the_first_n_actions_are_played():
    workers, policy = LineWorkers(), decider()
    rollout = play_episodes(workers, policy, [Job(3)], seed=0, parallel=1, execute_steps=3)[0]
    observed = Observation.stack(LineWorkers().reset([0], [3]))
    chunk = policy.choose(observed, [NoiseKey(0, episode_ids(observed)[0], 0, 0)]).commands[0]
    assert np.array_equal(rollout.episode.actions[:3], chunk[:3].numpy())
    assert not np.array_equal(rollout.episode.actions[3], chunk[3].numpy())


def test_candidates_are_nested():
    few, many = (decider("best", n).choose(observation(), KEYS) for n in (4, 16))
    assert torch.equal(many.candidates[:, :4], few.candidates)
    assert (many.scores.amax(1) >= few.scores.amax(1)).all()


def test_best_and_worst_are_the_extremes_of_the_score():
    best, worst = (decider(rule, 8).choose(observation(), KEYS) for rule in ("best", "worst"))
    assert torch.equal(best.scores, worst.scores)
    rows = torch.arange(3)
    assert torch.equal(best.scores[rows, best.index], best.scores.amax(1))
    assert torch.equal(worst.scores[rows, worst.index], worst.scores.amin(1))


def test_a_random_candidate_is_uniform_and_repeatable():
    keys = [NoiseKey(0, scene, sample, decision) for scene in range(20) for sample in range(3) for decision in range(5)]
    repeated = Observation.stack(LineWorkers().reset(range(300), [0] * 300))
    picks = decider("random", 4, critic=False).choose(repeated, keys).index
    assert torch.equal(picks, decider("random", 4, critic=False).choose(repeated, keys).index)
    counts = torch.bincount(picks, minlength=4)
    assert counts.min() > 50 and counts.max() < 100  # expected 75, standard deviation 7.5


def test_without_noise_a_policy_plays_one_chunk_whatever_the_draw():
    quiet = BestOfN(LinePolicy(), 3, selection=SelectionConfig(noise_scale=0.0))
    other = [NoiseKey(1, key.scene + 7, 2, 5) for key in KEYS]
    candidates = quiet.choose(observation(), KEYS).candidates
    assert torch.equal(candidates, quiet.choose(observation(), other).candidates)
    assert torch.equal(candidates, candidates[:, :1].expand_as(candidates))
    assert not torch.equal(candidates[:, 0], BestOfN(LinePolicy()).choose(observation(), KEYS).commands)


def test_noise_is_scaled_before_the_policy_sees_it():
    half = BestOfN(LinePolicy(drift=0.3), 5, selection=SelectionConfig(noise_scale=0.5))
    noise = torch.stack([candidate_noise(0, k.scene, 0, 0, 5, HORIZON, 2) for k in KEYS])
    expected = CONTRACT.to_command(0.5 * noise + 0.3)
    assert torch.equal(half.choose(observation(), KEYS).candidates, expected)


def test_an_observation_is_encoded_once_for_all_candidates():
    policy = LinePolicy()
    decider("best", 32, policy).choose(observation(), KEYS)
    assert policy.encoded == 3


def test_scores_are_of_what_will_be_played():
    """A candidate beyond the limits is scored as the clipped command, with its gripper thresholded."""
    choice = decider("best", 8, LinePolicy(drift=50.0)).choose(observation(), KEYS)
    assert (choice.candidates[..., 0] == 1).all() and (choice.candidates[..., 1] == 1).all()
    assert choice.scores.std() < 1e-5


@pytest.mark.parametrize("rule", ["best", "worst"])
def test_choosing_by_score_needs_a_critic(rule):
    with pytest.raises(UserError, match="needs a critic"):
        decider(rule, 4, critic=False)


def test_a_critic_of_another_backbone_is_refused():
    policy, other = LinePolicy(), LinePolicy()
    other.encoder.patch.data += 1
    with pytest.raises(UserError, match="features of another backbone"):
        BestOfN(policy, 2, "best", MovesRight(other))


def test_a_critic_of_other_chunks_is_refused():
    policy = LinePolicy()
    with pytest.raises(UserError, match=f"train the critic with --critic.horizon={HORIZON}"):
        BestOfN(policy, 2, "best", MovesRight(policy, HORIZON + 4))


def test_a_critic_of_shorter_chunks_scores_how_they_begin():
    policy = LinePolicy()
    choice = BestOfN(policy, 6, "best", MovesRight(policy, 1)).choose(observation(), KEYS)
    begun = CONTRACT.normalize_action(choice.candidates)[:, :, 0, 0]
    assert torch.equal(choice.scores, begun) and torch.equal(choice.index, begun.argmax(1))
