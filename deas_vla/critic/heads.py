"""Values as numbers that a network can learn: HL-Gauss distributions over a support, or plain scalars.

One interface: the losses are written once and the scalar head is a fair ablation. Heads hold no tensors: a
half-precision cast of the module that owns them cannot touch the support.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor


def return_bounds(
    horizon: int, reward_discount: float, bootstrap_discount: float, reward_min: float, reward_max: float
) -> tuple[float, float]:
    """Smallest and largest return of a sequence of options (design rule 5), from H, γ₁, γ₂ and a step's rewards.

    An option of m steps with constant reward r collects r·S_m, S_m = (1 − γ₁ᵐ)/(1 − γ₁). Options have the full length
    H everywhere but at an episode's end, so a return is one of: nothing more, r·S_m and termination, or r·S_m + γ₂ᵐ·L,
    where L = r·S_H/(1 − γ₂ᴴ) is the return of full options for ever. A short option that bootstraps (a timeout) can be
    worse than L: with H 16, γ₁ 0.9, γ₂ 0.99, reward −1 it is −56.3 against −54.8.
    """
    returns = [0.0]
    for reward in (reward_min, reward_max):
        sums = [0.0]
        for k in range(horizon):
            sums.append(sums[-1] + reward * reward_discount**k)
        forever = sums[horizon] / (1 - bootstrap_discount**horizon)
        for steps in range(1, horizon + 1):
            returns += [sums[steps], sums[steps] + bootstrap_discount**steps * forever]
    return min(returns), max(returns)


class ValueHead(ABC):
    """What a value network's last layer, of M = `num_logits` columns, means; low < high are the possible returns."""

    num_logits: int

    def __init__(self, low: float, high: float):
        if not low < high:
            raise ValueError(f"the lowest return, {low}, must be below the highest, {high}")
        self.low, self.high = low, high

    @abstractmethod
    def target(self, value: Tensor) -> Tensor:
        """(...) returns to (..., M) regression targets; returns outside [low, high] are clamped to it."""

    @abstractmethod
    def prediction(self, logits: Tensor) -> Tensor:
        """(..., M) logits to (..., M) what the network predicts, in the form of a regression target."""

    @abstractmethod
    def mean(self, logits: Tensor) -> Tensor:
        """(..., M) logits to (...) scalar values, in the unit of the return."""

    @abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """(..., M) logits and (..., M) targets, which broadcast, to (...) losses, not reduced."""

    def outside(self, value: Tensor) -> Tensor:
        """(...) bool: the returns that `target` clamps. Stays on the device; nothing is synchronised."""
        return (value < self.low) | (value > self.high)


class HLGauss(ValueHead):
    """Cross-entropy to a Gaussian in bins (HL-Gauss: Imani & White, 2018; Farebrother et al., 2024).

    M = `num_bins` equal bins of width w cover [low, high] and a margin of `margin_sigmas` · σ, σ = `sigma_bins` · w, on
    either side: a support that ended at an extreme return could not have it as its mean. With four standard deviations,
    the 6e-5 of a Gaussian that are cut off there move its mean by about 1e-4 of a bin; published code has no margin.
    Raises ValueError if fewer than two bins are left between the margins.
    """

    def __init__(self, low: float, high: float, num_bins: int, sigma_bins: float, margin_sigmas: float = 4.0):
        super().__init__(low, high)
        margin = margin_sigmas * sigma_bins
        if num_bins - 2 * margin < 2:
            taken = f"the margins alone take {2 * margin:g} bins at sigma_bins={sigma_bins:g}"
            raise ValueError(f"{num_bins} bins leave no room for returns: {taken}")
        self.num_logits = num_bins
        self.bin_width = (high - low) / (num_bins - 2 * margin)
        self.sigma = sigma_bins * self.bin_width
        self.support_low = low - margin * self.bin_width
        self.support_high = high + margin * self.bin_width

    def edges(self, device: torch.device | str = "cpu") -> Tensor:
        """(M + 1,) float32 edges of the bins, made anew: no cast, copy or inference mode can spoil them."""
        steps = torch.arange(self.num_logits + 1, device=device, dtype=torch.float32)
        return self.support_low + self.bin_width * steps

    def target(self, value: Tensor) -> Tensor:
        """(...) returns to (..., M) masses of a Gaussian around them in the bins; they sum to one."""
        value = value.float().clamp(self.low, self.high).unsqueeze(-1)
        mass = torch.erf((self.edges(value.device) - value) / (math.sqrt(2) * self.sigma)).diff(dim=-1)
        return mass / mass.sum(-1, keepdim=True)

    def prediction(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(-1)

    def mean(self, logits: Tensor) -> Tensor:
        centers = self.edges(logits.device)[:-1] + self.bin_width / 2
        # Not a matrix product: autocast would round it to half precision.
        return (self.prediction(logits) * centers).sum(-1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy."""
        return -(target * logits.float().log_softmax(-1)).sum(-1)


class Scalar(ValueHead):
    """Plain regression, as in IQL (Kostrikov et al., 2021): the ablation of `HLGauss`.

    The single logit is the return scaled so that [low, high] is [−1, 1], and so is the loss: learning rates carry over
    between tasks and heads.
    """

    num_logits = 1

    def target(self, value: Tensor) -> Tensor:
        value = value.float().clamp(self.low, self.high).unsqueeze(-1)
        return (2 * value - (self.low + self.high)) / (self.high - self.low)

    def prediction(self, logits: Tensor) -> Tensor:
        return logits.float()

    def mean(self, logits: Tensor) -> Tensor:
        return (logits.float().squeeze(-1) * (self.high - self.low) + (self.low + self.high)) / 2

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Squared error."""
        return (logits.float() - target).square().squeeze(-1)
