"""More noise from given noise.

A candidate is a pure function of its noise, (H, A) standard normal numbers. Some policies want more: columns that
pad the action to a fixed width, or fresh noise at every step of a stochastic sampler. That noise is derived from the
given one, candidate by candidate, so that candidates stay nested and independent of their batch (design rules 8, 10).
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deas_vla.errors import UserError

# SplitMix64 (Steele, Lea and Flood, 2014): the increment and the two multipliers, as signed 64-bit numbers.
INCREMENT = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)
# Draws of one candidate start this many numbers apart.
STRIDE = 2**32


def noise_keys(noise: Tensor) -> Tensor:
    """A number for each candidate, from every bit of its noise and the bits' places.

    Args:
        noise: (M, ...) float32.

    Returns:
        (M,) int64.
    """
    bits = noise.detach().float().contiguous().view(len(noise), -1).view(torch.int32).long()
    places = torch.arange(1, bits.shape[1] + 1, device=bits.device) * INCREMENT
    return _mix(_mix(bits + places).sum(1))


def more_noise(keys: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal numbers that depend on the keys and on nothing else, computed where the keys are.

    Args:
        keys: (M,) from `noise_keys`.
        draw: number of the draw, at least 0; different draws are independent.
        shape: of one candidate's draw.

    Returns:
        (M, *shape) float32.
    """
    count = torch.Size(shape).numel()
    counters = torch.arange(1 + draw * STRIDE, 1 + draw * STRIDE + count, device=keys.device)
    mixed = _mix(keys[:, None] + counters * INCREMENT)
    # 53 bits to the middle of their interval: neither 0 nor 1, whose normal quantiles are infinite.
    uniform = (_shift(mixed, 11).double() + 0.5) * 2.0**-53
    normal = 2**0.5 * torch.erfinv(2 * uniform - 1)
    return normal.float().view(len(keys), *shape)


def widen(noise: Tensor, steps: int, width: int) -> Tensor:
    """(M, H, A) noise with derived columns, then derived steps, up to (M, steps, width)."""
    keys, (_, horizon, columns) = noise_keys(noise), noise.shape
    if width > columns:
        noise = torch.cat([noise, more_noise(keys, 0, (horizon, width - columns))], 2)
    if steps > horizon:
        noise = torch.cat([noise, more_noise(keys, 1, (steps - horizon, width))], 1)
    return noise


class GivenNoise(TorchFunctionMode):
    """Inside, normal numbers that a policy draws for itself are those it is given.

    For policies whose sampler has no argument for noise.

    Args:
        noise: (M, H, W) one row a candidate.
        first: whether the first draw is the noise itself, widened; if not, every draw is derived from it.

    Attributes:
        draws: how many draws were answered.

    Raises:
        UserError: inside, when something other than one row of normal numbers a candidate is drawn.
    """

    def __init__(self, noise: Tensor, first: bool) -> None:
        super().__init__()
        self.noise, self.first, self.keys, self.draws = noise, first, noise_keys(noise), 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in NORMAL:
            return self._answer(result)
        if function in OTHER_RANDOM:
            raise UserError(
                f"the policy draws {function.__name__} while it samples; only normal noise can be given"
            )
        return result

    def _answer(self, drawn: Tensor) -> Tensor:
        self.draws += 1
        starts = self.first and self.draws == 1
        short = starts and (
            drawn.dim() != 3 or any(a < b for a, b in zip(drawn.shape, self.noise.shape, strict=True))
        )
        if len(drawn) != len(self.noise) or short:
            raise UserError(
                f"the policy draws noise of shape {tuple(drawn.shape)} while it samples, and is given "
                f"{tuple(self.noise.shape)}; it needs an adapter of its own"
            )
        if starts:
            return widen(self.noise, *drawn.shape[1:]).to(drawn)
        # The draws before are those of `widen`.
        return more_noise(self.keys, 1 + self.draws, drawn.shape[1:]).to(drawn)


NORMAL = {torch.randn, torch.randn_like, torch.normal, Tensor.normal_}
OTHER_RANDOM = {
    torch.rand,
    torch.rand_like,
    torch.randint,
    torch.randperm,
    torch.multinomial,
    torch.bernoulli,
}


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's output function: every bit of the result depends on every bit of the input."""
    x = (x ^ _shift(x, 30)) * MULTIPLIERS[0]
    x = (x ^ _shift(x, 27)) * MULTIPLIERS[1]
    return x ^ _shift(x, 31)
