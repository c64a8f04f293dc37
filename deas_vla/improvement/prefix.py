"""Candidates that are consistent with what is being played: real-time chunking, for any policy that makes chunks.

While a decision is made, the robot plays on from the last chunk; the first steps of the new chunk are over before they
could be played. So every candidate begins with what is really played then, which is also what the critic scores, and
only the candidates nearest to the last chunk are left to choose from: a jump between two chunks would be felt by the
arm, and a different plan at every decision goes nowhere. (Real-time chunking, Black, Galliker and Levine, 2025, guides
the sampler instead, which needs its gradients; backward coherence is of bidirectional decoding, Liu et al., 2024.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.data.contract import Contract


@dataclass(frozen=True)
class Prefix:
    """The rest of the last chunk, from the step at which the new one begins.

    Attributes:
        commands: (B, P, A) in the contract's units, as they are played.
        committed: how many of its steps are played before the new chunk is there.
    """

    commands: Tensor
    committed: int


def prefix_consistent(candidates: Tensor, prefix: Prefix, contract: Contract) -> Tensor:
    """The half of the candidates that is nearest to the last chunk, beginning with what is played meanwhile.

    Committed steps count fully in the distance, the steps after them less and less, up to the last chunk's end.

    Args:
        candidates: (B, N, H, A) commands.
        prefix: of the same B decisions.
        contract: whose normalisation gives the columns one unit.

    Returns:
        (B, ⌈N / 2⌉, H, A) in the order that they had.
    """
    played = prefix.commands[:, None, : candidates.shape[2]].to(candidates)
    length = played.shape[2]
    committed = min(prefix.committed, length)
    error = contract.normalize_action(candidates[:, :, :length]) - contract.normalize_action(played)
    after = torch.arange(length, device=candidates.device) - committed
    weight = (1 - (after + 1) / (length - committed + 1)).clamp(0, 1)
    distance = (error.square().mean(3) * torch.where(after < 0, 1.0, weight)).sum(2)
    nearest = distance.argsort(dim=1, stable=True)[:, : (candidates.shape[1] + 1) // 2].sort(1).values
    kept = candidates[torch.arange(len(candidates), device=candidates.device)[:, None], nearest]
    return torch.cat([played[:, :, :committed].expand(-1, kept.shape[1], -1, -1), kept[:, :, committed:]], 2)
