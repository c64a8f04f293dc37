"""Folders of saved policies: whole or not at all, and checked when they are read.

config.json          settings, format, and the hash of the backbone's weights where they are only referred to
contract.json        columns, cameras, rate and statistics
model.safetensors    every weight that is not in a checkpoint of its own
backbone/            the backbone's configuration, tokenizer and image processor
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from deas_vla.config import from_json, to_json
from deas_vla.data.contract import Contract
from deas_vla.errors import UserError
from deas_vla.files import atomic_path, write_json
from deas_vla.policies.small_vla.backbone import saved_backbone
from deas_vla.policies.small_vla.configuration import SmallVLAConfig

if TYPE_CHECKING:
    from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

FORMAT = "deas_vla SmallVLAPolicy 1"
WEIGHTS, CONFIG, CONTRACT, BACKBONE = "model.safetensors", "config.json", "contract.json", "backbone"


def save_policy(policy: "SmallVLAPolicy", folder: Path) -> None:
    """Writes a policy; a policy that was there is replaced only when the new one is complete."""
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        weights = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in policy.state_dict().items()
            if _stored(name, policy)
        }
        save_file(weights, temporary / WEIGHTS)
        policy.backbone.model.config.save_pretrained(temporary / BACKBONE)
        policy.processor.save_pretrained(temporary / BACKBONE)
        settings = {
            "format": FORMAT,
            "backbone_hash": policy.backbone.base_hash,
            "policy": to_json(policy.config),
        }
        write_json(temporary / CONFIG, settings)
        write_json(temporary / CONTRACT, policy.contract.to_json())


def load_policy(folder: Path, expected_contract: Contract | None) -> "SmallVLAPolicy":
    """See `SmallVLAPolicy.load`."""
    from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

    if not folder.is_dir():
        raise UserError(f"{folder}: no saved policy there")
    settings = _read_json(folder / CONFIG)
    if settings.get("format") != FORMAT or not {"backbone_hash", "policy"} <= settings.keys():
        raise UserError(f"{folder / CONFIG}: format {settings.get('format')!r} is not {FORMAT!r}")
    config = from_json(SmallVLAConfig, settings["policy"], folder / CONFIG)
    contract = Contract.from_json(_read_json(folder / CONTRACT), folder / CONTRACT)
    if expected_contract is not None:
        contract.require_same(expected_contract, f"policy {folder}", "what it is used for")
    backbone, processor = saved_backbone(config, folder / BACKBONE)
    if backbone.base_hash != settings["backbone_hash"]:
        raise UserError(
            f"{folder / CONFIG}: this policy was trained on another backbone than the one at {config.backbone} "
            f"(weights {str(settings['backbone_hash'])[:12]} against {str(backbone.base_hash)[:12]})"
        )
    policy = SmallVLAPolicy(config, contract, backbone=(backbone, processor))
    _fill(policy, folder / WEIGHTS)
    return policy.eval()


def _stored(name: str, policy: "SmallVLAPolicy") -> bool:
    """Whether a weight is written: all but the untouched weights of a backbone that has a checkpoint of its own."""
    return policy.backbone.base_hash is None or not name.startswith("backbone.") or ".lora_" in name


def _fill(policy: "SmallVLAPolicy", path: Path) -> None:
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: missing, cut off or damaged ({error}); save the policy again") from error
    wanted = {name: tensor for name, tensor in policy.state_dict().items() if _stored(name, policy)}
    wrong = sorted(
        name
        for name in wanted.keys() | weights.keys()
        if name not in wanted or name not in weights or wanted[name].shape != weights[name].shape
    )
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} weights do not fit the settings in {CONFIG} beside it, the first is {wrong[0]}"
        )
    policy.load_state_dict(
        {name: tensor.to(wanted[name].dtype) for name, tensor in weights.items()}, strict=False
    )


def _read_json(path: Path) -> dict:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: missing, cut off or damaged ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: not an object")
    return value
