"""Pooled backbone tokens of every stored frame, computed once and kept on disk.

The backbone is frozen while the critic learns, so it runs once per frame, never in the critic's training loop. The
cache is keyed by everything its content depends on: another encoder, pooling or set of frames gets another folder.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deas_vla.data.features import FeatureConfig, pool_one_by_one
from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.files import atomic_path

BLOCK = 256


class FeatureCache:
    """The cache of one encoder, one way of pooling and one set of frames.

    Args:
        folder: where caches are kept; this one gets a subfolder named after its fingerprint.
        policy: gives ``encode``, ``encoder_fingerprint`` and ``contract``.
        frames: the stored observations.
        config: how to pool.
        block: frames a file; a run that was killed loses at most one block.
    """

    def __init__(self, folder: Path, policy, frames: FrameTable, config: FeatureConfig, block: int = BLOCK):
        self.policy, self.frames, self.config, self.block = policy, frames, config, block
        key = f"{policy.encoder_fingerprint} {config.side} {config.words_weight} {frames.fingerprint} {block}"
        self.fingerprint = hashlib.sha256(key.encode()).hexdigest()
        self.folder = Path(folder) / self.fingerprint[:16]

    def fill(
        self, *, process: int = 0, processes: int = 1, progress: Callable[[int], object] | None = None
    ) -> None:
        """Computes the blocks that are missing.

        Args:
            process: number of this process; each takes every `processes`-th block.
            processes: how many share the work; wait for all of them before `read`.
            progress: called with the number of frames after each block, those already there included.
        """
        self.policy.eval()
        for number in range(process, self._blocks(), processes):
            rows = torch.arange(number * self.block, min((number + 1) * self.block, len(self.frames)))
            if not self._path(number).is_file():
                self._write(number, rows)
            if progress is not None:
                progress(len(rows))

    def read(self) -> Tensor:
        """(F, P) float32 pooled tokens of all frames.

        Raises:
            UserError: if a block is missing or broken.
        """
        blocks = []
        for number in range(self._blocks()):
            path = self._path(number)
            try:
                with safe_open(path, "pt") as file:
                    if file.metadata()["fingerprint"] != self.fingerprint:
                        raise ValueError("it belongs to another cache")
                    blocks.append(file.get_tensor("pooled"))
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise UserError(
                    f"{path}: not a block of features ({error}); delete it and run again"
                ) from error
        pooled = torch.cat(blocks)
        if len(pooled) != len(self.frames):
            raise UserError(
                f"{self.folder}: {len(pooled)} rows for {len(self.frames)} frames; delete it and run again"
            )
        return pooled

    @torch.no_grad()
    def _write(self, number: int, rows: Tensor) -> None:
        context = self.policy.encode(self.frames.observation(rows))
        pooled = pool_one_by_one(context, self.config, len(self.policy.contract.cameras))
        with atomic_path(self._path(number)) as temporary:
            save_file(
                {"pooled": pooled.cpu().contiguous()}, temporary, metadata={"fingerprint": self.fingerprint}
            )

    def _blocks(self) -> int:
        return -(-len(self.frames) // self.block)

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:05d}.safetensors"
