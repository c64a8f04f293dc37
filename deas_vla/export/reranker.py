"""A policy and its critic as one folder: exported once, loaded anywhere, played by `choose`."""

from pathlib import Path

import torch

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError
from deas_vla.export.manifest import MANIFEST, differences, read_manifest, selection_of, told_by_parts
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey
from deas_vla.improvement.prefix import Prefix
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import class_named
from deas_vla.scorers.scorer import Scorer, load_scorer

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
        require_fit(observation, self.contract)
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
        parts = told_by_parts(policy, scorer)
        told = Contract.from_json(manifest["contract"], folder / MANIFEST)
        lines = differences(manifest, parts)
        lines += [f"the critic's {line}" for line in told.differences(scorer.contract)]
        if lines:
            raise UserError(f"{folder}: its parts are not those of {MANIFEST}: {'; '.join(lines)}")
        decider = BestOfN(policy, count, selection.rule, scorer, selection)
        return cls(decider, manifest).to(device)

    @staticmethod
    def export(
        policy: ChunkPolicy,
        scorer: Scorer,
        folder: str | Path,
        observation: Observation,
        *,
        num_candidates: int = 8,
        selection: SelectionConfig | None = None,
        execute_steps: int | None = None,
        origins: dict[str, Path] | None = None,
        results: dict | None = None,
    ) -> "Reranker":
        """Writes a reranker, whole or not at all.

        The policy is written with its adapters merged and all its weights. It is read back, and must decide as the
        one that was given, within rounding; the golden inputs are recorded on the CPU from what was read.

        Args:
            policy: of a type that is registered in `deas_vla.policies.registry`; it is put into evaluation mode.
            scorer: trained on its features.
            folder: must not exist.
            observation: G observations to keep as golden inputs; stored frames of the policy's own robot.
            num_candidates: N.
            selection: the rule and its numbers; None: the defaults.
            execute_steps: actions of a chunk that are played; None: all.
            origins: ``policy`` and ``critic`` to the folders they were read from, for the manifest.
            results: method to outcome, as in ``report.json``, for the model card.

        Returns:
            What was written, as `load` reads it.

        Raises:
            UserError: if the folder exists, the parts do not belong together, the kind of policy is unknown, or
                the written policy is not the one that was given.
        """
        from deas_vla.export.export import export

        return export(
            policy, scorer, Path(folder), observation, num_candidates, selection or SelectionConfig(),
            execute_steps or policy.horizon, origins or {}, results or {},
        )  # fmt: skip


def require_fit(observation: Observation, contract: Contract) -> None:
    """Refuses an observation of other shapes: a policy resizes or crops what it is given, and tells nobody."""
    count = len(observation)
    for camera in contract.cameras:
        if camera.name not in observation.images:
            there = ", ".join(observation.images) or "none"
            raise UserError(f"the observation lacks the camera {camera.name}; it has {there}")
        image, shape = observation.images[camera.name], (count, camera.height, camera.width, 3)
        if image.shape != shape or image.dtype != torch.uint8:
            raise UserError(
                f"images of {camera.name} are {image.dtype} {tuple(image.shape)}, "
                f"the reranker takes torch.uint8 {shape}"
            )
    if observation.state.shape != (count, contract.state_dim):
        raise UserError(
            f"the state is {tuple(observation.state.shape)}, the reranker takes {(count, contract.state_dim)}"
        )
