"""The usual way to a policy, `lerobot-train --policy.path=BASE --rename_map=…`: the base has other cameras, widths."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import RenameObservationsProcessorStep
from lerobot_example import CONTRACT, SENTENCES, SIZE, H, normal, observations, pi, small_pi, smolvla, statistics
from lerobot_own import own_chunks
from policy_example import close
from safetensors.torch import load_file, save_file

from deas_vla import cli
from deas_vla.config import parse
from deas_vla.data.contract import Camera, Column
from deas_vla.data.episodes import statistics_of
from deas_vla.data.lerobot import SIDECAR
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.registry import load_policy
from recipes import adopt_policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RENAMED = {
    "observation.images.left": "observation.images.camera1",
    "observation.images.wrist": "observation.images.camera2",
}


def base_contract(cameras: int, state: int):
    """A robot that nobody has: the base's own."""
    return example_contract(
        cameras=tuple(Camera(f"camera{number}", 96, 96) for number in range(1, cameras + 1)),
        state=tuple(Column(f"joint_{i}", "rad") for i in range(state)),
        statistics=None,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "recorded"
    episodes = [example_episode(rng, 24, True, every=1, instruction=SENTENCES[0]) for _ in range(2)]
    for episode in episodes:
        shape = (len(episode.frame_steps), SIZE, SIZE, 3)
        episode.images = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in episode.images}
    write_dataset(root, episodes, CONTRACT, "local/recorded")
    # As LeRobot's own recorder leaves it: nothing says units.
    (root / SIDECAR).unlink()
    return root


@pytest.fixture
def base(tmp_path):
    """A base of the given cameras and width of the state, in LeRobot's own format."""

    def make(cameras: int, state: int) -> Path:
        smolvla(tmp_path / "vlm", base_contract(cameras, state)).save(tmp_path / "base", standalone=False)
        (tmp_path / "base" / "contract.json").unlink()
        return tmp_path / "base"

    return make


def as_fine_tuned(base: Path, renamed: dict[str, str]) -> Path:
    """What that command makes of the base's processors, without the training (tests/test_lerobot_way.py)."""
    config = PreTrainedConfig.from_pretrained(base, local_files_only=True)
    before, after = make_pre_post_processors(config, dataset_stats=statistics(CONTRACT))
    for step in before.steps:
        if isinstance(step, RenameObservationsProcessorStep):
            step.rename_map = renamed
    before.save_pretrained(base, config_filename="policy_preprocessor.json")
    after.save_pretrained(base, config_filename="policy_postprocessor.json")
    return base


def adopted(checkpoint: Path, data: Path, output: Path, *more: str) -> LeRobotPolicy:
    arguments = [f"--checkpoint={checkpoint}", f"--dataset={data}", f"--output={output}", *more]
    adopt_policy.main(parse(adopt_policy.AdoptPolicyConfig, arguments))
    return load_policy(output / "policy")


