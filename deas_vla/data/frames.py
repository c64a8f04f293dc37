"""Every stored observation of a list of episodes, as contiguous arrays."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Observation


@dataclass
class FrameTable:
    """F observations whose images were rendered, episode after episode, in order."""

    state: Tensor  # (F, S) float32, raw units
    episode: Tensor  # (F,) int64, which episode of the list
    step: Tensor  # (F,) int64, which row of that episode, 0 to T
    instruction: Tensor  # (F,) int64, which of `instructions`
    instructions: list[str]
    images: dict[str, Tensor]  # camera name to (F, height, width, 3) uint8
    _blocks: dict[int, list[str]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, episodes: list[Episode]) -> "FrameTable":
        """The rendered frames of at least one episode; all episodes of one data set share their memory with it."""
        instructions = sorted({episode.instruction for episode in episodes})
        counts = [len(episode.frame_steps) for episode in episodes]
        numbers = [instructions.index(episode.instruction) for episode in episodes]
        return cls(
            state=_joined([episode.states[episode.frame_steps] for episode in episodes]),
            episode=torch.from_numpy(np.repeat(np.arange(len(episodes)), counts)),
            step=_joined([episode.frame_steps for episode in episodes]),
            instruction=torch.from_numpy(np.repeat(np.array(numbers), counts)),
            instructions=instructions,
            images={name: _joined([episode.images[name] for episode in episodes]) for name in episodes[0].images},
        )

    def __len__(self) -> int:
        return len(self.state)

    def observation(self, rows: Tensor) -> Observation:
        """The frames at these rows, (B,) int64, as a policy sees them."""
        return Observation(
            images={name: images[rows] for name, images in self.images.items()},
            state=self.state[rows],
            instruction=[self.instructions[i] for i in self.instruction[rows].tolist()],
        )

    def subset(self, rows: Tensor | slice) -> "FrameTable":
        """A table of the frames at these rows, (M,) int64; of a slice it shows the same memory."""
        tensors = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors, images={name: images[rows] for name, images in self.images.items()})

    def block_fingerprints(self, block: int) -> list[str]:
        """`fingerprint` of each `block` frames in order; images are hashed once, however many caches ask."""
        if block not in self._blocks:
            starts = range(0, len(self), block)
            self._blocks[block] = [self.subset(slice(at, at + block)).fingerprint for at in starts]
        return self._blocks[block]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that a policy sees of the frames, in order."""
        digest = hashlib.sha256()
        for name, images in sorted(self.images.items()):
            digest.update(f"{name} {tuple(images.shape)}".encode())
            digest.update(images.numpy())
        digest.update(self.state.numpy())
        digest.update("\n".join(self.instructions[i] for i in self.instruction.tolist()).encode())
        return digest.hexdigest()


def _joined(parts: list[np.ndarray]) -> Tensor:
    """The parts as one array: the one that they lie in already, as `read_dataset` leaves them, or a copy."""
    whole, ends = parts[0].base, np.cumsum([len(part) for part in parts])
    shape = (ends[-1], *parts[0].shape[1:])
    if isinstance(whole, np.ndarray) and whole.flags["C_CONTIGUOUS"] and whole.shape == shape:
        pieces = np.split(whole, ends[:-1])
        pairs = zip(parts, pieces, strict=True)
        if all(part.base is whole and len(part) and np.shares_memory(part, piece) for part, piece in pairs):
            return torch.from_numpy(whole)
    return torch.from_numpy(np.concatenate(parts))
