"""Keys and values of a prefix as one tensor with a row for each observation, and back."""

import torch
from torch import Tensor
from transformers import DynamicCache


def pack(cache: DynamicCache) -> Tensor:
    """(B, layers, 2, heads, L, d) keys and values of all layers."""
    return torch.stack([torch.stack([layer.keys, layer.values], 1) for layer in cache.layers], 1)


def unpack(packed: Tensor) -> DynamicCache:
    """A cache whose content is what `pack` was given, row for row."""
    cache = DynamicCache()
    for number, layer in enumerate(packed.unbind(1)):
        cache.update(layer[:, 0], layer[:, 1], number)
    return cache
