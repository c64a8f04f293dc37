"""The usual way to a policy, `lerobot-train --policy.path=BASE --rename_map=…`: the base has other cameras, widths."""

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import RenameObservationsProcessorStep
from lerobot_example import CONTRACT, SENTENCES, SIZE, H, normal, observations, smolvla, statistics
from lerobot_own import own_chunks
from policy_example import close

from deas_vla.config import parse
from deas_vla.data.contract import Camera, Column
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


def lerobot_train(base: Path, data: Path, output: Path) -> Path:
    """LeRobot's own command, from a base to its checkpoint."""
    flags = [
        "--dataset.repo_id=local/recorded", f"--dataset.root={data}", f"--policy.path={base}",
        "--policy.push_to_hub=false", "--policy.device=cpu", f"--output_dir={output}", "--steps=2",
        "--batch_size=4", "--save_freq=2", "--num_workers=0", "--env_eval_freq=0",
        f"--rename_map={json.dumps(RENAMED)}",
    ]  # fmt: skip
    command = [str(Path(sys.executable).with_name("lerobot-train")), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    return output / "checkpoints" / "last" / "pretrained_model"


def as_fine_tuned(base: Path, renamed: dict[str, str]) -> Path:
    """What that command makes of the base's processors, without the training: it takes half a minute."""
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


@pytest.mark.parametrize("how", ["lerobot-train", "a narrower state"])
def test_a_fine_tuned_base_is_adopted_and_plays_as_in_lerobot(how, base, data, tmp_path, capsys):
    """Three cameras of 96 pixels, of which the data has two, of 64; the state is wider, as smolvla_base's, or not."""
    if how == "lerobot-train":
        checkpoint = lerobot_train(base(3, 6), data, tmp_path / "train")
        kept = json.loads((checkpoint / "config.json").read_text())["input_features"]
        assert kept["observation.state"]["shape"] == [6] and "observation.images.camera3" in kept
    else:
        checkpoint = as_fine_tuned(base(3, 2), RENAMED)
    policy = adopted(checkpoint, data, tmp_path / "policy", "--units=rad")
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
    first = {"observation.images.left": "observation.images.camera1"}
    policy = adopted(as_fine_tuned(base(1, 3), first), data, tmp_path / "policy", "--units=rad")
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
    with pytest.raises(UserError, match="has the units already"):
        adopted(checkpoint, tmp_path / "data", tmp_path / "policy", "--units=rad")
