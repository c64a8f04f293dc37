"""What stages made, for those that read it; in a dry run also what stages that are missing would make."""

from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.collect import DATASET
from deas_vla.scorers.scorer import Scorer, load_scorer
from deas_vla.training.estimate import Needs, announce
from deas_vla.training.stages import stage_mark


class Outputs:
    """Data sets, policies and critics, by the folders of their stages.

    In a dry run, stages that are missing leave here what they would make, for those that read it. So many data sets are
    `kept` in memory, so that several stages of a recipe decode them once.
    """

    def __init__(self, dry_run: bool = False, kept: int = 0):
        self.dry_run, self.said = dry_run, []
        self._kept, self._read = kept, lru_cache(kept)(lambda stage, mark: read_dataset(stage / DATASET))
        self._expected: dict[Path, Any] = {}
        self._expected_bytes = 0.0

    def episodes(self, stage: Path, expected: Contract | None = None) -> tuple[list[Episode], Contract, dict]:
        """A stage's data set, as `read_dataset`; the list is the caller's own, its episodes are not."""
        found = self._expected.get(stage)
        if not found and not self._kept:
            stage_mark(stage)
            return read_dataset(stage / DATASET, expected)
        episodes, contract, metadata = found or self._read(stage.resolve(), stage_mark(stage))
        if expected is not None:
            contract = contract.with_cameras_of(expected)
            expected.require_same(contract, "what is expected", str(stage / DATASET))
            names = [camera.name for camera in expected.cameras]
            episodes = [replace(episode, images={name: episode.images[name] for name in names}) for episode in episodes]
        return list(episodes), contract, metadata

    def policy(self, stage: Path) -> ChunkPolicy:
        """A stage's policy, the caller's own."""
        return deepcopy(self._expected[stage]).eval() if stage in self._expected else load_policy(stage / "policy")

    def scorer(self, stage: Path, contract: Contract) -> Scorer:
        """A stage's critic, for a policy of this contract."""
        return self._expected[stage] if stage in self._expected else load_scorer(stage / "critic", contract)

    def made(self, inputs: dict[str, Path]) -> dict[str, Path]:
        """Those of the stages that are there, as far as a dry run knows."""
        return {name: stage for name, stage in inputs.items() if stage not in self._expected}

    def announce(self, accelerator: Accelerator, folder: Path, needs: list[Needs], makes: Any = None) -> bool:
        """`estimate.announce`; in a dry run `makes` is kept for those that read this stage."""
        needs = [need.beside(self._expected_bytes) for need in needs]
        if self.dry_run:
            self._expected[folder] = makes
            if isinstance(makes, tuple):  # `kept`, once they are read
                images = (image for episode in makes[0] for image in episode.images.values())
                self._expected_bytes += sum(getattr(image, "nbytes", 0) for image in images)
        return announce(accelerator, folder, needs, self.said if self.dry_run else None)

    def announce_all(self, accelerator: Accelerator, folder: Path) -> None:
        """At the end of a dry run of several stages: what they take, one after the other."""
        if said := self.said:
            disk, seconds = (sum(getattr(need, name) for need in said) for name in ("disk", "seconds"))
            memory, device = (max(getattr(need, name) for need in said) for name in ("memory", "device"))
            work = "what is not there yet is taken to be as large as it can be"
            announce(accelerator, folder, [Needs("all together", work, disk, memory, device, seconds)], said)
