"""What training a critic needs beside the critic: data that fits it, batches, and losses on held-out episodes."""

import numpy as np
import torch
from torch import Tensor

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.data.options import Options, RewardSpec
from deas_vla.errors import UserError

# Options that are validated at once.
VALIDATION_BATCH = 4096
# Below these shares of the stored images that start an option, and of the options that join another, nothing is learnt.
SMALLEST_MADE, SMALLEST_CHAINED = 0.25, 0.5


def require_fit(critic: CriticConfig, reward: RewardSpec) -> None:
    """Refuses a critic that is not made for the rewards, or for the options, of recorded episodes."""
    limits = (reward.minimum, reward.maximum)
    if limits != (critic.reward_min, critic.reward_max):
        raise UserError(
            f"rewards lie in {limits} but the critic's support is made for "
            f"({critic.reward_min}, {critic.reward_max}); set --critic.reward_min and reward_max"
        )
    if critic.backup != critic.horizon:
        raise UserError(
            f"critic.backup_horizon={critic.backup_horizon}: options of recorded episodes end with their chunk; "
            "leave it at 0, or choose another --critic.horizon"
        )


def require_joined(options: Options) -> None:
    """Refuses data of whose images most are of no use, or whose options do not join: no value gets anywhere then."""
    made = len(options) / (len(options) + options.dropped)
    if made < SMALLEST_MADE or options.chained < SMALLEST_CHAINED:
        raise UserError(
            f"options of {options.chunk.shape[1]} steps could be made from {made:.0%} of the images, and "
            f"{options.chained:.0%} of those within an episode end where another one starts; store images at every "
            "step, or at such a distance that --critic.horizon is a multiple of it"
        )


def critic_batch(
    features: Tensor, state: Tensor, options: Options, rows: Tensor, candidates: Tensor | None = None
) -> CriticBatch:
    """The options at these rows with the features and states, and any candidates, at their ends."""
    start, end = options.start_frame[rows], options.end_frame[rows]
    return CriticBatch(
        features=features[start],
        state=state[start],
        chunk=options.chunk[rows],
        returns=options.returns[rows],
        bootstrap=options.bootstrap[rows],
        next_features=features[end],
        next_state=state[end],
        next_chunks=None if candidates is None else candidates[end],
    )


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
        sums: dict[str, float] = {}
        for part in rows.split(VALIDATION_BATCH):
            batch = critic_batch(features, state, options, part, candidates).to(device)
            for key, value in critic.loss(batch)[1].items():
                sums[key] = sums.get(key, 0.0) + float(value) * len(part)
        result[name] = {key: value / len(rows) for key, value in sums.items()} | {"options": len(rows)}
    return result
