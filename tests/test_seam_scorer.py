"""A scorer from outside the project is exported, verified, loaded and played by LeRobot's policy by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import example_episode
from policy_example import observations, small_policy
from rollout_example import LineWorkers
from test_reranker_run import finished

from deas_vla import cli
from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.export.export import export_reranker
from deas_vla.export.reranker import Reranker
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.scorers.scorer import SCORERS, load_scorer
from deas_vla.training.critic import encode_frames
from deas_vla.training.loop import make_accelerator
from recipes.train_critic import TrainCriticConfig, train_critic

ROOT = Path(__file__).parent.parent
TOY = """
from deas_vla.scorers.scorer import Scorer, register_scorer


@register_scorer("shortest_of_a_test")
class Shortest(Scorer):
    def q_values(self, encoded, chunks):
        return -chunks.diff(dim=2).norm(dim=-1).sum(-1)[None]
"""


@pytest.fixture
def shortest(tmp_path, monkeypatch):
    """The class, from a file of its own."""
    (tmp_path / "toy_scorer.py").write_text(TOY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield SCORERS.get(f"{tmp_path / 'toy_scorer.py'}:shortest_of_a_test")
    SCORERS._registered.pop("shortest_of_a_test", None)
    sys.modules.pop("toy_scorer", None)


def test_it_is_exported_verified_and_loaded_by_its_name(shortest, tmp_path, capsys):
    policy, folder = small_policy(), tmp_path / "reranker"
    scorer = shortest(policy.contract, policy.horizon)
    export_reranker(folder, policy=policy, scorer=scorer, observation=observations(3), num_candidates=4)
    assert cli.main(["verify", str(folder)]) == 0
    assert cli.main(["inspect", str(folder)]) == 0
    assert "shortest_of_a_test" in capsys.readouterr().out
    loaded = Reranker.load(folder)
    assert type(loaded.decider.scorer) is shortest

    keys = [NoiseKey(seed=0, scene=scene, sample=0, decision=0) for scene in range(3)]
    choice = loaded.choose(observations(3, seed=8), keys)
    lengths = policy.contract.normalize_action(choice.candidates).diff(dim=2).norm(dim=-1).sum(-1)
    assert torch.equal(choice.index, lengths.argmin(1))

    modeling = pytest.importorskip("lerobot") and __import__(
        "deas_vla.export.lerobot_plugin.modeling_deas", fromlist=["DeasPolicy"]
    )
    assert type(modeling.DeasPolicy.from_pretrained(folder).scorer) is shortest


def test_it_is_a_stage_and_evaluated_by_its_name(shortest, tmp_path, monkeypatch):
    """Training takes the name; whatever plays a stage's critic afterwards plays this one."""
    monkeypatch.chdir(tmp_path)
    policy = small_policy()
    policy.save(finished(tmp_path / "policy") / "policy")
    config = TrainCriticConfig(
        scorer=f"{tmp_path / 'toy_scorer.py'}:shortest_of_a_test",
        policy=str(tmp_path / "policy"),
        demonstrations="",
        rollouts=[],
        output=str(tmp_path / "critic"),
    )
    accelerator = make_accelerator()
    train_critic(accelerator, config)
    scorer = load_scorer(tmp_path / "critic" / "critic", policy.contract)
    assert type(scorer) is shortest and scorer.horizon == policy.horizon

    decider = BestOfN(policy, 4, "best", scorer)
    jobs = paired_jobs([3, 8], 1)
    evaluate_method("shortest", LineWorkers(), decider, jobs, tmp_path, seed=0, parallel=2, execute_steps=4)
    played = json.loads((tmp_path / "shortest.json").read_text())
    assert [episode["scene"] for episode in played] == [3, 8]
    assert all("scores" in decision or "score" in decision for decision in played[0]["decisions"])

    # Fine-tuning by its advantages: it reads stored frames like any other.
    rng = np.random.default_rng(0)
    frames = FrameTable.of([example_episode(rng, 8, True)])
    rows = torch.arange(0, len(frames), 2)
    encoded = encode_frames(accelerator, scorer, policy, frames, tmp_path / "features", rows)
    chunk = torch.randn(len(rows), policy.horizon, policy.contract.action_dim)
    assert scorer.advantage(encoded, chunk).shape == (len(rows),)


def test_another_program_finds_it_where_the_environment_says_so(shortest, tmp_path):
    policy, folder = small_policy(), tmp_path / "reranker"
    export_reranker(
        folder, policy=policy, scorer=shortest(policy.contract, policy.horizon), observation=observations(2)
    )
    verify = [sys.executable, "-m", "deas_vla.cli", "verify", str(folder)]
    found = {"DEAS_VLA_PLUGINS": str(tmp_path / "toy_scorer.py")}
    done = subprocess.run(verify, env=os.environ | found, cwd=ROOT, capture_output=True, text=True)
    assert "decided as before" in done.stdout, done.stderr


def test_a_name_in_a_file_imports_nothing(shortest, tmp_path):
    """Rule 11: what is registered may be named, a module may not."""
    policy, folder = small_policy(), tmp_path / "reranker"
    export_reranker(
        folder, policy=policy, scorer=shortest(policy.contract, policy.horizon), observation=observations(2)
    )
    (tmp_path / "evil_of_a_test.py").write_text("raise SystemExit('it ran')")
    path = folder / "critic" / "scorer.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    described = json.loads(header["__metadata__"]["scorer"])
    described["type"] = f"{tmp_path / 'evil_of_a_test.py'}:evil"
    header["__metadata__"]["scorer"] = json.dumps(described)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(UserError, match="header that does not fit"):
        Reranker.load(folder)


def test_values_of_another_shape_are_refused_by_the_scorers_name(shortest):
    policy = small_policy()

    class Forgetful(shortest):
        def q_values(self, encoded, chunks):
            return super().q_values(encoded, chunks)[0]

    decider = BestOfN(policy, 4, "best", Forgetful(policy.contract, policy.horizon))
    keys = [NoiseKey(seed=0, scene=scene, sample=0, decision=0) for scene in range(2)]
    with pytest.raises(UserError, match=r"Forgetful\.q_values gave \(2, 4\), expected \(K, 2, 4\)"):
        decider.choose(observations(2), keys)
