"""Stock `lerobot-eval`, as a user types it, plays an exported reranker: no flag, no change to LeRobot, no hub."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from lerobot_example import CONTRACT as LEROBOT_CONTRACT
from lerobot_example import observations as lerobot_observations
from lerobot_example import smolvla
from lerobot_plugin_example import write_environment
from policy_example import observations, small_policy
from reranker_example import small_scorer

from deas_vla.export.export import export_reranker
from deas_vla.export.lerobot_plugin.modeling_deas import DeasPolicy
from deas_vla.improvement.selection import SelectionConfig

# A busy machine takes minutes to start LeRobot.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RULE = SelectionConfig(rule="best")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """An environment that LeRobot finds by its name, and two exports."""
    place = tmp_path_factory.mktemp("eval")
    write_environment(place / "plugins")
    policy = small_policy()
    export_reranker(
        place / "groot",
        policy=policy,
        scorer=small_scorer(policy),
        observation=observations(4),
        num_candidates=4,
        selection=RULE,
        execute_steps=3,
    )
    policy = smolvla(place / "smolvlm", LEROBOT_CONTRACT)
    scorer = small_scorer(policy, frames=lerobot_observations(12, seed=5))
    export_reranker(
        place / "smolvla",
        policy=policy,
        scorer=scorer,
        observation=lerobot_observations(2),
        num_candidates=2,
        selection=RULE,
        execute_steps=8,
    )
    return place


def arguments(place: Path, policy: str, output: str, *flags: str) -> list[str]:
    (place / f"{output}.jsonl").unlink(missing_ok=True)
    return [
        f"--policy.path={place / policy}", "--env.type=dot", f"--output_dir={place / output}",
        "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false", "--policy.device=cpu", *flags,
    ]  # fmt: skip


@pytest.fixture
def evaluate_here(place, monkeypatch):
    """LeRobot's command in this process: its `main`, which looks for plug-ins and reads the flags."""
    from lerobot.scripts import lerobot_eval

    monkeypatch.syspath_prepend(place / "plugins")
    monkeypatch.chdir(place)
    monkeypatch.setattr(lerobot_eval, "init_logging", lambda: None)  # pytest's own handlers stay

    def run(policy: str, output: str, *flags: str) -> None:
        monkeypatch.setenv("DOT_LOG", str(place / f"{output}.jsonl"))
        monkeypatch.setattr(sys, "argv", ["lerobot-eval", *arguments(place, policy, output, *flags)])
        lerobot_eval.main()

    return run


def played(place: Path, output: str) -> list[dict]:
    return [json.loads(line) for line in (place / f"{output}.jsonl").read_text().splitlines()]


def test_lerobot_eval_plays_what_the_reranker_chooses(place, evaluate_here):
    evaluate_here("groot", "first")
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


def test_a_second_run_is_the_same_and_choices_can_be_changed_on_the_command_line(place, evaluate_here):
    """Whatever else the torch seed would have drawn."""
    evaluate_here("groot", "second")
    assert len(played(place, "second")) == 14
    torch.randn(3)
    evaluate_here("groot", "third")
    assert played(place, "third") == played(place, "second")
    evaluate_here("groot", "changed", "--policy.num_candidates=1", "--policy.n_action_steps=1")
    assert len(played(place, "changed")) == 14
    assert played(place, "changed") != played(place, "second")


def test_an_exported_lerobot_policy_plays_where_its_backbone_never_was(place, evaluate_here):
    (place / "smolvlm").rename(place / "gone")
    try:
        evaluate_here("smolvla", "other", "--env.height=64", "--env.width=64")
    finally:
        (place / "gone").rename(place / "smolvlm")
    assert len(played(place, "other")) == 14


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--env.height=96", "--env.width=96"],
            "images of left are torch.uint8 (2, 96, 96, 3), the policy takes torch.uint8 (2, 16, 16, 3)",
        ),
        (["--policy.rate_hz=80"], "rate_hz: 80 against 20"),
    ],
)
def test_rule_07_what_does_not_fit_is_refused_before_anything_is_played(place, evaluate_here, flags, told):
    with pytest.raises(Exception, match=re.escape(told)):
        evaluate_here("groot", "refused", *flags)
    assert not (place / "refused.jsonl").exists()


def test_a_changed_folder_is_refused(place, evaluate_here):
    path = place / "groot" / "critic" / "scorer.safetensors"
    good = path.read_bytes()
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    try:
        with pytest.raises(Exception, match=r"critic/scorer\.safetensors was changed"):
            evaluate_here("groot", "refused")
    finally:
        path.write_bytes(good)
