"""Low-rank adapters (LoRA): trained beside frozen weights, then folded into them."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from deas_vla.errors import UserError, require, require_ranges

# Named, because the help of the command line is read from the source and sees no quotes in an annotation.
Part = Literal["nothing", "backbone", "head", "both"]


@dataclass
class LoraConfig:
    """Adapters for fine-tuning a policy, of whose own weights none is trained then."""

    # Where they are: backbone (attention, in vision and language), head (every linear layer), both, or nothing: all
    # weights are trained.
    on: Part = "nothing"
    rank: int = 16  # Their rank.
    alpha: int = 32  # Their scale: the output is multiplied by alpha / rank.

    def __post_init__(self):
        require_ranges(self, "lora.", {"at least 1": "rank alpha"})


class Merged(NamedTuple):
    """How many layers had adapters, how many of them have other weights now, and how much of the change was lost.

    `lost`: over layers the largest norm of what rounding the sum added, as a share of the norm of the change.
    """

    layers: int
    changed: int
    lost: float = 0.0


def attention_layers(module: nn.Module) -> list[str]:
    """Names of the linear layers of every attention."""
    return [
        f"{name}.{child}" if name else child
        for name, part in module.named_modules()
        if "Attention" in type(part).__name__
        for child, layer in part.named_children()
        if type(layer) is nn.Linear
    ]


def add_adapters(policy: nn.Module, encoder: Sequence[nn.Module], config: LoraConfig) -> None:
    """Freezes a policy and gives it adapters in float32, which are all that it trains; `encoder`: its backbone."""
    peft = require("peft", "groot")
    inside = {id(part) for module in encoder for part in module.modules()}
    attention, targets = set(attention_layers(policy)), []
    # PyTorch's own encoder layers read their linear layers' weights past an adapter.
    fused = [part for part in policy.modules() if isinstance(part, nn.TransformerEncoderLayer | nn.MultiheadAttention)]
    skipped = {id(part) for module in fused for part in module.modules()}
    for name, layer in policy.named_modules():
        part = "backbone" if id(layer) in inside else "head"
        if type(layer) is nn.Linear and id(layer) not in skipped and config.on in (part, "both"):
            targets += [name] if part == "head" or name in attention else []
    if any(".lora_" in name for name, _ in policy.named_parameters()):
        raise UserError("this policy has adapters already (policy.tune=lora): leave lora.on out")
    if not targets:
        raise UserError(f"lora.on={config.on}: no linear layer there for LoRA to adapt; train all weights instead")
    settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets)
    peft.inject_adapter_in_model(settings, policy)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def freeze_unused(policy: nn.Module, loss: Tensor) -> None:
    """Freezes what a loss does not depend on: distributed training would wait for its gradient."""
    learning = [p for p in policy.parameters() if p.requires_grad]
    for parameter, gradient in zip(learning, torch.autograd.grad(loss, learning, allow_unused=True), strict=True):
        parameter.requires_grad_(gradient is not None)


def adapted_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and layers inside a module that have an adapter of `peft`."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]


def merge_adapters(module: nn.Module) -> Merged:
    """Folds every adapter inside a module, if there are any, into the layer it adapts, in place, one after another.

    Refuses adapters of which not one changes a weight: merging would quietly give the base model.
    """
    adapted, changed, lost = adapted_layers(module), 0, 0.0
    for name, layer in adapted:
        base = layer.get_base_layer()
        before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
        added = sum(layer.get_delta_weight(adapter).detach().float() for adapter in layer.active_adapters)
        if not torch.isfinite(added).all():
            raise UserError(f"the LoRA adapter of {name} has weights that are not finite; train it again")
        # Into the weight that is there: new ones would leave holes in the process's memory, layer after layer.
        layer.merge(safe_merge=False)
        changed += any(not torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())
        rounding = base.weight.detach().float() - before["weight"].float() - added
        lost = max(lost, (rounding.norm() / added.norm().clamp_min(1e-30)).item())
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)
    if adapted and not changed:
        what = f"the LoRA adapters of {len(adapted)} layers change nothing (the first is {adapted[0][0]})"
        raise UserError(f"{what}; they were not trained or not loaded: name the fine-tuned policy")
    return Merged(len(adapted), changed, lost)
