"""Weights from a file into a module with one copy of them in memory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RANDOM_FILLS = (torch.Tensor.uniform_, torch.Tensor.normal_)


class _NoInitialValues(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in RANDOM_FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def uninitialised() -> Iterator[None]:
    """A block in which new modules get no initial values, which takes seconds and memory: they must be read after it.

    No random number is drawn. Buffers that are computed have their values.
    """
    with _NoInitialValues():
        yield


def read_into(targets: Mapping[str, Tensor], path: Path) -> list[str]:
    """Copies the tensors of a safetensors file into those of the same names, one at a time.

    Nothing is copied if names or shapes differ; returns those names, sorted. Raises SafetensorError or OSError if the
    file is cut off or missing.
    """
    wanted = {(name, tuple(tensor.shape)) for name, tensor in targets.items()}
    # Not mapped into memory: pages that were read count, and stay as long as the file is open.
    with safe_open(path, "pt", backend="pread") as file, torch.no_grad():
        found = {(name, tuple(file.get_slice(name).get_shape())) for name in file.keys()}  # noqa: SIM118
        if wrong := sorted({name for name, _ in wanted ^ found}):
            return wrong
        for name, tensor in targets.items():
            tensor.copy_(file.get_tensor(name))
    return []


def read_module(module: nn.Module, path: Path) -> bool:
    """Reads all weights of a module; False, and nothing is changed, if the file's are named or shaped otherwise.

    Of several names of one weight the file needs one, as `safetensors.torch.save_model` writes it.
    """
    state = module.state_dict()
    with safe_open(path, "pt") as file:
        stored = set(file.keys())
    shared = {state[name].data_ptr() for name in stored & state.keys()}
    targets = {name: tensor for name, tensor in state.items() if name in stored or tensor.data_ptr() not in shared}
    return not read_into(targets, path)