@pytest.mark.parametrize("state", [2, 6])
def test_a_fine_tuned_base_is_adopted_and_plays_as_in_lerobot(state, base, data, tmp_path, capsys):
    """Three cameras of 96 pixels, of which the data has two, of 64; the state is wider, as smolvla_base's, or not."""
    policy = adopted(as_fine_tuned(base(3, state), RENAMED), data, tmp_path / "policy", "--units=rad")
    assert "no camera camera3" in capsys.readouterr().out
    assert [camera.name for camera in policy.contract.cameras] == ["left", "wrist"]
    assert {column.unit for column in (*policy.contract.state, *policy.contract.action)} == {"rad"}

    observation, noise = observations(2, policy.contract, sentences=SENTENCES[:1]), normal(2, H, 2)
    with torch.no_grad():
        context = policy.encode(observation)
        mine = policy.sample(context, noise[:, None])[:, 0]
    theirs = own_chunks(policy, observation, noise)
    assert close(mine[:, : theirs.shape[1]], theirs)
    # Every image token belongs to one of the two cameras: that the third is not there moves none.
    cells = (SIZE // 16) ** 2 // 4
    assert [int((context.camera[0] == camera).sum()) for camera in (0, 1)] == [cells, cells]
    changed = observations(2, policy.contract, sentences=SENTENCES[:1])
    changed.images["wrist"] = 255 - changed.images["wrist"]
    with torch.no_grad():
        moved = (policy.encode(changed).tokens - context.tokens).abs().amax((0, 2))
    assert moved[context.camera[0] == 1].min() > moved[context.camera[0] == 0].max()


def test_a_camera_that_the_policy_does_not_see_is_left_out(base, data, tmp_path, capsys):
    checkpoint = as_fine_tuned(base(1, 3), {"observation.images.left": "observation.images.camera1"})
    config = json.loads((checkpoint / "config.json").read_text())
    # It was trained on a GPU, which this machine may not have.
    (checkpoint / "config.json").write_text(json.dumps(config | {"device": "cuda"}))
    policy = adopted(checkpoint, data, tmp_path / "policy", "--units=rad")
    assert "does not see the camera wrist" in capsys.readouterr().out
    assert [camera.name for camera in policy.contract.cameras] == ["left"]
    # And it reads its data with one camera only.
    episodes, _, _ = read_dataset(data, policy.contract.with_statistics(None))
    assert all(episode.images.keys() == {"left"} for episode in episodes)


def test_an_adapter_is_merged_into_its_base(base, data, tmp_path, capsys):
    """As `lerobot-train --peft.method_type=LORA` leaves it: the adapter, the configuration, the processors."""
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from peft import LoraConfig, get_peft_model

    origin = as_fine_tuned(base(2, 3), RENAMED)
    wrapped = get_peft_model(
        SmolVLAPolicy.from_pretrained(origin, local_files_only=True),
        LoraConfig(r=2, target_modules=r".*lm_expert.*\.(q|v)_proj", modules_to_save=["action_out_proj"]),
    )
    wrapped.peft_config["default"].base_model_name_or_path = "lerobot/smolvla_base"
    checkpoint = tmp_path / "adapter"

    def save() -> None:
        wrapped.save_pretrained(checkpoint)
        wrapped.base_model.model.config.use_peft = True
        wrapped.base_model.model.config.save_pretrained(checkpoint)
        for path in origin.glob("policy_*"):
            shutil.copy(path, checkpoint)

    save()
    with pytest.raises(UserError, match=r"lerobot/smolvla_base, is not a folder here; .*--base=FOLDER"):
        adopted(checkpoint, data, tmp_path / "policy", "--units=rad")
    with pytest.raises(UserError, match="changes no weight of its base"):
        adopted(checkpoint, data, tmp_path / "policy", "--units=rad", f"--base={origin}")
    torch.manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            parameter.data += 0.05 * torch.randn(parameter.shape)
    save()
    policy = adopted(checkpoint, data, tmp_path / "policy", "--units=rad", f"--base={origin}")
    observation, noise = observations(2, policy.contract, sentences=SENTENCES[:1]), normal(2, H, 2)
    with torch.no_grad():
        mine = policy.sample(policy.encode(observation), noise[:, None])[:, 0]
        plain = LeRobotPolicy.load(origin, policy.contract.with_statistics(None))
        theirs = copy.copy(policy)
        theirs.policy = wrapped.base_model.model.eval()
        expected = own_chunks(theirs, observation, noise)
    assert close(mine[:, : expected.shape[1]], expected)
    assert not close(own_chunks(plain, observation, noise), expected)
    (checkpoint / "adapter_model.safetensors").rename(checkpoint / "adapter_model.bin")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: missing"):
        adopted(checkpoint, data, tmp_path / "other", "--units=rad", f"--base={origin}")


def test_what_does_not_fit_is_still_refused(tmp_path):
    policy = smolvla(tmp_path / "vlm", base_contract(2, 3))
    with pytest.raises(ContractMismatch, match="camera left: none against"):
        LeRobotPolicy(policy.policy, policy.processors.preprocessor, policy.processors.postprocessor, CONTRACT)
    wide = replace(policy.contract, state=(*policy.contract.state, Column("further", "rad")), statistics=None)
    with pytest.raises(ContractMismatch, match="state: 3 columns against 4"):
        LeRobotPolicy(policy.policy, policy.processors.preprocessor, policy.processors.postprocessor, wide)


def test_units_are_given_once(data, tmp_path):
    declared = example_contract()
    write_dataset(tmp_path / "data", [example_episode(np.random.default_rng(0), 8, True)], declared, "local/declared")
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text("{}")
    with pytest.raises(UserError, match="leave --units out"):
        adopted(checkpoint, tmp_path / "data", tmp_path / "policy", "--units=rad")


def test_what_checkpoint_and_data_do_not_say_is_asked_for_by_a_flag(base, data, tmp_path):
    """The base itself, not fine-tuned with a rename map: nothing says which of its cameras is which."""
    checkpoint = as_fine_tuned(base(2, 3), {})
    flags = ["--cameras=left=camera2,wrist=camera1", "--units=rad", "--rate=25", "--robot=so101_follower"]
    with pytest.raises(ContractMismatch, match=r"camera camera1: .*; --cameras=left=camera1,… says which"):
        adopted(checkpoint, data, tmp_path / "policy")
    for wrong, words in (
        ("--cameras=left=camera3", "the policy has no camera camera3; it has camera1, camera2"),
        ("--cameras=right=camera1", "the data set has no camera right; it has left, wrist"),
    ):
        with pytest.raises(UserError, match=words):
            adopted(checkpoint, data, tmp_path / "policy", wrong)
    policy = adopted(checkpoint, data, tmp_path / "policy", *flags)
    contract = policy.contract
    assert (contract.rate_hz, contract.embodiment, contract.state[0].unit) == (25.0, "so101_follower", "rad")
    # Its first camera is the second of the data.
    observation = observations(1, contract)
    batch = policy.processors.batch(observation)
    for name, key in (("left", "camera2"), ("wrist", "camera1")):
        expected = observation.images[name].permute(0, 3, 1, 2) / 255
        assert torch.allclose(batch[f"observation.images.{key}"], expected)


def test_cameras_that_were_given_other_names_in_the_data(base, data, tmp_path):
    named = shutil.copytree(data, tmp_path / "data")
    assert cli.main(["declare", str(named), "--units=rad", "--cameras=left=top"]) == 0
    policy = adopted(as_fine_tuned(base(2, 3), RENAMED), named, tmp_path / "policy")
    assert policy.image_keys() == {"top": "observation.images.top", "wrist": "observation.images.wrist"}
    assert policy.processors.batch(observations(1, policy.contract))["observation.images.camera1"].shape[2:] == (64, 64)


@pytest.mark.parametrize("how", ["relative", "quantiles"])
def test_statistics_that_the_policy_does_not_hold_are_those_of_its_data(how, data, tmp_path):
    """The normaliser of relative actions holds those of differences; some checkpoints have quantiles only."""
    policy = pi("pi05", tmp_path / "words", use_relative_actions=how == "relative")
    policy.save(tmp_path / "checkpoint", standalone=False)
    (tmp_path / "checkpoint" / "contract.json").unlink()
    if how == "quantiles":
        for file in (tmp_path / "checkpoint").glob("policy_*normalizer_processor.safetensors"):
            kept = {name: value for name, value in load_file(file).items() if not name.endswith((".mean", ".std"))}
            save_file(kept, file)
    with small_pi(tmp_path / "words"):
        made = adopted(tmp_path / "checkpoint", data, tmp_path / "policy", "--units=rad")
    episodes, _, _ = read_dataset(data, CONTRACT.with_statistics(None))
    assert made.contract.statistics == statistics_of(episodes)
    observation, noise = observations(2, made.contract, sentences=SENTENCES[:1]), normal(2, H, 2)
    with torch.no_grad():
        mine = made.sample(made.encode(observation), noise[:, None])[:, 0]
    theirs = own_chunks(made, observation, noise)
    assert close(mine[:, : theirs.shape[1]], theirs)
    commands = made.contract.to_command(mine)
    moved = replace(observation, state=observation.state + 1)
    with torch.no_grad():
        further = made.contract.to_command(made.sample(made.encode(moved), noise[:, None])[:, 0])
    assert (how == "relative") == bool((further[..., 0] - commands[..., 0]).abs().min() > 0.5)


def test_relative_actions_that_the_processors_do_not_know_are_refused(tmp_path):
    policy = pi("pi05", tmp_path / "words")
    policy.policy.config.use_relative_actions = True
    with pytest.raises(UserError, match=r"config\.json says relative actions, its processors do not"):
        LeRobotPolicy(policy.policy, policy.processors.preprocessor, policy.processors.postprocessor, CONTRACT)
