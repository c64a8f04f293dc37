"""What a network makes of every stored frame, computed once and kept on disk.

A cache is keyed by everything its content depends on: another encoder or pooling gets another folder, and a block of
other frames another file. Frames that were there before others were collected are not computed again.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deas_vla.data.frames import FrameTable
from deas_vla.errors import as_user_error
from deas_vla.features.features import FeatureConfig, Features, pool_tokens
from deas_vla.files import atomic_path

BLOCK = 256


class FrameCache:
    """One tensor for every frame, in blocks that are files.

    Args:
        folder: where caches are kept; this one gets a subfolder named after its fingerprint.
        frames: the stored observations.
        depends: everything else that the content depends on: the network's fingerprint, how it is asked.
        block: frames a file; a run that was killed loses at most one block.
    """

    def __init__(self, folder: Path, frames: FrameTable, depends: str, block: int = BLOCK):
        self.frames, self.block = frames, block
        self.folder = Path(folder) / _hash(depends)[:16]
        prints = frames.block_fingerprints(block)
        self._keys = [_hash(f"{depends} {number * block} {each}") for number, each in enumerate(prints)]
        self.fingerprint = _hash(" ".join(self._keys))

    def compute(self, rows: Tensor) -> Tensor:
        """What is kept of the frames at these rows, (B,) int64, first dimension B."""
        raise NotImplementedError

    def fill(self, *, process: int = 0, processes: int = 1, progress: Callable[[int], object] | None = None) -> None:
        """Computes the missing blocks; each process takes every `processes`-th, and all must be done before `read`.

        `progress` is called with the number of frames that are there, after each block.
        """
        for number, rows, path in list(self._blocks())[process::processes]:
            if not path.is_file():
                with torch.no_grad():
                    content = {"content": self.compute(rows).cpu().contiguous()}
                with atomic_path(path) as temporary:
                    save_file(content, temporary, metadata={"fingerprint": self._keys[number]})
            if progress is not None:
                progress(len(rows))

    def read(self) -> Tensor:
        """The tensors of all frames, in order, first dimension F; UserError if a block is missing or broken."""
        content = torch.empty(0)
        for number, rows, path in self._blocks():
            broken = f"{path}: not a block of this cache; delete it and run again"
            with as_user_error(broken, SafetensorError), safe_open(path, "pt") as file:
                if file.metadata()["fingerprint"] != self._keys[number]:
                    raise ValueError("it belongs to another cache")
                part = file.get_tensor("content")
                if len(part) != len(rows):
                    raise ValueError(f"{len(part)} rows for {len(rows)} frames")
            # Joined as it is read: all blocks beside their union would be twice the memory.
            if number == 0:
                content = part.new_empty((len(self.frames), *part.shape[1:]))
            content[rows] = part
        return content

    def _blocks(self) -> Iterator[tuple[int, Tensor, Path]]:
        for number, rows in enumerate(torch.arange(len(self.frames)).split(self.block)):
            yield number, rows, self.folder / f"block-{number:05d}-{self._keys[number][:16]}.safetensors"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class FeatureCache(FrameCache):
    """(F, P) float32 pooled backbone tokens; the policy gives ``encode``, ``encoder_fingerprint`` and ``contract``."""

    def __init__(self, folder: Path, policy, frames: FrameTable, config: FeatureConfig, block: int = BLOCK):
        depends = f"{policy.encoder_fingerprint} {config.grid} {config.text_weight}"
        super().__init__(folder, frames, depends, block)
        self.policy, self.config = policy.eval(), config

    def compute(self, rows: Tensor) -> Tensor:
        context = self.policy.encode(self.frames.observation(rows))
        return pool_tokens(context, self.config, len(self.policy.contract.cameras))


class ImageCache(FrameCache):
    """(F, C·dim) float32 what the critic's own image encoder, which is in the features, makes of the frames."""

    def __init__(self, folder: Path, features: Features, frames: FrameTable, block: int = BLOCK):
        digest = hashlib.sha256()
        for tensor in features.image_encoder.state_dict().values():
            digest.update(tensor.cpu().numpy())
        super().__init__(folder, frames, f"images {digest.hexdigest()}", block)
        self.features = features

    def compute(self, rows: Tensor) -> Tensor:
        return self.features.encode_images({name: image[rows] for name, image in self.frames.images.items()})
