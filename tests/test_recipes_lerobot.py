"""A policy that LeRobot trained goes through the recipes like one of the project's own."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from lerobot_example import SIZE, diffusion
from v2_example import edit_json, v2_contract, write_v2

from deas_vla.config import parse
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.export.export import ExportConfig, export_run
from deas_vla.export.verify import verify
from deas_vla.files import write_json
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.outputs import Outputs

# Last: a recipe may have the name of a library.
from recipes import adopt_policy, collect_demos, finetune_policy, train_critic

CONTRACT = example_contract()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What lerobot-train leaves of a small diffusion policy, and the data of a run."""
    run = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(0)
    for name, source in (("demonstrations", "demonstration"), ("rollouts", "rollout")):
        episodes = [example_episode(rng, 18 + i, source == "demonstration" or i > 1, source=source) for i in range(4)]
        write_dataset(run / name / "dataset", episodes, CONTRACT, f"local/{name}")
        write_json(run / name / "stage.json", {"fingerprint": name, "settings": {}})
    diffusion(CONTRACT, resize_shape=(SIZE, SIZE)).save(run / "checkpoint", standalone=False)
    (run / "checkpoint" / "contract.json").unlink()
    return run


def called(recipe, config, run: Path, *arguments: str) -> None:
    recipe.main(parse(config, [argument.format(run=run) for argument in arguments], prog=recipe.__name__))


ADOPT = ("--checkpoint={run}/checkpoint", "--dataset={run}/demonstrations/dataset", "--output={run}/policy")


def test_from_lerobots_checkpoint_to_a_verified_reranker(run):
    called(adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT)
    policy = load_policy(run / "policy" / "policy")
    assert isinstance(policy, LeRobotPolicy) and policy.contract == CONTRACT

    stages = ("--demonstrations={run}/demonstrations", "--rollouts={run}/rollouts")
    small = ("--training.steps=2", "--training.batch_size=4")
    tuned = ("--start_from={run}/policy", "--method=filtered_bc", "--output={run}/filtered_bc")
    lora = ("--lora.on=head", "--lora.rank=2", "--training.activation_checkpointing=true")
    called(finetune_policy, finetune_policy.FinetunePolicyConfig, run, *stages, *small, *tuned, *lora)
    merged = json.loads((run / "filtered_bc" / "lora.json").read_text())
    assert merged["layers"] == merged["changed"] > 3 and merged["lost"] < 1e-3
    after = load_policy(run / "filtered_bc" / "policy")
    assert after.encoder_fingerprint == policy.encoder_fingerprint
    changed = [
        name
        for (name, one), two in zip(policy.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(one, two)
    ]
    assert changed and not any(".rgb_encoder.backbone." in name for name in changed)

    critic = ("--policy={run}/policy", "--output={run}/critic", "--critic.horizon=16", "--features.dim=4")
    encoder = ("--image_encoder.dim=4", "--image_encoder_training.steps=2", "--image_encoder_training.batch_size=4")
    called(train_critic, train_critic.TrainCriticConfig, run, *stages, *small, *critic, *encoder)
    export_run(ExportConfig(run=str(run), output=str(run / "reranker"), candidates=3, policy="filtered_bc"))
    assert "decided as before" in verify(run / "reranker")
    assert json.loads((run / "reranker" / "manifest.json").read_text())["policy"]["kind"] == "lerobot"
    # Done before: nothing is made anew, unless the checkpoint is another one.
    called(adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT)
    moved = shutil.copytree(run / "checkpoint", run / "other")
    (moved / "README.md").write_text("trained for longer")
    with pytest.raises(UserError, match="checkpoint"):
        called(
            adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT, "--checkpoint={run}/other",
        )  # fmt: skip


def test_a_lerobot_data_set_takes_the_place_of_demonstrations(run, tmp_path):
    """The README's command for RoboCasa, which has no expert, had no way to give any (defect)."""
    source, stage = run / "demonstrations" / "dataset", tmp_path / "demonstrations"
    called(collect_demos, collect_demos.CollectDemosConfig, run, f"--demos.dataset={source}", f"--output={stage}")
    episodes, contract, _ = Outputs().episodes(stage)
    expected = [episode for episode in read_dataset(source)[0] if episode.terminated]
    assert len(episodes) == len(expected) > 0 and all(e.source == "demonstration" for e in episodes)
    for episode, other in zip(episodes, expected, strict=True):
        np.testing.assert_array_equal(episode.actions, other.actions)
    assert contract.statistics is not None
    small = ("--training.steps=1", "--training.batch_size=4", f"--output={tmp_path / 'policy'}")
    called(finetune_policy, finetune_policy.FinetunePolicyConfig, run, f"--demonstrations={stage}", *small)
    assert load_policy(tmp_path / "policy" / "policy").contract == contract


def test_a_checkpoint_of_another_robot_is_refused(run, tmp_path):
    other = example_contract(action=CONTRACT.action[:1] * 3, statistics=None)
    with pytest.raises(UserError, match=r"is not a folder that LeRobot wrote"):
        called(adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT, f"--checkpoint={tmp_path}")
    diffusion(other, resize_shape=(SIZE, SIZE)).save(tmp_path / "checkpoint", standalone=False)
    (tmp_path / "checkpoint" / "contract.json").unlink()
    with pytest.raises(ContractMismatch, match="action: 3 columns against 2"):
        called(
            adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT,
            f"--checkpoint={tmp_path / 'checkpoint'}", f"--output={tmp_path / 'policy'}",
        )  # fmt: skip


def test_rule_07_a_contract_in_another_order_than_the_files_is_refused(run, tmp_path):
    """LeRobot trained on the columns as they lie there: the contract would give them each other's names."""
    root = write_v2(tmp_path / "dataset")
    declare_dataset(root, v2_contract(statistics=None))
    elsewhere = (f"--dataset={root}", f"--output={tmp_path / 'policy'}")
    with pytest.raises(ContractMismatch, match=r"columns of the state in another order .*arm\.0, .*gripper\.1"):
        called(adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT, *elsewhere)
    whole = v2_contract(statistics=None)
    ordered = v2_contract(state=(*whole.state[2:], *whole.state[:2]), action=(*whole.action[1:], whole.action[0]))
    (root / "meta" / "deas_vla.json").unlink()
    declare_dataset(root, ordered)
    with pytest.raises(ContractMismatch, match="the diffusion policy and the contract"):  # it is of another robot
        called(adopt_policy, adopt_policy.AdoptPolicyConfig, run, *ADOPT, *elsewhere)


def test_rule_07_the_names_that_a_policy_was_trained_on_are_compared(run, tmp_path):
    root = shutil.copytree(run / "demonstrations" / "dataset", tmp_path / "dataset")
    names = [column.name for column in CONTRACT.action]

    def check(trained) -> None:
        config = SimpleNamespace(action_feature_names=trained)
        adopt_policy.require_same_names(SimpleNamespace(policy=SimpleNamespace(config=config)), LerobotFolder(root))

    check(names)
    check(None)
    with pytest.raises(ContractMismatch, match=f"the policy was trained on {names[1]}, {names[0]}"):
        check(names[::-1])
    edit_json(root / "meta" / "info.json", lambda info: info["features"]["action"].update(names={"motors": names}))
    check(["motors"])
