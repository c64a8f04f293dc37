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
from deas_vla.features.cache import BLOCK, SmallImageCache
from deas_vla.features.image_encoder import FrameOutcomes, ImageEncoder, ImageEncoderConfig, ImageEncoderLearning
from deas_vla.files import atomic_path
from deas_vla.policies.augment import random_shift
from deas_vla.training.checkpoint import CHECKPOINT
from deas_vla.training.critic import filled
from deas_vla.training.loop import TrainingConfig, my_share, step_generator, train
from deas_vla.training.stages import lock_for_run

STANDARD_FRAMES = 4096  # frames over which the trained encoder's output is standardised
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

    With dim 0 there is none. `seen`: (F,) bool, frames of training episodes; the others are held out. `folder`: where
    such encoders are kept, each in a subfolder named after its fingerprint. `horizon`: H, control steps of a chunk.
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
    small = SmallImageCache(folder, contract, frames)
    images = [frames.images[name] for name in small.cameras]
    folder = Path(folder) / f"image-encoder-{fingerprint(key)[:16]}"
    if small.needed:
        # No step decodes large images and makes them small: that would take most of its time.
        images = filled(accelerator, small, "small images").read().unbind(1)
    # Means over the frames that count, whatever their number in one batch.
    success_weight = outcomes.labelled / outcomes.labelled[rows].mean()
    future_weight = outcomes.success / outcomes.success[rows].mean().clamp_min(1e-6)
    state = contract.normalize_state(frames.state)
    tables = (state, outcomes.success, success_weight, outcomes.future, future_weight)
    share = my_share(accelerator, training.batch_size)

    def batch_at(step: int) -> tuple[list[Tensor] | Tensor, ...]:
        # The whole batch is drawn by every process, which keeps its share: two processes train as one would, but for
        # dropout. Frames of training episodes are drawn evenly.
        generator = step_generator(seed, step)
        chosen = rows[torch.randint(len(rows), (training.batch_size,), generator=generator)]
        shifted = [random_shift(image[chosen], config.max_shift, generator, share) for image in images]
        return shifted, *(table[chosen[share]] for table in tables)

    torch.manual_seed(seed)
    encoder = ImageEncoder(len(contract.cameras), config.dim).to(accelerator.device)
    with lock_for_run(accelerator, folder):  # another run may share the folder
        if not (folder / WEIGHTS).is_file():
            learning = ImageEncoderLearning(encoder, config, frames.state.shape[1], outcomes.future.shape[1])
            learning.to(accelerator.device)
            train(accelerator, learning, batch_at, training, folder, name="image_encoder", seed=seed)
            if accelerator.is_main_process:
                some = rows[:: math.ceil(len(rows) / STANDARD_FRAMES)].split(BLOCK)
                with torch.inference_mode():
                    encoder.eval()
                    parts = [encoder([image[part].to(accelerator.device) for image in images]) for part in some]
                    encoder.standardise(torch.cat(parts))
                with atomic_path(folder / WEIGHTS) as temporary:
                    save_file({k: v.cpu().contiguous() for k, v in encoder.state_dict().items()}, temporary)
                (folder / CHECKPOINT).unlink(missing_ok=True)
            accelerator.wait_for_everyone()
    # Read back by everyone, so that a first run and a later one go on with the same weights.
    encoder.load_state_dict(load_file(folder / WEIGHTS))
    return encoder.eval().requires_grad_(False)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy())
    return digest.hexdigest()
