"""The fourteen rules of the design: each has tests of its name, and here are those of the last two."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from source_tree import ROOT, python_files

from deas_vla.config import outcome_settings
from deas_vla.critic.critic import CriticConfig
from deas_vla.report.report import _preset
from deas_vla.training.presets import PRESETS, preset
from recipes.train_critic import TrainCriticConfig

pytestmark = pytest.mark.unit


def test_each_rule_has_a_test_of_its_name():
    text = "\n".join(path.read_text(encoding="utf-8") for path in python_files("tests", "studies"))
    assert set(re.findall(r"def test_rule_(\d\d)_", text)) == {f"{number:02d}" for number in range(1, 15)}


def test_rule_13_published_is_the_papers_setting_and_a_result_names_its_preset():
    published = preset("published")
    critic = published.critic
    assert (critic.head, critic.num_bins, critic.support) == ("hl_gauss", 101, [-100.0, 0.0])
    assert (critic.horizon, critic.reward_discount, critic.bootstrap_discount) == (16, 0.9, 0.99)
    assert (critic.expectile, critic.num_q, critic.polyak, critic.future_weight) == (0.7, 2, 0.005, 0.0)
    assert (critic.hidden_dim, critic.num_layers) == (512, 4)
    assert (critic.v_blocks, critic.v_hidden_dim, critic.encoder) == (4, 256, [1024, 1024, 1024, 64])
    training = published.training
    assert (training.steps, training.batch_size, training.learning_rate) == (30_000, 32, 1e-4)
    assert not training.cosine and training.weight_decay == training.gradient_clip == 0
    assert published.image_encoder.dim == 0

    assert asdict(preset("default").critic) != asdict(critic) and preset("default").critic == CriticConfig()
    for name in PRESETS:
        label = _preset({"preset": name, "critic": asdict(preset(name).critic)})
        assert name in label and preset(name).critic.head.replace("_", "-") in label
    # The critic's stage records the name, and what was set otherwise is not passed off as the preset.
    recorded = outcome_settings(TrainCriticConfig(preset="default"))
    assert _preset(recorded) == "default (scalar head)"
    recorded["training"]["steps"] += 1
    assert _preset(recorded) == "default (scalar head; training.steps was changed)"
    # Another scorer is not passed off as DEAS, nor one without training as trained by the preset.
    recorded["scorer"] = "mine.py:short_chunks"
    assert "scorer short_chunks" in _preset(recorded)
    assert _preset(recorded, trained=False) == "none (the scorer short_chunks, which is not trained)"


# Run here and in a process with other kernels and another number of threads.
LEARN = """
import json, torch
from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic

def numbers():
    draw = torch.Generator().manual_seed(0)
    uniform = lambda *shape: torch.rand(*shape, generator=draw, dtype=torch.float64).float() - 0.5
    critic = DeasCritic(CriticConfig(horizon=4, hidden_dim=64, head="hl_gauss"), 8, 3, 2)
    for parameter in critic.parameters():
        parameter.data = 0.3 * uniform(*parameter.shape)
    batch = CriticBatch(uniform(64, 8), uniform(64, 3), uniform(64, 4, 2), uniform(64) - 0.5,
                        torch.full((64,), 0.96), uniform(64, 8), uniform(64, 3))
    loss, _ = critic.loss(batch)
    loss.backward()
    gradient = torch.stack([p.grad.norm() for p in critic.parameters() if p.grad is not None])
    scores = critic.score(batch.features[:4], batch.state[:4], uniform(4, 8, 4, 2))
    return {"loss": loss.item(), "gradient": gradient.tolist(), "scores": scores.flatten().tolist()}
"""


def test_rule_14_loss_gradient_and_scores_are_the_same_on_other_kernels_and_threads():
    here: dict = {}
    exec(LEARN, here)
    code = LEARN + "torch.set_num_threads(2)\nprint(json.dumps(numbers()))"
    environment = os.environ | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    elsewhere = json.loads(done.stdout)
    for name, value in here["numbers"]().items():
        torch.testing.assert_close(torch.tensor(elsewhere[name]), torch.tensor(value), rtol=1e-4, atol=1e-5, msg=name)
