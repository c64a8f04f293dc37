"""State-only data for offline reinforcement learning: rows of trajectories to options of H actions.

The rows are OGBench's: a trajectory is s_0 … s_T with the action of each row; the action of its last row led nowhere
that was stored. A reward and a success belong to the row's own state: r_t = r(s_t). What an option is worth is computed
by `deas_vla.data.options`; here is only what differs: every row is a frame, and chunks are a view of the actions.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.options import option_targets, returns_to_go
from deas_vla.errors import UserError

# Columns that hardly move are not blown up by standardisation.
SMALLEST_SCALE = 1e-3


@dataclass
class Transitions:
    """T rows of one or more trajectories, one after the other.

    Attributes:
        observations: (T, S) float32 states as the simulator gives them.
        actions: (T, A) float32 actions in [-1, 1].
        rewards: (T,) float32 reward of the row's state for the task at hand.
        success: (T,) bool, the task is done in the row's state.
        last: (T,) bool, last row of its trajectory.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    success: Tensor
    last: Tensor

    def __post_init__(self):
        rows = len(self.observations)
        for name in ("actions", "rewards", "success", "last"):
            if len(getattr(self, name)) != rows:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, observations {rows}")
        if not (rows and bool(self.last[-1])):
            raise ValueError("the last row must end a trajectory")

    def statistics(self) -> tuple[Tensor, Tensor]:
        """(S,) mean and (S,) standard deviation of the observations, in their units."""
        return self.observations.mean(0), self.observations.std(0).clamp_min(SMALLEST_SCALE)

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """(T,) float64 rewards and (T,) bool `done` of the action of each row, as `option_targets` takes them.

        Reward and success belong to the row's state: an action from a state in which the task is done counts nothing.
        """
        done = self.success.numpy()
        return np.where(done, 0.0, self.rewards.numpy().astype(np.float64)), done

    def returns_to_go(self, *, horizon: int, reward_discount: float, bootstrap_discount: float) -> np.ndarray:
        """(T,) float64 return from each row until the task is done, see `deas_vla.data.options.returns_to_go`.

        Nothing is known of what follows a trajectory's last row; it goes on as if every later step had the smallest
        reward of the data, a lower bound: where a recording stops is no success (design rule 2).
        """
        rewards, done = self.steps()
        ends = np.flatnonzero(self.last.numpy()) + 1
        parts = zip(np.split(rewards, ends[:-1]), np.split(done, ends[:-1]), strict=True)
        return np.concatenate([
            returns_to_go(
                *part, horizon=horizon, reward_discount=reward_discount, bootstrap_discount=bootstrap_discount,
                forever=float(self.rewards.min()),
            )[:-1]
            for part in parts
        ])  # fmt: skip


@dataclass
class OptionBatch:
    """B recorded options.

    Attributes:
        observation: (B, S) standardised state before the option.
        chunk: (B, H, A) actions that were played, in [-1, 1].
        returns: (B,) Σ_{k<m} γ₁ᵏ r_{t+k} over the m ≤ n steps before the task was done.
        bootstrap: (B,) γ₂ⁿ, or 0 where the task was done inside.
        next_observation: (B, S) standardised state n steps later; only read where bootstrap is not 0.
    """

    observation: Tensor
    chunk: Tensor
    returns: Tensor
    bootstrap: Tensor
    next_observation: Tensor

    def to(self, device: torch.device | str) -> "OptionBatch":
        """The batch on another device."""
        return OptionBatch(**{item.name: getattr(self, item.name).to(device) for item in fields(self)})


class OptionTable:
    """All options of H actions whose n steps lie in one trajectory, ready to be sampled.

    Only what differs between options is stored; chunks are read from the actions by a view with overlapping rows.
    No reward counts after the first state in which the task is done, and nothing is bootstrapped from beyond it
    (design rules 2 and 3).

    Args:
        transitions: the rows.
        mean: (S,) subtracted from observations.
        scale: (S,) observations are divided by it.
        horizon: H, actions the critic and the policy see.
        backup: n ≥ H, steps of the return before the bootstrap; n = H but for n-step methods.
        reward_discount: γ₁.
        bootstrap_discount: γ₂, per step.

    Raises:
        UserError: if no trajectory is long enough for one option.
    """

    def __init__(
        self,
        transitions: Transitions,
        mean: Tensor,
        scale: Tensor,
        *,
        horizon: int,
        backup: int,
        reward_discount: float,
        bootstrap_discount: float,
    ):
        if not 1 <= horizon <= backup:
            raise ValueError(f"horizon {horizon} must be at least 1 and at most the backup of {backup} steps")
        rows = len(transitions.last)
        ends = np.flatnonzero(transitions.last.numpy())
        # Row of the trajectory's end, for every row.
        end = ends[np.searchsorted(ends, np.arange(rows))]
        start = np.flatnonzero(np.arange(rows) + backup <= end)
        if not len(start):
            longest = int(np.diff(ends, prepend=-1).max()) - 1
            raise UserError(
                f"no trajectory has the {backup} steps of an option; the longest has {longest}: "
                "choose a smaller horizon"
            )
        targets = option_targets(
            *transitions.steps(), start, end[start],
            steps=backup, reward_discount=reward_discount, bootstrap_discount=bootstrap_discount,
        )  # fmt: skip
        self.horizon, self.backup = horizon, backup
        self.start = torch.from_numpy(start)
        self.returns, self.bootstrap = targets.returns.float(), targets.bootstrap
        self.observations = (transitions.observations - mean) / scale
        actions = transitions.actions.contiguous()
        width = actions.shape[1]
        self._chunks = actions.as_strided((rows - horizon + 1, horizon, width), (width, width, 1))

    def __len__(self) -> int:
        return len(self.start)

    def batch(self, options: Tensor) -> OptionBatch:
        """The options at these indices.

        Args:
            options: (B,) int64 in [0, len).
        """
        start = self.start[options]
        return OptionBatch(
            observation=self.observations[start],
            chunk=self._chunks[start],
            returns=self.returns[options],
            bootstrap=self.bootstrap[options],
            next_observation=self.observations[start + self.backup],
        )
