"""One critic for many tasks: the instruction reaches it, through the features of the backbone that reads it."""

import pytest
import torch
from policy_example import SENTENCES, observations, small_policy

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens

FEATURES = FeatureConfig(grid=2, dim=12, text_weight=20.0)


def tell(config):
    """64 observations, each seen twice, the second time with the other sentence; features of all."""
    policy = small_policy()
    first = observations(64, seed=3, sentences=SENTENCES[:1])
    second = observations(64, seed=3, sentences=SENTENCES[1:])
    pooled = [pool_tokens(policy.encode(seen), config, len(policy.contract.cameras)) for seen in (first, second)]
    projection = fit_projection(torch.cat(pooled), config.dim)
    features = Features(policy.contract, config, projection)
    return policy, [features(policy.encode(seen), seen) for seen in (first, second)]


@pytest.fixture(scope="module")
def told():
    return tell(FEATURES)


def test_unweighted_words_are_lost_among_random_images():
    """Why there is a weight: the projection keeps what varies most, and one cell of words varies little."""
    _, ((one, _), (other, _)) = tell(FeatureConfig(grid=2, dim=12))
    assert ((one - other).abs().amax(1) < 0.1).all()


def test_another_instruction_gives_other_features_of_the_same_images_and_other_scores(told):
    policy, ((one, state), (other, same_state)) = told
    assert torch.equal(state, same_state)
    assert ((one - other).abs().amax(1) > 0.5).all()
    torch.manual_seed(0)
    critic = DeasCritic(CriticConfig(horizon=4, hidden_dim=32, num_layers=2), FEATURES.dim, 3, 2).eval()
    chunk = torch.zeros(len(one), 1, 4, policy.contract.action_dim)
    assert (critic.score(one, state, chunk) != critic.score(other, state, chunk)).all()


def test_one_critic_learns_that_the_right_chunk_depends_on_the_instruction_alone(told):
    """Told one sentence the chunk to the left succeeds, told the other the one to the right; nothing else differs."""
    policy, ((one, state), (other, _)) = told
    features, states = torch.cat([one, other]).repeat(2, 1), torch.cat([state, state]).repeat(2, 1)
    told_first = torch.arange(len(features)) % 128 < 64
    goes_right = torch.arange(len(features)) >= 128
    chunks = torch.zeros(len(features), 4, policy.contract.action_dim)
    chunks[goes_right, :, 0], chunks[~goes_right, :, 0] = 1.0, -1.0
    success = told_first ^ goes_right
    torch.manual_seed(0)
    config = CriticConfig(horizon=4, hidden_dim=64, num_layers=2, polyak=0.1)
    critic = DeasCritic(config, FEATURES.dim, 3, 2)
    returns = torch.where(success, -2.71, -3.439)  # three and four steps at γ₁ = 0.9
    fresh = torch.arange(len(features)) % 64 >= 48  # observations that the critic is not trained on
    batch = CriticBatch(
        features[~fresh], states[~fresh], chunks[~fresh], returns[~fresh],
        torch.where(success, 0.0, 0.99**4)[~fresh], features[~fresh], states[~fresh],
    )  # fmt: skip
    optimizer = torch.optim.AdamW(critic.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        critic.loss(batch)[0].backward()
        optimizer.step()
        critic.update_target()
    critic.eval()
    scores = critic.score(features[fresh], states[fresh], chunks[fresh][:, None]).squeeze(1)
    right = success[fresh]
    left_better = scores[~goes_right[fresh]] > scores[goes_right[fresh]]
    assert (left_better == right[~goes_right[fresh]]).float().mean() > 0.9
