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
    """A batch of B observations, in raw units.

    Attributes:
        images: camera name to (B, height, width, 3) uint8, upright RGB.
        state: (B, S) float32, columns as in the contract.
        instruction: B instructions.
    """

    images: dict[str, Tensor]
    state: Tensor
    instruction: list[str]

    def __len__(self) -> int:
        return len(self.instruction)

    def __getitem__(self, rows: slice | list[int] | Tensor) -> "Observation":
        """The observations at these rows; a slice or a list of indices."""
        index = range(len(self))[rows] if isinstance(rows, slice) else [int(i) for i in rows]
        picked = torch.as_tensor(list(index), dtype=torch.long)
        return Observation(
            images={name: image[picked.to(image.device)] for name, image in self.images.items()},
            state=self.state[picked.to(self.state.device)],
            instruction=[self.instruction[i] for i in index],
        )

    def require_fits(self, contract: Contract) -> None:
        """Refuses other cameras and shapes than the contract's: a policy would resize or crop what it is given.

        Raises:
            UserError: naming the camera, or the state.
        """
        for camera in contract.cameras:
            if camera.name not in self.images:
                there = ", ".join(self.images) or "none"
                raise UserError(f"the observation lacks the camera {camera.name}; it has {there}")
            image, shape = self.images[camera.name], (len(self), camera.height, camera.width, 3)
            if image.shape != shape or image.dtype != torch.uint8:
                found = f"{image.dtype} {tuple(image.shape)}"
                raise UserError(f"images of {camera.name} are {found}, the policy takes torch.uint8 {shape}")
        if self.state.shape != (len(self), contract.state_dim):
            shape = tuple(self.state.shape)
            raise UserError(f"the state is {shape}, the policy takes {(len(self), contract.state_dim)}")

    def to(self, device: torch.device) -> "Observation":
        """The same observations on another device."""
        return Observation(
            images={name: image.to(device) for name, image in self.images.items()},
            state=self.state.to(device),
            instruction=self.instruction,
        )

    @classmethod
    def stack(cls, frames: list[dict]) -> "Observation":
        """Batches frames as simulators and robots give them.

        Args:
            frames: each with ``images`` (name to (h, w, 3) uint8), ``state`` ((S,) float32), ``instruction``.
        """
        return cls(
            images={
                name: torch.from_numpy(np.stack([frame["images"][name] for frame in frames]))
                for name in frames[0]["images"]
            },
            state=torch.from_numpy(np.stack([frame["state"] for frame in frames]).astype(np.float32)),
            instruction=[frame["instruction"] for frame in frames],
        )

    def frame(self, row: int) -> dict:
        """One observation as `stack` takes it: ``images``, ``state``, ``instruction``."""
        return {
            "images": {name: image[row].cpu().numpy() for name, image in self.images.items()},
            "state": self.state[row].cpu().numpy(),
            "instruction": self.instruction[row],
        }


def episode_ids(observation: Observation) -> list[int]:
    """(B,) hash of each initial observation: the id of the episode that begins with it.

    It names the noise of that episode, which is then the same wherever the episode is played: in any batch, in our
    recipes or by LeRobot's tools, where a policy knows nothing of scenes.
    """
    names = []
    images = {name: image.cpu().numpy() for name, image in sorted(observation.images.items())}
    state = observation.state.cpu().numpy()
    for row, instruction in enumerate(observation.instruction):
        digest = hashlib.sha256(instruction.encode() + state[row].tobytes())
        for image in images.values():
            digest.update(image[row].tobytes())
        names.append(int.from_bytes(digest.digest()[:6], "little"))
    return names


# What a token is that comes from none of the contract's cameras: text, or anything else (marks around an image, a
# summary of it, a view that the robot lacks), which no feature is made of.
TEXT, OTHER = -1, -2


@dataclass
class Context:
    """What a policy's backbone makes of B observations: computed once a decision, shared by all candidates.

    Attributes:
        tokens: (B, L, D) the backbone's output tokens; rows of padding are zero.
        mask: (B, L) bool, True for real tokens.
        camera: (B, L) int64, which camera a token comes from (its index in the contract), or `TEXT` or `OTHER`.
            The tokens of one camera are in row-major order of a square grid, top left first.
        state: (B, S) float32, the normalised proprioceptive state.
        extras: tensors of the policy's own, first dimension B (for example projected keys and values).
    """

    tokens: Tensor
    mask: Tensor
    camera: Tensor
    state: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)
