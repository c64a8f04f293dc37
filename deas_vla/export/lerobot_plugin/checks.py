"""Does a reranker fit to what LeRobot is about to use it for? LeRobot compares the names of cameras, and no more."""

from deas_vla.data.contract import Contract
from deas_vla.errors import ContractMismatch
from deas_vla.export.lerobot_files import lerobot_config
from deas_vla.export.lerobot_plugin.configuration_deas import DeasConfig
from deas_vla.export.manifest import MANIFEST


def require_fits(config: DeasConfig, manifest: dict, dataset_meta=None) -> None:
    """Compares what LeRobot asks for with what was exported.

    Args:
        config: the policy's, with what LeRobot put into it: the outputs are those of its environment or data set.
        manifest: of the export.
        dataset_meta: LeRobot's description of a data set; its rate, sizes and names are compared too.

    Raises:
        ContractMismatch: with every difference.
    """
    told = lerobot_config(manifest)
    lines = []
    for what in ("chunk_size", "rate_hz"):
        if getattr(config, what) != told[what]:
            lines.append(f"{what}: {getattr(config, what):g} against {told[what]:g}")
    lines += _sizes(config.input_features or {}, told["input_features"])
    lines += _sizes(config.output_features or {}, told["output_features"])
    if dataset_meta is not None:
        lines += _dataset(dataset_meta, told, Contract.from_json(manifest["contract"], MANIFEST))
    if lines:
        raise ContractMismatch(
            f"what is asked for and the exported policy do not fit together: {'; '.join(lines)}"
        )


def _dataset(meta, told: dict, contract: Contract) -> list[str]:
    """Every way in which a data set is not of the policy's robot, one line each."""
    from lerobot.utils.feature_utils import dataset_to_policy_features

    lines = []
    if meta.fps != contract.rate_hz:
        lines.append(f"rate of the data set: {meta.fps:g} Hz against {contract.rate_hz:g} Hz")
    lines += _sizes(
        dataset_to_policy_features(meta.features), told["input_features"] | told["output_features"]
    )
    for key, columns in (("observation.state", contract.state), ("action", contract.action)):
        names = meta.features.get(key, {}).get("names")
        mine = [column.name for column in columns]
        if isinstance(names, list) and len(names) == len(mine) and names != mine:
            lines.append(f"{key}: {', '.join(names)} against {', '.join(mine)}")
    return lines


def _sizes(features: dict, told: dict) -> list[str]:
    """Features that are missing or of another size; more of them than the policy reads do no harm."""
    lines = []
    for key, wanted in told.items():
        if key not in features:
            lines.append(f"{key} is missing")
        elif list(features[key].shape) != wanted["shape"]:
            lines.append(f"{key}: {tuple(features[key].shape)} against {tuple(wanted['shape'])}")
    return lines
