"""What LeRobot reads of an exported reranker, so that it takes the folder for one of its own policies, and whether
what it then asks for is what was exported.

config.json                  the policy's type, ``deas``, its inputs and outputs, and the settings of `DeasConfig`
policy_preprocessor.json     observations go in as they are: names, batch dimension, device
policy_postprocessor.json    commands come out as they are

All of it follows from the manifest. Nothing is normalised outside of the policy: its statistics are its own.
"""

from pathlib import Path
from typing import Any

from deas_vla.data.contract import Contract
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.export.manifest import MANIFEST
from deas_vla.files import read_json

CONFIG = "config.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


def lerobot_config(manifest: dict) -> dict:
    """config.json: LeRobot finds a policy by its ``type`` and its inputs by their features."""
    contract, selection, keys = manifest["contract"], manifest["selection"], manifest["policy"]["image_keys"]
    cameras = {
        keys[camera["name"]]: {"type": "VISUAL", "shape": [3, camera["height"], camera["width"]]}
        for camera in contract["cameras"]
    }
    state = {"observation.state": {"type": "STATE", "shape": [len(contract["state"])]}}
    return {
        "type": "deas",
        "n_obs_steps": 1,
        "input_features": cameras | state,
        "output_features": {"action": {"type": "ACTION", "shape": [len(contract["action"])]}},
        "chunk_size": manifest["policy"]["horizon"],
        "n_action_steps": selection["execute_steps"],
        "rate_hz": contract["rate_hz"],
        "num_candidates": selection["num_candidates"],
        "selection": {"rule": selection["rule"], **selection["parameters"]},
    }


def lerobot_files(manifest: dict) -> dict[str, dict]:
    """Name to content of every file that LeRobot reads."""
    move = {"registry_name": "device_processor", "config": {"device": "cpu", "float_dtype": None}}
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    return {
        CONFIG: lerobot_config(manifest),
        PREPROCESSOR: {"name": "policy_preprocessor", "steps": [rename, batch, move]},
        POSTPROCESSOR: {"name": "policy_postprocessor", "steps": [move]},
    }


def check_lerobot_files(manifest: dict, folder: Path) -> None:
    """Compares what LeRobot reads with the manifest.

    Raises:
        UserError: naming the file that says something else.
    """
    for name, content in lerobot_files(manifest).items():
        if read_json(folder / name) != content:
            raise UserError(f"{folder / name} does not say what {MANIFEST} says; export the reranker again")


def require_fits(config: Any, manifest: dict, dataset_meta: Any = None) -> None:
    """Compares what LeRobot asks for with what was exported; LeRobot itself compares the names of cameras, and no more.

    Args:
        config: the `DeasConfig`, with what LeRobot put into it: the outputs are those of its environment or data set.
        manifest: of the export.
        dataset_meta: LeRobot's description of a data set; its rate, sizes and names are compared too.

    Raises:
        ContractMismatch: with every difference.
    """
    exported = lerobot_config(manifest)
    lines = []
    for what in ("chunk_size", "rate_hz"):
        if getattr(config, what) != exported[what]:
            lines.append(f"{what}: {getattr(config, what):g} against {exported[what]:g}")
    lines += _sizes(config.input_features or {}, exported["input_features"])
    lines += _sizes(config.output_features or {}, exported["output_features"])
    if dataset_meta is not None:
        lines += _dataset(dataset_meta, exported, Contract.from_json(manifest["contract"], MANIFEST))
    if lines:
        raise ContractMismatch(f"what is asked for and the policy do not fit together: {'; '.join(lines)}")


def _dataset(meta: Any, exported: dict, contract: Contract) -> list[str]:
    """Every way in which a data set is not of the policy's robot, one line each."""
    from lerobot.utils.feature_utils import dataset_to_policy_features

    lines = []
    if meta.fps != contract.rate_hz:
        lines.append(f"rate of the data set: {meta.fps:g} Hz against {contract.rate_hz:g} Hz")
    wanted = exported["input_features"] | exported["output_features"]
    lines += _sizes(dataset_to_policy_features(meta.features), wanted)
    for key, columns in (("observation.state", contract.state), ("action", contract.action)):
        names = meta.features.get(key, {}).get("names")
        mine = [column.name for column in columns]
        if isinstance(names, list) and len(names) == len(mine) and names != mine:
            lines.append(f"{key}: {', '.join(names)} against {', '.join(mine)}")
    return lines


def _sizes(features: dict, exported: dict) -> list[str]:
    """Features that are missing or of another size; more of them than the policy reads do no harm."""
    lines = []
    for key, wanted in exported.items():
        if key not in features:
            lines.append(f"{key} is missing")
        elif list(features[key].shape) != wanted["shape"]:
            lines.append(f"{key}: {tuple(features[key].shape)} against {tuple(wanted['shape'])}")
    return lines
