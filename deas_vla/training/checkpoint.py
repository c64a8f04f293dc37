"""A training's state on disk and, under an engine that splits the weights over processes, the whole of it.

FSDP2 and ZeRO-3 turn a module into one that holds a part of each weight and runs in step with the other processes only.
They get a copy; the module itself waits on the CPU and is given the trained weights at the end, so that what comes next
(saving, validation in one process) is the same under every engine.
"""

import copy
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from deas_vla.errors import as_user_error
from deas_vla.files import atomic_path
from deas_vla.policies.fingerprint import hash_tensors

CHECKPOINT = "checkpoint.safetensors"


def is_split(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of every weight."""
    return accelerator.is_fsdp2 or (_deepspeed(accelerator) and accelerator.state.deepspeed_plugin.zero_stage == 3)


def to_train(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """What the engine may take: the module, or a copy where it would split the weights."""
    return copy.deepcopy(module.to("cpu")).to(accelerator.device) if is_split(accelerator) else module


def gather(accelerator: Accelerator, prepared: nn.Module, module: nn.Module) -> None:
    """Gives a module, on every process, the weights of its copy that the engine has trained."""
    weights = accelerator.get_state_dict(prepared)  # all of them on the main process, and there alone
    for name, tensor in module.state_dict().items():
        value = weights[name].to(tensor.dtype) if accelerator.is_main_process else tensor
        tensor.copy_(broadcast(value.to(accelerator.device)))
    module.to(accelerator.device)


def whole(accelerator: Accelerator, module: nn.Module):
    """A block in which a ZeRO-3 module has all its weights, to be changed by every process alike."""
    if not (_deepspeed(accelerator) and is_split(accelerator)):
        return nullcontext()
    from deepspeed.runtime.zero.partition_parameters import GatheredParameters

    return GatheredParameters(list(module.parameters()), modifier_rank=0)


def _deepspeed(accelerator: Accelerator) -> bool:
    return accelerator.distributed_type == DistributedType.DEEPSPEED


class Checkpoint:
    """One file from which a killed training goes on; a newer one replaces it when it is complete.

    It holds what changes: weights that are trained and their moments, and buffers. Weights without a gradient are left
    out, and a hash of them is kept, unless something else than the optimiser changes them.

    Accelerate's `save_state` pickles, and a file that is read must not be able to run code.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, module: nn.Module, *, moved: bool):
        """Of a module before it is prepared; `moved`: its weights without a gradient change, too."""
        self.path, self.main = folder / CHECKPOINT, accelerator.is_main_process
        # DeepSpeed's moments are in its own partitions: an interrupted stage starts over, and, being counter-based,
        # ends with the same weights.
        self.possible = not _deepspeed(accelerator)
        tensors = module.state_dict(keep_vars=True)
        fixed = {n: t for n, t in tensors.items() if isinstance(t, nn.Parameter) and not t.requires_grad and not moved}
        self.fixed, self.fixed_hash = fixed.keys(), hash_tensors(fixed) if self.possible and fixed else ""

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Writes the state after that many steps; all processes call it."""
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        if not self.possible:
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights, moments = get_state_dict(module, optimizer, options=options)
        if not self.main:
            return
        held = {name: value for name, value in weights.items() if name not in self.fixed}
        tensors = {f"module.{name}": value for name, value in held.items()}
        for name, state in moments["state"].items():
            tensors |= {f"optimizer.{field}.{name}": value for field, value in state.items()}
        # Tied or sliced weights share memory, which safetensors refuses: write plain copies.
        tensors = {key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(step), "fixed": self.fixed_hash})

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restores the state, on every process; returns the number of steps already done, 0 if there is no file."""
        from torch.distributed.checkpoint import state_dict

        if not (self.possible and self.path.is_file()):
            return 0
        with as_user_error(f"{self.path} cannot be read; delete it and run again: this stage starts over", Exception):
            with safe_open(self.path, "pt") as file:
                step, fixed = int(file.metadata()["step"]), file.metadata()["fixed"]
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if fixed != self.fixed_hash:
                raise ValueError("its weights belong to others that are not trained")
            weights, state = {}, defaultdict(dict)
            for key, value in tensors.items():
                kind, _, name = key.partition(".")
                if kind == "module":
                    weights[name] = value
                else:
                    field, _, name = name.partition(".")
                    state[name][field] = value
            if missing := module.state_dict().keys() - weights.keys() - self.fixed:
                raise ValueError(f"{min(missing)} is missing")
            options = state_dict.StateDictOptions(full_state_dict=True, strict=False)
            groups = state_dict.get_optimizer_state_dict(module, optimizer)["param_groups"]
            moments = {"state": dict(state), "param_groups": groups}
            state_dict.set_state_dict(
                module, optimizer, model_state_dict=weights, optim_state_dict=moments, options=options
            )
        return step
