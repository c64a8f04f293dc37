"""Six STS3215 servos on a pseudo-terminal: the protocol, the registers that matter, and how fast a joint turns.

They live in a process of their own, as servos do, so that a program that waits busily for an answer does not slow
them down, and one that is killed does not take them along. What they are and do is in a small file that both sides
map: a test looks at registers without a word on the bus.

The protocol is Feetech's: FF FF id length instruction parameters checksum; answers carry an error byte in place of the
instruction. A packet with a wrong checksum gets no answer. Registers below 40 are kept in EEPROM, which is locked
while register 55 is 1.
"""

import os
import pty
import subprocess
import sys
import tempfile
import time
import tty
from contextlib import suppress
from pathlib import Path

import numpy as np

IDS = range(1, 7)
BROADCAST = 0xFE
PING, READ, WRITE, SYNC_READ, SYNC_WRITE = 1, 2, 3, 0x82, 0x83
# Address and bytes of what the tests and the motion look at.
REGISTERS = {
    "Firmware_Major_Version": (0, 1),
    "Model_Number": (3, 2),
    "ID": (5, 1),
    "Min_Position_Limit": (9, 2),
    "Max_Position_Limit": (11, 2),
    "Homing_Offset": (31, 2),
    "Torque_Enable": (40, 1),
    "Goal_Position": (42, 2),
    "Lock": (55, 1),
    "Present_Position": (56, 2),
}
EEPROM_END = 40
STS3215, FIRMWARE = 777, 3
TURN = 4096
DRIVER_WAITS = 0.05  # seconds that LeRobot's driver waits for an answer
SPEED = 3000.0  # units a second: 264 degrees
# Sign and magnitude: the bit that says minus.
SIGN = {"Homing_Offset": 11, "Goal_Position": 15, "Present_Position": 15}
SERVO = np.dtype(
    [
        ("table", np.uint8, 128),
        ("alive", np.uint8),  # its process has begun to listen
        ("silent", np.uint8),  # a test sets it: the servo answers nothing and does nothing
        ("late", np.uint8),  # a test sets it: so many readings are answered behind an older, empty answer
        ("slow", np.uint8),  # a test sets it: so many readings are answered too late
        ("lost", np.uint8),  # a test sets it: so many readings get no answer
        ("refused", np.uint32),  # writes to locked EEPROM
        ("goals", np.uint32),  # goals that were written
        ("lowest", np.int32),  # the smallest and the largest of them
        ("highest", np.int32),
        ("place", np.float64),  # of the shaft itself: without homing offset
    ]
)


