"""A robot as the episodes see it: frames and states come out, limited commands go in, errors are one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError
from robots.robot import Robot
from robots.safety import HOME_SPEED, Limiter
from robots.timing import Timing
from robots.watchdog import Watchdog


class Arm:
    """What the episodes need of a robot.

    Args:
        robot: connected by `connect`.
        contract: what policy and robot agreed on.
        limiter: what every command goes through.
        watchdog: without which nothing moves; None for a robot that needs none.
        home_speed: share of the largest step that it takes in a tick on its way back to where it began.
    """

    def __init__(
        self,
        robot: Robot,
        contract: Contract,
        limiter: Limiter,
        watchdog: Watchdog | None,
        home_speed: float = HOME_SPEED,
    ):
        self.robot, self.contract, self.limiter, self.watchdog = robot, contract, limiter, watchdog
        self.home_speed = home_speed
        names = [column.name for column in contract.state]
        joints = [column.name for column in contract.action]
        # Where the state has the action's columns, the commands are positions.
        self.positions = [names.index(name) for name in joints] if set(joints) <= set(names) else None
        self.home: np.ndarray | None = None
        self._seen: dict = {}

    def connect(self) -> None:
        """Connects it, calibrated as its file says.

        Raises:
            UserError: if it cannot be reached.
        """
        with self._device("connect"):
            self.robot.connect()

    def state(self) -> np.ndarray:
        """(S,) float32 the state now; of a robot that can read it alone, without an image."""
        return self._read(images=False)

    def images(self) -> dict[str, np.ndarray]:
        """Camera name to (h, w, 3) uint8: those that were read with the last state, or else new ones."""
        if not all(camera.name in self._seen for camera in self.contract.cameras):
            self._read(images=True)
        return {c.name: np.ascontiguousarray(self._seen[c.name]) for c in self.contract.cameras}

    def frame(self, instruction: str) -> dict:
        """What the policy sees now: ``images``, ``state``, ``instruction``."""
        state = self._read(images=True)
        return {"images": self.images(), "state": state, "instruction": instruction}

    def send(self, command: np.ndarray) -> np.ndarray:
        """Limits an (A,) command and plays it; returns (A,) float32 what was really sent.

        The state has to be read between two commands: a goal stays near the position that was seen last.
        """
        if self.watchdog is not None:
            self.watchdog.require_alive()
        allowed = self.limiter(command)
        names = [column.name for column in self.contract.action]
        with self._device("move"):
            sent = self.robot.send(dict(zip(names, allowed.tolist(), strict=True)))
        return np.array([sent[name] for name in names], np.float32)

    def begin(self, scene: int) -> None:
        """Goes to where episodes begin: a simulator starts a scene, an arm goes slowly to where it was at first."""
        self.robot.reset(scene)
        state = self.state()
        self.limiter.start(None if self.positions is None else state[self.positions].astype(np.float64))
        if self.positions is not None:
            self.home = self.limiter.last if self.home is None else self.home
            timing, step = Timing(self.contract.rate_hz), self.limiter.step * self.home_speed
            ticks = self.limiter.steps_to(self.home, self.home_speed)
            if ticks:
                seconds = ticks / self.contract.rate_hz
                print(f"the arm goes back to where it began, slowly: {seconds:.1f} s", flush=True)
            timing.start()
            for _ in range(ticks):
                self.send(self.home.clip(self.limiter.last - step, self.limiter.last + step))
                timing.wait()
                self.state()
        self.limiter.changed = 0

    def _read(self, images: bool) -> np.ndarray:
        """(S,) float32 the state, which the limiter has to know too; all that was read is kept for `images`."""
        with self._device("read"):
            self._seen = self.robot.read(images)
        state = np.array([self._seen[column.name] for column in self.contract.state], np.float32)
        self.limiter.see(state)
        return state

    @contextmanager
    def _device(self, doing: str) -> Iterator[None]:
        """What goes wrong with the device, in one line that says which part it is."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise UserError(self.robot.explain(doing, error)) from error
