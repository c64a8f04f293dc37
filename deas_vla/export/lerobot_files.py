"""What LeRobot reads of an exported reranker, so that it takes the folder for one of its own policies.

config.json                  the policy's type, ``deas``, its inputs and outputs, and the settings of `DeasConfig`
policy_preprocessor.json     observations go in as they are: names, batch dimension, device
policy_postprocessor.json    commands come out as they are

All of it follows from the manifest. Nothing is normalised outside of the policy: its statistics are its own.
"""

from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.export.manifest import MANIFEST, read_json
from deas_vla.files import write_json

CONFIG = "config.json"
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


def lerobot_config(manifest: dict) -> dict:
    """config.json: LeRobot finds a policy by its ``type`` and its inputs by their features."""
    contract, selection, keys = manifest["contract"], manifest["selection"], manifest["policy"]["image_keys"]
    cameras = {
        keys[camera["name"]]: {"type": "VISUAL", "shape": [3, camera["height"], camera["width"]]}
        for camera in contract["cameras"]
    }
    return {
        "type": "deas",
        "n_obs_steps": 1,
        "input_features": {
            **cameras,
            "observation.state": {"type": "STATE", "shape": [len(contract["state"])]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [len(contract["action"])]}},
        "chunk_size": manifest["policy"]["horizon"],
        "n_action_steps": selection["execute_steps"],
        "rate_hz": contract["rate_hz"],
        "num_candidates": selection["num_candidates"],
        "rule": selection["rule"],
        **selection["numbers"],
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


def write_lerobot_files(manifest: dict, folder: Path) -> None:
    for name, content in lerobot_files(manifest).items():
        write_json(folder / name, content)


def check_lerobot_files(manifest: dict, folder: Path) -> None:
    """Compares what LeRobot reads with the manifest.

    Raises:
        UserError: naming the file that says something else.
    """
    for name, content in lerobot_files(manifest).items():
        if read_json(folder / name) != content:
            raise UserError(f"{folder / name} does not say what {MANIFEST} says; export the reranker again")
