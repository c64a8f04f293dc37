"""Any vision-language model of transformers as backbone: three families from their checkpoints, and LoRA."""

import copy
import shutil

import pytest
import torch
from data_example import example_contract
from policy_example import close, normal, observations, shake, small_config, trained
from safetensors.torch import load_file
from tiny_checkpoints import FAMILIES, write_checkpoint

from deas_vla.errors import UserError
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

pytestmark = pytest.mark.unit

H, A = 4, 2


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Family to a folder with its checkpoint."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: write_checkpoint(family, root / family) for family in FAMILIES}


def policy_of(folder, tune: str, **changes) -> SmallVLAPolicy:
    torch.manual_seed(0)
    return SmallVLAPolicy(small_config(backbone=str(folder), tune=tune, lora_rank=2, **changes), example_contract())


@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_encodes_samples_and_trains(checkpoints, family):
    policy = shake(policy_of(checkpoints[family], "full")).eval()
    observation, noise = observations(5), normal(5, 3, H, A)
    with torch.no_grad():
        context = policy.encode(observation)
        for rows in ([0], [1, 4], [0, 1, 2]):
            assert close(policy.encode(observation[rows]).tokens, context.tokens[rows])
        assert policy.sample(context, noise).shape == (5, 3, H, A)
        assert [(context.camera[0] == i).sum().item() for i in (0, 1)] == [4, 4]
        # Rule 6, through the backbone: more room in the prompt changes no real token.
        roomy = policy_of(checkpoints[family], "full", max_instruction_tokens=25)
        roomy.load_state_dict(policy.state_dict() | {"token_camera": roomy.token_camera}, strict=False)
        wide = roomy.eval().encode(observation)
        assert torch.allclose(wide.tokens[wide.mask], context.tokens[context.mask], atol=1e-5)
    policy.train()
    policy(observation, normal(5, H, A), noise, torch.rand(5, 3)).sum().backward()
    assert policy.backbone.model.get_input_embeddings().weight.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_pixels_are_those_of_the_real_processor(checkpoints, family):
    prompts = policy_of(checkpoints[family], "frozen").prompts
    images = torch.stack(list(observations(6).images.values()), 1)
    assert prompts.fast == (family != "qwen3_vl")
    assert torch.allclose(prompts._pixels(images), prompts.real_pixels(images), atol=1e-5)


def test_fast_pixels_of_the_embedded_backbone():
    prompts = SmallVLAPolicy(small_config(), example_contract()).prompts
    images = torch.stack(list(observations(6).images.values()), 1)
    assert prompts.fast
    assert torch.allclose(prompts._pixels(images), prompts.real_pixels(images), atol=1e-5)


def test_images_of_another_size_go_through_the_real_processor(checkpoints):
    contract = example_contract(cameras=tuple(type(c)(c.name, 24, 24) for c in example_contract().cameras))
    with pytest.warns(UserWarning, match=r"left 24x24, wrist 24x24.*which is slow") as told:
        policy = SmallVLAPolicy(small_config(backbone=str(checkpoints["paligemma"]), tune="frozen"), contract).eval()
    assert not policy.prompts.fast and len([each for each in told if "slow" in str(each.message)]) == 1
    observation = observations(3)
    observation.images = {
        name: image.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :24, :24]
        for name, image in observation.images.items()
    }
    with torch.no_grad():
        assert policy.encode(observation).tokens.isfinite().all()


def test_frozen_backbone_gets_no_gradient(checkpoints):
    policy = policy_of(checkpoints["llava"], "frozen", context_layers=1).train()
    before = copy.deepcopy(policy.backbone.state_dict())
    assert not policy.backbone.training
    optimizer = torch.optim.AdamW(trained(policy), lr=1e-2)
    for _ in range(2):
        policy(observations(3), normal(3, H, A), normal(3, 1, H, A), torch.rand(3, 1)).sum().backward()
        optimizer.step()
    assert all(p.grad is None for p in policy.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in policy.backbone.state_dict().items())
    assert policy.context_encoder.layers[0].linear1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_trains_adapters_only(checkpoints, family):
    policy = policy_of(checkpoints[family], "lora").train()
    learning = [name for name, p in policy.backbone.named_parameters() if p.requires_grad]
    assert learning and all(".lora_" in name for name in learning)
    for tower in ("vis", "language_model"):
        assert any(tower in name for name in learning)
    before = copy.deepcopy(policy.state_dict())
    optimizer = torch.optim.AdamW(trained(policy), lr=1e-2)
    # The first step leaves zero: only then do both factors of an adapter get a gradient.
    for _ in range(4):
        optimizer.zero_grad()
        policy(observations(3), normal(3, H, A), normal(3, 1, H, A), torch.rand(3, 1)).sum().backward()
        optimizer.step()
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert {f"backbone.{name}" for name in learning} == {n for n in changed if n.startswith("backbone.")}


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(checkpoints, tmp_path, family, tune):
    policy = shake(policy_of(checkpoints[family], tune)).eval()
    policy.save(tmp_path / "policy")
    # A fully tuned policy stands alone; the others refer to the checkpoint they were trained on.
    stored = load_file(tmp_path / "policy" / "model.safetensors")
    base = [name for name in stored if name.startswith("backbone.") and ".lora_" not in name]
    assert bool(base) == (tune == "full")
    loaded = SmallVLAPolicy.load(tmp_path / "policy", example_contract())
    observation, noise = observations(3), normal(3, 2, H, A)
    with torch.no_grad():
        a, b = (p.sample(p.encode(observation), noise) for p in (policy, loaded))
    assert close(a, b) and a.abs().max() > 1e-3
    assert loaded.encoder_fingerprint == policy.encoder_fingerprint
    assert not loaded.training


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_another_backbone_is_refused(checkpoints, tmp_path, tune):
    home = tmp_path / "backbone"
    shutil.copytree(checkpoints["llava"], home)
    policy_of(home, tune).save(tmp_path / "policy")
    shutil.rmtree(home)
    with pytest.raises(UserError, match="backbone"):
        SmallVLAPolicy.load(tmp_path / "policy")
    write_checkpoint("llava", home, seed=1)
    with pytest.raises(UserError, match=r"config\.json: this policy was trained on another backbone"):
        SmallVLAPolicy.load(tmp_path / "policy")
