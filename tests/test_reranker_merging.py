"""LoRA in an export: merged, standing alone, with the same outputs and other weights."""

import shutil

import peft
import pytest
import torch
from data_example import example_contract
from policy_example import close, normal, observations, shake, small_config
from reranker_example import small_scorer
from safetensors.torch import load_file
from tiny_checkpoints import FAMILIES, write_checkpoint

from deas_vla.errors import UserError
from deas_vla.export.export import export_reranker
from deas_vla.export.reranker import Reranker
from deas_vla.export.verify import verify
from deas_vla.policies import lora
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy


@pytest.fixture
def checkpoint(tmp_path):
    """Family to a folder with its checkpoint, which a test may delete."""
    return lambda family: write_checkpoint(family, tmp_path / family)


def policy_of(folder, tune: str = "lora") -> SmallVLAPolicy:
    torch.manual_seed(0)
    return SmallVLAPolicy(small_config(backbone=str(folder), tune=tune, lora_rank=2), example_contract()).eval()


def sampled(policy: SmallVLAPolicy) -> torch.Tensor:
    with torch.no_grad():
        return policy.sample(policy.encode(observations(3)), normal(3, 2, 4, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_outputs_are_equal_and_weights_are_changed(checkpoint, tmp_path, family):
    home = checkpoint(family)
    policy = shake(policy_of(home))
    untuned = policy_of(home, "frozen")
    untuned.load_state_dict(policy.state_dict(), strict=False)
    before, expected = {k: v.clone() for k, v in policy.state_dict().items()}, sampled(policy)
    assert (expected - sampled(untuned)).abs().max() > 1e-3  # the adapters matter
    scorer = small_scorer(policy)
    folder = tmp_path / "reranker"
    exported = export_reranker(folder, policy=policy, scorer=scorer, observation=observations(4))

    shutil.rmtree(home)
    verify(folder)
    loaded = Reranker.load(folder)
    torch.testing.assert_close(sampled(loaded.policy), expected, rtol=1e-5, atol=1e-5)
    weights = load_file(folder / "policy" / "model.safetensors")
    assert not any(".lora_" in name or "base_layer" in name for name in weights)
    adapted = [name for name in before if name.endswith("base_layer.weight")]
    merged = [not torch.equal(weights[name.replace(".base_layer", "")], before[name]) for name in adapted]
    assert all(merged) and len(merged) > 5

    facts = loaded.manifest["merged"]
    assert facts["layers"] == facts["changed"] == len(adapted)
    assert 0 < facts["largest_differences"]["features"] < 1e-3
    assert loaded.manifest["origin"]["policy"]["backbone_weights"] == policy.backbone.base_hash
    assert loaded.policy.encoder_fingerprint != policy.encoder_fingerprint
    assert exported.policy.encoder_fingerprint == loaded.policy.encoder_fingerprint
    # What was given is as it was: it can be trained on.
    assert policy.config.tune == "lora" and close(sampled(policy), expected)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_a_frozen_backbone_is_exported_with_the_policy(checkpoint, tmp_path):
    home = checkpoint("llava")
    policy = shake(policy_of(home, "frozen"))
    expected = sampled(policy)
    export_reranker(tmp_path / "reranker", policy=policy, scorer=small_scorer(policy), observation=observations(2))
    shutil.rmtree(home)
    verify(tmp_path / "reranker")
    loaded = Reranker.load(tmp_path / "reranker")
    assert close(sampled(loaded.policy), expected)
    # No weight is another one, so neither is the encoder that the critic was trained on.
    assert loaded.policy.encoder_fingerprint == policy.encoder_fingerprint
    assert loaded.manifest["merged"]["layers"] == 0


def test_adapters_of_the_action_head_are_merged_too(tmp_path):
    torch.manual_seed(0)
    policy = shake(SmallVLAPolicy(small_config(), example_contract()))
    scorer = small_scorer(policy.eval())
    names = [n for n, m in policy.head.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith("up")]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=names), policy.head)
    with pytest.raises(UserError, match=f"adapters of {len(names)} layers change nothing"):
        export_reranker(tmp_path / "reranker", policy=policy, scorer=scorer, observation=observations(2))
    plain = sampled(policy)
    shake(policy.requires_grad_(True)).eval()
    scorer.encoder_fingerprint = policy.encoder_fingerprint
    assert (sampled(policy) - plain).abs().max() > 1e-3
    loaded = export_reranker(tmp_path / "reranker", policy=policy, scorer=scorer, observation=observations(2))
    assert loaded.manifest["merged"]["layers"] == len(names) > 0
    torch.testing.assert_close(sampled(loaded.policy), sampled(policy), rtol=0, atol=1e-4)
    verify(tmp_path / "reranker")


def test_adapters_that_were_never_trained_are_refused(checkpoint, tmp_path):
    policy = policy_of(checkpoint("llava"))
    with pytest.raises(UserError, match=r"LoRA adapters of \d+ layers change nothing"):
        export_reranker(tmp_path / "reranker", policy=policy, scorer=small_scorer(policy), observation=observations(2))
    assert not (tmp_path / "reranker").exists()


def test_a_merge_that_is_lost_on_the_way_is_found(checkpoint, tmp_path, monkeypatch):
    """The silent fault of published tools: adapters are dropped, and the base model is what is written."""
    policy = shake(policy_of(checkpoint("llava")))

    def drop(module):
        merged = lora.merge_adapters(module)
        clean = policy_of(tmp_path / "llava", "frozen").state_dict()
        module.load_state_dict({k: v for k, v in clean.items() if k.startswith("backbone.")}, strict=False)
        return merged

    monkeypatch.setattr("deas_vla.policies.chunk_policy.merge_adapters", drop)
    with pytest.raises(UserError, match=r"the written policy does not decide as the given one does.*features"):
        export_reranker(tmp_path / "reranker", policy=policy, scorer=small_scorer(policy), observation=observations(2))
    assert not (tmp_path / "reranker").exists()


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_what_is_not_kept_gives_up_its_memory_before_the_export_is_read(tmp_path, monkeypatch, tune):
    """One copy of the weights at a time: adapters are merged in place, nothing is copied."""
    torch.manual_seed(0)
    policy = shake(SmallVLAPolicy(small_config(tune=tune, lora_rank=2), example_contract())).eval()
    scorer, expected, held, adapted = small_scorer(policy), sampled(policy), [], len(lora.adapted_layers(policy))
    assert bool(adapted) == (tune == "lora")
    load = SmallVLAPolicy.load
    devices = lambda folder: held.extend(p.device.type for p in policy.parameters()) or load(folder)  # noqa: E731
    monkeypatch.setattr(SmallVLAPolicy, "load", devices)
    given = {"policy": policy, "scorer": scorer, "observation": observations(2)}
    loaded = export_reranker(tmp_path / "reranker", **given, keep=False)
    assert set(held) == {"meta"} and loaded.manifest["merged"]["layers"] == adapted
    torch.testing.assert_close(sampled(loaded.policy), expected, rtol=1e-5, atol=1e-5)
