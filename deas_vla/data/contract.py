"""The contract: what every column of a state and an action means, and how it is normalised.

A data set, a policy, a critic, a simulator and a robot each carry one; two that disagree are refused (design rule 7).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deas_vla.errors import ContractMismatch, UserError, as_user_error

if TYPE_CHECKING:  # torch is imported where it is used: simulator workers need the names, not the arithmetic
    from torch import Tensor

# A column that hardly moves in the demonstrations would turn noise into large numbers: its standard deviation is taken
# to be at least this much, in the column's own unit.
STATE_STD_FLOOR = 0.01
ACTION_STD_FLOOR = 0.05


@dataclass(frozen=True)
class Column:
    """One number of a state or an action vector."""

    name: str  # group and axis, for example ``end_effector_position.x``
    unit: str  # ``m``, ``rad``, ``quaternion``, ``command`` (a controller input in [-1, 1]), ``flag`` (0 or 1)
    kind: str = "continuous"  # or ``binary``: thresholded half-way before it is played or scored
    # Limits of what may be commanded; states have none (None), binary columns need both.
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Camera:
    """One camera image, upright, RGB, uint8, (height, width, 3)."""

    name: str
    height: int
    width: int


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of every column, in the column's unit, from the demonstrations."""

    state_mean: tuple[float, ...]
    state_std: tuple[float, ...]
    action_mean: tuple[float, ...]
    action_std: tuple[float, ...]

    @classmethod
    def of(cls, states: Tensor, actions: Tensor) -> Statistics:
        """Statistics of (T, S) states and (T, A) actions; fewer than two rows or NaN are a UserError."""
        import torch

        if len(states) < 2 or len(actions) < 2:
            raise UserError("normalisation statistics need at least two frames; collect more demonstrations")
        if not (torch.isfinite(states).all() and torch.isfinite(actions).all()):
            raise UserError("the demonstrations hold NaN or infinite states or actions; remove those episodes")
        numbers = []
        for rows, floor in ((states.double(), STATE_STD_FLOOR), (actions.double(), ACTION_STD_FLOOR)):
            numbers += [tuple(rows.mean(0).tolist()), tuple(rows.std(0).clamp_min(floor).tolist())]
        return cls(*numbers)


@dataclass(frozen=True)
class Contract:
    """Names, order, units, limits, rate and normalisation of everything that goes in and comes out."""

    embodiment: str  # the robot, for example ``panda_omron``
    rate_hz: float  # control steps a second
    state: tuple[Column, ...]
    action: tuple[Column, ...]
    cameras: tuple[Camera, ...]  # in the order in which the policy sees them
    statistics: Statistics | None = None  # None before demonstrations were seen

    @property
    def state_dim(self) -> int:
        return len(self.state)

    @property
    def action_dim(self) -> int:
        return len(self.action)

    def with_statistics(self, statistics: Statistics) -> Contract:
        return replace(self, statistics=statistics)

    def normalize_state(self, state: Tensor) -> Tensor:
        """(..., S) raw states to zero mean and unit standard deviation."""
        stats = self._statistics()
        return (state.float() - state.new_tensor(stats.state_mean)) / state.new_tensor(stats.state_std)

    def normalize_action(self, action: Tensor) -> Tensor:
        """(..., A) commands to zero mean and unit standard deviation; binary columns to -1 and 1."""
        mean, std = self._action_scale(action)
        return (action.float() - mean) / std

    def to_command(self, normalized: Tensor) -> Tensor:
        """(..., A) normalised actions to the commands that are really played.

        Each column is clipped to its limits, binary ones are thresholded half-way. A critic scores
        `normalize_action(to_command(candidate))`: exactly what a recorded action looks like to it.
        """
        import torch

        mean, std = self._action_scale(normalized)
        command = normalized.float() * std + mean
        low = command.new_tensor([-torch.inf if c.low is None else c.low for c in self.action])
        high = command.new_tensor([torch.inf if c.high is None else c.high for c in self.action])
        binary = torch.tensor([c.kind == "binary" for c in self.action], device=command.device)
        return torch.where(binary, torch.where(command > (low + high) / 2, high, low), command.clamp(low, high))

    def _statistics(self) -> Statistics:
        if self.statistics is None:
            raise UserError("this contract has no normalisation statistics; compute them from demonstrations first")
        return self.statistics

    def _action_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        stats = self._statistics()
        mean, std = list(stats.action_mean), list(stats.action_std)
        for i, column in enumerate(self.action):
            if column.kind == "binary":
                mean[i], std[i] = (column.low + column.high) / 2, (column.high - column.low) / 2
        like = like.float()
        return like.new_tensor(mean), like.new_tensor(std)

    def with_cameras_of(self, other: Contract) -> Contract:
        """This contract without the cameras that `other` does not name: a policy need not see all that there are."""
        names = [camera.name for camera in other.cameras]
        return replace(self, cameras=tuple(camera for camera in self.cameras if camera.name in names))

    def differences(self, other: Contract) -> list[str]:
        """Every way in which another contract differs, one line each; statistics only where both have them."""
        lines = []
        if self.embodiment != other.embodiment:
            lines.append(f"embodiment: {self.embodiment} against {other.embodiment}")
        if self.rate_hz != other.rate_hz:
            lines.append(f"rate: {self.rate_hz:g} Hz against {other.rate_hz:g} Hz")
        for what in ("state", "action", "cameras"):
            mine, theirs = getattr(self, what), getattr(other, what)
            if len(mine) != len(theirs):
                lines.append(f"{what}: {len(mine)} entries against {len(theirs)}")
            for i, (a, b) in enumerate(zip(mine, theirs, strict=False)):
                fields = [(k, v, getattr(b, k)) for k, v in vars(a).items() if v != getattr(b, k)]
                if fields:
                    detail = ", ".join(f"{k} {v!r} against {w!r}" for k, v, w in fields)
                    lines.append(f"{what}[{i}]: {detail}")
        for what, mine in vars(self.statistics).items() if self.statistics and other.statistics else ():
            theirs = getattr(other.statistics, what)
            if mine != theirs:
                changed = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b]
                lines.append(f"statistics: {what} differs in columns {changed}")
        return lines

    def require_same(self, other: Contract, mine: str, theirs: str) -> None:
        """Refuses a contract that differs, with every difference; `mine` and `theirs` say whose they are."""
        if lines := self.differences(other):
            raise ContractMismatch(f"{mine} and {theirs} do not fit together: " + "; ".join(lines))

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict, where: str | Path = "contract") -> Contract:
        """A contract from `to_json`'s output; a missing or unknown field is a UserError that names `where`."""
        with as_user_error(f"{where}: not a valid contract", AttributeError):
            statistics = value["statistics"]
            if statistics is not None:
                statistics = Statistics(**{key: tuple(numbers) for key, numbers in statistics.items()})
            for what in ("state", "action", "cameras"):
                names = [each["name"] for each in value[what]]
                if twice := [name for number, name in enumerate(names) if name in names[:number]]:
                    raise ValueError(f"two {what} entries are called {twice[0]}")
            return cls(
                embodiment=value["embodiment"],
                rate_hz=float(value["rate_hz"]),
                state=tuple(Column(**column) for column in value["state"]),
                action=tuple(Column(**column) for column in value["action"]),
                cameras=tuple(Camera(**camera) for camera in value["cameras"]),
                statistics=statistics,
            )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything, statistics included; equal contracts have equal fingerprints."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()
