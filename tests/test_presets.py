"""Presets: every field of the published setting with its source, and one default for one thing."""

import pytest
import torch
from policy_example import observations, small_policy

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.errors import UserError
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.scorers.deas import DeasScorer
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.presets import PRESETS, preset

pytestmark = pytest.mark.unit

# Field of CriticConfig to its value in the authors' GR00T N1.5 release for RoboCasa, and where that stands in a review
# of it: the section and the row of its table, or the list of the networks.
PUBLISHED_CRITIC = {
    "horizon": (16, "(b) H (critic chunk); checkpoint as16"),
    "backup_horizon": (0, "(a) 8: the chunk's own length"),
    "reward_discount": (0.9, "(b) γ1"),
    "bootstrap_discount": (0.99, "(b) γ2"),
    "expectile": (0.7, "(b) expectile τ"),
    "head": ("hl_gauss", "(a) 7"),
    "num_bins": (101, "(b) bins M"),
    "sigma_bins": (0.75, "(b) σ = 0.75 w = 0.743"),
    "support": ([-100.0, 0.0], "(b) v_min, v_max = −1/(1−γ2), 0"),
    "margin_sigmas": (0.0, "(e) E7: the bins end at v_min and v_max"),
    "num_q": (2, "(b) ensemble: 2, min"),
    "polyak": (0.005, "(b) target EMA β"),
    "hidden_dim": (512, "(a) Q: 4 x (Linear 512, LN, GELU)"),
    "num_layers": (4, "(a) Q: 4 x (Linear 512, LN, GELU)"),
    "v_blocks": (4, "(a) V: BRO, 4 residual blocks"),
    "v_hidden_dim": (256, "(a) V: BRO, Linear 256"),
    "encoder": ([1024, 1024, 1024, 64], "(a) encoder f: D_vl→1024→1024→1024→64, SiLU, final tanh"),
    "future_weight": (0.0, "(a) 12: L = L_V + L_Q"),
    "dropout": (0.0, "(a) the networks have none"),
    "reward_min": (-1.0, "(b) reward in {−1, 0}"),
    "reward_max": (0.0, "(b) reward in {−1, 0}"),
}
PUBLISHED_TRAINING = {
    "steps": (30_000, "(b) steps"),
    "batch_size": (32, "(b) batch: 16 a GPU, two of them"),
    "learning_rate": (1e-4, "(b) Adam, 1e-4"),
    "warmup": (0.0, "(b) constant"),
    "cosine": (False, "(b) constant"),
    "weight_decay": (0.0, "(b) no decay"),
    "gradient_clip": (0.0, "(b) no clipping is named"),
}


def test_published_is_the_papers_setting_field_by_field():
    found = preset("published")
    assert vars(found.critic) == {name: value for name, (value, _) in PUBLISHED_CRITIC.items()}
    for name, (value, source) in PUBLISHED_TRAINING.items():
        assert getattr(found.training, name) == value, source
    assert (found.features.grid, found.features.dim) == (0, 0)  # (a) mean over all tokens
    assert found.image_encoder.dim == 0  # (a) the critic sees the backbone's features alone


def test_there_is_one_default_for_one_thing():
    found = preset("default")
    assert found.critic == CriticConfig() and found.features == FeatureConfig()
    assert (found.critic.head, found.critic.hidden_dim, found.critic.num_layers) == ("scalar", 256, 3)
    assert found.critic.future_weight == 1.0 and found.image_encoder.dim == 64
    assert (found.training.steps, found.training.batch_size, found.training.learning_rate) == (2500, 256, 1e-3)


def test_a_preset_is_a_new_copy():
    preset("default").training.steps = 1
    assert preset("default").training.steps == 2500
    with pytest.raises(UserError, match=r"unknown preset 'paper'.*default, published"):
        preset("paper")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_scores_and_is_saved(name, tmp_path):
    """On a small policy's tokens, at full size; targets beyond the support are clamped and counted, nothing is NaN."""
    found, policy = preset(name), small_policy()
    found.critic = CriticConfig(**(vars(found.critic) | {"horizon": policy.horizon}))
    seen = observations(12)
    with torch.no_grad():
        pooled = pool_tokens(policy.encode(seen), found.features, len(policy.contract.cameras))
    features = Features(policy.contract, found.features, fit_projection(pooled, found.features.dim))
    torch.manual_seed(0)
    scorer = DeasScorer.untrained(features, found.critic, policy.encoder_fingerprint)
    encoded = scorer.encode(policy.encode(seen), seen)
    generator = torch.Generator().manual_seed(1)
    chunk = torch.randn(12, policy.horizon, policy.contract.action_dim, generator=generator)
    returns = torch.linspace(-300, 100, 12)
    batch = CriticBatch(*encoded, chunk, returns, torch.full((12,), 0.9), *encoded)
    optimizer = torch.optim.Adam((p for p in scorer.critic.parameters() if p.requires_grad), lr=1e-4)
    first = None
    for _ in range(10):
        loss, metrics = scorer.critic.train()(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scorer.critic.update_target()
        assert all(value.isfinite() for value in metrics.values())
        first = first or loss.item()
    assert loss.item() < first and 0 < metrics["clamped"] < 1
    if found.critic.encoder:
        assert all(p.grad.abs().sum() > 0 for p in scorer.critic.encoder.parameters())
    scorer.eval().save(tmp_path)
    loaded = load_scorer(tmp_path)
    torch.testing.assert_close(
        loaded.score(encoded, chunk[:, None]), scorer.score(encoded, chunk[:, None]), rtol=1e-5, atol=1e-5
    )


def test_the_published_networks_have_the_published_layers():
    critic = DeasCritic(preset("published").critic, 2048, 64, 32)
    assert (critic.head.support_low, critic.head.support_high) == (-100.0, 0.0)
    assert critic.head.bin_width == pytest.approx(100 / 101)
    assert critic.head.sigma == pytest.approx(0.743, abs=1e-3)
    linear = [tuple(m.weight.shape) for m in critic.encoder if isinstance(m, torch.nn.Linear)]
    assert linear == [(1024, 2048), (1024, 1024), (1024, 1024), (64, 1024)]
    assert isinstance(critic.encoder[-1], torch.nn.Tanh) and isinstance(critic.encoder[-3], torch.nn.SiLU)
    assert critic.v.first[0].weight.shape == (256, 128) and len(critic.v.blocks) == 4
    assert sum(isinstance(m, torch.nn.Linear) for m in critic.v.blocks[0]) == 3
    assert critic.v.output.weight.shape == (101, 256)
    # [f(64); state(64); chunk(16·32 = 512)] = 640 → 4 x 512 → 101, of two networks and their target copies.
    inputs = critic.q.observation.weight.shape[1] + critic.q.chunk.weight.shape[1]
    assert (inputs, len(critic.q.norms), critic.q.output.weight.shape) == (640, 4, (2, 512, 101))
    assert {name.partition(".")[0] for name, _ in critic.named_parameters()} == {"encoder", "v", "q", "target_q"}
