"""Adapters that `lerobot-train --peft.…` leaves beside a base policy: merged when they are read."""

from pathlib import Path

from torch import nn

from deas_vla.errors import UserError, require
from deas_vla.files import read_json
from deas_vla.policies.fingerprint import hash_tensors

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapted_base(folder: Path, base: str | Path | None = None) -> Path:
    """The folder of the policy that an adapter was trained on: `base`, else what the adapter names; never a hub's."""
    named = base or read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not named or not Path(named).is_dir():
        what = f"the policy that it adapts, {named or 'which it does not name'}, is not a folder here"
        raise UserError(f"{folder / ADAPTER_CONFIG}: {what}; download it and name it: --base=FOLDER")
    return Path(named)


def with_adapter(policy: nn.Module, folder: Path) -> nn.Module:
    """The policy with the adapter's weights merged into its own; an adapter that changes nothing is a UserError."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        # peft would take pickled weights instead.
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: missing, and an adapter is nothing without it; copy it again")
    before = hash_tensors(policy.state_dict())
    adapted = require("peft", "groot").PeftModel.from_pretrained(policy, str(folder), local_files_only=True)
    merged = adapted.merge_and_unload(safe_merge=True)
    if hash_tensors(merged.state_dict()) == before:
        raise UserError(f"{folder / ADAPTER_WEIGHTS}: the adapter changes no weight of its base; was it trained?")
    return merged
