"""Trains the critic's image encoder on recorded episodes, once for all critics of the same data.

What it learns from is in the data and needs no labels: did the episode end in success, and, if it did, where was the
robot one, two and four chunks later and at the end.
"""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from deas_vla.config import fingerprint, to_json
from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.features.cache import BLOCK
from deas_vla.features.image_encoder import CriticVision, VisionBatch, VisionConfig, VisionLearning
from deas_vla.files import atomic_path
from deas_vla.policies.augment import random_shift
from deas_vla.training.loop import TrainingConfig, my_share, step_generator, train
from deas_vla.training.stages import alone

# Later steps whose states are predicted, in chunks; the last step of the episode is always one.
CHUNKS_AHEAD = (1, 2, 4)
# Later states are cut off at this many standard deviations.
LARGEST = 5.0
# Frames that show how much the encoder's numbers differ, and what counts as no spread.
SPREAD_FRAMES, SMALLEST_SPREAD = 4096, 1e-2
WEIGHTS = "vision.safetensors"


@dataclass
class FrameOutcomes:
    """What came of F stored frames.

    Attributes:
        won: (F,) 1.0 where the episode ended in success.
        judged: (F,) 1.0 where predicting that teaches something: before the end of a rollout. Demonstrations are
            chosen for their success.
        future: (F, T) states at the later steps, of standard deviation 1 over successful episodes; columns that
            never differ are 0.
        known: (F,) 1.0 where the later states are worth seeing: in successful episodes.
    """

    won: Tensor
    judged: Tensor
    future: Tensor
    known: Tensor

    @classmethod
    def of(cls, episodes: list[Episode], contract: Contract, horizon: int) -> "FrameOutcomes":
        """Of the frames of these episodes, in the order of their `FrameTable`.

        Args:
            episodes: as the frames were made from.
            contract: normalises states.
            horizon: H, control steps of a chunk.
        """
        won, judged, later = [], [], []
        for episode in episodes:
            steps = episode.frame_steps
            won.append(np.full(len(steps), episode.terminated))
            judged.append((steps < episode.length) & (episode.source == "rollout"))
            ahead = [np.minimum(steps + chunks * horizon, episode.length) for chunks in CHUNKS_AHEAD]
            ahead.append(np.full(len(steps), episode.length))
            later.append(episode.states[np.stack(ahead, 1)])
        won, judged = (torch.from_numpy(np.concatenate(flags)) for flags in (won, judged))
        states = contract.normalize_state(torch.from_numpy(np.concatenate(later))).flatten(1)
        good = states[won] if won.any() else states
        spread = good.std(0, unbiased=False)
        scale = torch.where(spread > 1e-2, 1 / spread.clamp_min(1e-2), 0.0)
        future = ((states - good.mean(0)) * scale).clamp(-LARGEST, LARGEST)
        return cls(won.float(), judged.float(), future, won.float())


def trained_vision(
    accelerator: Accelerator,
    config: VisionConfig,
    training: TrainingConfig,
    episodes: list[Episode],
    frames: FrameTable,
    contract: Contract,
    seen: Tensor,
    folder: Path,
    *,
    horizon: int,
    seed: int,
) -> CriticVision | None:
    """The encoder for these episodes: from the cache, or trained now; a killed training goes on.

    Args:
        accelerator: Accelerate's handle on the processes; all of them call this.
        config: size, losses, augmentation; with dim 0 there is no encoder.
        training: optimisation.
        episodes: what is learned from.
        frames: their stored observations.
        contract: cameras and normalisation.
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
    if not outcomes.judged[rows].any():
        raise UserError(
            "the critic's image encoder learns from rollouts, and there are none: set --vision.dim=0"
        )
    key = {
        "config": to_json(config),
        "training": to_json(training),
        "frames": frames.fingerprint,
        "outcomes": _digest(outcomes.won, outcomes.judged, outcomes.future, seen),
        "seed": seed,
    }
    place = Path(folder) / f"vision-{fingerprint(key)[:16]}"
    torch.manual_seed(seed)
    vision = CriticVision(len(contract.cameras), config.dim).to(accelerator.device)
    with alone(accelerator, place):  # another run may share the folder
        if not (place / WEIGHTS).is_file():
            learning = VisionLearning(vision, config, frames.state.shape[1], outcomes.future.shape[1])
            batch_at = VisionBatches(accelerator, config, training, outcomes, frames, contract, rows, seed)
            learning.to(accelerator.device)
            train(accelerator, learning, batch_at, training, place, name="vision", seed=seed)
            if accelerator.is_main_process:
                _to_unit_spread(vision, batch_at.images, rows)
                with atomic_path(place / WEIGHTS) as temporary:
                    save_file({k: v.cpu().contiguous() for k, v in vision.state_dict().items()}, temporary)
            accelerator.wait_for_everyone()
    # Read back by everyone, so that a first run and a later one go on with the same weights.
    vision.load_state_dict(load_file(place / WEIGHTS))
    return vision.eval().requires_grad_(False)


@torch.inference_mode()
def _to_unit_spread(vision: CriticVision, images: list[Tensor], rows: Tensor) -> None:
    """Shifts and scales what the encoder says to mean 0 and standard deviation 1 over at most `SPREAD_FRAMES` frames.

    The backbone's components beside it have that spread, and a network hears what is loud.
    """
    vision.eval()
    rows = rows[:: math.ceil(len(rows) / SPREAD_FRAMES)]
    device = vision.norm.weight.device
    seen = [vision([image[some].to(device) for image in images]) for some in rows.split(BLOCK)]
    spread, mean = torch.std_mean(torch.cat(seen), 0, correction=0)
    spread = spread.clamp_min(SMALLEST_SPREAD)
    vision.norm.weight.div_(spread)
    vision.norm.bias.sub_(mean).div_(spread)


class VisionBatches:
    """Step number to this process's share of the batch, drawn evenly from the frames of training episodes."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: VisionConfig,
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
        self.judged = outcomes.judged / outcomes.judged[rows].mean()
        self.known = outcomes.known / outcomes.known[rows].mean().clamp_min(1e-6)

    def __call__(self, step: int) -> tuple[VisionBatch]:
        # The whole batch is drawn by every process, which keeps its share: two processes train as one would, but for
        # dropout.
        generator = step_generator(self.seed, step)
        chosen = self.rows[torch.randint(len(self.rows), (self.size,), generator=generator)]
        images = [random_shift(image[chosen], self.max_shift, generator, self.share) for image in self.images]
        mine = chosen[self.share]
        batch = VisionBatch(
            images=images,
            state=self.state[mine],
            won=self.outcomes.won[mine],
            won_weight=self.judged[mine],
            future=self.outcomes.future[mine],
            future_weight=self.known[mine],
        )
        return (batch.to(self.device),)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.numpy())
    return digest.hexdigest()
