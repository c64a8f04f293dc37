"""What keeps an arm safe: limits of every command, and a way out of every end.

Commands are clamped to the limits of their columns, to a largest step from the one before and to the neighbourhood of
the position that was measured last. However an episode ends (done, an exception, a signal), the arm first stops where
it is and, after some seconds in which somebody can support it, its torque goes off. watchdog.py does the same when this
process was killed.
"""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError
from robots.robot import Robot
from robots.watchdog import Watchdog

# Columns that say how fast, or yes or no; all others say where to.
NOT_POSITIONS = ("command", "flag")
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How far a goal may be from where the joint is: three of the default's largest steps. A servo lags behind its goal,
# and hangs below it under a load, so this does not shrink with the step.
MAX_LAG = 15.0
HOME_SPEED = 0.3


class Limiter:
    """Clamps commands; counts those that it changed.

    Args:
        contract: columns with the limits of this arm.
        max_step: largest change of a position in one tick, in the column's own unit.
        max_lag: largest distance of a goal from the measured position, in the column's own unit; only where the state
            has a column of the same name and unit.
    """

    def __init__(self, contract: Contract, max_step: float, max_lag: float = MAX_LAG):
        self.columns = contract.action
        self.low = np.array([-np.inf if c.low is None else c.low for c in self.columns])
        self.high = np.array([np.inf if c.high is None else c.high for c in self.columns])
        self.step = np.array([np.inf if c.unit in NOT_POSITIONS else max_step for c in self.columns])
        self.changed = 0
        self.last: np.ndarray | None = None
        state = [(c.name, c.unit) for c in contract.state]
        # Indices of the joints' columns in the action, and in the state.
        self.joints = [
            (number, state.index((c.name, c.unit)))
            for number, c in enumerate(self.columns)
            if (c.name, c.unit) in state and c.unit not in NOT_POSITIONS
        ]
        self.max_lag = max_lag
        self.measured = np.full(len(self.columns), np.nan)

    def see(self, state: np.ndarray) -> None:
        """Takes (S,) the state that was measured last: no goal will be far from it."""
        for action, column in self.joints:
            self.measured[action] = state[column]

    def start(self, position: np.ndarray | None) -> None:
        """Begins from where the arm is: (A,) its position in the action's columns, or None where they are no positions.

        Raises:
            UserError: if there are positions among the columns and none is given.
        """
        if position is None and np.isfinite(self.step).any():
            names = ", ".join(c.name for c in self.columns if c.unit not in NOT_POSITIONS)
            raise UserError(f"the state does not say where {names} are, so their steps cannot be limited")
        self.last = position

    def steps_to(self, goal: np.ndarray, share: float = 1.0) -> int:
        """How many ticks it takes to command (A,) a goal from here, with this share of the largest step in each."""
        return int(np.ceil(np.max(np.abs(goal - self.last) / (share * self.step))))

    def __call__(self, command: np.ndarray) -> np.ndarray:
        """(A,) what may be played of an (A,) command.

        The step counts more than the limits: an arm that was left outside them comes back in small steps. The measured
        position counts most: a joint that is blocked, or was pushed away, is not pulled at from afar.

        Raises:
            UserError: if the command is not finite.
        """
        command = np.asarray(command, dtype=np.float64)
        if not np.isfinite(command).all():
            bad = self.columns[int(np.argmin(np.isfinite(command)))].name
            raise UserError(f"the policy asks for NaN or infinity in {bad}; the arm is not moved")
        allowed = command.clip(self.low, self.high)
        if self.last is not None:
            allowed = allowed.clip(self.last - self.step, self.last + self.step)
        near = allowed.clip(self.measured - self.max_lag, self.measured + self.max_lag)
        allowed = np.where(np.isnan(self.measured), allowed, near)
        self.changed += not np.allclose(allowed, command, rtol=0, atol=1e-5)
        self.last = allowed
        return allowed


@contextmanager
def safely(robot: Robot, hold_s: float) -> Iterator[Watchdog | None]:
    """Whatever ends the block, the arm is left safe after it; also if this process is killed inside.

    Args:
        robot: not connected yet.
        hold_s: seconds that the arm holds its position before its torque goes off; a signal cuts them short.

    Yields:
        The watchdog; None for a robot that needs none.
    """
    torque_off, rescue = robot.torque_off_at_end, robot.rescue()
    watchdog = None if rescue is None else Watchdog(rescue, hold_s, torque_off)
    hurry = threading.Event()
    before = {number: signal.signal(number, _interrupt) for number in STOPPING}
    try:
        yield watchdog
    finally:
        for number in STOPPING:
            signal.signal(number, lambda *_: hurry.set())
        try:
            _leave_safe(robot, hold_s if torque_off else None, hurry)
            # Not after an exception: the arm may not be safe then, and somebody has to see to it.
            if watchdog is not None:
                watchdog.dismiss()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)


def _leave_safe(robot: Robot, hold_s: float | None, hurry: threading.Event) -> None:
    if robot.is_connected and not robot.simulated:
        silent = robot.hold()
        if hold_s is not None:
            after = f"its torque goes off in {hold_s:g} s: support it" if hold_s else "its torque goes off"
            try:
                _say(f"the arm holds its position; {after}")
                hurry.wait(hold_s)
            finally:
                silent = robot.torque_off()
        if silent:
            _say(f"{', '.join(silent)} did not answer: cut the arm's power before you touch it")
    robot.disconnect()


def _say(line: str) -> None:
    # The terminal may be what is gone.
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
