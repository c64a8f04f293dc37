"""Adding a policy: one file outside the package and one registration; training, export and robots know it by name."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode

from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.policies.registry import POLICIES, load_policy
from recipes.finetune_policy import FinetunePolicyConfig, new_policy

pytestmark = pytest.mark.unit

TOY = '''
"""A policy that looks at the state alone."""

import hashlib
import json
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load_file, save_file

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Context
from deas_vla.files import read_json, write_json
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import register_policy


@dataclass
class LinearConfig:
    horizon: int = 4


@register_policy("linear")
class LinearPolicy(ChunkPolicy):
    Config = LinearConfig

    def __init__(self, config, contract):
        super().__init__()
        self.config, self.contract, self.horizon = config, contract, config.horizon
        self.head = torch.nn.Linear(contract.state_dim, contract.action_dim)

    @classmethod
    def create(cls, config, contract, instructions):
        return cls(config, contract)

    def encode(self, observation):
        state = self.contract.normalize_state(observation.state)
        tokens = state[:, None, :1].repeat(1, len(self.contract.cameras), 1)
        camera = torch.arange(len(self.contract.cameras)).expand(len(state), -1)
        return Context(tokens, torch.ones_like(camera, dtype=torch.bool), camera, state)

    def sample(self, context, noise):
        return self.head(context.state)[:, None, None] + noise

    def loss(self, context, chunks, noise, time, valid=None):
        error = (self.head(context.state)[:, None] - chunks).square().mean(2)
        return error.mean(1) if valid is None else (error * valid).sum(1) / valid.sum(1).clamp_min(1)

    @property
    def encoder_fingerprint(self):
        return hashlib.sha256(self.contract.fingerprint.encode()).hexdigest()

    def write(self, folder):
        save_file(self.state_dict(), folder / "model.safetensors")
        write_json(folder / "config.json", {"config": asdict(self.config), "contract": self.contract.to_json()})

    @classmethod
    def load(cls, folder, contract=None):
        stored = read_json(folder / "config.json")
        policy = cls(LinearConfig(**stored["config"]), Contract.from_json(stored["contract"], folder))
        policy.load_state_dict(load_file(folder / "model.safetensors"))
        return policy.eval()
'''


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The name of a policy in a file outside the package."""
    path = tmp_path / "linear_policy.py"
    path.write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    yield f"{path}:linear"
    sys.modules.pop("linear_policy", None)
    POLICIES._registered.pop("linear", None)


def test_a_policy_from_a_file_is_made_trained_saved_read_and_exported(toy, tmp_path):
    settings = tmp_path / "settings.json"
    settings.write_text('{"horizon": 4}')
    config = FinetunePolicyConfig(policy_type=toy, policy_settings=str(settings))
    policy = new_policy(config, example_contract(), ["lift the cube"])
    assert policy.type_name == "linear" and policy.horizon == 4 and "linear" in POLICIES.names()

    episode = example_episode(np.random.default_rng(0), 12, True)
    frames = FrameTable.of([episode])
    observation = frames.observation(torch.arange(3))
    policy(observation, torch.ones(3, 4, 2), torch.zeros(3, 1, 4, 2), torch.zeros(3, 1)).mean().backward()
    torch.optim.SGD(policy.parameters(), lr=0.1).step()

    policy.save(tmp_path / "policy")
    again = load_policy(tmp_path / "policy")
    noise = torch.zeros(3, 2, 4, 2)
    with torch.no_grad():
        chunks = [each.sample(each.encode(observation), noise) for each in (policy, again)]
    torch.testing.assert_close(*chunks)
    assert policy.save_standalone(tmp_path / "standalone").layers == 0
    assert (tmp_path / "standalone" / "model.safetensors").read_bytes() == (
        tmp_path / "policy" / "model.safetensors"
    ).read_bytes()

    unknown = tmp_path / "settings.json"
    unknown.write_text('{"wings": 2}')
    with pytest.raises(UserError, match="wings"):
        new_policy(config, example_contract(), [])


def test_a_saved_policy_of_an_unknown_type_is_refused_and_imports_nothing(toy, tmp_path):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / "policy_type.json").write_text(json.dumps({"type": toy}))
    with pytest.raises(UserError, match=r"policy_type\.json: of a type that is not known here"):
        load_policy(folder)
    assert "linear_policy" not in sys.modules


def test_a_class_that_is_not_registered_says_so(toy, tmp_path):
    from deas_vla.policies.chunk_policy import ChunkPolicy

    class Nameless(ChunkPolicy):
        encode = sample = loss = encoder_fingerprint = None

    with pytest.raises(UserError, match=r"decorate it with @register_policy"):
        Nameless().save(tmp_path / "nameless")


def test_a_lerobot_policy_is_not_trained_from_scratch():
    config = FinetunePolicyConfig(policy_type="lerobot")
    with pytest.raises(UserError, match="start from a saved one"):
        new_policy(config, example_contract(), [])


def test_a_kind_of_lerobot_policy_is_one_file():
    from deas_vla.policies.lerobot import adapters
    from deas_vla.policies.lerobot.base import ADAPTERS, Adapter

    files = {path.stem for path in Path(adapters.__file__).parent.glob("*.py")} - {"__init__"}
    assert files == set(ADAPTERS.names()) and {"smolvla", "pi05", "diffusion"} <= files
    for name in files:
        assert issubclass(ADAPTERS.get(name), Adapter) and ADAPTERS.get(name).__module__.endswith(f".{name}")
