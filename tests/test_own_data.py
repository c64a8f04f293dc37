"""Recordings of one's own, LeRobot data sets without any stage of ours: a policy and a critic by the recipes alone."""

import json
import shutil

import numpy as np
import pytest
from accelerate import Accelerator
from data_example import example_contract, example_episode
from v2_example import drop_outcomes

from deas_vla import cli
from deas_vla.config import parse
from deas_vla.data.contract import Camera
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError
from deas_vla.labelling.labelling import Labelling
from deas_vla.policies.registry import load_policy
from recipes import finetune_policy, train_critic

CAMERAS = (Camera("left", 64, 64), Camera("wrist", 64, 64))
TINY = ["--training.steps=3", "--training.batch_size=4", "--policy.horizon=4", "--policy.layers=2"]
CRITIC = [
    "--training.steps=3", "--training.batch_size=4", "--critic.horizon=4", "--critic.hidden_dim=16",
    "--image_encoder_training.steps=3", "--features.dim=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("own") / "recorded"
    episodes = [example_episode(rng, 12 + i, i % 2 == 0, every=4) for i in range(6)]
    for episode in episodes:
        shape = (len(episode.frame_steps), 64, 64, 3)
        episode.images = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in episode.images}
    write_dataset(root, episodes, example_contract(cameras=CAMERAS), "local/own")
    labelling = Labelling(drop_outcomes(root))
    for number, episode in enumerate(episodes):
        labelling.give(number, "success" if episode.terminated else "failure")
    assert cli.main(["declare", str(root), "--units=m", "--source=rollout"]) == 0
    return root


def finetune(*arguments):
    config = parse(finetune_policy.FinetunePolicyConfig, ["--demonstrations=", *TINY, *arguments])
    finetune_policy.finetune_policy(Accelerator(cpu=True), config)


def learn(*arguments):
    config = parse(train_critic.TrainCriticConfig, ["--demonstrations=", "--rollouts=", *CRITIC, *arguments])
    train_critic.train_critic(Accelerator(cpu=True), config)


@pytest.mark.slow
def test_a_policy_and_a_critic_from_recordings_alone(dataset, tmp_path, capsys):
    finetune("--method=filtered_bc", f"--more.folders={dataset}", f"--output={tmp_path}/policy")
    policy = load_policy(tmp_path / "policy" / "policy")
    assert policy.contract.statistics is not None
    assert cli.main(["audit", str(dataset), f"--against={tmp_path}/policy"]) == 0
    assert "success: 3 of 6" in capsys.readouterr().out
    flags = [f"--more.folders={dataset}", f"--policy={tmp_path}/policy", f"--output={tmp_path}/critic"]
    capsys.readouterr()
    learn(*flags, "--dry_run")
    said = capsys.readouterr().out
    for stage in ("needs about", "features ", "image encoder ", "critic ", "there is "):
        assert f"\n{stage}" in said, stage
    assert not (tmp_path / "critic").exists()
    learn(*flags, "--held_out=0.4")
    assert json.loads((tmp_path / "critic" / "validation.json").read_text())["data"]["options"] > 0

    # And whether the critic is any good, by the episodes that it was not trained on: too few here, and it says so.
    critic = f"--critic={tmp_path}/critic"
    assert cli.main(["critique", str(dataset), critic, "--candidates=4", "--frames=3", "--films=1"]) == 0
    said = capsys.readouterr().out
    assert "Verdict: cannot be told" in said and "1 successes, 1 failures" in said
    shown = tmp_path / "critic" / "critique"
    assert (shown / "critique.png").is_file() and len(list(shown.glob("films/*.mp4"))) == 2
    page = (shown / "critique.html").read_text()
    assert "<h1>Cannot be told</h1>" in page and 'src="films/01-failure.mp4"' in page
    learn(f"--more.folders={dataset}", f"--policy={tmp_path}/policy", f"--output={tmp_path}/all", "--held_out=0")
    assert cli.main(["critique", str(dataset), f"--critic={tmp_path}/all"]) == 2
    assert "trained on all of its episodes" in capsys.readouterr().err


@pytest.mark.slow
def test_data_that_grew_make_another_stage(dataset, tmp_path, capsys):
    grown = shutil.copytree(dataset, tmp_path / "recorded")
    arguments = ("--method=filtered_bc", f"--more.folders={grown}", f"--output={tmp_path}/policy")
    finetune(*arguments)
    (grown / "README.md").write_text("A card that somebody edited.\n")
    finetune(*arguments)
    assert "done before, skipped" in capsys.readouterr().out
    info = grown / "meta" / "info.json"
    info.write_text(info.read_text() + "\n")
    with pytest.raises(UserError, match=f"the data set {grown} has changed"):
        finetune(*arguments)


def test_nothing_to_imitate_is_one_line(tmp_path):
    config = parse(finetune_policy.FinetunePolicyConfig, ["--demonstrations="])
    with pytest.raises(UserError, match=r"--more\.folders=FOLDER"):
        finetune_policy.main(config)
    with pytest.raises(UserError, match="there is no such folder"):
        finetune(f"--more.folders={tmp_path}/gone", f"--output={tmp_path}/policy")
    assert not (tmp_path / "policy").exists()
