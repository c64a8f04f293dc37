"""Folders of LeRobot policies: LeRobot's own files, and the contract that it does not store.

config.json, model.safetensors                         LeRobot's policy
policy_preprocessor.json, policy_postprocessor.json    its processors, and their statistics as safetensors
contract.json                                          columns, cameras, rate and statistics
critic_feature.json                                    the module that was named for a kind without an adapter
parts/                                                 of a standalone folder: what else it is built from
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError
from deas_vla.files import atomic_path, write_json
from deas_vla.policies.lerobot.standalone import find_parts, make_standalone, without_weights

if TYPE_CHECKING:
    from deas_vla.policies.lerobot.modeling import LeRobotPolicy

CONFIG, WEIGHTS, CONTRACT = "config.json", "model.safetensors", "contract.json"
FEATURE = "critic_feature.json"
PROCESSORS = ("policy_preprocessor.json", "policy_postprocessor.json")


def save_policy(policy: "LeRobotPolicy", folder: Path, standalone: bool = False) -> None:
    """Writes a policy; one that was there is replaced only when the new one is complete.

    Args:
        policy: to write.
        folder: where.
        standalone: whether everything that it is built from is written too, see `standalone.py`.
    """
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        policy.policy.save_pretrained(temporary)
        processors = policy.processors
        for name, pipeline in zip(
            PROCESSORS, (processors.preprocessor, processors.postprocessor), strict=True
        ):
            pipeline.save_pretrained(temporary, config_filename=name)
        write_json(temporary / CONTRACT, policy.contract.to_json())
        if policy.feature is not None:
            write_json(temporary / FEATURE, {"module": policy.feature})
        if standalone:
            make_standalone(policy, temporary)


def load_policy(folder: Path, contract: Contract | None, feature: str | None) -> "LeRobotPolicy":
    """See `LeRobotPolicy.load`."""
    from deas_vla.policies.lerobot.modeling import LeRobotPolicy

    for name in (CONFIG, WEIGHTS, *PROCESSORS):
        if not (folder / name).is_file():
            hint = (
                "merge its adapter first" if (folder / "adapter_config.json").is_file() else "copy it again"
            )
            raise UserError(f"{folder / name}: missing, and no LeRobot policy is without it; {hint}")
    contract = _contract(folder, contract)
    if feature is None and (folder / FEATURE).is_file():
        feature = str(_read_json(folder / FEATURE).get("module"))
    try:
        config = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
        overrides = {"device_processor": {"device": config.device}, **find_parts(config, folder)}
        with without_weights(folder):
            kind = get_policy_class(config.type)
            policy = kind.from_pretrained(folder, config=config, local_files_only=True)
        _require_loaded(policy, folder / WEIGHTS)
        processors = make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError, ImportError, TypeError) as error:
        raise UserError(f"{folder}: LeRobot cannot read this policy ({_first_line(error)})") from error
    return LeRobotPolicy(policy, *processors, contract, feature).eval()


def _contract(folder: Path, given: Contract | None) -> Contract:
    path = folder / CONTRACT
    if not path.is_file():
        if given is None:
            raise UserError(
                f"{folder} has no {CONTRACT} to say what its columns mean; give a contract for it"
            )
        return given
    stored = Contract.from_json(_read_json(path), path)
    if given is not None:
        stored.require_same(given, f"policy {folder}", "what it is used for")
    return stored


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cut off or damaged ({error})") from error


def _require_loaded(policy: nn.Module, path: Path) -> None:
    """Refuses a policy whose weights are not those of the file.

    LeRobot loads with a warning what fits, and leaves the rest as it was drawn; π0 even goes on without any weights.
    """
    state = policy.state_dict()
    missing = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        renamed = _renaming(policy, names)
        for name in names:
            known = name in state or f"model.{name}" in state
            stored = file.get_tensor(name)
            for new, tensor in ({name: stored} if known else renamed({name: stored})).items():
                mine = state.get(new, state.get(f"model.{new}"))
                if mine is None:
                    raise UserError(
                        f"{path}: {name} is not a weight of this policy; its {CONFIG} is of another one"
                    )
                if mine.shape != tensor.shape or not torch.equal(mine.cpu(), tensor.to(mine.dtype)):
                    raise UserError(f"{path}: {name} was not loaded; its {CONFIG} is of another policy")
                missing.discard(mine.data_ptr())
    absent = [name for name, tensor in state.items() if tensor.data_ptr() in missing]
    if absent:
        raise UserError(
            f"{path}: {len(absent)} weights of the policy are not in it, the first is {absent[0]}"
        )


def _renaming(policy: nn.Module, names: list[str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """What LeRobot does to weights of older files when it reads them: other names, other shapes, some left out."""
    if hasattr(policy, "_fix_pytorch_state_dict_keys"):  # π0, π0.5
        return lambda weights: policy._fix_pytorch_state_dict_keys(weights, policy.config)
    if policy.config.type == "xvla":
        from lerobot.policies.xvla import modeling_xvla

        if modeling_xvla._is_vendored_florence_state_dict(dict.fromkeys(names)):
            return modeling_xvla._remap_vendored_florence_state_dict
    return lambda weights: weights


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
