"""The servos of one bus by their maker's SDK alone: what is needed to leave them safe, and nothing else.

LeRobot's driver plays the episodes. What ends them must work in the middle of its packets, with a servo that does not
answer, and in a process of its own that outlives a killed one (watchdog.py): it starts in a tenth of a second and
needs neither torch nor LeRobot. Positions are copied from register to register, so no calibration is needed either.
"""

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

# A packet that collided with something is sent again; a servo that is silent so many times does not answer.
TRIES = 3
FEETECH, DYNAMIXEL = "scservo_sdk", "dynamixel_sdk"


@dataclass(frozen=True)
class Servo:
    """One servo and where its registers are.

    Attributes:
        name: of its joint.
        id: on the bus.
        torque: address of the switch, one byte.
        goal, present: addresses of the two positions.
        width: bytes of a position, 2 or 4.
    """

    name: str
    id: int
    torque: int
    goal: int
    present: int
    width: int


class Servos:
    """The servos of one serial bus.

    Nothing here raises for a servo that does not answer: the others still have to be seen to.

    Args:
        port: the SDK's port, open.
        packets: the SDK's packets.
        servos: who is on the bus.
    """

    def __init__(self, port: Any, packets: Any, servos: list[Servo]):
        self.port, self.packets, self.servos = port, packets, servos

    @classmethod
    def on(cls, bus: Any) -> "Servos":
        """Those of a bus of LeRobot's, over the same port."""
        return cls(bus.port_handler, bus.packet_handler, _servos(bus))

    def hold(self) -> list[str]:
        """Makes every servo's position its goal.

        Returns:
            The names of those that do not answer.
        """
        return self._those_that_fail(self._stays)

    def torque_off(self) -> list[str]:
        """Turns every servo's torque off, and looks whether it is off.

        Returns:
            The names of those of which that cannot be said.
        """
        return self._those_that_fail(self._is_limp)

    def silent(self) -> list[str]:
        """The names of those that do not answer."""
        return self._those_that_fail(lambda servo: self._read(servo, servo.torque, 1) is not None)

    # ---- one servo -----------------------------------------------------------------------------------------

    def _stays(self, servo: Servo) -> bool:
        position = self._read(servo, servo.present, servo.width)
        return position is not None and self._write(servo, servo.goal, servo.width, position)

    def _is_limp(self, servo: Servo) -> bool:
        self._write(servo, servo.torque, 1, 0)
        return self._read(servo, servo.torque, 1) == 0

    def _read(self, servo: Servo, address: int, width: int) -> int | None:
        read = getattr(self.packets, f"read{width}ByteTxRx")
        for _ in range(TRIES):
            self._drain()
            value, result, _ = read(self.port, servo.id, address)
            if result == 0:
                return value
        return None

    def _write(self, servo: Servo, address: int, width: int, value: int) -> bool:
        write = getattr(self.packets, f"write{width}ByteTxRx")
        for _ in range(TRIES):
            self._drain()
            result, _ = write(self.port, servo.id, address, value)
            if result == 0:
                return True
        return False

    def _drain(self) -> None:
        """Forgets what an interrupted exchange left behind: an old answer would be taken for the next one."""
        self.port.is_using = False
        self.port.ser.reset_input_buffer()

    def _those_that_fail(self, succeeds: Callable[[Servo], bool]) -> list[str]:
        failed = []
        for servo in self.servos:
            try:
                fine = succeeds(servo)
            except Exception:  # whatever is wrong with this one, the next one's turn comes
                fine = False
            if not fine:
                failed.append(servo.name)
        return failed


def open_device(description: dict) -> Servos:
    """Opens the port that `describe` described.

    Raises:
        OSError: if it cannot be opened.
    """
    sdk = importlib.import_module(description["sdk"])
    port = sdk.PortHandler(description["port"])
    if not port.setBaudRate(description["baud_rate"]):
        raise OSError(f"{description['port']} cannot be opened")
    packets = sdk.PacketHandler(description["protocol"])
    return Servos(port, packets, [Servo(**servo) for servo in description["servos"]])


def describe(bus: Any) -> dict:
    """What `open_device` needs to reach the servos of a bus of LeRobot's from another process; plain JSON."""
    sdk = FEETECH if hasattr(bus, "protocol_version") else DYNAMIXEL
    protocol = bus.protocol_version if sdk == FEETECH else bus.packet_handler.getProtocolVersion()
    return {
        "modules": [__name__, sdk],
        "sdk": sdk,
        "protocol": protocol,
        "port": bus.port,
        "baud_rate": bus.default_baudrate,
        "servos": [asdict(servo) for servo in _servos(bus)],
    }


def _servos(bus: Any) -> list[Servo]:
    found = []
    for name, motor in bus.motors.items():
        table = bus.model_ctrl_table[motor.model]
        (present, width), (goal, _) = table["Present_Position"], table["Goal_Position"]
        found.append(Servo(name, motor.id, table["Torque_Enable"][0], goal, present, width))
    return found
