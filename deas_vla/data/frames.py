"""Every stored observation of a list of episodes, as contiguous arrays."""

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Observation


@dataclass
class FrameTable:
    """F observations whose images were rendered, episode after episode, in order.

    Attributes:
        state: (F, S) float32, raw units.
        episode: (F,) int64, which episode of the list.
        step: (F,) int64, which row of that episode, 0 to T.
        instruction: (F,) int64, which of `instructions`.
        instructions: the different sentences.
        images: camera name to (F, height, width, 3) uint8.
    """

    state: Tensor
    episode: Tensor
    step: Tensor
    instruction: Tensor
    instructions: list[str]
    images: dict[str, Tensor]

    @classmethod
    def of(cls, episodes: list[Episode]) -> "FrameTable":
        """The rendered frames of these episodes; at least one episode.

        The episodes' images become views of the table's: millions of pixels are not held twice.
        """
        instructions = sorted({episode.instruction for episode in episodes})
        counts = [len(episode.frame_steps) for episode in episodes]
        spoken = [instructions.index(episode.instruction) for episode in episodes]

        def joined(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts))

        return cls(
            state=joined([episode.states[episode.frame_steps] for episode in episodes]),
            episode=torch.from_numpy(np.repeat(np.arange(len(episodes)), counts)),
            step=joined([episode.frame_steps for episode in episodes]),
            instruction=torch.from_numpy(np.repeat(np.array(spoken), counts)),
            instructions=instructions,
            images={name: _shared(episodes, name, counts) for name in list(episodes[0].images)},
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
        return replace(
            self,
            state=self.state[rows],
            episode=self.episode[rows],
            step=self.step[rows],
            instruction=self.instruction[rows],
            images={name: images[rows] for name, images in self.images.items()},
        )

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


def _shared(episodes: list[Episode], camera: str, counts: list[int]) -> Tensor:
    """One array of a camera's images, of which those of the episodes become parts."""
    images = np.concatenate([episode.images[camera] for episode in episodes])
    for episode, end, count in zip(episodes, np.cumsum(counts), counts, strict=True):
        episode.images[camera] = images[end - count : end]
    return torch.from_numpy(images)
