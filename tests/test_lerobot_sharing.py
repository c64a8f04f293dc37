"""Candidates of one decision share what was encoded, and what is not needed of a chunk is not sampled."""

import pytest
import torch
from lerobot_example import H, normal, observations
from lerobot_own import alike, own_chunks

from deas_vla.critic.critic import CriticConfig
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.policies.lerobot.adapters import pi0
from deas_vla.scorers.deas import DeasScorer

pytest_plugins = "lerobot_fixtures"

PREFIXED = ("smolvla", "pi0", "pi05", "groot")


@torch.no_grad()
@pytest.mark.parametrize("kind", PREFIXED)
def test_sharing_gives_what_lerobot_gives_for_repeated_observations(policies, kind, monkeypatch):
    """Of five candidates two are one sequence, two another, and one is alone."""
    monkeypatch.setattr(pi0, "SEQUENCE", 2 * H + 1)
    policy, observation, noise = policies(kind), alike(kind, 2), normal(2, 5, H, 2)
    shared = policy.sample(policy.encode(observation), noise)
    own = own_chunks(policy, observation[[0] * 5 + [1] * 5], noise.flatten(0, 1)).unflatten(0, (2, 5))
    assert torch.allclose(shared[:, :, : own.shape[2]], own, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", PREFIXED)
def test_keys_and_values_of_an_observation_are_made_and_read_once(policies, kind):
    policy, rows = policies(kind), []
    context = policy.encode(observations(2))
    model = policy.adapter.model
    if kind == "groot":
        module = policy.adapter.head.model.transformer_blocks[0].attn1.to_k
    elif kind == "smolvla":
        module = model.vlm_with_expert.lm_expert.layers[1].self_attn.k_proj
    else:
        module = model.paligemma_with_expert.gemma_expert.model.layers[1].self_attn.k_proj
    handle = module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    policy.sample(context, normal(2, 6, H, 2))
    handle.remove()
    assert set(rows) == {2}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["smolvla", "pi0", "diffusion"])
def test_first_steps_are_those_of_the_whole_chunk(policies, kind):
    policy = policies(kind)
    context, noise, lengths = policy.encode(observations(2)), normal(2, 3, H, 2), []
    whole, sampled = policy.sample(context, noise), policy.adapter.sample
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(policy.adapter, "sample", lambda *given: lengths.append(given[1].shape[1]) or sampled(*given))
        first = policy.sample_first(context, noise, 5)
    assert first.shape[2] == 5 and torch.allclose(first, whole[:, :, :5], atol=1e-5)
    assert policy.causal == (kind == "smolvla") and lengths == [5 if policy.causal else H]


def test_of_candidates_only_what_is_scored_is_sampled_and_the_chosen_chunk_is_whole(policies):
    policy, observation = policies("smolvla"), observations(2)
    config = FeatureConfig(dim=0)
    pooled = pool_tokens(policy.encode(observation), config, 2)
    features = Features(policy.contract, config, fit_projection(pooled, 0))
    small = CriticConfig(horizon=4, hidden_dim=16, num_layers=1)
    scorer = DeasScorer.untrained(features, small, policy.encoder_fingerprint).eval()
    decider, keys = BestOfN(policy, 5, "best", scorer), [NoiseKey(0, scene, 0, 0) for scene in range(2)]
    short, whole = decider.choose(observation, keys), decider.choose(observation, keys, whole=True)
    assert short.candidates.shape[2] == 4 and whole.candidates.shape[2] == short.commands.shape[1] == H
    assert torch.equal(short.index, whole.index)
    assert torch.allclose(short.candidates, whole.candidates[:, :, :4], atol=1e-5)
    assert torch.allclose(short.commands, whole.commands, atol=1e-5)
    # One candidate is sampled as it is: a second pass would cost more.
    assert BestOfN(policy, 1, "best", scorer).choose(observation, keys).candidates.shape[2] == H


HALF = {"pi0": {"dtype": "bfloat16"}, "pi05": {"dtype": "bfloat16"}, "xvla": {"dtype": "bfloat16"}}
HALF |= {"groot": {"use_bf16": True}, "smolvla": {"use_amp": True}, "diffusion": {"use_amp": True}}


@torch.no_grad()
@pytest.mark.parametrize("kind", HALF)
def test_in_the_precision_it_was_trained_in_a_policy_does_what_lerobot_does(policies, make, kind):
    """Its features are those of float32 within rounding, and a context of several candidates is sampled as well.

    A number in bfloat16 is off by up to 4e-3, a layer's output by about that: 4e-3 to 1.1e-2 after a few layers, by the
    policy and, in its last third, by the order in which a processor's kernels add.
    """
    whole, half = policies(kind), make(kind, **HALF[kind])
    half.policy.load_state_dict(whole.policy.state_dict())
    observation, noise = alike(kind, 2), normal(2, 3, H, 2)
    pooled = [pool_tokens(policy.encode(observation), FeatureConfig(), 2) for policy in (whole, half)]
    assert 0 < (pooled[1] - pooled[0]).norm() < 2e-2 * pooled[0].norm()
    assert half.encoder_fingerprint != whole.encoder_fingerprint
    chunks = half.sample(half.encode(observation), noise)
    with torch.autocast("cpu", enabled=half.policy.config.use_amp):
        own = own_chunks(half, observation[[0] * 3 + [1] * 3], noise.flatten(0, 1)).unflatten(0, (2, 3))
    assert chunks.dtype == torch.float32
    assert (chunks[:, :, : own.shape[2]] - own).norm() < 2e-2 * own.norm()
