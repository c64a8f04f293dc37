"""LoRA on the backbone, the head or both of a policy, and activations that are computed again for the gradient."""

import copy

import pytest
import torch
from accelerate import Accelerator
from lerobot_example import maker, normal
from lerobot_example import observations as lerobot_observations
from policy_example import close, observations, small_policy
from safetensors import safe_open

from deas_vla.errors import UserError
from deas_vla.policies.lora import LoraConfig, freeze_unused, merge_adapters
from deas_vla.policies.registry import load_policy
from deas_vla.training.imitation import FlowImitation, first_loss
from deas_vla.training.loop import TrainingConfig, train
from recipes.finetune_policy import FinetunePolicyConfig, main

pytestmark = pytest.mark.unit


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Makes a policy of a kind, the same each time; all its weights can be trained."""
    lerobot = maker(tmp_path_factory.mktemp("backbones"))

    def made(kind: str):
        free = {"train_expert_only": False, "freeze_vision_encoder": False} if kind == "smolvla" else {}
        return small_policy() if kind == "small_vla" else lerobot(kind, **free)

    return made


def batch_of(policy, step: int = 0) -> tuple:
    """Four observations and what `ChunkPolicy.loss` takes with them."""
    see = observations if policy.type_name == "small_vla" else lerobot_observations
    shape = (policy.horizon, policy.contract.action_dim)
    time = torch.linspace(0.1, 0.9, 8).view(4, 2)
    valid = torch.ones(4, policy.horizon, dtype=torch.bool)
    return see(4, seed=step), normal(4, *shape, seed=step), normal(4, 2, *shape, seed=step + 50), time, valid


def chunks_of(policy) -> torch.Tensor:
    policy.eval()
    observation, _, noise, *_ = batch_of(policy)
    with torch.no_grad():
        return policy.sample(policy.encode(observation), noise)


def adapted(policy, on: str):
    torch.manual_seed(1)
    policy.add_lora(LoraConfig(on, rank=2, alpha=8))
    freeze_unused(policy, first_loss(policy, lambda step: batch_of(policy)))
    return policy


def fine_tune(policy, folder, kill_at: int | None = None):
    def batch_at(step: int) -> tuple:
        if step == kill_at:
            raise Killed
        return batch_of(policy, step)

    config = TrainingConfig(steps=4, batch_size=4, learning_rate=0.05, checkpoint_every=2)
    train(Accelerator(cpu=True), FlowImitation(policy), batch_at, config, folder, name="lora", seed=0)
    return policy


@pytest.mark.parametrize("kind, on", [("small_vla", "both"), ("smolvla", "head")])
def test_rule_12_lora_is_resumed_to_the_same_weights_and_merged(make, tmp_path, kind, on):
    base = make(kind)
    plain, weights = chunks_of(base), copy.deepcopy(base.state_dict())
    policy = fine_tune(adapted(make(kind), on), tmp_path / "whole")
    with pytest.raises(Killed):
        fine_tune(adapted(make(kind), on), tmp_path / "killed", kill_at=3)
    with safe_open(tmp_path / "killed" / "checkpoint.safetensors", "pt") as file:
        held = [key for key in file.keys() if key.startswith("module.")]  # noqa: SIM118
    parameters = {f"module.policy.{name}" for name, _ in policy.named_parameters()}
    assert held and all(".lora_" in key for key in set(held) & parameters)
    resumed = fine_tune(adapted(make(kind), on), tmp_path / "killed").state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in policy.state_dict().items())

    decided = chunks_of(policy)
    assert (decided - plain).abs().max() > 1e-2
    trained = sum("lora_B" in name for name, p in policy.named_parameters() if p.requires_grad)
    merged = policy.merge_lora()
    assert merged.layers >= merged.changed == trained > 5 and 0 < merged.lost < 1e-4
    assert close(chunks_of(policy), decided, 1e-4)
    policy.save(tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy")
    assert close(chunks_of(loaded), decided, 1e-4) and loaded.state_dict().keys() == weights.keys()
    if on == "head":
        assert loaded.encoder_fingerprint == base.encoder_fingerprint


@pytest.mark.parametrize("on", ["backbone", "head"])
def test_adapters_are_where_they_are_asked_for_and_all_that_is_trained(make, on):
    policy = adapted(make("small_vla"), on)
    learning = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert learning and all(".lora_" in name and name.startswith(on) for name in learning)
    # Read past an adapter by PyTorch's own layers, or not read by the loss at all, where a second process would wait.
    assert not any("context_encoder" in name for name in learning)
    with pytest.raises(UserError, match="has adapters already"):
        policy.add_lora(LoraConfig("head"))


def test_what_the_loss_does_not_read_is_not_trained(make):
    """The last layer of SmolVLA's language model: the expert reads its keys and values, and nobody what follows."""
    policy = adapted(make("smolvla"), "both")
    FlowImitation(policy.train())(*batch_of(policy))[0].backward()
    assert all(p.grad is not None for p in policy.parameters() if p.requires_grad)


def test_what_rounding_takes_of_a_change_is_said():
    """In bfloat16 a weight of 1 does not move by a thousandth: all of the change is lost."""
    import peft

    module = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False))
    torch.nn.init.ones_(module[0].weight)
    module[0].weight.data[0, 0] = 0  # so that one weight does change
    module.bfloat16()
    peft.inject_adapter_in_model(peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"]), module)
    for parameter in (module[0].lora_A["default"].weight, module[0].lora_B["default"].weight):
        torch.nn.init.constant_(parameter, 0.03)
    merged = merge_adapters(module)
    assert merged.changed == 1 and merged.lost == pytest.approx((15 / 16) ** 0.5, rel=0.01)


def test_an_adapter_whose_weights_are_not_finite_is_refused_by_its_layer(make):
    policy = adapted(make("small_vla"), "head")
    adapter = next(parameter for name, parameter in policy.named_parameters() if ".lora_B." in name)
    adapter.data[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"the LoRA adapter of head\..* has weights that are not finite"):
        merge_adapters(policy)


@pytest.mark.parametrize("kind", ["small_vla", "diffusion", "smolvla", "pi0"])
def test_activations_that_are_computed_again_give_the_same_gradients(make, kind):
    def run(policy):
        saved = 0

        def pack(tensor):
            nonlocal saved
            saved += tensor.numel() * tensor.element_size()
            return tensor

        policy.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = policy(*batch_of(policy)).mean()
        loss.backward()
        return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, saved

    expected, all_of_them = run(make(kind))
    policy = make(kind)
    policy.checkpoint_activations()
    found, some = run(policy)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert some < all_of_them


@pytest.mark.parametrize(
    "changes, fix",
    [
        ({"lora": LoraConfig("head")}, r"--start_from=FOLDER"),
        ({"lora": LoraConfig("both"), "start_from": "policy"}, r"--freeze_encoder=false"),
    ],
)
def test_lora_that_has_nothing_to_adapt_or_breaks_a_critic_is_refused(changes, fix):
    with pytest.raises(UserError, match=fix):
        main(FinetunePolicyConfig(demonstrations="data", **changes))
