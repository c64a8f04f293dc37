"""A small reranker on disk, and what a forger would need: parts changed, and SHA256SUMS written anew."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from policy_example import observations
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deas_vla.critic.critic import CriticConfig, DeasCritic
from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.export.golden import Golden
from deas_vla.export.manifest import told_by_parts
from deas_vla.export.sums import write_sums
from deas_vla.features.pooling import CriticInputs, FeatureConfig, FeatureProjection, pool_in_groups
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

FEATURES = FeatureConfig(grid=2, dim=6)


def small_critic(
    policy: ChunkPolicy, seed: int = 0, frames: Observation | None = None, **changes
) -> tuple[DeasCritic, CriticInputs]:
    """A critic of random weights, and its inputs, fitted on random frames."""
    contract, frames = policy.contract, frames or observations(12, seed=5)
    with torch.no_grad():
        pooled = pool_in_groups(policy.encode(frames), FEATURES, len(contract.cameras))
    projection = FeatureProjection.fit(pooled, FEATURES.dim)
    inputs = CriticInputs(contract, FEATURES, projection, policy.encoder_fingerprint)
    torch.manual_seed(seed)
    config = CriticConfig(**({"horizon": policy.horizon, "hidden_dim": 16, "num_layers": 2} | changes))
    critic = DeasCritic(config, FEATURES.dim, contract.state_dim, contract.action_dim)
    return critic.eval(), inputs


def rewrite_json(path: Path, change: Callable[[dict], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def rewrite_tensors(path: Path, change: Callable[[dict], object]) -> None:
    """Changes tensors in a safetensors file, and keeps its header."""
    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata=header)


def rewrite_inputs(folder: Path, change: Callable[[CriticInputs], object]) -> CriticInputs:
    """Changes what makes the critic's inputs; their own fingerprint is made anew."""
    inputs = CriticInputs.load(folder / "critic")
    change(inputs)
    inputs.save(folder / "critic")
    return inputs


def forge_contract(folder: Path, contract: Contract) -> None:
    """Another contract in every part, with every fingerprint made anew: only the golden inputs are left to tell."""
    (folder / "policy" / "contract.json").write_text(json.dumps(contract.to_json()))
    policy = SmallVLAPolicy.load(folder / "policy")
    inputs = CriticInputs.load(folder / "critic")
    inputs.contract, inputs.encoder_fingerprint = contract, policy.encoder_fingerprint
    inputs.save(folder / "critic")
    critic, _ = DeasCritic.load(folder / "critic")
    critic.save(folder / "critic", {"inputs_fingerprint": inputs.fingerprint})

    told = told_by_parts("groot", policy, critic, inputs, inputs.fingerprint)
    rewrite_json(folder / "manifest.json", lambda manifest: manifest.update(told))
    golden = Golden.load(folder / "golden.safetensors")
    golden.contract = contract.fingerprint
    golden.save(folder / "golden.safetensors")


def other_statistics(contract: Contract) -> Contract:
    """Another mean of the second state column."""
    mean = list(contract.statistics.state_mean)
    mean[1] += 0.7
    return contract.with_statistics(replace(contract.statistics, state_mean=tuple(mean)))


def reordered(contract: Contract) -> Contract:
    """The first two state columns in the other order."""
    return replace(contract, state=(contract.state[1], contract.state[0], *contract.state[2:]))


def reseal(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    write_sums(folder)
