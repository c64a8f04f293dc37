"""A policy and its critic as one folder: exported once, loaded anywhere, played by `choose`.

manifest.json says what they are. Most of it follows from the parts, and is compared with them.
"""

import hashlib
import json
from pathlib import Path

import torch

from deas_vla.config import flat
from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import read_json
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey, Prefix, require_scored
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import load_policy
from deas_vla.scorers.scorer import Scorer, load_scorer

POLICY, CRITIC, MANIFEST = "policy", "critic", "manifest.json"
FORMAT = "deas_vla reranker 3"
SECTIONS = ("policy", "scorer", "contract", "selection", "golden", "origin", "merged", "versions")
# What a difference in these means, in words.
MEANING = {
    "policy.encoder_fingerprint": "the policy's backbone is of another revision: ",
    "policy.horizon": "the policy makes chunks of another length: ",
    "scorer.horizon": "the critic scores chunks of another length: ",
    "scorer.encoder_fingerprint": "the critic's features are of another backbone revision: ",
}


class Reranker:
    """Best-of-N with everything that belongs to it; the manifest is what the folder says of policy, scorer and rule."""

    def __init__(self, decider: BestOfN, manifest: dict):
        self.decider, self.manifest = decider, manifest

    @property
    def policy(self) -> ChunkPolicy:
        return self.decider.policy

    @property
    def contract(self) -> Contract:
        """Columns, cameras, rate and statistics of what goes in and comes out."""
        return self.policy.contract

    @property
    def execute_steps(self) -> int:
        """How many actions of a chunk are played before the next decision."""
        return self.manifest["selection"]["execute_steps"]

    def choose(self, observation: Observation, keys: list[NoiseKey], prefix: Prefix | None = None) -> Choice:
        """Decides on B observations, see `BestOfN.choose`; a UserError if they are not of the contract."""
        observation.require_fits(self.contract)
        return self.decider.choose(observation, keys, prefix)

    def to(self, device: torch.device | str) -> "Reranker":
        """Moves policy and scorer to a device."""
        self.decider.policy.to(device)
        self.decider.scorer.to(device)
        return self

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "Reranker":
        """Reads an exported reranker whose parts are those of its manifest; `deas_vla.export.verify` checks more.

        Raises UserError, naming every difference, or the file that is missing, cut off or does not fit.
        """
        folder, where = Path(folder), Path(folder) / MANIFEST
        manifest = read_manifest(folder)
        stated, steps = manifest["selection"], manifest["policy"].get("horizon", 0)
        with as_user_error(f"{where}: its selection makes no sense; export the reranker again", UserError):
            count, played = stated["num_candidates"], stated["execute_steps"]
            if type(count) is not int or count < 1 or type(played) is not int or not 1 <= played <= steps:
                raise ValueError(f"{count} candidates, {played} of {steps} steps played")
            selection = SelectionConfig(rule=stated["rule"], **stated["parameters"])
        policy = load_policy(folder / POLICY)
        scorer = load_scorer(folder / CRITIC)
        lines = differences(manifest, sections_of_parts(policy, scorer))
        lines += [f"the critic's {line}" for line in contract_of(manifest).differences(scorer.contract)]
        if lines:
            raise UserError(f"{folder}: its parts are not those of {MANIFEST}: {'; '.join(lines)}")
        require_scored(played, scorer.horizon, selection.rule)
        return cls(BestOfN(policy, count, selection.rule, scorer, selection), manifest).to(device)


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a reranker; missing, damaged, or of a format that this version does not read, a UserError."""
    path = Path(folder) / MANIFEST
    manifest = read_json(path)
    if manifest.get("format") != FORMAT:
        raise UserError(f"{path}: format {manifest.get('format')!r}, this version reads {FORMAT!r}")
    for name in SECTIONS:
        if not isinstance(manifest.get(name), dict):
            raise UserError(f"{path}: the section {name} is missing; export the reranker again")
    contract_of(manifest, path)
    return manifest


def contract_of(manifest: dict, where: str | Path = MANIFEST) -> Contract:
    """The contract that a manifest states."""
    return Contract.from_json(manifest["contract"], where)


def sections_of_parts(policy: ChunkPolicy, scorer: Scorer) -> dict:
    """The sections of a manifest that follow from the parts, as JSON values."""
    settings = scorer.description()
    del settings["contract"]  # it is the policy's
    contract = policy.contract.to_json()
    statistics = json.dumps(contract["statistics"], sort_keys=True)
    sections = {
        "policy": {
            "kind": policy.type_name,
            "horizon": policy.horizon,
            "encoder_fingerprint": policy.encoder_fingerprint,
            "feature_source": policy.feature_source,
            "image_keys": policy.image_keys(),
        },
        "scorer": {**flat(settings), "score_range": scorer.score_range, "fingerprint": scorer.fingerprint()},
        "contract": contract | {"statistics_sha256": hashlib.sha256(statistics.encode()).hexdigest()},
    }
    return json.loads(json.dumps(sections))


def differences(manifest: dict, parts: dict) -> list[str]:
    """Every way in which the parts are not what the manifest says, one line each."""
    stated = contract_of(manifest)
    lines = stated.differences(contract_of(parts))
    if stated.statistics is None:
        lines.append(f"contract.statistics are missing in {MANIFEST}")
    for section in parts:
        said, found = manifest[section], parts[section]
        # The rest of the contract has been compared above, column by column.
        keys = {"statistics_sha256"} if section == "contract" else said.keys() | found.keys()
        for key in sorted(keys):
            if said.get(key) != found.get(key):
                name = f"{section}.{key}"
                values = f"{_short(found.get(key))}, {MANIFEST} says {_short(said.get(key))}"
                lines.append(f"{MEANING.get(name, '')}{name} is {values}")
    return lines


def _short(value: object) -> str:
    """A value as it is shown; of a hash, its beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)
