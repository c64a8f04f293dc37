"""What training a critic needs beside the critic: features of stored frames, batches, losses on held-out episodes.

Networks run once for each stored frame, and all processes share that work. Shapes: F stored frames, O options.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.data.ahead import ahead, spare_workers
from deas_vla.data.episodes import Episode
from deas_vla.data.frames import FrameTable
from deas_vla.data.observation import Observation
from deas_vla.data.options import Options, RewardSpec
from deas_vla.errors import UserError
from deas_vla.features.cache import BLOCK, FeatureCache, FrameCache, ImageCache
from deas_vla.features.features import Features
from deas_vla.policies.chunk_policy import ChunkPolicy, candidate_noise, require_noise_scale
from deas_vla.scorers.scorer import Encoded, Scorer
from deas_vla.training.loop import progress_bar

FAINTEST = 0.1  # less than this share of the range of values between success and failure is a warning
# Frames that a scorer without `Features` encodes at once, and options that are validated at once.
FRAMES, VALIDATION_BATCH = 64, 4096
# Below these shares of the stored images that start an option, and of the options that join another, nothing is learnt.
SMALLEST_MADE, SMALLEST_CHAINED = 0.25, 0.5


def filled[C: FrameCache](accelerator: Accelerator, cache: C, name: str) -> C:
    """A cache with all its content; what is missing is computed by all processes, which all call this."""
    processes = accelerator.num_processes
    with progress_bar(accelerator, len(cache), name, unit="frame") as bar:
        cache.fill(
            process=accelerator.process_index,
            processes=processes,
            workers=spare_workers(processes) if cache.frames.on_disk else 0,
            progress=lambda count: bar.update(count * processes),
        )
    accelerator.wait_for_everyone()
    return cache


def stored_features(
    accelerator: Accelerator, features: Features, pooled: FrameCache | Tensor, frames: FrameTable, folder: Path
) -> Tensor:
    """(F, …) the critic's features of all frames, from their pooled tokens, of which a few are in memory at a time."""
    images = None
    if features.image_encoder is not None:
        images = filled(accelerator, ImageCache(folder, features, frames), "encoding images")

    def at(rows: Tensor) -> Tensor:
        projected = features.project(pooled[rows])
        return projected if images is None else torch.cat([projected, images[rows]], 1)

    return torch.cat([at(rows) for rows in torch.arange(len(frames)).split(BLOCK)])


def encode_frames(
    accelerator: Accelerator,
    scorer: Scorer,
    policy: ChunkPolicy,
    frames: FrameTable,
    folder: Path,
    rows: Tensor | None = None,
) -> Encoded:
    """What a scorer on the policy's device reads of stored frames, at (M,) rows or all; all processes call it."""
    features = getattr(scorer, "features", None)
    asked = frames if rows is None else frames.subset(rows)
    state, parts = policy.contract.normalize_state(asked.state), []
    pooled = None
    if isinstance(features, Features):
        pooled = filled(accelerator, FeatureCache(folder, policy, frames, features.config), "features")
        if rows is None:
            return Encoded(stored_features(accelerator, features, pooled, frames, folder), state)
    batches = torch.arange(len(asked)).split(FRAMES)
    workers = spare_workers(accelerator.num_processes) if frames.on_disk else 0
    with torch.inference_mode():
        for part, observation in zip(batches, ahead(asked.observation, batches, workers), strict=True):
            if pooled is None:
                parts.append(scorer.encode(policy.encode(observation), observation).features.cpu())
            else:
                parts.append(features.of_pooled(pooled[rows[part]], observation.images).cpu())
    return Encoded(torch.cat(parts), state)


class CandidateCache(FrameCache):
    """(F, N = count, H, A) float32 normalised chunks that a policy proposes at stored frames, to be scored.

    The folder is of one policy only, because the key knows its encoder, not its action head.
    """

    def __init__(
        self, folder: Path, policy: ChunkPolicy, frames: FrameTable, count: int, seed: int, noise_scale: float = 1.0
    ):
        require_noise_scale(policy, noise_scale)
        super().__init__(folder, frames, f"{policy.encoder_fingerprint} candidates {count} {seed} {noise_scale}")
        self.policy = policy.eval()
        self.count, self.seed, self.noise_scale = count, seed, noise_scale

    def compute(self, rows: Tensor, loaded: Observation) -> Tensor:
        contract = self.policy.contract
        shape = (self.count, self.policy.horizon, contract.action_dim)
        noise = torch.stack([candidate_noise(self.seed, frame, 0, 0, *shape) for frame in rows.tolist()])
        context = self.policy.encode(loaded)
        chunks = self.policy.sample(context, self.noise_scale * noise.to(context.tokens.device))
        return contract.normalize_action(contract.to_command(chunks)).float()


