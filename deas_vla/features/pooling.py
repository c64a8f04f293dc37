"""From what a frozen backbone sees to what the critic reads: one path, used everywhere (design rule 1).

A frame's tokens are pooled to a small grid per camera, which keeps *where* things are, then projected to a few
hundred whitened numbers; beside them stands what the critic's own image encoder sees. Caching, training, evaluation,
the exported reranker and a robot all go through `CriticInputs`, in groups of one size: a matrix product of another
batch size rounds differently in its last bits.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from deas_vla.data.contract import Contract
from deas_vla.data.grouping import in_fixed_groups
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError
from deas_vla.features.image_encoder import CriticVision
from deas_vla.files import atomic_path

# Components are fitted on at most this many frames, evenly spaced: the exact decomposition then takes seconds.
FIT_FRAMES = 2048
# Directions with less than this share of the largest variance are rounding noise; whitening would blow them up.
VARIANCE_FLOOR = 1e-8
VISION = "vision."
# Frames computed together, whatever the batch; a single frame fills its group with copies of itself.
GROUP = 8


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


@dataclass(frozen=True)
class FeatureProjection:
    """PCA with whitening, fitted on training frames.

    Attributes:
        mean: (P,) float32.
        components: (P, dim) float32, scaled so that each feature has variance 1 on the frames it was fitted on;
            zero where the frames have no more directions.
    """

    mean: Tensor
    components: Tensor

    @classmethod
    def fit(cls, pooled: Tensor, dim: int, among: Tensor | None = None) -> "FeatureProjection":
        """Fits on (F, P) pooled tokens, exactly and in float64.

        Args:
            pooled: of all frames.
            dim: numbers a frame after the projection.
            among: (M,) int64 rows of the frames that may be looked at; None: all.

        Raises:
            UserError: if there are fewer than two frames or a value is not finite.
        """
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
        components = data.new_zeros(data.shape[1], dim)
        components[:, : vectors.shape[1]] = vectors * scale
        return cls(mean.float(), components.float())


class CriticInputs:
    """Turns observations and chunks into what the critic reads.

    Args:
        contract: with statistics.
        config: pooling and size.
        projection: fitted on the critic's training frames.
        encoder_fingerprint: of the policy whose tokens the projection was fitted on; others are refused.
        vision: the critic's own image encoder, if it has one.
    """

    def __init__(
        self,
        contract: Contract,
        config: FeatureConfig,
        projection: FeatureProjection,
        encoder_fingerprint: str,
        vision: CriticVision | None = None,
    ):
        self.contract, self.config, self.projection = contract, config, projection
        self.encoder_fingerprint, self.vision = encoder_fingerprint, vision

    def observation(self, context: Context, observation: Observation) -> tuple[Tensor, Tensor]:
        """Features and state of B observations.

        Args:
            context: the policy's encoding of them.
            observation: the same observations, in raw units.

        Returns:
            (B, F) features and (B, S) normalised state, on the context's device.
        """
        pooled = pool_in_groups(context, self.config, len(self.contract.cameras))
        state = observation.state.to(pooled.device)
        return self.features(pooled, observation.images), self.state(state)

    def features(self, pooled: Tensor, images: dict[str, Tensor]) -> Tensor:
        """(B, P) pooled tokens, and the (B, h, w, 3) images of every camera, to (B, F) features."""
        projected = self.projected(pooled)
        if self.vision is None:
            return projected
        self.vision.to(pooled.device)
        return torch.cat([projected, self.looked_at(images)], 1)

    @torch.no_grad()
    def projected(self, pooled: Tensor) -> Tensor:
        """The part of the features that comes from (B, P) pooled tokens: (B, dim)."""
        mean = self.projection.mean.to(pooled.device)
        components = self.projection.components.to(pooled.device)
        # One by one: in a product of a few rows, the place of a row changes its last bits as well.
        return in_fixed_groups(lambda rows: (pooled[rows] - mean) @ components, len(pooled), 1)

    @torch.no_grad()
    def looked_at(self, images: dict[str, Tensor]) -> Tensor:
        """The part that the critic's own encoder sees in (B, h, w, 3) images of every camera, on its device."""
        cameras = [images[camera.name] for camera in self.contract.cameras]
        device = self.vision.norm.weight.device

        def look(rows: list[int]) -> Tensor:
            return self.vision([image[rows].to(device) for image in cameras])

        return in_fixed_groups(look, len(cameras[0]), GROUP)

    def state(self, raw: Tensor) -> Tensor:
        """(B, S) raw states to normalised ones."""
        return self.contract.normalize_state(raw)

    def chunks(self, raw: Tensor) -> Tensor:
        """(..., H, A) commands, as played or about to be played, to normalised ones."""
        return self.contract.normalize_action(raw)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything; equal inputs have equal fingerprints."""
        digest = hashlib.sha256(json.dumps(self._description(), sort_keys=True).encode())
        digest.update(self.projection.mean.numpy())
        digest.update(self.projection.components.numpy())
        for name, tensor in self._vision_tensors().items():
            digest.update(name.encode())
            digest.update(tensor.numpy())
        return digest.hexdigest()

    def _vision_tensors(self) -> dict[str, Tensor]:
        if self.vision is None:
            return {}
        return {VISION + name: t.detach().cpu().contiguous() for name, t in self.vision.state_dict().items()}

    def _description(self) -> dict:
        return {
            "contract": self.contract.to_json(),
            "features": asdict(self.config),
            "encoder_fingerprint": self.encoder_fingerprint,
            "vision_dim": self.vision.dim if self.vision is not None else 0,
        }

    def save(self, folder: Path) -> None:
        """Writes ``inputs.safetensors`` to a folder, whole or not at all."""
        with atomic_path(Path(folder) / "inputs.safetensors") as temporary:
            tensors = {"mean": self.projection.mean, "components": self.projection.components}
            tensors |= self._vision_tensors()
            # One entry: safetensors writes several in random order, and equal inputs would be unequal files.
            description = self._description() | {"fingerprint": self.fingerprint}
            save_file(tensors, temporary, metadata={"inputs": json.dumps(description)})

    @classmethod
    def load(cls, folder: Path, expected: Contract | None = None) -> "CriticInputs":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, cut off or was changed.
            ContractMismatch: if it belongs to another robot than `expected`.
        """
        path = Path(folder) / "inputs.safetensors"
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata()
                description = header | json.loads(header["inputs"])
                projection = FeatureProjection(file.get_tensor("mean"), file.get_tensor("components"))
                inputs = cls(
                    Contract.from_json(description["contract"], path),
                    FeatureConfig(**description["features"]),
                    projection,
                    description["encoder_fingerprint"],
                )
                if description["vision_dim"]:
                    inputs.vision = CriticVision(
                        len(inputs.contract.cameras), description["vision_dim"]
                    ).eval()
                    weights = [name for name in file.keys() if name.startswith(VISION)]  # noqa: SIM118
                    inputs.vision.load_state_dict(
                        {name.removeprefix(VISION): file.get_tensor(name) for name in weights}
                    )
                    inputs.vision.requires_grad_(False)
                intact = inputs.fingerprint == description["fingerprint"]
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"{path}: not the inputs of a critic ({error}); train the critic again"
            ) from error
        if not intact:
            raise UserError(f"{path}: its content does not match its fingerprint; train the critic again")
        if expected is not None:
            inputs.contract.require_same(expected, f"the critic in {folder}", "what is expected")
        return inputs


def pool_in_groups(context: Context, config: FeatureConfig, num_cameras: int) -> Tensor:
    """`pool_tokens` in groups of one size, so that a frame's result does not depend on its batch."""

    def group(rows: list[int]) -> Tensor:
        part = Context(context.tokens[rows], context.mask[rows], context.camera[rows], context.state[rows])
        return pool_tokens(part, config, num_cameras)

    return in_fixed_groups(group, len(context), GROUP)
