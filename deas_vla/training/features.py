"""What a scorer reads of all stored frames: the networks run once for each frame, shared by all processes."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from deas_vla.data.frames import FrameTable
from deas_vla.features.cache import FeatureCache, ImageCache
from deas_vla.features.features import FeatureConfig, Features
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.scorers.scorer import Encoded, Scorer
from deas_vla.training.loop import filled

# Frames that a scorer without `Features` encodes at once.
FRAMES = 64


def cached_features(
    accelerator: Accelerator, policy: ChunkPolicy, frames: FrameTable, config: FeatureConfig, folder: Path
) -> Tensor:
    """(F, P) pooled tokens of all frames, from the cache; what is missing is computed by all processes."""
    return filled(accelerator, FeatureCache(folder, policy, frames, config), "features")


def stored_features(
    accelerator: Accelerator, features: Features, pooled: Tensor, frames: FrameTable, folder: Path
) -> Tensor:
    """(F, …) the critic's features of all frames, from their (F, P) pooled tokens; the image encoder's part is cached.

    All processes call this.
    """
    projected = features.project(pooled)
    if features.image_encoder is None:
        return projected
    encoded = filled(accelerator, ImageCache(folder, features, frames), "encoding images")
    return torch.cat([projected, encoded], 1)


def encode_frames(
    accelerator: Accelerator,
    scorer: Scorer,
    policy: ChunkPolicy,
    frames: FrameTable,
    folder: Path,
    rows: Tensor | None = None,
) -> Encoded:
    """What a scorer, on the policy's device, reads of stored frames, on the CPU; all processes call this.

    The policy encodes what is not in the cache in this folder; `rows` are (M,) int64 the frames, None: all.
    """
    state = policy.contract.normalize_state(frames.state if rows is None else frames.state[rows])
    features = getattr(scorer, "features", None)
    if isinstance(features, Features):
        pooled = cached_features(accelerator, policy, frames, features.config, folder)
        if rows is None:
            return Encoded(stored_features(accelerator, features, pooled, frames, folder), state)
        return Encoded(features.of_pooled(pooled[rows], frames.subset(rows).images), state)
    parts = []
    with torch.inference_mode():
        for part in (torch.arange(len(frames)) if rows is None else rows).split(FRAMES):
            observation = frames.observation(part)
            parts.append(scorer.encode(policy.encode(observation), observation).features.cpu())
    return Encoded(torch.cat(parts), state)
