"""The critic's own image encoder, and what it learns from.

What a backbone that was trained to imitate drops, no critic on top of it can see. This small encoder starts from new
weights and is trained on the recorded episodes, before the critic, to predict whether the episode will end in success,
and where the robot is later on in those that do: a successful hand ends where the object was. Neither needs labels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.images import resized
from deas_vla.errors import require_ranges

SIDE = 64  # images are brought to this many pixels a side first; the network is made for it
# The first layer reads patches of this many pixels a side, each once: overlapping windows on all pixels would take
# most of the encoder's time.
PATCH = 4
CHANNELS = (32, 64)
HIDDEN = 128  # width of the heads' hidden layer
# Later steps whose states are predicted, in chunks; the last step of the episode is always one.
CHUNKS_AHEAD = (1, 2, 4)
LARGEST = 5.0  # later states are cut off at this many standard deviations
SMALLEST_STD = 1e-2  # a column with a smaller standard deviation counts as constant


@dataclass
class ImageEncoderConfig:
    """The critic's own image encoder."""

    dim: int = 64  # Features for each camera; 0: no such encoder, the critic sees the backbone's tokens only.
    future_weight: float = 3.0  # Weight of the error in where the robot will be, beside the error in success.
    dropout: float = 0.2  # Probability of dropping a hidden unit of the heads while training.
    max_shift: int = 4  # Images, 64 pixels a side, are shifted by up to this many pixels, anew at every use.

    def __post_init__(self):
        ranges = {"at least 0": "dim future_weight max_shift", "at least 0 and below 1": "dropout"}
        require_ranges(self, "image_encoder.", ranges)


class ImageEncoder(nn.Module):
    """A convolutional encoder for each of C cameras, with `dim` features each."""

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
                # Flat, not pooled: each position has weights of its own.
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

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Gives the output mean 0 and standard deviation 1 over these (B, C·dim) features, as its neighbours have."""
        std, mean = torch.std_mean(features, 0, correction=0)
        std = std.clamp_min(SMALLEST_STD)
        self.norm.weight.div_(std)
        self.norm.bias.sub_(mean).div_(std)


def _pixels(images: Tensor) -> Tensor:
    """(B, h, w, 3) uint8 to (B, 3, SIDE, SIDE) in [-1, 1]."""
    return resized(images, SIDE, SIDE).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


@dataclass
class FrameOutcomes:
    """What came of F stored frames."""

    success: Tensor  # (F,) 1.0 where the episode ended in success
    labelled: Tensor  # (F,) 1.0 where predicting that teaches something: in a rollout, before its end
    # (F, T) states at the later steps, to be predicted in successful episodes; there a column has standard deviation 1,
    # or is 0 if it is constant.
    future: Tensor

    @classmethod
    def of(cls, episodes: list[Episode], contract: Contract, horizon: int) -> "FrameOutcomes":
        """Of the frames of these episodes, in the order of their `FrameTable`; the horizon is H, steps of a chunk."""
        success, labelled, later = [], [], []
        for episode in episodes:
            steps = episode.frame_steps
            success.append(np.full(len(steps), episode.terminated))
            labelled.append((steps < episode.length) & (episode.source == "rollout"))
            ahead = [np.minimum(steps + chunks * horizon, episode.length) for chunks in CHUNKS_AHEAD]
            ahead.append(np.full(len(steps), episode.length))
            later.append(episode.states[np.stack(ahead, 1)])
        success, labelled = (torch.from_numpy(np.concatenate(flags)) for flags in (success, labelled))
        states = contract.normalize_state(torch.from_numpy(np.concatenate(later))).flatten(1)
        good = states[success] if success.any() else states
        std = good.std(0, unbiased=False)
        scale = torch.where(std > SMALLEST_STD, 1 / std.clamp_min(SMALLEST_STD), 0.0)
        future = ((states - good.mean(0)) * scale).clamp(-LARGEST, LARGEST)
        return cls(success.float(), labelled.float(), future)


class ImageEncoderLearning(nn.Module):
    """The encoder and the two heads it learns with, of S states and T later ones; the heads are left behind."""

    def __init__(self, encoder: ImageEncoder, config: ImageEncoderConfig, state_dim: int, future_dim: int):
        super().__init__()
        self.encoder, self.config = encoder, config
        width = len(encoder.cameras) * encoder.dim + state_dim

        def head(outputs: int) -> nn.Sequential:
            hidden = nn.Linear(width, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(), nn.Dropout(config.dropout)
            return nn.Sequential(*hidden, nn.Linear(HIDDEN, outputs))

        self.success, self.future = head(1), head(future_dim)

    def forward(
        self,
        images: list[Tensor],
        state: Tensor,
        success: Tensor,
        success_weight: Tensor,
        future: Tensor,
        future_weight: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of success plus squared error of later states, each with (B,) weights: loss and metrics.

        Images are C tensors (B, h, w, 3) uint8, states (B, S) normalised; targets are as in `FrameOutcomes`.
        """
        inputs = torch.cat([self.encoder(images), state], 1)
        logits = self.success(inputs).squeeze(1)
        success_loss = functional.binary_cross_entropy_with_logits(logits, success, weight=success_weight)
        future_loss = ((self.future(inputs) - future).square().mean(1) * future_weight).mean()
        loss = success_loss + self.config.future_weight * future_loss
        return loss, {"success_loss": success_loss.detach(), "future_loss": future_loss.detach()}
