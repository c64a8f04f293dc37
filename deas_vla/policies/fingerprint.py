"""What identifies an encoder: SHA-256 over its weights and settings, computed once and again only after a change."""

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class Fingerprint:
    """Remembers the last hash of an encoder, because hashing a few billion weights takes seconds.

    A weight has changed if its memory or its version is another one. PyTorch's fused optimisers do not count the
    version up, so a policy that is about to learn calls `forget`, and asks with `learning=True` as long as it does.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._key, self._value = None, ""

    def of(self, modules: Sequence[nn.Module], settings: Mapping[str, object], learning: bool = False) -> str:
        """SHA-256 of the modules' weights and of settings (JSON values); while learning, nothing is remembered."""
        tensors = {
            f"{number}.{name}": tensor
            for number, module in enumerate(modules)
            for name, tensor in module.state_dict(keep_vars=True).items()
        }
        described = json.dumps(settings, sort_keys=True)
        key = (described, *((name, t.data_ptr(), _version(t)) for name, t in tensors.items()))
        if key != self._key:
            value = hashlib.sha256((described + hash_tensors(tensors)).encode()).hexdigest()
            self._key, self._value = None if learning else key, value
        return self._value


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
