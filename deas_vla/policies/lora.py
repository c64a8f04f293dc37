"""Low-rank adapters (LoRA), folded into the weights that they adapt."""

import sys
from typing import NamedTuple

import torch
from torch import nn

from deas_vla.errors import UserError


class Merged(NamedTuple):
    """How many layers had adapters, and how many of them have other weights now."""

    layers: int
    changed: int


def merge_adapters(module: nn.Module) -> Merged:
    """Folds every adapter of `peft` inside a module, if there are any, into the layer it adapts, in place.

    Refuses adapters of which not one changes a weight: merging would quietly give the base model.
    """
    if "peft" not in sys.modules:
        return Merged(0, 0)
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]
    changed = 0
    for name, layer in adapted:
        before = {key: tensor.clone() for key, tensor in layer.get_base_layer().state_dict().items()}
        layer.merge(safe_merge=True)
        base = layer.get_base_layer()
        changed += any(not torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, base)
    if adapted and not changed:
        raise UserError(
            f"the LoRA adapters of {len(adapted)} layers change nothing (the first is {adapted[0][0]}); "
            "they were not trained or not loaded: name the fine-tuned policy"
        )
    return Merged(len(adapted), changed)
