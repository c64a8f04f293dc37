"""Every stored observation of a list of episodes: states as contiguous arrays, images in memory or on disk."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.episodes import Episode
from deas_vla.data.images import FrameImages
from deas_vla.data.observation import Observation


@dataclass
class FrameTable:
    """F observations whose images were rendered, episode after episode, in order."""

    state: Tensor  # (F, S) float32, raw units
    episode: Tensor  # (F,) int64, which episode of the list
    step: Tensor  # (F,) int64, which row of that episode, 0 to T
    instruction: Tensor  # (F,) int64, which of `instructions`
    instructions: list[str]
    images: dict[str, FrameImages]  # by camera name; indexed with rows they are (B, height, width, 3) uint8
    _blocks: dict[int, list[str]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, episodes: list[Episode]) -> "FrameTable":
        """The rendered frames of at least one episode; all episodes of one data set share their memory with it."""
        instructions = sorted({episode.instruction for episode in episodes})
        counts = [len(episode.frame_steps) for episode in episodes]
        numbers = [instructions.index(episode.instruction) for episode in episodes]
        return cls(
            state=torch.from_numpy(np.concatenate([episode.states[episode.frame_steps] for episode in episodes])),
            episode=torch.from_numpy(np.repeat(np.arange(len(episodes)), counts)),
            step=torch.from_numpy(np.concatenate([episode.frame_steps for episode in episodes])),
            instruction=torch.from_numpy(np.repeat(np.array(numbers), counts)),
            instructions=instructions,
            images={name: FrameImages([episode.images[name] for episode in episodes]) for name in episodes[0].images},
        )

    def __len__(self) -> int:
        return len(self.state)

    @property
    def on_disk(self) -> bool:
        """Whether images are decoded only when asked for."""
        return any(images.on_disk for images in self.images.values())

    def observation(self, rows: Tensor) -> Observation:
        """The frames at these rows, (B,) int64, as a policy sees them."""
        return Observation(
            images={name: images[rows] for name, images in self.images.items()},
            state=self.state[rows],
            instruction=[self.instructions[i] for i in self.instruction[rows].tolist()],
        )

    def subset(self, rows: Tensor | slice) -> "FrameTable":
        """A table of the frames at these rows, (M,) int64; no image is copied or decoded."""
        tensors = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, images={name: images.subset(rows) for name, images in self.images.items()})

    def block_fingerprints(self, block: int) -> list[str]:
        """`fingerprint` of each `block` frames in order; images are hashed once, however many caches ask."""
        if block not in self._blocks:
            starts = range(0, len(self), block)
            self._blocks[block] = [self.subset(slice(at, at + block)).fingerprint for at in starts]
        return self._blocks[block]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a policy sees of the frames, in order; of images on disk over their files."""
        digest = hashlib.sha256()
        for name, images in sorted(self.images.items()):
            digest.update(f"{name} {images.shape}".encode())
            images.update(digest)
        digest.update(self.state.numpy())
        digest.update("\n".join(self.instructions[i] for i in self.instruction.tolist()).encode())
        return digest.hexdigest()
