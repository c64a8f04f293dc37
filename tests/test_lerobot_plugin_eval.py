"""Stock `lerobot-eval`, as a user types it, plays an exported reranker: no flag, no change to LeRobot, no hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lerobot_example import CONTRACT as LEROBOT_CONTRACT
from lerobot_example import observations as lerobot_observations
from lerobot_example import smolvla
from lerobot_plugin_example import write_environment
from policy_example import observations, small_policy
from reranker_example import small_critic

from deas_vla.export.lerobot_plugin.modeling_deas import DeasPolicy
from deas_vla.export.reranker import Reranker
from deas_vla.improvement.selection import SelectionConfig

# A busy machine takes minutes to start LeRobot.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RULE = SelectionConfig(rule="best")
COMMAND = Path(sys.executable).with_name("lerobot-eval")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An environment that LeRobot finds by its name, and two exports."""
    place = tmp_path_factory.mktemp("eval")
    write_environment(place / "plugins")
    policy = small_policy()
    Reranker.export(
        policy, *small_critic(policy), place / "groot", observations(4),
        num_candidates=4, selection=RULE, execute_steps=3,
    )  # fmt: skip
    policy = smolvla(place / "smolvlm", LEROBOT_CONTRACT)
    critic = small_critic(policy, frames=lerobot_observations(12, seed=5))
    Reranker.export(
        policy, *critic, place / "smolvla", lerobot_observations(2),
        num_candidates=2, selection=RULE, execute_steps=8,
    )  # fmt: skip
    return place


def evaluate(place: Path, policy: str, output: str, *flags: str) -> subprocess.CompletedProcess:
    log = place / f"{output}.jsonl"
    log.unlink(missing_ok=True)
    environment = os.environ | {
        "PYTHONPATH": str(place / "plugins"), "DOT_LOG": str(log), "HF_HOME": str(place / "home"),
    }  # fmt: skip
    command = [
        str(COMMAND),
        f"--policy.path={place / policy}",
        "--env.type=dot",
        f"--output_dir={place / output}",
    ]
    command += ["--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false"]
    return subprocess.run(
        [*command, "--policy.device=cpu", *flags], env=environment, cwd=place, capture_output=True, text=True,
        check=False, timeout=500,
    )  # fmt: skip


def played(place: Path, output: str) -> list[dict]:
    return [json.loads(line) for line in (place / f"{output}.jsonl").read_text().splitlines()]


def test_lerobot_eval_plays_what_the_reranker_chooses(place):
    done = evaluate(place, "groot", "first")
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads((place / "first" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    steps = played(place, "first")
    assert len(steps) == 14
    # The commands are those of the policy in Python: both episodes begin with what their seeds give.
    policy = DeasPolicy.from_pretrained(place / "groot")
    sys.path.insert(0, str(place / "plugins"))
    try:
        from lerobot_env_dot import Dot
    finally:
        sys.path.remove(str(place / "plugins"))
    os.environ["DOT_LOG"] = str(place / "again.jsonl")
    envs = [Dot() for _ in range(2)]
    seen = [env.reset(seed=1000 + row)[0] for row, env in enumerate(envs)]
    for step in range(7):
        batch = {f"observation.images.{name}": [] for name in ("left", "wrist")}
        for one in seen:
            for name in ("left", "wrist"):
                pixels = torch.from_numpy(one["pixels"][name]).permute(2, 0, 1).float() / 255
                batch[f"observation.images.{name}"].append(pixels)
        batch = {key: torch.stack(images) for key, images in batch.items()}
        batch["observation.state"] = torch.stack([torch.from_numpy(one["agent_pos"]).float() for one in seen])
        action = policy.select_action(batch | {"task": ["lift the red cube"] * 2}).numpy()
        recorded = torch.tensor([each["action"] for each in steps[2 * step : 2 * step + 2]])
        assert torch.allclose(torch.from_numpy(action), recorded, rtol=0, atol=1e-6)
        seen = [env.step(command)[0] for env, command in zip(envs, action, strict=True)]
    # And a second run is the same, whatever else the torch seed would have drawn.
    assert evaluate(place, "groot", "second").returncode == 0
    assert played(place, "second") == steps


def test_choices_of_the_export_can_be_changed_on_the_command_line(place):
    done = evaluate(place, "groot", "changed", "--policy.num_candidates=1", "--policy.n_action_steps=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(played(place, "changed")) == 14


def test_an_exported_lerobot_policy_plays_where_its_backbone_never_was(place):
    (place / "smolvlm").rename(place / "gone")
    done = evaluate(place, "smolvla", "other", "--env.size=64")
    (place / "gone").rename(place / "smolvlm")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(played(place, "other")) == 14


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--env.size=96"], "observation.images.left is (3, 96, 96), the policy was trained on (3, 16, 16)"),
        (["--policy.rate_hz=80"], "rate_hz: 80 against 20"),
    ],
)
def test_rule_07_what_does_not_fit_is_refused_before_anything_is_played(place, flags, told):
    done = evaluate(place, "groot", "refused", *flags)
    assert done.returncode != 0 and told in done.stderr
    assert not (place / "refused.jsonl").exists()


def test_a_changed_folder_is_refused(place):
    path = place / "groot" / "critic" / "critic.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    done = evaluate(place, "groot", "refused")
    path.write_bytes(good)
    assert done.returncode != 0 and "critic/critic.safetensors was changed" in done.stderr
