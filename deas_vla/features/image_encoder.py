"""The critic's own look at the images, for what a policy's backbone leaves out.

A backbone that was trained to imitate keeps of an image what imitation needs; what it drops, no critic on top of it can
see. This encoder is small, starts from new weights and learns from the recorded episodes, before the critic and apart
from it: whether the episode will end in success, and where the robot is later on in those that do. The second is what
makes it look for the object: a successful hand ends where the object was.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.nn import functional

from deas_vla.errors import UserError

# Images are brought to this many pixels a side first; the network is made for it.
SIDE = 64
# The first layer reads patches of this many pixels a side, each once: overlapping windows on all pixels would take
# most of the encoder's time.
PATCH = 4
CHANNELS = (32, 64)


@dataclass
class VisionConfig:
    """The critic's own image encoder."""

    # Numbers for each camera; 0: no such encoder, the critic sees the backbone's tokens only.
    dim: int = 64
    # Weight of the error in where the robot will be, beside the error in success.
    future_weight: float = 3.0
    # Probability of dropping a hidden unit of the heads while training.
    dropout: float = 0.2
    # Images are shifted by up to this many pixels, anew at every use.
    max_shift: int = 4

    def __post_init__(self):
        if self.dim < 0 or self.future_weight < 0 or self.max_shift < 0:
            raise UserError("vision.dim, vision.future_weight and vision.max_shift must be at least 0")
        if not 0 <= self.dropout < 1:
            raise UserError(f"vision.dropout={self.dropout} must be at least 0 and below 1")


class CriticVision(nn.Module):
    """A convolutional encoder for each camera.

    Args:
        num_cameras: C.
        dim: numbers for each camera.
    """

    def __init__(self, num_cameras: int, dim: int):
        super().__init__()
        self.dim = dim
        side = SIDE // PATCH // 2
        self.cameras = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, CHANNELS[0], PATCH, stride=PATCH),
                nn.GELU(),
                nn.Conv2d(CHANNELS[0], CHANNELS[1], 3, stride=2, padding=1),
                nn.GELU(),
                # Flat, not pooled: each place has weights of its own, so places stay apart.
                nn.Flatten(),
                nn.Linear(CHANNELS[1] * side * side, dim),
            )
            for _ in range(num_cameras)
        )
        self.norm = nn.LayerNorm(num_cameras * dim)

    def forward(self, images: list[Tensor]) -> Tensor:
        """C tensors (B, h, w, 3) uint8, one a camera in the contract's order, to (B, C·dim) features."""
        if len(images) != len(self.cameras):
            raise ValueError(f"{len(images)} cameras: this encoder was made for {len(self.cameras)}")
        parts = [network(_pixels(image)) for network, image in zip(self.cameras, images, strict=True)]
        return self.norm(torch.cat(parts, 1))


def _pixels(images: Tensor) -> Tensor:
    """(B, h, w, 3) uint8 to (B, 3, SIDE, SIDE) in [-1, 1]."""
    pixels = images.permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)
    if pixels.shape[2:] == (SIDE, SIDE):
        return pixels
    return functional.adaptive_avg_pool2d(pixels, SIDE)


@dataclass
class VisionBatch:
    """B frames of recorded episodes, and what came of them.

    Attributes:
        images: C tensors (B, h, w, 3) uint8.
        state: (B, S) normalised.
        won: (B,) 1.0 where the episode ended in success.
        won_weight: (B,) how much that counts.
        future: (B, T) normalised states of the robot at later steps.
        future_weight: (B,) how much those count.
    """

    images: list[Tensor]
    state: Tensor
    won: Tensor
    won_weight: Tensor
    future: Tensor
    future_weight: Tensor

    def to(self, device: torch.device | str) -> "VisionBatch":
        """The batch on another device."""
        moved = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "images"}
        return VisionBatch(
            images=[image.to(device) for image in self.images],
            **{name: tensor.to(device) for name, tensor in moved.items()},
        )


class VisionLearning(nn.Module):
    """The encoder and the two heads it learns with; the heads are left behind.

    Args:
        vision: what is trained.
        config: the weight of the second loss.
        state_dim: S.
        future_dim: T.
    """

    HIDDEN = 128

    def __init__(self, vision: CriticVision, config: VisionConfig, state_dim: int, future_dim: int):
        super().__init__()
        self.vision, self.config = vision, config
        width = len(vision.cameras) * vision.dim + state_dim
        self.won = self._head(width, 1)
        self.future = self._head(width, future_dim)

    def _head(self, inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(inputs, self.HIDDEN),
            nn.LayerNorm(self.HIDDEN),
            nn.GELU(),
            nn.Dropout(self.config.dropout),
            nn.Linear(self.HIDDEN, outputs),
        )

    def forward(self, batch: VisionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of success plus weighted squared error of the later states: loss and metrics."""
        seen = torch.cat([self.vision(batch.images), batch.state], 1)
        won = functional.binary_cross_entropy_with_logits(
            self.won(seen).squeeze(1), batch.won, weight=batch.won_weight
        )
        apart = (self.future(seen) - batch.future).square().mean(1)
        future = (apart * batch.future_weight).mean()
        loss = won + self.config.future_weight * future
        return loss, {"won_loss": won.detach(), "future_loss": future.detach()}
