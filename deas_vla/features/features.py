"""What a critic reads of an observation: one path, used everywhere (design rule 1).

A frame's backbone tokens are pooled to a small grid for each camera, which keeps *where* things are, then projected to
a few hundred whitened numbers; beside them stands the output of the critic's own image encoder, if it has one.
"""

from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from deas_vla.data.contract import Contract
from deas_vla.data.observation import TEXT, Context, Observation
from deas_vla.errors import UserError, require_ranges
from deas_vla.features.image_encoder import ImageEncoder

# Components are fitted on at most this many frames, evenly spaced: the exact decomposition then takes seconds.
FIT_FRAMES = 2048
# Directions with less than this share of the largest variance are rounding noise; whitening would blow them up.
VARIANCE_FLOOR = 1e-8
ROWS = 4096  # rows of a large table that are on the device at once


@dataclass
class FeatureConfig:
    """How backbone tokens become the critic's features."""

    # Side of the grid of averaged tokens that is kept for each camera, which tells where things are; a camera with
    # fewer tokens keeps the grid it has. 1: one average for each camera; 0: one of all tokens, text as well.
    grid: int = 4
    dim: int = 128  # Features of a frame after the projection, whitened; 0: the averages as they are.
    # How much the text counts beside one cell of a camera; with many instructions, 1 loses it among the images.
    text_weight: float = 1.0

    def __post_init__(self):
        require_ranges(self, "features.", {"at least 0": "grid dim", "above 0": "text_weight"})


class Projection(NamedTuple):
    """PCA with whitening: each feature has variance 1 on the frames it was fitted on.

    Components are zero where the frames have no more directions; with dim 0 nothing is projected.
    """

    mean: Tensor  # (P,) float32
    components: Tensor  # (P, dim) float32


def pool_tokens(context: Context, config: FeatureConfig, num_cameras: int) -> Tensor:
    """(B, P) float32, averages of the tokens: for each camera its cells, row-major, then the mean of the text times its
    weight; with grid 0 the mean of all tokens. Padding does not count.

    Raises UserError if a camera's tokens are not a square grid, their number differs between observations, or there are
    tokens of a camera that the contract does not have.
    """
    tokens = context.tokens.float()
    if bool(((context.camera >= num_cameras) & context.mask).any()):
        last, fix = int(context.camera.max()), "they would be lost; give the policy the cameras of the contract"
        raise UserError(f"the backbone gives tokens of camera {last}, the contract has {num_cameras} cameras: {fix}")
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


def fit_projection(pooled, dim: int, among: Tensor | None = None) -> Projection:
    """Fits on (F, P) pooled tokens, a tensor or a cache of them; with `dim` 0 the pooled tokens are the features.

    `among`: (M,) int64 rows of the frames that it may be fitted on (training episodes); None: all. Raises UserError if
    there are fewer than two frames or a value is not finite.
    """
    if dim == 0:
        return Projection(torch.zeros(pooled.shape[1]), torch.zeros(pooled.shape[1], 0))
    among = torch.arange(len(pooled)) if among is None else among
    if len(among) < 2:
        raise UserError("the critic's features need at least two training frames; collect more episodes")
    rows = torch.linspace(0, len(among) - 1, min(len(among), FIT_FRAMES)).round().long()
    data = pooled[among[rows]].double()
    if not torch.isfinite(data).all():
        raise UserError("the backbone gives NaN or infinite tokens; look at the policy's training")
    mean = data.mean(0)
    data = data - mean
    # The smaller of covariance and Gram matrix has the same eigenvalues at a fraction of the cost.
    wide = data.shape[1] > data.shape[0]
    variance, vectors = torch.linalg.eigh((data @ data.T if wide else data.T @ data) / (len(data) - 1))
    variance, vectors = variance.flip(0)[:dim], vectors.flip(1)[:, :dim]
    real = variance > VARIANCE_FLOOR * variance[0].clamp_min(torch.finfo(torch.float64).tiny)
    scale = torch.where(real, variance.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
    if wide:
        vectors = data.T @ vectors * scale / (len(data) - 1) ** 0.5
    components = functional.pad(vectors * scale, (0, dim - vectors.shape[1]))
    return Projection(mean.float(), components.float().contiguous())


class Features(nn.Module):
    """Pooling, projection and image encoder: an observation and its backbone tokens to F features and S states.

    Nothing in it is trained with the critic: the projection is fitted on its training frames, and the image encoder, if
    there is one, is trained before it.
    """

    mean: Tensor
    components: Tensor

    def __init__(
        self,
        contract: Contract,
        config: FeatureConfig,
        projection: Projection,
        image_encoder: ImageEncoder | None = None,
    ):
        super().__init__()
        self.contract, self.config = contract, config
        self.register_buffer("mean", projection.mean)
        self.register_buffer("components", projection.components)
        self.image_encoder = image_encoder.requires_grad_(False) if image_encoder is not None else None
        self.eval()

    @property
    def dim(self) -> int:
        """F, features of an observation."""
        encoder, own = self.image_encoder, self.config.dim or len(self.mean)
        return own if encoder is None else own + len(encoder.cameras) * encoder.dim

    @torch.no_grad()
    def forward(self, context: Context, observation: Observation) -> tuple[Tensor, Tensor]:
        """(B, F) features and (B, S) normalised states, on the context's device, which must be the module's."""
        pooled = pool_tokens(context, self.config, len(self.contract.cameras))
        state = self.contract.normalize_state(observation.state.to(pooled.device))
        return self.of_pooled(pooled, observation.images), state

    def of_pooled(self, pooled: Tensor, images: dict[str, Tensor]) -> Tensor:
        """(B, P) pooled tokens, and the (B, h, w, 3) images of every camera, to (B, F) features."""
        parts = [self.project(pooled)]
        if self.image_encoder is not None:
            parts.append(self.encode_images(images).to(pooled.device))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def project(self, pooled: Tensor) -> Tensor:
        """The part of the features that comes from (B, P) pooled tokens: (B, dim), where the tokens are."""
        if self.config.dim == 0:
            return pooled
        parts = [(rows.to(self.mean.device) - self.mean) @ self.components for rows in pooled.split(ROWS)]
        return torch.cat([part.to(pooled.device) for part in parts])

    @torch.no_grad()
    def encode_images(self, images: dict[str, Tensor]) -> Tensor:
        """The part of the image encoder: (B, h, w, 3) images of every camera to (B, C·dim), on its device."""
        device, cameras = self.mean.device, self.contract.cameras
        return self.image_encoder([images[camera.name].to(device) for camera in cameras])

    def description(self) -> dict:
        """All that `from_description` needs, as JSON can hold it."""
        encoder_dim = self.image_encoder.dim if self.image_encoder is not None else 0
        return asdict(self.config) | {"pooled_dim": len(self.mean), "image_encoder_dim": encoder_dim}

    @classmethod
    def from_description(cls, description: dict, contract: Contract) -> "Features":
        """The module without its weights, for `load_state_dict`; KeyError, TypeError or UserError if it is no
        description.
        """
        values = dict(description)
        pooled, encoder_dim = values.pop("pooled_dim"), values.pop("image_encoder_dim")
        config = FeatureConfig(**values)
        projection = Projection(torch.empty(pooled), torch.empty(pooled, config.dim))
        encoder = ImageEncoder(len(contract.cameras), encoder_dim) if encoder_dim else None
        return cls(contract, config, projection, encoder)
