"""Advantage-weighted fine-tuning: imitate every chunk by how much better than expected it is.

Minimises  E[ w(s, a) · L_flow(s, a) ],  w = min(exp(A(s, a) / β), w_max)  (DEAS, section on policy extraction; the
weight is a constant: no gradient flows through it). The critic never sees the policy's own samples while it learns, so
the two stay detached. Which chunks are weighted is a choice:

- recorded ones, as published: a was played at s, and A(s, a) = min_k Q_k(s, a) − V(s). Each state has one chunk;
- proposed ones: at a recorded state the policy is asked for N chunks aᵢ, and A(s, aᵢ) = min_k Q_k(s, aᵢ) − their mean.
  Each state then has a better and a worse chunk, so the weights are about what to do, not about where one is; this is
  the improvement step of MPO (Abdolmaleki et al. 2018) with DEAS's critic.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.errors import UserError
from deas_vla.scorers.scorer import Encoded, Scorer


@dataclass
class AdvantageWeighting:
    """How advantages become weights."""

    # β, in standard deviations of the advantages over the data: small values imitate only the best chunks.
    temperature: float = 0.5
    # Largest weight, as a multiple of the weight of an average chunk (A = mean A).
    maximum: float = 20.0
    # Chunks that the policy proposes at each frame; 0: the recorded ones are weighted instead, as published.
    proposals: int = 8
    # Frames of the rollouts at which it is asked, drawn at random.
    frames: int = 6000
    # The policy's noise is multiplied by this for its proposals.
    noise_scale: float = 0.5

    def __post_init__(self):
        if self.temperature <= 0 or self.maximum < 1:
            raise UserError(
                f"temperature ({self.temperature}) must be above 0 and maximum ({self.maximum}) at least 1"
            )
        if self.proposals < 0 or self.proposals == 1 or self.frames < 1 or self.noise_scale <= 0:
            raise UserError(
                f"proposals ({self.proposals}) must be 0 or at least 2, frames ({self.frames}) at least 1 and "
                f"noise_scale ({self.noise_scale}) above 0"
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
def advantages_of(scorer: Scorer, encoded: Encoded, options, batch_size: int = 4096) -> Tensor:
    """(O,) advantage of every recorded option.

    Args:
        scorer: a trained one.
        encoded: (F, D) features and (F, S) states of every stored frame.
        options: what was played: start frames and normalised chunks.
        batch_size: options scored at once.
    """
    parts = []
    for start in range(0, len(options), batch_size):
        rows = slice(start, start + batch_size)
        frames = options.start_frame[rows]
        parts.append(scorer.advantage(encoded.rows(frames), options.chunk[rows]))
    return torch.cat(parts)


@torch.inference_mode()
def advantages_among(scorer: Scorer, encoded: Encoded, chunks: Tensor, batch_size: int = 512) -> Tensor:
    """(M, N) advantage of every proposed chunk over the others at its frame.

    Args:
        scorer: a trained one.
        encoded: (M, D) features and (M, S) states of the frames.
        chunks: (M, N, H, A) normalised chunks of the policy.
        batch_size: frames scored at once.
    """
    parts = []
    for start in range(0, len(chunks), batch_size):
        rows = slice(start, start + batch_size)
        scores = scorer.score(encoded.rows(rows), chunks[rows])
        parts.append(scores - scores.mean(1, keepdim=True))
    return torch.cat(parts)
