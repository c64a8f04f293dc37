"""A robot of LeRobot's under a contract: frames and states come out, commands go in, errors are one line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError
from robots.pace import Pace
from robots.safety import HOME_SPEED, Limiter
from robots.servos import TRIES, Servos
from robots.watchdog import Watchdog

# A servo that is silent so many times, 0.4 s in all, ends the episode; a busy computer is late oftener than a servo.
ASKS = 6
# How long an answer that was given up is waited for, so that it does not meet the next question.
LATE_S = 0.02


class Arm:
    """What the episodes need of a robot.

    Args:
        robot: LeRobot's robot.
        contract: what policy and robot agreed on.
        limiter: what every command goes through.
        watchdog: without which nothing moves; None for a robot that needs none.
        home_speed: share of the largest step that it takes in a tick on its way back to where it began.
    """

    def __init__(
        self,
        robot: Any,
        contract: Contract,
        limiter: Limiter,
        watchdog: Watchdog | None,
        home_speed: float = HOME_SPEED,
    ):
        self.robot, self.contract, self.limiter, self.watchdog = robot, contract, limiter, watchdog
        self.home_speed = home_speed
        names = [column.name for column in contract.state]
        joints = [column.name for column in contract.action]
        # Where the state has the action's columns, the commands say where to go.
        self.places = [names.index(name) for name in joints] if set(joints) <= set(names) else None
        self.home: np.ndarray | None = None
        bus = getattr(robot, "bus", None)
        if bus is not None:
            forget_late_answers(bus)
        # Reading means the inner `_read`: the handshake of `connect` goes through that one alone.
        for name in ("ping", "_read", "write", "sync_read") if bus is not None else ():
            setattr(bus, name, asking_again(bus, getattr(bus, name)))
        if bus is not None:
            bus.enable_torque = holding_first(bus, bus.enable_torque)

    def connect(self) -> None:
        """Connects it, calibrated as its file says; nobody is asked anything.

        Raises:
            UserError: if it cannot be reached.
        """
        with self._device("connect"):
            bus = getattr(self.robot, "bus", None)
            if bus is not None:
                bus.connect()
                if not bus.is_calibrated:
                    print(f"the servos are given the calibration in {self.robot.calibration_fpath}")
                    bus.disable_torque()
                    bus.write_calibration(self.robot.calibration)
                bus.disconnect(disable_torque=False)
            self.robot.connect(calibrate=False)

    def state(self) -> np.ndarray:
        """(S,) float32 the state now; of a robot that can tell it apart, without a picture."""
        with self._device("read"):
            seen = getattr(self.robot, "get_state", self.robot.get_observation)()
        return self._noted(seen)

    def frame(self, instruction: str) -> dict:
        """What the policy sees now: ``images``, ``state``, ``instruction``."""
        with self._device("read"):
            seen = self.robot.get_observation()
        return {
            "images": {
                camera.name: np.ascontiguousarray(seen[camera.name]) for camera in self.contract.cameras
            },
            "state": self._noted(seen),
            "instruction": instruction,
        }

    def send(self, command: np.ndarray) -> np.ndarray:
        """Limits an (A,) command and plays it; returns (A,) float32 what was really sent.

        The state has to be read between two commands: a goal stays near the place that was seen last.
        """
        if self.watchdog is not None:
            self.watchdog.require_alive()
        allowed = self.limiter(command)
        names = [column.name for column in self.contract.action]
        with self._device("move"):
            sent = self.robot.send_action(dict(zip(names, allowed.tolist(), strict=True)))
        return np.array([sent[name] for name in names], np.float32)

    def begin(self, scene: int) -> None:
        """Goes to where episodes begin: a simulator starts a scene, an arm goes slowly to where it was at first."""
        if hasattr(self.robot, "reset"):
            self.robot.reset(scene)
        state = self.state()
        self.limiter.start(None if self.places is None else state[self.places].astype(np.float64))
        if self.places is not None:
            self.home = self.limiter.last if self.home is None else self.home
            pace, step = Pace(self.contract.rate_hz), self.limiter.step * self.home_speed
            ticks = self.limiter.steps_to(self.home, self.home_speed)
            if ticks:
                seconds = ticks / self.contract.rate_hz
                print(f"the arm goes back to where it began, slowly: {seconds:.1f} s", flush=True)
            pace.start()
            for _ in range(ticks):
                self.send(self.home.clip(self.limiter.last - step, self.limiter.last + step))
                pace.wait()
                self.state()
        self.limiter.changed = 0

    def _noted(self, seen: dict) -> np.ndarray:
        """(S,) float32 the state of an observation, which the limiter has to know too."""
        state = np.array([seen[column.name] for column in self.contract.state], np.float32)
        self.limiter.see(state)
        return state

    @contextmanager
    def _device(self, doing: str) -> Iterator[None]:
        """What goes wrong with the device, in one line that says which servo it is."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise UserError(self._what_is_wrong(doing, error)) from error

    def _what_is_wrong(self, doing: str, error: Exception) -> str:
        # LeRobot tells of a port that does not open in words of its own; the system's say why.
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        bus, text = getattr(self.robot, "bus", None), " ".join(str(reason).split())
        if bus is None:
            return f"{self.robot.name} does not {doing}: {text}"
        if not bus.is_connected:
            return (
                f"{bus.port} does not open ({text}); is the arm plugged in? lerobot-find-port finds its port"
            )
        silent = Servos.on(bus).silent()
        if len(silent) == len(bus.motors):
            return f"no servo on {bus.port} answers: is the arm's power on?"
        if silent:
            told = ", ".join(f"{bus.motors[name].id} ({name})" for name in silent)
            return f"servo {told} on {bus.port} does not answer: see to its cable and its power"
        return f"{self.robot.name} does not {doing}: {text}"


def forget_late_answers(bus: Any) -> None:
    """Every question starts on a quiet wire.

    Feetech's kit means to clear the port before it asks, but flushes what goes out instead of what came in: an answer
    that comes after its 50 ms would be taken for that to the next question, and so on for every question after it.
    """
    port, packets = bus.port_handler, bus.packet_handler
    receive = packets.rxPacket

    @wraps(receive)
    def patient(*arguments, **named):
        packet, result = receive(*arguments, **named)
        if result != 0:
            time.sleep(LATE_S)
        return packet, result

    port.clearPort = lambda: port.ser.reset_input_buffer()
    packets.rxPacket = patient


def holding_first(bus: Any, enable: Callable) -> Callable:
    """Every place is made the goal right before the torque comes on.

    Neither an old goal in the registers may pull the arm away, nor the place where the limp arm was before somebody
    moved it while the cameras opened.
    """

    @wraps(enable)
    def still(*arguments, **named):
        silent = Servos.on(bus).hold()
        if silent:
            raise ConnectionError(
                f"{', '.join(silent)} did not answer; the torque stays off, for the arm might jump"
            )
        return enable(*arguments, **named)

    return still


def asking_again(bus: Any, call: Callable) -> Callable:
    """LeRobot's driver gives a servo 50 ms and one chance; one lost or late packet must not end an episode."""

    @wraps(call)
    def patient(*arguments, num_retry: int = 0, **named):
        for _ in range(TRIES):
            try:
                return call(*arguments, num_retry=max(num_retry, ASKS - 1), **named)
            except IndexError:
                # The servos' kit took an answer that came too late for the answer to its next question, and read past
                # its end. What is still on the wire would be taken for the one after that.
                bus.port_handler.ser.reset_input_buffer()
        raise ConnectionError(f"{TRIES} answers in a row were cut short")

    return patient
