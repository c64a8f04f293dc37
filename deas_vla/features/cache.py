"""What a network makes of every stored frame, computed once and kept on disk.

A cache is keyed by everything its content depends on: another encoder or pooling gets another folder, and a block of
other frames another file. Frames that were there before others were collected are not computed again.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deas_vla.data.ahead import ahead
from deas_vla.data.contract import Contract
from deas_vla.data.frames import FrameTable
from deas_vla.data.images import IN_MEMORY, resized
from deas_vla.data.observation import Observation
from deas_vla.errors import as_user_error
from deas_vla.features.features import FeatureConfig, Features, pool_tokens
from deas_vla.features.image_encoder import SIDE
from deas_vla.files import atomic_path

BLOCK = 256  # frames of a file
BATCH = 64  # frames that a network sees at once
OPEN_FILES = 8  # files of a cache that are kept open


class FrameCache:
    """One tensor for every frame, in blocks that are files; content that is not asked for takes no memory.

    `folder` is where caches are kept: this one gets a subfolder of it, named after all that the content `depends` on
    besides frames: the network's fingerprint, how it is asked. A run that was killed loses at most one block of frames.
    """

    block = BLOCK

    def __init__(self, folder: Path, frames: FrameTable, depends: str):
        self.frames, self.folder = frames, Path(folder) / _hash(depends)[:16]
        prints = frames.block_fingerprints(self.block)
        self._keys = [_hash(f"{depends} {number * self.block} {each}") for number, each in enumerate(prints)]
        self.fingerprint = _hash(" ".join(self._keys))
        self._opened = lru_cache(OPEN_FILES)(self._open)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …) of the content, once it is there."""
        return (len(self), *self._opened(0).get_shape()[1:])

    def load(self, rows: Tensor):
        """What `compute` needs of the frames at these rows, (B,) int64, from the disk."""
        return self.frames.observation(rows)

    def compute(self, rows: Tensor, loaded) -> Tensor:
        """What is kept of the frames at these rows, (B,) int64, first dimension B."""
        raise NotImplementedError

    def fill(
        self, *, process: int = 0, processes: int = 1, workers: int = 0, progress: Callable[[int], object] | None = None
    ) -> None:
        """Computes the missing blocks; each process takes every `processes`-th, and all must be done before reading.

        `workers` processes decode ahead; `progress` is called with the number of frames that are there now.
        """
        progress = progress or (lambda count: None)
        blocks = list(self._blocks())[process::processes]
        missing = [(number, rows, path) for number, rows, path in blocks if not path.is_file()]
        for _, rows, path in blocks:
            if path.is_file():
                progress(len(rows))
        batches = [rows for _, block, _ in missing for rows in block.split(BATCH)]
        loaded = ahead(self.load, batches, workers)
        for number, block, path in missing:
            parts = []
            with torch.no_grad():
                for rows in block.split(BATCH):
                    parts.append(self.compute(rows, next(loaded)).cpu())
                    progress(len(rows))
            with atomic_path(path) as temporary:
                content = {"content": torch.cat(parts).contiguous()}
                save_file(content, temporary, metadata={"fingerprint": self._keys[number]})

    @property
    def missing(self) -> Tensor:
        """(M,) int64 rows of the frames that are not there yet."""
        return torch.cat([torch.arange(0), *(rows for _, rows, path in self._blocks() if not path.is_file())])

    def __getitem__(self, rows: Tensor) -> Tensor:
        """The content at these rows, (B,) int64, read from the disk; UserError if a block is missing or broken."""
        found = None
        for number in (rows // self.block).unique().tolist():
            mine = torch.where(rows // self.block == number)[0]
            inside, back = (rows[mine] % self.block).unique(return_inverse=True)
            with self._as_block(number):
                # Neighbours are read as one piece, single rows one by one.
                first, last, content = int(inside[0]), int(inside[-1]) + 1, self._opened(number)
                if last - first <= 2 * len(inside):
                    part = content[first:last][inside - first]
                else:
                    part = torch.cat([content[row : row + 1] for row in inside.tolist()])
            if found is None:
                found = part.new_empty((len(rows), *part.shape[1:]))
            found[mine] = part[back]
        return found

    def blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows and the content of one block after the other."""
        for _, rows, _ in self._blocks():
            yield rows, self[rows]

    def read(self) -> Tensor:
        """The tensors of all frames, in order, first dimension F; UserError if a block is missing or broken.

        What takes more than `IN_MEMORY` bytes is mapped from a file that is made of the blocks.
        """
        first = self[torch.arange(1)]
        if first.nbytes * len(self) <= IN_MEMORY:
            return self._joined(first.new_empty((len(self), *first.shape[1:])))
        path = self.folder / f"all-{self.fingerprint[:16]}.bin"
        if not path.is_file():
            with atomic_path(path) as temporary:
                self._joined(mapped(temporary, (len(self), *first.shape[1:]), first.dtype))
        return mapped(path, (len(self), *first.shape[1:]), first.dtype)

    def _joined(self, content: Tensor) -> Tensor:
        for rows, part in self.blocks():
            content[rows] = part
        return content

    def _open(self, number: int):
        """The content of a block as a file that is read where it is indexed."""
        count = min(self.block, len(self) - number * self.block)
        with self._as_block(number), safe_open(self._path(number), "pt") as file:
            if file.metadata()["fingerprint"] != self._keys[number]:
                raise ValueError("it belongs to another cache")
            content = file.get_slice("content")
            if content.get_shape()[0] != count:
                raise ValueError(f"{content.get_shape()[0]} rows for {count} frames")
            return content

    def _as_block(self, number: int) -> AbstractContextManager:
        path = self._path(number)
        return as_user_error(f"{path}: not a block of this cache; delete it and run again", SafetensorError)

    def _path(self, number: int) -> Path:
        return self.folder / f"block-{number:05d}-{self._keys[number][:16]}.safetensors"

    def _blocks(self) -> Iterator[tuple[int, Tensor, Path]]:
        for number, rows in enumerate(torch.arange(len(self.frames)).split(self.block)):
            yield number, rows, self._path(number)


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose memory is a file, which is made if it is not there: only what is used of it is in memory."""
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache(FrameCache):
    """(F, P) float32 pooled backbone tokens; the policy gives ``encode``, ``encoder_fingerprint`` and ``contract``."""

    def __init__(self, folder: Path, policy, frames: FrameTable, config: FeatureConfig):
        super().__init__(folder, frames, f"{policy.encoder_fingerprint} {config.grid} {config.text_weight}")
        self.policy, self.config = policy.eval(), config

    def compute(self, rows: Tensor, loaded: Observation) -> Tensor:
        context = self.policy.encode(loaded)
        return pool_tokens(context, self.config, len(self.policy.contract.cameras))


class SmallImageCache(FrameCache):
    """(F, C, `SIDE`, `SIDE`, 3) uint8 images of C cameras, as the image encoder brings large ones to its own size."""

    def __init__(self, folder: Path, contract: Contract, frames: FrameTable):
        self.cameras = [camera.name for camera in contract.cameras]
        super().__init__(folder, frames, f"images of {SIDE} pixels {self.cameras}")

    @property
    def needed(self) -> bool:
        """False where the frames themselves have these images in memory."""
        return self.frames.on_disk or any(self.frames.images[name].shape[1:3] != (SIDE, SIDE) for name in self.cameras)

    def compute(self, rows: Tensor, loaded: Observation) -> Tensor:
        return torch.stack([resized(loaded.images[name], SIDE, SIDE) for name in self.cameras], 1)


class ImageCache(FrameCache):
    """(F, C·dim) float32 what the critic's own image encoder, which is in the features, makes of the frames.

    Where they are needed, the small images are in the same folder already: the encoder was trained on them.
    """

    def __init__(self, folder: Path, features: Features, frames: FrameTable):
        digest = hashlib.sha256()
        for tensor in features.image_encoder.state_dict().values():
            digest.update(tensor.cpu().numpy())
        super().__init__(folder, frames, f"images {digest.hexdigest()}")
        self.features, self.small = features, SmallImageCache(folder, features.contract, frames)
        self._from_small = self.small.needed and not len(self.small.missing)

    def load(self, rows: Tensor) -> dict[str, Tensor]:
        small = self.small
        if self._from_small:
            return dict(zip(small.cameras, small[rows].unbind(1), strict=True))
        return self.frames.observation(rows).images

    def compute(self, rows: Tensor, loaded: dict[str, Tensor]) -> Tensor:
        return self.features.encode_images(loaded)
