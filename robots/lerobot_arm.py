"""Arms of LeRobot's that are nothing but joints on one serial servo bus, through LeRobot's own driver."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, wraps
from typing import Any

from lerobot.robots import make_robot_from_config

from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.errors import UserError
from robots.robot import Robot
from robots.servos import TRIES, Servos, describe

# A servo that is silent so many times, 0.4 s in all, ends the episode; a busy computer is late oftener than a servo.
ASKS = 6
# How long an answer that was given up is waited for, so that it does not meet the next question.
LATE_S = 0.02
# What LeRobot's scales of a motor are called as units.
UNITS = {"degrees": "deg", "range_0_100": "range_0_100", "range_m100_100": "range_m100_100"}
POSITION = ".pos"
# LeRobot's own default of a recording.
DEFAULT_RATE_HZ = 30.0


class LeRobotArm(Robot):
    """LeRobot's driver of an arm, asked patiently, and left safe by the servos' own kit (robots/servos.py).

    Args:
        config: LeRobot's; its class says which robot it is.

    Raises:
        UserError: if a package is missing, or the robot refuses its settings.
    """

    def __init__(self, config: Any):
        self.device = _make(config)
        self.name, self.bus = self.device.name, getattr(self.device, "bus", None)
        # LeRobot's data sets carry the driver's name, not the type's.
        self.aliases = (self.name,)
        self.torque_off_at_end = getattr(config, "disable_torque_on_disconnect", True)
        if hasattr(self.bus, "port_handler"):  # all others are refused by `contract`
            forget_late_answers(self.bus)
            # Reading means the inner `_read`: the handshake of `connect` goes through that one alone.
            for name in ("ping", "_read", "write", "sync_read"):
                setattr(self.bus, name, asking_again(self.bus, getattr(self.bus, name)))
            self.bus.enable_torque = holding_first(self.bus, self.bus.enable_torque)

    @cached_property
    def contract(self) -> Contract:
        """See `contract_of`, which refuses what could not be left safe."""
        return contract_of(self.device)

    @property
    def is_connected(self) -> bool:
        return self.bus.is_connected

    def connect(self) -> None:
        self.bus.connect()
        if not self.bus.is_calibrated:
            print(f"the servos are given the calibration in {self.device.calibration_fpath}")
            self.bus.disable_torque()
            self.bus.write_calibration(self.device.calibration)
        self.bus.disconnect(disable_torque=False)
        self.device.connect(calibrate=False)

    def read(self, images: bool) -> dict[str, Any]:
        return self.device.get_observation()

    def send(self, command: dict[str, float]) -> dict[str, float]:
        return self.device.send_action(command)

    def hold(self) -> list[str]:
        return Servos.on(self.bus).hold()

    def torque_off(self) -> list[str]:
        return Servos.on(self.bus).torque_off()

    def disconnect(self) -> None:
        if self.bus.is_connected:
            self.bus.disconnect(disable_torque=False)
        # LeRobot's own disconnect leaves all as it is if a camera is gone.
        for camera in self.device.cameras.values():
            with suppress(Exception):
                camera.disconnect()

    def rescue(self) -> dict:
        return describe(self.bus)

    def problems(self, rate_hz: float) -> list[str]:
        return slow_cameras(self.device, rate_hz)

    def explain(self, doing: str, error: Exception) -> str:
        # LeRobot tells of a port that does not open in words of its own; the system's say why.
        reason = error.__cause__ if isinstance(error.__cause__, OSError) else error
        bus, text = self.bus, " ".join(str(reason).split())
        if not bus.is_connected:
            return f"{bus.port} does not open ({text}); is the arm plugged in? lerobot-find-port finds its port"
        silent = Servos.on(bus).silent()
        if len(silent) == len(bus.motors):
            return f"no servo on {bus.port} answers: is the arm's power on?"
        if silent:
            listed = ", ".join(f"{bus.motors[name].id} ({name})" for name in silent)
            return f"servo {listed} on {bus.port} does not answer: see to its cable and its power"
        return f"{self.name} does not {doing}: {text}"


def _make(config: Any) -> Any:
    """LeRobot's robot for a configuration."""
    try:
        return make_robot_from_config(config)
    except ImportError as error:
        reason = " ".join(str(error).split())
        fix = "EXTRAS=robots tools/install.sh brings what Feetech's servos need"
        if "dynamixel" in reason:
            fix = "Dynamixel's servos need what this project's extras do not bring: pip install 'lerobot[dynamixel]'"
        raise UserError(f"{config.type} needs a package that is not installed ({reason}); {fix}") from error
    except ValueError as error:
        raise UserError(f"--robot: {' '.join(str(error).split())}") from error


