"""From the tokens of a frozen backbone to one vector for each observation: averages on a grid, text kept apart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deas_vla.data.observation import TEXT, Context
from deas_vla.errors import UserError


@dataclass
class FeatureConfig:
    """How backbone tokens become the critic's features."""

    # Side of the grid of averaged tokens that is kept for each camera, which tells where things are; a camera with
    # fewer tokens keeps the grid it has. 1: one average for each camera; 0: one of all tokens, text as well.
    grid: int = 4
    # Features of a frame after the projection, whitened; 0: the averages as they are.
    dim: int = 128
    # How much the text counts beside one cell of a camera; with many instructions, 1 loses it among the images.
    text_weight: float = 1.0

    def __post_init__(self):
        if self.grid < 0 or self.dim < 0:
            raise UserError(f"features.grid ({self.grid}) and features.dim ({self.dim}) must be at least 0")
        if not self.text_weight > 0:
            raise UserError(f"features.text_weight={self.text_weight} must be above 0")


def pool_tokens(context: Context, config: FeatureConfig, num_cameras: int) -> Tensor:
    """Averages tokens on a grid for each camera, and over the text; padding does not count.

    Args:
        context: of B observations.
        config: the grid.
        num_cameras: how many cameras the contract has.

    Returns:
        (B, P) float32: for each camera its cells, row-major, then the mean of the text times its weight; with grid 0
        the mean of all tokens.

    Raises:
        UserError: if a camera's tokens are not a square grid, their number differs between observations, or there are
            tokens of a camera that the contract does not have.
    """
    tokens = context.tokens.float()
    if bool(((context.camera >= num_cameras) & context.mask).any()):
        raise UserError(
            f"the backbone gives tokens of camera {int(context.camera.max())}, the contract has {num_cameras} cameras: "
            "they would be lost; give the policy the cameras of the contract"
        )
    if config.grid == 0:
        return _mean(tokens, context.mask)
    parts = []
    for camera in range(num_cameras):
        chosen = (context.camera == camera) & context.mask
        counts = chosen.sum(1)
        count = int(counts[0])
        side = round(count**0.5)
        if (counts != count).any():
            numbers = sorted(set(counts.tolist()))
            raise UserError(f"camera {camera} has {numbers} tokens in different observations of one batch")
        if count == 0 or side * side != count:
            raise UserError(f"camera {camera} has {count} tokens, which are not a square grid")
        grid = tokens[chosen].view(len(tokens), side, side, tokens.shape[2]).permute(0, 3, 1, 2)
        cells = functional.adaptive_avg_pool2d(grid, min(side, config.grid))
        parts.append(cells.permute(0, 2, 3, 1).flatten(1))
    parts.append(config.text_weight * _mean(tokens, (context.camera == TEXT) & context.mask))
    return torch.cat(parts, 1)


def _mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, L, D) tokens to (B, D) means of those in the (B, L) mask; 0 where there are none."""
    kept = mask.unsqueeze(-1)
    return torch.where(kept, tokens, 0).sum(1) / kept.sum(1).clamp_min(1)
