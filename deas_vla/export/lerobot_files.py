"""What LeRobot reads of an exported reranker, so that it takes the folder for one of its own policies, and whether
what it then asks for is what was exported.

config.json                  the policy's type, ``deas``, its inputs and outputs, and the settings of `DeasConfig`
policy_preprocessor.json     observations go in as they are: names, batch dimension, device
policy_postprocessor.json    commands come out as they are

All of it follows from the manifest. Nothing is normalised outside of the policy: its statistics are its own.
"""

from pathlib import Path
from typing import Any

from deas_vla.errors import ContractMismatch, UserError
from deas_vla.export.reranker import MANIFEST, contract_of
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


def processors(device: str) -> dict[str, dict]:
    """The steps before and after the policy, as LeRobot's processors are written; the policy is on the device."""
    there, back = (
        {"registry_name": "device_processor", "config": {"device": to, "float_dtype": None}} for to in (device, "cpu")
    )
    rename = {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}
    batch = {"registry_name": "to_batch_processor", "config": {}}
    return {
        PREPROCESSOR: {"name": "policy_preprocessor", "steps": [rename, batch, there]},
        POSTPROCESSOR: {"name": "policy_postprocessor", "steps": [back]},
    }


def lerobot_files(manifest: dict) -> dict[str, dict]:
    """Name to content of every file that LeRobot reads."""
    return {CONFIG: lerobot_config(manifest), **processors("cpu")}


def check_lerobot_files(manifest: dict, folder: Path) -> None:
    """Refuses a folder in which a file that LeRobot reads says something else than the manifest."""
    for name, content in lerobot_files(manifest).items():
        if read_json(folder / name) != content:
            raise UserError(f"{folder / name} does not say what {MANIFEST} says; export the reranker again")


def require_fits(config: Any, manifest: dict, dataset_meta: Any = None) -> None:
    """Compares what LeRobot asks for with what was exported; LeRobot itself compares the names of cameras, and no more.

    The `DeasConfig` has what LeRobot put into it: the outputs are those of its environment or data set, of whose
    description, where it is given, rate, sizes and names are compared too.
    """
    exported, contract = lerobot_config(manifest), contract_of(manifest)
    asked = {name: (getattr(config, name), exported[name]) for name in ("chunk_size", "rate_hz")}
    lines = [f"{name}: {theirs:g} against {mine:g}" for name, (theirs, mine) in asked.items() if theirs != mine]
    wanted = exported["input_features"] | exported["output_features"]
    lines += _sizes((config.input_features or {}) | (config.output_features or {}), wanted)
    if dataset_meta is not None:
        from lerobot.utils.feature_utils import dataset_to_policy_features

        if dataset_meta.fps != contract.rate_hz:
            lines.append(f"rate of the data set: {dataset_meta.fps:g} Hz against {contract.rate_hz:g} Hz")
        lines += _sizes(dataset_to_policy_features(dataset_meta.features), wanted)
        for key, columns in (("observation.state", contract.state), ("action", contract.action)):
            names, mine = dataset_meta.features.get(key, {}).get("names"), [column.name for column in columns]
            if isinstance(names, list) and len(names) == len(mine) and names != mine:
                lines.append(f"{key}: {', '.join(names)} against {', '.join(mine)}")
    if lines:
        raise ContractMismatch(f"what is asked for and the policy do not fit together: {'; '.join(lines)}")


def _sizes(features: dict, wanted: dict) -> list[str]:
    """Features that are missing or of another size; more of them than the policy reads do no harm."""
    found = {key: list(features[key].shape) if key in features else None for key in wanted}
    return [
        f"{key} is missing" if found[key] is None else f"{key}: {tuple(found[key])} against {tuple(feature['shape'])}"
        for key, feature in wanted.items()
        if found[key] != feature["shape"]
    ]
