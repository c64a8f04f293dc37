"""The baseline whose target asks the policy: its equations, and the candidates that it asks about."""

import dataclasses

import numpy as np
import pytest
import torch
from data_example import example_episode
from rollout_example import CONTRACT, HORIZON, LinePolicy
from test_critic import SMALL, A, F, S, make_batch

from deas_vla.critic.critic import QChunkingCritic
from deas_vla.critic.losses import q_loss
from deas_vla.data.frames import FrameTable
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.training.critic import CandidateCache

pytestmark = pytest.mark.unit
N = 5


def make(seed=0, **changes) -> QChunkingCritic:
    torch.manual_seed(seed)
    critic = QChunkingCritic(dataclasses.replace(SMALL, **changes), F, S, A)
    # Online and target networks that differ: who chooses and who values is then visible.
    for weights in critic.target_q.parameters():
        weights.data += 0.3 * torch.randn_like(weights)
    return critic.eval()


def asked(size=6):
    chunks = torch.randn(size, N, 4, A, generator=torch.Generator().manual_seed(9))
    return dataclasses.replace(make_batch(size), next_chunks=chunks)


@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
def test_the_target_is_the_best_chunk_of_the_policy(head):
    critic, batch = make(head=head), asked()
    observation = torch.cat([batch.next_features, batch.next_state], 1)
    value = []
    for row in range(len(batch.returns)):
        online, target = (
            torch.stack(
                [
                    critic.head.mean(network(observation[[row]], chunk.flatten()[None, None])).mean()
                    for chunk in batch.next_chunks[row]
                ]
            )
            for network in (critic.q, critic.target_q)
        )
        value.append(target[online.argmax()])
    target = batch.returns + batch.bootstrap * torch.stack(value)
    now = torch.cat([batch.features, batch.state], 1)
    logits = critic.q(now, batch.chunk.flatten(1).unsqueeze(1)).squeeze(2)
    expected = q_loss(critic.head, logits, target).mean()
    _, metrics = critic.loss(batch)
    assert torch.allclose(metrics["q_loss"], expected, rtol=1e-4)


def test_no_target_looks_at_v():
    critic, batch = make(), asked()
    before = critic.loss(batch)[1]["q_loss"]
    for weights in critic.v.parameters():
        weights.data += 1
    assert torch.equal(critic.loss(batch)[1]["q_loss"], before)


def test_candidates_are_the_policys_own_and_as_the_critic_sees_them(tmp_path, monkeypatch):
    monkeypatch.setattr(CandidateCache, "block", 3)
    rng = np.random.default_rng(0)
    frames = FrameTable.of([example_episode(rng, 12, True), example_episode(rng, 8, False)])
    policy = LinePolicy(drift=0.3)
    cache = CandidateCache(tmp_path, policy, frames, N, seed=2)
    cache.fill()
    found = cache.read()
    assert found.shape == (len(frames), N, HORIZON, CONTRACT.action_dim)
    frame = 4
    noise = candidate_noise(2, frame, 0, 0, N, HORIZON, CONTRACT.action_dim)
    assert torch.equal(found[frame], CONTRACT.normalize_action(CONTRACT.to_command(noise + 0.3)))
    other = CandidateCache(tmp_path, policy, frames, N + 1, seed=2)
    assert other.fingerprint != cache.fingerprint
