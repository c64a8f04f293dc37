"""Advantage-weighted fine-tuning: imitate every recorded chunk by how much better than expected it is.

Minimises  E_D[ w(s, a) · L_flow(s, a) ],  w = min(exp(A(s, a) / β), w_max),  A = min_k Q_k(s, a) − V(s)
(DEAS, section on policy extraction; the weight is a constant: no gradient flows through it). The critic never sees
the policy's own samples, so the two stay detached.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.critic.critic import DeasCritic
from deas_vla.errors import UserError


@dataclass
class AdvantageWeighting:
    """How advantages become weights."""

    # β, in standard deviations of the advantages over the data: small values imitate only the best chunks.
    temperature: float = 0.5
    # Largest weight, as a multiple of the weight of an average chunk (A = mean A).
    maximum: float = 20.0

    def __post_init__(self):
        if self.temperature <= 0 or self.maximum < 1:
            raise UserError(
                f"temperature ({self.temperature}) must be above 0 and maximum ({self.maximum}) at least 1"
            )


def advantage_weights(advantages: Tensor, weighting: AdvantageWeighting) -> Tensor:
    """(O,) advantages to (O,) weights of mean 1.

    Advantages are centred and divided by their standard deviation first, so that the temperature means the same
    for every task, reward scale and critic.
    """
    spread = advantages.std().clamp_min(1e-6)
    scaled = (advantages - advantages.mean()) / (weighting.temperature * spread)
    weights = scaled.clamp_max(torch.tensor(weighting.maximum).log()).exp()
    return weights / weights.mean()


@torch.inference_mode()
def advantages_of(
    critic: DeasCritic, features: Tensor, state: Tensor, options, batch_size: int = 4096
) -> Tensor:
    """(O,) advantage of every recorded option.

    Args:
        critic: a trained critic.
        features: (F, D) critic features of every stored frame.
        state: (F, S) normalised proprioception of every stored frame.
        options: what was played: start frames and normalised chunks.
        batch_size: options scored at once.
    """
    parts = []
    for start in range(0, len(options), batch_size):
        rows = slice(start, start + batch_size)
        frames = options.start_frame[rows]
        parts.append(critic.advantage(features[frames], state[frames], options.chunk[rows]))
    return torch.cat(parts)