def require_fit(critic: CriticConfig, reward: RewardSpec) -> None:
    """Refuses a critic that is not made for the rewards, or for the options, of recorded episodes."""
    limits = (reward.minimum, reward.maximum)
    if limits != (critic.reward_min, critic.reward_max):
        support = f"the critic's support is made for ({critic.reward_min}, {critic.reward_max})"
        raise UserError(f"rewards lie in {limits} but {support}; set --critic.reward_min and reward_max")
    if critic.backup != critic.horizon:
        problem = f"critic.backup_horizon={critic.backup_horizon}: options of recorded episodes end with their chunk"
        raise UserError(f"{problem}; leave it at 0, or choose another --critic.horizon")


def require_joined(options: Options) -> None:
    """Refuses data of whose images most are of no use, or whose options do not join: no value gets anywhere then."""
    made = len(options) / (len(options) + options.dropped)
    if made < SMALLEST_MADE or options.chained < SMALLEST_CHAINED:
        raise UserError(
            f"options of {options.chunk.shape[1]} steps could be made from {made:.0%} of the images, and "
            f"{options.chained:.0%} of those within an episode end where another one starts; store images at every "
            "step, or at such a distance that --critic.horizon is a multiple of it"
        )


def discount_warning(critic: CriticConfig, episodes: list[Episode], rate_hz: float) -> str | None:
    """A line where a success at the usual distance hardly differs from a failure; None where it does.

    The value of a success T steps ahead differs from that of failing for ever by γ₂ᵀ of their range, whatever the
    rewards: a discount that is right at one rate and length of episodes is wrong at others.
    """
    lengths = [episode.length for episode in episodes if episode.terminated] or [e.length for e in episodes]
    steps = int(np.median(lengths))
    left = critic.bootstrap_discount**steps
    if left >= FAINTEST:
        return None
    better = round(1 - 1 / steps, 4)
    return (
        f"warning: half of the successful episodes take {steps} steps ({steps / rate_hz:.0f} s) or more: at their "
        f"start critic.bootstrap_discount={critic.bootstrap_discount:g} leaves {left:.1%} of the difference between "
        f"success and failure; --critic.bootstrap_discount={better:g} leaves {better**steps:.0%}"
    )


def critic_batch(
    features: Tensor, state: Tensor, options: Options, rows: Tensor, candidates: Tensor | None = None
) -> CriticBatch:
    """The options at these rows with the features and states, and any candidates, at their ends."""
    start, end = options.start_frame[rows], options.end_frame[rows]
    option = (options.chunk[rows], options.returns[rows], options.bootstrap[rows])
    next_chunks = None if candidates is None else candidates[end]
    return CriticBatch(features[start], state[start], *option, features[end], state[end], next_chunks)


@torch.inference_mode()
def validation(
    critic: DeasCritic,
    features: Tensor,
    state: Tensor,
    options: Options,
    held_out: np.ndarray,
    candidates: Tensor | None = None,
) -> dict:
    """Mean losses and values on the options of training and of held-out episodes."""
    critic.eval()
    device, result = next(critic.parameters()).device, {}
    for name, mask in (("training", ~held_out), ("held_out", held_out)):
        rows = torch.from_numpy(np.flatnonzero(mask[options.episode]))
        if not len(rows):
            continue
        sums: Counter[str] = Counter()
        for part in rows.split(VALIDATION_BATCH):
            batch = critic_batch(features, state, options, part, candidates).to(device)
            sums.update({key: float(value) * len(part) for key, value in critic.loss(batch)[1].items()})
        result[name] = {key: value / len(rows) for key, value in sums.items()} | {"options": len(rows)}
    return result
