"""A small reranker on disk, and what a forger would need: parts changed, and SHA256SUMS written anew."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from policy_example import observations
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.export.reranker import sections_of_parts
from deas_vla.export.verify import Golden, write_sums
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.scorers.deas import DeasScorer
from deas_vla.scorers.scorer import Scorer, load_scorer

FEATURES = FeatureConfig(grid=2, dim=6)


def small_scorer(
    policy: ChunkPolicy,
    seed: int = 0,
    frames: Observation | None = None,
    kind: type[DeasScorer] = DeasScorer,
    **changes,
) -> DeasScorer:
    """A critic of random weights, on features that are fitted on random frames."""
    contract, frames = policy.contract, frames or observations(12, seed=5)
    with torch.no_grad():
        pooled = pool_tokens(policy.encode(frames), FEATURES, len(contract.cameras))
    features = Features(contract, FEATURES, fit_projection(pooled, FEATURES.dim))
    torch.manual_seed(seed)
    small = {"horizon": policy.horizon, "hidden_dim": 16, "num_layers": 2, "head": "hl_gauss", "future_weight": 0.0}
    config = CriticConfig(**(small | changes))
    return kind.untrained(features, config, policy.encoder_fingerprint).eval()


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


def rewrite_scorer(folder: Path, change: Callable[[Scorer], object]) -> Scorer:
    """Changes a saved scorer; its own fingerprint is made anew."""
    scorer = load_scorer(folder / "critic")
    change(scorer)
    scorer.save(folder / "critic")
    return scorer


def forge_contract(folder: Path, contract: Contract) -> None:
    """Another contract in every part, with every fingerprint made anew: only the golden inputs are left to tell."""
    (folder / "policy" / "contract.json").write_text(json.dumps(contract.to_json()))
    policy = SmallVLAPolicy.load(folder / "policy")
    scorer = load_scorer(folder / "critic")
    scorer.contract, scorer.encoder_fingerprint = contract, policy.encoder_fingerprint
    scorer.save(folder / "critic")

    told = sections_of_parts(policy, scorer)
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