class FeetechBus:
    """The bus as a test sees it; a context manager. `port` is what a robot is given."""

    def __init__(self, places: dict[int, int] | None = None):
        self.places = dict.fromkeys(IDS, TURN // 2) | (places or {})

    def __enter__(self) -> "FeetechBus":
        self.file = tempfile.NamedTemporaryFile(prefix="feetech-")
        self.servos = np.memmap(self.file.name, SERVO, "w+", shape=(len(IDS),))
        self.servos["lowest"], self.servos["highest"] = np.iinfo(np.int32).max, np.iinfo(np.int32).min
        for servo, id_ in zip(self.servos, IDS, strict=True):
            servo["place"] = self.places[id_]
            fresh = {
                "Firmware_Major_Version": FIRMWARE,
                "Model_Number": STS3215,
                "ID": id_,
                "Max_Position_Limit": TURN - 1,
            }
            for name, value in fresh.items():
                poke(servo["table"], name, value)
        master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        self.port = os.ttyname(self._slave)
        command = [sys.executable, __file__, str(master), self.file.name]
        self.process = subprocess.Popen(command, pass_fds=[master], start_new_session=True)
        os.close(master)
        while not self.servos["alive"].all():
            assert self.process.poll() is None, "the emulated servos do not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self.file.close()

    def read(self, id_: int, name: str) -> int:
        """A register, as it is now."""
        return peek(self.servos[id_ - 1]["table"], name)

    def write(self, id_: int, name: str, value: int) -> None:
        """Sets a register, without the bus."""
        poke(self.servos[id_ - 1]["table"], name, value)

    def torque(self) -> list[int]:
        return [self.read(id_, "Torque_Enable") for id_ in IDS]

    def silence(self, id_: int) -> None:
        """This servo does not answer from now on."""
        self.servos["silent"][id_ - 1] = 1


# ---- registers -------------------------------------------------------------------------------------------------


def peek(table: np.ndarray, name: str) -> int:
    address, width = REGISTERS[name]
    value = int.from_bytes(table[address : address + width].tobytes(), "little")
    bit = SIGN.get(name)
    return value if bit is None or not value >> bit & 1 else -(value & ((1 << bit) - 1))


def poke(table: np.ndarray, name: str, value: int) -> None:
    address, width = REGISTERS[name]
    raw = value if value >= 0 else 1 << SIGN[name] | -value
    table[address : address + width] = list(raw.to_bytes(width, "little"))


# ---- the servos' side ------------------------------------------------------------------------------------------


def turn(servo: np.ndarray, seconds: float) -> None:
    """A shaft under torque turns to its goal, within its limits; its place is what its encoder says."""
    table, offset = servo["table"], peek(servo["table"], "Homing_Offset")
    if peek(table, "Torque_Enable") and not servo["silent"]:
        limits = (peek(table, "Min_Position_Limit"), peek(table, "Max_Position_Limit"))
        goal = np.clip(peek(table, "Goal_Position"), *limits) + offset
        servo["place"] += np.clip(goal - servo["place"], -SPEED * seconds, SPEED * seconds)
    poke(table, "Present_Position", round(float(servo["place"])) - offset)


def store(servo: np.ndarray, address: int, data: bytes) -> None:
    if address < EEPROM_END and peek(servo["table"], "Lock"):
        servo["refused"] += 1
        return
    servo["table"][address : address + len(data)] = list(data)
    if address == REGISTERS["Goal_Position"][0]:
        goal = peek(servo["table"], "Goal_Position")
        servo["goals"] += 1
        servo["lowest"], servo["highest"] = min(servo["lowest"], goal), max(servo["highest"], goal)


def checksum(body: bytes) -> int:
    return ~sum(body) & 0xFF


def answer(id_: int, data: bytes = b"") -> bytes:
    body = bytes([id_, len(data) + 2, 0]) + data
    return b"\xff\xff" + body + bytes([checksum(body)])


def obey(servos: np.ndarray, id_: int, instruction: int, data: bytes) -> bytes:
    """Carries out one packet; returns what comes back on the wire."""
    if instruction == SYNC_WRITE:
        address, width = data[0], data[1]
        for start in range(2, len(data), width + 1):
            servo = servos[data[start] - 1]
            if not servo["silent"]:
                store(servo, address, data[start + 1 : start + 1 + width])
        return b""
    asked = data[2:] if instruction == SYNC_READ else IDS if id_ == BROADCAST else [id_]
    reply = b""
    for number in asked:
        if number not in IDS or servos[number - 1]["silent"]:
            continue
        servo = servos[number - 1]
        if instruction == PING:
            reply += answer(number)
        elif instruction in (READ, SYNC_READ):
            if servo["slow"]:
                servo["slow"] -= 1
                time.sleep(DRIVER_WAITS + 0.01)
            if servo["lost"]:
                servo["lost"] -= 1
                continue
            if servo["late"]:
                servo["late"] -= 1
                reply += answer(number)
            reply += answer(number, servo["table"][data[0] : data[0] + data[1]].tobytes())
        elif instruction == WRITE:
            store(servo, data[0], data[1:])
            reply += answer(number)
    return reply


def packets(buffer: bytearray):
    """Takes whole packets off the front of what has arrived; what is damaged is skipped."""
    while (start := buffer.find(b"\xff\xff")) >= 0 and len(buffer) >= start + 4:
        id_, length = buffer[start + 2], buffer[start + 3]
        end = start + 4 + length
        if len(buffer) < end:
            return
        body = bytes(buffer[start + 2 : end - 1])
        fine = checksum(body) == buffer[end - 1]
        del buffer[: end if fine else start + 1]
        if fine:
            yield id_, body[2], body[3:]


def serve(wire: int, file: str) -> None:
    # A servo answers within a millisecond whatever a computer is busy with, and drivers wait for 50.
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    servos = np.memmap(file, SERVO, "r+", shape=(len(IDS),))
    servos["alive"] = 1
    buffer, before = bytearray(), time.monotonic()
    while arrived := os.read(wire, 4096):
        now = time.monotonic()
        for servo in servos:
            turn(servo, now - before)
        before = now
        buffer += arrived
        for packet in packets(buffer):
            reply = obey(servos, *packet)
            if reply:
                os.write(wire, reply)


if __name__ == "__main__":
    serve(int(sys.argv[1]), str(Path(sys.argv[2])))
