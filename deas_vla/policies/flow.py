"""Flow matching: from noise to an action chunk along straight lines.

A chunk a and a noise ε are joined by x_t = (1 − t) ε + t a, which moves at the constant velocity a − ε. A network
sees (x_t, t) and predicts a; the velocity follows as (â − x_t) / (1 − t), and integrating it from t = 0 to t = 1
turns noise into a chunk (Lipman et al. 2023; the time distribution and the few Euler steps are those of π0 and
GR00T).

Predicting the chunk instead of the velocity changes neither the flow nor its optimum, only what the network has to
carry: a chunk is smooth and has few live columns, its noise is neither (Li and He, "Back to basics: let denoising
generative models denoise", 2025). Trained for minutes, it is what makes the policy look at its images at all.
"""

from collections.abc import Callable

import torch
from torch import Tensor

# Shape and cut-off of the training-time distribution: t = (s − b) / s with b ~ Beta(1.5, 1), so that noisy inputs,
# where the network decides between modes, are seen more often than nearly clean ones.
TIME_BETA = 1.5
TIME_CUTOFF = 0.999


def sample_time(shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
    """Flow times for training, in [0, 1], denser near the noise end.

    Args:
        shape: shape of the result, usually (B, K) for K noise samples an observation.
        generator: source of randomness, on the CPU.
    """
    # The distribution function of Beta(β, 1) is b^β: its inverse needs one uniform number and no rejection.
    b = torch.rand(shape, generator=generator) ** (1 / TIME_BETA)
    return ((TIME_CUTOFF - b) / TIME_CUTOFF).clamp_min(0.0)


def interpolate(chunks: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = (1 − t) ε + t a.

    Args:
        chunks: (B, 1, H, A) or (B, K, H, A) clean chunks a.
        noise: (B, K, H, A) noise ε.
        time: (B, K) flow times t.

    Returns:
        (B, K, H, A) points on the lines.
    """
    time = time[:, :, None, None]
    return (1 - time) * noise + time * chunks


def hold_last(chunks: Tensor, valid: Tensor) -> Tensor:
    """Repeats the last played action over the steps that were not played.

    Args:
        chunks: (B, H, A); whatever stands in the steps that were not played is not read.
        valid: (B, H) True for the first m steps, those that were played.

    Returns:
        (B, H, A).
    """
    last = valid.sum(1, keepdim=True).clamp_min(1) - 1
    step = torch.arange(chunks.shape[1], device=chunks.device)
    return chunks.gather(1, torch.minimum(step, last)[:, :, None].expand_as(chunks))


def flow_loss(predicted: Tensor, chunks: Tensor, valid: Tensor | None) -> Tensor:
    """Squared error of the predicted chunk, averaged over noise samples, played steps and columns of each sample.

    It is the error of the velocity times (1 − t)², which takes out the weight that would otherwise grow without
    bound towards the clean end.

    Args:
        predicted: (B, K, H, A) the network's chunks, given x_t.
        chunks: (B, H, A) the chunks in x_t.
        valid: (B, H) True for steps that were played before the episode ended, or None for all.

    Returns:
        (B,) one loss a sample; zero for a sample without any valid step.
    """
    error = (predicted - chunks[:, None]).square().mean(dim=(1, 3))
    if valid is None:
        return error.mean(1)
    return (error * valid).sum(1) / valid.sum(1).clamp_min(1)


def integrate(predict: Callable[[Tensor, int], Tensor], noise: Tensor, steps: int) -> Tensor:
    """Euler integration from t = 0 to t = 1. The last step ends on the network's last prediction.

    Args:
        predict: takes x_t and the number of the step, i, for t = i / steps; returns the predicted chunk.
        noise: x at t = 0.
        steps: number of equal steps.
    """
    x = noise
    for step in range(steps):
        # (â − x) / (1 − t) for a time of 1 / steps.
        x = torch.lerp(x, predict(x, step), 1 / (steps - step))
    return x
