"""From the tokens of a frozen backbone to one vector for each observation: averages on a grid, text kept apart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from deas_vla.data.observation import Context
from deas_vla.errors import UserError


@dataclass
class FeatureConfig:
    """How backbone tokens become the critic's features."""

    # `grid` keeps a small grid of averaged tokens for each camera; `mean` one average for each (loses positions).
    pooling: str = "grid"
    # Side of that grid; a camera with fewer tokens keeps the grid it has.
    grid: int = 4
    # Numbers a frame after the projection.
    dim: int = 128
    # How much the words count beside one cell of a camera; with many instructions, 1 loses them among the images.
    words_weight: float = 1.0

    def __post_init__(self):
        if self.pooling not in ("grid", "mean"):
            raise UserError(f"feature pooling is {self.pooling!r}; choose grid or mean")
        if self.grid < 1 or self.dim < 1:
            raise UserError(f"feature grid ({self.grid}) and dim ({self.dim}) must be at least 1")
        if not self.words_weight > 0:
            raise UserError(f"features.words_weight={self.words_weight} must be above 0")

    @property
    def side(self) -> int:
        """Side of the grid that is kept for a camera."""
        return self.grid if self.pooling == "grid" else 1


def pool_tokens(context: Context, config: FeatureConfig, num_cameras: int) -> Tensor:
    """Averages tokens on a grid for each camera, and over all others (text); padding does not count.

    Args:
        context: of B observations.
        config: pooling and grid.
        num_cameras: how many cameras the contract has.

    Returns:
        (B, P) float32: for each camera its cells, row-major, then the mean of the other tokens times their weight.

    Raises:
        UserError: if a camera's tokens are not a square grid, or their number differs between observations.
    """
    batch, _, width = context.tokens.shape
    tokens = context.tokens.float()
    parts = []
    for camera in range(num_cameras):
        chosen = (context.camera == camera) & context.mask
        count = int(chosen[0].sum())
        side = round(count**0.5)
        if (chosen.sum(1) != count).any():
            numbers = sorted(set(chosen.sum(1).tolist()))
            raise UserError(f"camera {camera} has {numbers} tokens in different observations of one batch")
        if count == 0 or side * side != count:
            raise UserError(f"camera {camera} has {count} tokens, which are not a square grid")
        grid = tokens[chosen].view(batch, side, side, width).permute(0, 3, 1, 2)
        cells = functional.adaptive_avg_pool2d(grid, min(side, config.side))
        parts.append(cells.permute(0, 2, 3, 1).flatten(1))
    others = ((context.camera < 0) & context.mask).unsqueeze(-1)
    mean = torch.where(others, tokens, 0).sum(1) / others.sum(1).clamp_min(1)
    parts.append(config.words_weight * mean)
    return torch.cat(parts, 1)