# ---- what it is ------------------------------------------------------------------------------------------------


def contract_of(robot: Any) -> Contract:
    """The contract of a robot of LeRobot's at LeRobot's own rate; it need not be connected.

    Limits of its joints are those of its calibration.

    Raises:
        UserError: if the robot does not say its units, is not on one serial servo bus, or is not calibrated.
    """
    scalars = {name for name, size in robot.observation_features.items() if not isinstance(size, tuple)}
    motors = getattr(getattr(robot, "bus", None), "motors", {})
    if not hasattr(getattr(robot, "bus", None), "port_handler") or not (
        scalars == set(robot.action_features) == {name + POSITION for name in motors}
    ):
        raise UserError(
            f"{robot.name} does not say in which units its columns are, and could not be left safe: of LeRobot's "
            "robots only arms that are nothing but joints on one serial servo bus are driven. Write a class for it, "
            "see robots/robot.py"
        )
    if set(robot.calibration) != set(robot.bus.motors):
        raise UserError(
            f"{robot.calibration_fpath} does not hold the calibration of this arm; make it with lerobot-calibrate "
            f"--robot.type={robot.config.type} --robot.port={robot.config.port} --robot.id={robot.id}"
        )
    joints = [_joint(robot, name) for name in robot.bus.motors]
    sizes = {name: size for name, size in robot.observation_features.items() if isinstance(size, tuple)}
    return Contract(
        embodiment=robot.config.type,
        rate_hz=DEFAULT_RATE_HZ,
        state=tuple(replace(joint, low=None, high=None) for joint in joints),
        action=tuple(joints),
        cameras=tuple(Camera(name, height, width) for name, (height, width, _) in sizes.items()),
    )


def slow_cameras(robot: Any, rate_hz: float) -> list[str]:
    """Cameras with fewer frames a second than the robot has ticks: a policy would be shown old images."""
    cameras = getattr(robot, "cameras", {})
    return [
        f"camera {name}: {camera.fps} frames a second against {rate_hz:g} Hz"
        for name, camera in cameras.items()
        if camera.fps < rate_hz
    ]


def _joint(robot: Any, name: str) -> Column:
    """A joint with the limits of its calibration, in the scale of LeRobot's driver."""
    bus, calibration = robot.bus, robot.calibration[name]
    scale = bus.motors[name].norm_mode.value
    if scale == "degrees":
        turn = bus.model_resolution_table[bus.motors[name].model] - 1
        high = (calibration.range_max - calibration.range_min) / 2 * 360 / turn
        low = -high
    else:
        low, high = (0.0 if scale == "range_0_100" else -100.0), 100.0
    return Column(name + POSITION, UNITS[scale], "continuous", low, high)


# ---- how its driver is asked -----------------------------------------------------------------------------------


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
    """Every joint's position is made its goal right before the torque comes on.

    Neither an old goal in the registers may pull the arm away, nor the position where the limp arm was before somebody
    moved it while the cameras opened.
    """

    @wraps(enable)
    def still(*arguments, **named):
        silent = Servos.on(bus).hold()
        if silent:
            raise ConnectionError(f"{', '.join(silent)} did not answer; the torque stays off, for the arm might jump")
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
