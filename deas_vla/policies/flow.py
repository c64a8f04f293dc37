"""Flow matching: from noise to an action chunk along straight lines.

A chunk a and a noise ε are joined by x_t = (1 − t) ε + t a, of velocity a − ε (Lipman et al. 2023; times and Euler
steps as in π0 and GR00T). A network sees (x_t, t) and predicts a, not the velocity (â − x_t) / (1 − t): a chunk is
smooth and has few live columns, its noise is neither (Li and He, "Back to basics", 2025). Trained for minutes, it is
what makes the policy look at its images at all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Shape and cut-off of the training-time distribution: t = (s − b) / s with b ~ Beta(1.5, 1), so that noisy inputs,
# where the network decides between modes, are seen more often than nearly clean ones.
TIME_BETA = 1.5
TIME_CUTOFF = 0.999


def sample_time(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Flow times for training, in [0, 1], denser near the noise end; the generator is on the CPU."""
    # The distribution function of Beta(β, 1) is b^β: its inverse needs one uniform number and no rejection.
    b = torch.rand(shape, generator=generator) ** (1 / TIME_BETA)
    return ((TIME_CUTOFF - b) / TIME_CUTOFF).clamp_min(0.0)


def interpolate(chunks: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """(B, K, H, A) points x_t of chunks a, (B, 1 or K, H, A), noise ε, (B, K, H, A), and times t, (B, K)."""
    time = time[:, :, None, None]
    return (1 - time) * noise + time * chunks


def hold_last(chunks: Tensor, valid: Tensor) -> Tensor:
    """(B, H, A) chunks whose last played action fills the steps that were not played.

    What stands there is not read; (B, H) valid is True for the first m steps, those that were played.
    """
    last = valid.sum(1, keepdim=True).clamp_min(1) - 1
    step = torch.arange(chunks.shape[1], device=chunks.device)
    return chunks.gather(1, torch.minimum(step, last)[:, :, None].expand_as(chunks))


def flow_loss(predicted: Tensor, chunks: Tensor, valid: Tensor | None) -> Tensor:
    """(B,) squared errors of (B, K, H, A) predicted chunks, averaged over noise samples, valid steps and columns.

    The error of the velocity times (1 − t)²: without that, its weight would grow without bound towards the clean end.
    Valid (B, H) are the steps that were played, None: all; a sample without any has loss zero.
    """
    error = (predicted - chunks[:, None]).square().mean(dim=(1, 3))
    if valid is None:
        return error.mean(1)
    return (error * valid).sum(1) / valid.sum(1).clamp_min(1)


def integrate(predict: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler integration from noise, at t = 0, to t = 1, where it ends on the last prediction.

    `predict` takes x_t and the number of the step, i, for t = i / steps, and returns the predicted chunk.
    """
    x = noise
    for step in range(steps):
        # (â − x) / (1 − t) for a time of 1 / steps.
        x = torch.lerp(x, predict(x, step), 1 / (steps - step))
    return x
