"""Trains the critic's image encoder on recorded episodes, once for all critics of the same data."""

import hashlib
import math
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from deas_vla.config import fingerprint, outcome_settings, to_json
from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.features.cache import BLOCK
from deas_vla.features.image_encoder import FrameOutcomes, ImageEncoder, ImageEncoderConfig, ImageEncoderLearning
from deas_vla.files import atomic_path
from deas_vla.policies.augment import random_shift
from deas_vla.training.loop import TrainingConfig, my_share, step_generator, train
from deas_vla.training.stages import lock_for_run

# Frames over which the trained encoder's output is standardised.
STANDARD_FRAMES = 4096
WEIGHTS = "image_encoder.safetensors"


def train_image_encoder(
    accelerator: Accelerator,
    config: ImageEncoderConfig,
    training: TrainingConfig,
    episodes: list[Episode],
    frames: FrameTable,
    contract: Contract,
    seen: Tensor,
    folder: Path,
    *,
    horizon: int,
    seed: int,
) -> ImageEncoder | None:
    """The encoder for these episodes: from the cache, or trained now by all processes; a killed training goes on.

    Args:
        config: with dim 0 there is no encoder.
        episodes: what is learned from; `frames` are their stored observations.
        seen: (F,) bool, frames of training episodes; the others are held out.
        folder: where such encoders are kept; this one gets a subfolder named after its fingerprint.
        horizon: H, control steps of a chunk.
        seed: names initial weights and the sequence of batches.

    Returns:
        The encoder in evaluation mode, on the accelerator's device.
    """
    if not config.dim:
        return None
    outcomes = FrameOutcomes.of(episodes, contract, horizon)
    rows = torch.where(seen)[0]
    if not outcomes.labelled[rows].any():
        raise UserError("the image encoder learns from rollouts, there are none: set --image_encoder.dim=0")
    key = {
        "config": to_json(config),
        "training": outcome_settings(training),
        "frames": frames.fingerprint,
        "outcomes": _digest(outcomes.success, outcomes.labelled, outcomes.future, seen),
        "seed": seed,
    }
    folder = Path(folder) / f"image-encoder-{fingerprint(key)[:16]}"
    torch.manual_seed(seed)
    encoder = ImageEncoder(len(contract.cameras), config.dim).to(accelerator.device)
    with lock_for_run(accelerator, folder):  # another run may share the folder
        if not (folder / WEIGHTS).is_file():
            learning = ImageEncoderLearning(encoder, config, frames.state.shape[1], outcomes.future.shape[1])
            batch_at = ImageBatches(accelerator, config, training, outcomes, frames, contract, rows, seed)
            learning.to(accelerator.device)
            train(accelerator, learning, batch_at, training, folder, name="image_encoder", seed=seed)
            if accelerator.is_main_process:
                encoder.eval().standardise(_encode(encoder, batch_at.images, rows))
                with atomic_path(folder / WEIGHTS) as temporary:
                    save_file({k: v.cpu().contiguous() for k, v in encoder.state_dict().items()}, temporary)
            accelerator.wait_for_everyone()
    # Read back by everyone, so that a first run and a later one go on with the same weights.
    encoder.load_state_dict(load_file(folder / WEIGHTS))
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def _encode(encoder: ImageEncoder, images: list[Tensor], rows: Tensor) -> Tensor:
    """The encoder's output for at most `STANDARD_FRAMES` of the frames, evenly spaced."""
    device = encoder.norm.weight.device
    some = rows[:: math.ceil(len(rows) / STANDARD_FRAMES)]
    return torch.cat([encoder([image[part].to(device) for image in images]) for part in some.split(BLOCK)])


class ImageBatches:
    """Step number to this process's share of the batch, drawn evenly from the frames of training episodes."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: ImageEncoderConfig,
        training: TrainingConfig,
        outcomes: FrameOutcomes,
        frames: FrameTable,
        contract: Contract,
        rows: Tensor,
        seed: int,
    ):
        self.images = [frames.images[camera.name] for camera in contract.cameras]
        self.state = contract.normalize_state(frames.state)
        self.outcomes, self.rows, self.max_shift, self.seed = outcomes, rows, config.max_shift, seed
        self.size, self.share = training.batch_size, my_share(accelerator, training.batch_size)
        self.device = accelerator.device
        # Means over the frames that count, whatever their number in one batch.
        self.success_weight = outcomes.labelled / outcomes.labelled[rows].mean()
        self.future_weight = outcomes.success / outcomes.success[rows].mean().clamp_min(1e-6)

    def __call__(self, step: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor, Tensor]:
        # The whole batch is drawn by every process, which keeps its share: two processes train as one would, but for
        # dropout.
        generator = step_generator(self.seed, step)
        chosen = self.rows[torch.randint(len(self.rows), (self.size,), generator=generator)]
        images = [random_shift(image[chosen], self.max_shift, generator, self.share) for image in self.images]
        success, future = self.outcomes.success, self.outcomes.future
        tables = (self.state, success, self.success_weight, future, self.future_weight)
        rows = (table[chosen[self.share]].to(self.device) for table in tables)
        return [image.to(self.device) for image in images], *rows


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy())
    return digest.hexdigest()
