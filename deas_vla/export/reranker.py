"""A policy and its critic as one folder: exported once, loaded anywhere, played by `choose`."""

from pathlib import Path

import torch

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.manifest import MANIFEST, differences, read_manifest, sections_of_parts, selection_of
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey, Prefix
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import class_named
from deas_vla.scorers.scorer import load_scorer

POLICY, CRITIC = "policy", "critic"


class Reranker:
    """Best-of-N with everything that belongs to it.

    Args:
        decider: policy, scorer and selection rule.
        manifest: what the folder says about them.
    """

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
        """Decides on B observations, see `BestOfN.choose`.

        Raises:
            UserError: if a camera is missing or an image or the state has another shape than in the contract.
        """
        observation.require_fits(self.contract)
        return self.decider.choose(observation, keys, prefix)

    def to(self, device: torch.device | str) -> "Reranker":
        """Moves policy and scorer to a device."""
        self.decider.policy.to(device)
        self.decider.scorer.to(device)
        return self

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu") -> "Reranker":
        """Reads an exported reranker, and checks that its parts are those that its manifest names.

        That its files are unchanged and still give the same scores is what `deas_vla.export.verify` checks.

        Raises:
            UserError: naming every difference, or the file that is missing, cut off or does not fit.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        count, selection = selection_of(manifest, folder / MANIFEST)
        kind = manifest["policy"].get("kind")
        policy = class_named(kind, folder / MANIFEST).load(folder / POLICY)
        scorer = load_scorer(folder / CRITIC)
        contract = Contract.from_json(manifest["contract"], folder / MANIFEST)
        lines = differences(manifest, sections_of_parts(policy, scorer))
        lines += [f"the critic's {line}" for line in contract.differences(scorer.contract)]
        if lines:
            raise UserError(f"{folder}: its parts are not those of {MANIFEST}: {'; '.join(lines)}")
        decider = BestOfN(policy, count, selection.rule, scorer, selection)
        return cls(decider, manifest).to(device)
