"""Saved policies: whole or not at all, and every fault is named."""

import json
from dataclasses import replace

import pytest
import torch
from data_example import example_contract
from policy_example import close, normal, observations, small_policy
from safetensors.torch import load_file, save_file

from deas_vla.errors import ContractMismatch, UserError
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture
def folder(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return tmp_path / "policy"


def test_a_loaded_policy_is_the_saved_one(policy, folder):
    loaded = SmallVLAPolicy.load(folder, example_contract())
    assert loaded.config == policy.config and loaded.contract == policy.contract and not loaded.training
    assert loaded.encoder_fingerprint == policy.encoder_fingerprint
    observation, noise = observations(3), normal(3, 2, 4, 2)
    with torch.no_grad():
        a, b = (p.sample(p.encode(observation), noise) for p in (policy, loaded))
    assert close(a, b)
    # Saved again, it is the same policy again.
    loaded.save(folder)
    assert SmallVLAPolicy.load(folder).encoder_fingerprint == policy.encoder_fingerprint


def test_rule_11_no_pickle(folder):
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_rule_12_a_save_that_fails_leaves_the_old_policy(policy, folder, monkeypatch):
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(policy.processor), "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space"):
        small_policy(seed=1).save(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "contract.json", "backbone/config.json"])
@pytest.mark.parametrize("fault", ["missing", "cut off"])
def test_missing_and_cut_off_files_are_named(folder, name, fault):
    path = folder / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=str(path if "backbone" not in name else path.parent)):
        SmallVLAPolicy.load(folder)


def test_rule_07_a_policy_for_another_robot_is_refused(folder):
    contract = example_contract()
    other = replace(contract, action=tuple(reversed(contract.action)))
    with pytest.raises(ContractMismatch, match=r"move\.x.*gripper_close"):
        SmallVLAPolicy.load(folder, other)
    statistics = replace(contract.statistics, action_mean=(0.2, 0.5))
    with pytest.raises(ContractMismatch, match="action_mean"):
        SmallVLAPolicy.load(folder, contract.with_statistics(statistics))


def test_weights_of_another_model_are_refused(folder):
    path = folder / "model.safetensors"
    good = load_file(path)
    name = "head.positions"
    for weights in (
        {k: v for k, v in good.items() if k != name},
        {**good, name: torch.zeros(5, 32)},
        {**good, "head.surprise": torch.zeros(1)},
    ):
        save_file(weights, path)
        with pytest.raises(UserError, match=rf"{path}: 1 weights do not fit.*head\.(positions|surprise)"):
            SmallVLAPolicy.load(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.update(format="something else"),
        lambda value: value.pop("policy"),
        lambda value: value["policy"].update(widht=32),
        lambda value: value["policy"].update(tune="half"),
    ],
)
def test_settings_of_another_format_are_refused(folder, change):
    path = folder / "config.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=str(path)):
        SmallVLAPolicy.load(folder)


def test_no_policy_there(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        SmallVLAPolicy.load(tmp_path / "nowhere")
