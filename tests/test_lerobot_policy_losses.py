"""Losses of LeRobot policies, sample by sample: on average LeRobot's own, with the same gradients."""

import pytest
import torch
from lerobot_example import KINDS, A, H, normal, observations
from lerobot_own import alike, commands_for, own_loss
from policy_example import close

from deas_vla.policies.flow import hold_last, sample_time
from deas_vla.policies.lerobot.adapters.diffusion import diffusion_steps

pytest_plugins = "lerobot_fixtures"


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_losses_of_samples_average_to_the_policys_loss(policies, kind):
    policy, observation, commands = policies(kind), alike(kind, 4), commands_for(4)
    theirs, noise, time = own_loss(policy, observation, commands)
    context, chunks = policy.encode(observation), policy.contract.normalize_action(commands)
    losses = policy.loss(context, chunks, noise, time)
    assert losses.shape == (4,) and losses.std() > 1e-3
    assert torch.allclose(losses.mean(), theirs, rtol=1e-4)
    assert torch.allclose(policy.loss(context, chunks, noise, time).mean(), theirs, rtol=1e-4)
    # A sample's loss is its own: not of its batch, and the mean over its samples.
    for row in range(4):
        alone = policy.loss(policy.encode(observation[[row]]), chunks[[row]], noise[[row]], time[[row]])
        assert torch.allclose(alone[0], losses[row], rtol=1e-4)
    twice = policy.loss(context, chunks, torch.cat([noise, noise.flip(0)], 1), torch.cat([time, time.flip(0)], 1))
    other = policy.loss(context, chunks, noise.flip(0), time.flip(0))
    assert torch.allclose(twice, (losses + other) / 2, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_loss_ignores_what_was_not_played(policies, kind):
    policy, chunks = policies(kind), policies(kind).contract.normalize_action(commands_for(3))
    context, noise, time = policy.encode(observations(3)), normal(3, 2, H, A), torch.full((3, 2), 0.5)
    valid = torch.arange(H) < torch.tensor([16, 9, 1])[:, None]
    losses = policy.loss(context, chunks, noise, time, valid)
    wild = torch.where(valid[..., None], chunks, torch.full_like(chunks, 1e3))
    assert close(policy.loss(context, wild, noise, time, valid), losses)
    # Nor is what it is filled up with, so that the model has a whole chunk to see.
    held = policy.loss(context, hold_last(chunks, valid), noise, time)
    assert torch.allclose(held[0], losses[0]) and not torch.allclose(held[2], losses[2], rtol=1e-2)


@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05", "groot"])
def test_sharing_the_prefix_trains_as_lerobot_does(make, kind):
    """The gradients of every weight, in the backbone too, which they reach through keys and values."""
    free = {"train_expert_only": False, "freeze_vision_encoder": False} if kind == "smolvla" else {}
    policy = make(kind, **free).train()
    observation, commands = alike(kind, 3), commands_for(3)
    theirs, noise, time = own_loss(policy, observation, commands)
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    policy(observation, policy.contract.normalize_action(commands), noise, time).mean().backward()
    assert any("vision" in name for name in expected) or kind == "groot"  # whose backbone is frozen
    for name, parameter in policy.named_parameters():
        if name in expected:
            # The end of the backbone's last layer reaches no keys or values: no gradient, or one of zeros.
            ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(ours, expected[name], atol=2e-4, rtol=1e-3), name


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_checkpointing_is_off_where_the_prefix_is_shared(make, kind):
    """LeRobot's documentation trains with it; with it there would be no keys and values to share."""
    observation, noise, time = alike(kind, 3), normal(3, 1, H, A, seed=5), torch.full((3, 1), 0.5)
    losses = []
    for changes in ({}, {"gradient_checkpointing": True}):
        policy = make(kind, **changes).train()
        losses.append(policy(observation, policy.contract.normalize_action(commands_for(3)), noise, time))
        losses[-1].mean().backward()
        assert policy.policy.model.action_out_proj.weight.grad.abs().max() > 0
    assert torch.equal(*losses)


def test_diffusion_steps_are_equally_likely():
    time = sample_time((40_000,), torch.Generator().manual_seed(0))
    counts = torch.bincount(diffusion_steps(time, 10), minlength=10)
    assert len(counts) == 10 and (counts - 4000).abs().max() < 300
    assert diffusion_steps(torch.tensor([0.0, 1.0]), 10).tolist() == [9, 0]


# ---- parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_encoder_keeps_the_features(make, kind):
    policy = make(kind)
    policy.freeze_encoder()
    before, tokens = policy.encoder_fingerprint, policy.encode(observations(2)).tokens
    policy.train()
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    policy(observations(4), normal(4, H, A), normal(4, 2, H, A), torch.rand(4, 2)).mean().backward()
    optimizer.step()
    policy.eval()
    assert policy.encoder_fingerprint == before
    assert close(policy.encode(observations(2)).tokens, tokens)
    trained = [p for p in policy.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(trained) > 5


def test_groot_trains_on_sentences_of_different_lengths(make):
    policy = make("groot").train()
    observation, chunks = observations(4), policy.contract.normalize_action(commands_for(4))
    noise, time = normal(4, 2, H, A), torch.rand(4, 2)
    losses = policy(observation, chunks, noise, time)
    losses.mean().backward()
    assert policy.adapter.head.vlln.weight.grad.abs().max() > 0
    with torch.no_grad():
        for row in range(4):
            alone = policy(observation[[row]], chunks[[row]], noise[[row]], time[[row]])
            assert torch.allclose(alone[0], losses[row], rtol=1e-4)
