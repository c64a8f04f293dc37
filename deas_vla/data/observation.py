"""What a policy sees at a decision, and what its backbone makes of it."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError


@dataclass
class Observation:
    """A batch of B observations, in raw units: (B, height, width, 3) images of each camera, and (B, S) states."""

    images: dict[str, Tensor]  # by camera name, uint8, upright RGB
    state: Tensor  # float32, columns as in the contract
    instruction: list[str]

    def __len__(self) -> int:
        return len(self.instruction)

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "Observation":
        """The observations at these rows; a slice or a list of indices."""
        index = list(range(len(self)))[rows] if isinstance(rows, slice) else [int(i) for i in rows]
        return Observation(
            images={name: image[index] for name, image in self.images.items()},
            state=self.state[index],
            instruction=[self.instruction[i] for i in index],
        )

    def require_fits(self, contract: Contract) -> None:
        """Refuses other cameras and shapes than the contract's: a policy would resize or crop what it is given."""
        for camera in contract.cameras:
            if camera.name not in self.images:
                there = ", ".join(self.images) or "none"
                raise UserError(f"the observation lacks the camera {camera.name}; it has {there}")
            image, shape = self.images[camera.name], (len(self), camera.height, camera.width, 3)
            if image.shape != shape or image.dtype != torch.uint8:
                found = f"{image.dtype} {tuple(image.shape)}"
                raise UserError(f"images of {camera.name} are {found}, the policy takes torch.uint8 {shape}")
        shape, expected = tuple(self.state.shape), (len(self), contract.state_dim)
        if shape != expected:
            raise UserError(f"the state is {shape}, the policy takes {expected}")

    def to(self, device: torch.device) -> "Observation":
        return Observation(
            images={name: image.to(device) for name, image in self.images.items()},
            state=self.state.to(device),
            instruction=self.instruction,
        )

    @classmethod
    def stack(cls, frames: list[dict]) -> "Observation":
        """A batch of frames, each ``images`` (name to (h, w, 3) uint8), ``state`` ((S,) float32), ``instruction``."""
        cameras = frames[0]["images"]
        return cls(
            images={name: torch.from_numpy(np.stack([frame["images"][name] for frame in frames])) for name in cameras},
            state=torch.from_numpy(np.stack([frame["state"] for frame in frames]).astype(np.float32)),
            instruction=[frame["instruction"] for frame in frames],
        )

    def frame(self, row: int) -> dict:
        """One observation as `stack` takes it."""
        return {
            "images": {name: image[row].cpu().numpy() for name, image in self.images.items()},
            "state": self.state[row].cpu().numpy(),
            "instruction": self.instruction[row],
        }


def episode_ids(observation: Observation) -> list[int]:
    """(B,) hash of each initial observation: the id of the episode that begins with it.

    It names the noise of that episode, the same wherever it is played: in any batch, by recipes or by LeRobot's tools,
    where a policy knows nothing of scenes.
    """
    ids = []
    for frame in map(observation.frame, range(len(observation))):
        digest = hashlib.sha256(frame["instruction"].encode() + frame["state"].tobytes())
        for _, image in sorted(frame["images"].items()):
            digest.update(image.tobytes())
        ids.append(int.from_bytes(digest.digest()[:6], "little"))
    return ids


# Tokens from none of the contract's cameras: text, or others (marks around an image, a view that the robot lacks), of
# which no feature is made.
TEXT, OTHER = -1, -2


@dataclass
class Context:
    """What a policy's backbone makes of B observations, (B, L, D): once a decision, shared by all candidates."""

    tokens: Tensor  # (B, L, D) the backbone's output; rows of padding are zero
    mask: Tensor  # (B, L) bool, True for real tokens
    # (B, L) int64, which camera a token comes from (its index in the contract), or `TEXT` or `OTHER`. The tokens of one
    # camera are in row-major order of a square grid, top left first.
    camera: Tensor
    state: Tensor  # (B, S) float32, the normalised proprioceptive state
    # The policy's own, first dimension B (for example projected keys and values).
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)
