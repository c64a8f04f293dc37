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
from robots.safety import Limiter
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
    """

    def __init__(self, robot: Any, contract: Contract, limiter: Limiter, watchdog: Watchdog | None):
        self.robot, self.contract, self.limiter, self.watchdog = robot, contract, limiter, watchdog
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
                # An old goal in its registers must not pull the arm away when the torque comes on.
                Servos.on(bus).hold()
                bus.disconnect(disable_torque=False)
            self.robot.connect(calibrate=False)

    def state(self) -> np.ndarray:
        """(S,) float32 the state now; of a robot that can tell it apart, without a picture."""
        with self._device("read"):
            seen = getattr(self.robot, "get_state", self.robot.get_observation)()
        return np.array([seen[column.name] for column in self.contract.state], np.float32)

    def frame(self, instruction: str) -> dict:
        """What the policy sees now: ``images``, ``state``, ``instruction``."""
        with self._device("read"):
            seen = self.robot.get_observation()
        return {
            "images": {
                camera.name: np.ascontiguousarray(seen[camera.name]) for camera in self.contract.cameras
            },
            "state": np.array([seen[column.name] for column in self.contract.state], np.float32),
            "instruction": instruction,
        }

    def send(self, command: np.ndarray) -> np.ndarray:
        """Limits an (A,) command and plays it; returns (A,) float32 what was really sent."""
        if self.watchdog is not None:
            self.watchdog.require_alive()
        allowed = self.limiter(command)
        names = [column.name for column in self.contract.action]
        with self._device("move"):
            sent = self.robot.send_action(dict(zip(names, allowed.tolist(), strict=True)))
        return np.array([sent[name] for name in names], np.float32)

    def begin(self, scene: int) -> None:
        """Goes to where episodes begin: a simulator starts a scene, an arm goes back to where it was at first."""
        if hasattr(self.robot, "reset"):
            self.robot.reset(scene)
        state = self.state()
        self.limiter.start(None if self.places is None else state[self.places].astype(np.float64))
        if self.places is not None:
            self.home = self.limiter.last if self.home is None else self.home
            pace = Pace(self.contract.rate_hz)
            pace.start()
            for _ in range(self.limiter.steps_to(self.home)):
                self.send(self.home)
                pace.wait()
        self.limiter.changed = 0

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
