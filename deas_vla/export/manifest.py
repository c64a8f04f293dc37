"""manifest.json: what a reranker is made of. Most of it follows from the parts, and is compared with them."""

import hashlib
import json
from pathlib import Path

from deas_vla.config import flat
from deas_vla.data.contract import Contract
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import read_json
from deas_vla.improvement.selection import RULES, SelectionConfig
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.scorers.scorer import Scorer

FORMAT = "deas_vla reranker 3"
MANIFEST = "manifest.json"
SECTIONS = ("policy", "scorer", "contract", "selection", "golden", "origin", "merged", "versions")
# What a difference in these means, in words.
MEANING = {
    "policy.encoder_fingerprint": "the policy's backbone is of another revision",
    "policy.horizon": "the policy makes chunks of another length",
    "scorer.horizon": "the critic scores chunks of another length",
    "scorer.encoder_fingerprint": "the critic's features are of another backbone revision",
}


def sections_of_parts(policy: ChunkPolicy, scorer: Scorer) -> dict:
    """The sections of a manifest that follow from the parts."""
    settings = scorer.description()
    del settings["contract"]  # it is the policy's
    contract = policy.contract.to_json()
    statistics = json.dumps(contract["statistics"], sort_keys=True)
    return {
        "policy": {
            "kind": policy.type_name,
            "horizon": policy.horizon,
            "encoder_fingerprint": policy.encoder_fingerprint,
            "feature_source": policy.feature_source,
            "image_keys": policy.image_keys(),
        },
        "scorer": {**flat(settings), "score_range": list(scorer.score_range), "fingerprint": scorer.fingerprint()},
        "contract": contract | {"statistics_sha256": hashlib.sha256(statistics.encode()).hexdigest()},
    }


def selection_section(num_candidates: int, selection: SelectionConfig, execute_steps: int) -> dict:
    """How candidates are made and one is chosen: N, the rule and the parameters it uses, and how much is played."""
    used = ("noise_scale", *RULES[selection.rule].hyper_parameters)
    return {
        "num_candidates": num_candidates,
        "rule": selection.rule,
        "parameters": {name: getattr(selection, name) for name in used},
        "execute_steps": execute_steps,
    }


def read_manifest(folder: Path) -> dict:
    """The manifest of a reranker.

    Raises:
        UserError: if it is missing, damaged, or of a format that this version does not read.
    """
    path = Path(folder) / MANIFEST
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT!r}")
    missing = [name for name in SECTIONS if not isinstance(manifest.get(name), dict)]
    if missing:
        raise UserError(f"{path}: the section {missing[0]} is missing; export the reranker again")
    Contract.from_json(manifest["contract"], path)
    return manifest


def selection_of(manifest: dict, where: Path) -> tuple[int, SelectionConfig]:
    """N, and the rule with its parameters.

    Raises:
        UserError: if something is missing or makes no sense.
    """
    section, steps = manifest["selection"], manifest["policy"].get("horizon", 0)
    with as_user_error(f"{where}: its selection makes no sense; export the reranker again", UserError):
        count, execute = section["num_candidates"], section["execute_steps"]
        if type(count) is not int or count < 1 or type(execute) is not int or not 1 <= execute <= steps:
            raise ValueError(f"{count} candidates, {execute} of {steps} steps played")
        return count, SelectionConfig(rule=section["rule"], **section["parameters"])


def differences(manifest: dict, parts: dict) -> list[str]:
    """Every way in which the parts are not what the manifest says, one line each."""
    parts = json.loads(json.dumps(parts))
    stated, found = (Contract.from_json(side["contract"], MANIFEST) for side in (manifest, parts))
    lines = stated.differences(found)
    if stated.statistics is None:
        lines.append(f"contract.statistics are missing in {MANIFEST}")
    for section in parts:
        before, after = manifest[section], parts[section]
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) == after.get(key) or (section == "contract" and key != "statistics_sha256"):
                continue
            name = f"{section}.{key}"
            meaning = f"{MEANING[name]}: " if name in MEANING else ""
            found, said = _short(after.get(key)), _short(before.get(key))
            lines.append(f"{meaning}{name} is {found}, {MANIFEST} says {said}")
    return lines


def _short(value: object) -> str:
    """A value as it is shown; of a hash, its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)
