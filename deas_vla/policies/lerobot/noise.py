"""More noise from given noise, for policies that pad actions, or draw fresh noise at every step of their sampler.

A candidate is a pure function of its noise, (H, A) standard normal numbers: further noise comes from a generator that
these seed, so that candidates stay nested and independent of their batch (design rules 6 and 8). A candidate whose
noise is zero gets zeros: the control `zero_noise` stays one deterministic chunk. Noise at another scale is followed by
noise at scale 1.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from deas_vla.errors import UserError
from deas_vla.policies.chunk_policy import seeded

NORMAL = {torch.randn, torch.randn_like, torch.normal, Tensor.normal_}
OTHER_RANDOM = {torch.rand, torch.rand_like, torch.randint, torch.randperm, torch.multinomial, torch.bernoulli}


class MoreNoise:
    """Standard normal numbers for each of M candidates, from a generator that its noise (M, ...) seeds."""

    def __init__(self, noise: Tensor) -> None:
        rows = noise.detach().float().cpu().flatten(1).numpy()
        self._generators = [seeded(row.tobytes()) for row in rows]
        self._zero, self._device = ~rows.any(1), noise.device

    def __call__(self, *shape: int) -> Tensor:
        """(M, *shape) float32, other numbers at each call; on the device of the noise."""
        drawn = np.stack([each.standard_normal(shape, np.float32) for each in self._generators])
        drawn[self._zero] = 0
        return torch.from_numpy(drawn).to(self._device)


def seed_of(noise: Tensor) -> int:
    """A seed from every bit of the noise of a batch."""
    digest = hashlib.sha256(noise.detach().float().cpu().contiguous().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def widen(noise: Tensor, steps: int, width: int, more: MoreNoise | None = None) -> Tensor:
    """(M, H, A) noise with further columns, then further steps, up to (M, steps, width)."""
    more, (_, horizon, columns) = more or MoreNoise(noise), noise.shape
    if width > columns:
        noise = torch.cat([noise, more(horizon, width - columns)], 2)
    if steps > horizon:
        noise = torch.cat([noise, more(steps - horizon, width)], 1)
    return noise


class GivenNoise(TorchFunctionMode):
    """Inside, normal numbers that a policy draws for itself are those it is given.

    For samplers without an argument for noise, a copy of which would have to follow every change of LeRobot's.
    `torch.randn` and its like are answered, in this thread; ``draws`` counts the answers. Anything else than one row of
    normal numbers a candidate is a UserError. `noise`: (M, H, W) one row a candidate; `first`: the first draw is the
    noise itself, widened; if not, every draw follows from it.
    """

    def __init__(self, noise: Tensor, first: bool) -> None:
        super().__init__()
        self.noise, self.first, self.more, self.draws = noise, first, MoreNoise(noise), 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        drawn = function(*args, **(kwargs or {}))
        if function in OTHER_RANDOM:
            raise UserError(f"the policy draws {function.__name__} while it samples; only normal noise can be given")
        if function not in NORMAL:
            return drawn
        self.draws += 1
        starts = self.first and self.draws == 1
        shape, given = tuple(drawn.shape), tuple(self.noise.shape)
        short = len(shape) != 3 or shape[1] < given[1] or shape[2] < given[2]
        if shape[:1] != given[:1] or (starts and short):
            problem = f"the policy draws noise of shape {shape} while it samples, and is given {given}"
            raise UserError(f"{problem}; it needs an adapter of its own")
        return (widen(self.noise, *shape[1:], self.more) if starts else self.more(*shape[1:])).to(drawn)
