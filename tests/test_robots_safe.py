"""What must not happen to an arm: it jumps as it connects, is pulled from afar, or is left with its torque on.

The arm is an SO-101 on emulated servos, as in test_robots_bus.py.
"""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scservo_sdk", reason="needs the extra `robots`")
pytest.importorskip("deepdiff", reason="needs the extra `robots`")

from feetech_bus import IDS, FeetechBus
from so101_example import PatternCamera, calibration_file, flags, so101_contract

from deas_vla.config import parse
from deas_vla.errors import UserError
from robots import safety
from robots.arm import Arm
from robots.config import make_robot, settings_of
from robots.safety import Limiter, safely
from robots.servos import Servos, describe
from robots.watchdog import Watchdog

ROOT = Path(__file__).parent.parent

# Servos answer within milliseconds; a machine that is busy with other tests does not wait for them.
pytestmark = pytest.mark.realtime


@pytest.fixture
def bus():
    with FeetechBus() as bus:
        yield bus


@pytest.fixture
def robot(bus, tmp_path):
    calibration_file(tmp_path)
    argv = flags(tmp_path, bus.port)
    return make_robot(parse(settings_of(argv), argv).robot)


def arm_of(robot, watchdog: Watchdog | None = None) -> Arm:
    return Arm(robot, so101_contract(), Limiter(so101_contract(), max_step=5, max_lag=15), watchdog)


def wait_for_no_torque(bus: FeetechBus) -> None:
    deadline = time.monotonic() + 20
    while any(bus.torque()):
        assert time.monotonic() < deadline, "the torque stays on"
        time.sleep(0.02)


# ---- it does not jump ------------------------------------------------------------------------------------------


def test_an_arm_that_is_moved_while_the_cameras_open_stays_where_it_was_put(robot, bus, monkeypatch):
    def move(self, warmup: bool = True) -> None:
        self.open = True
        assert not any(bus.torque())
        bus.servos["place"] += 500

    monkeypatch.setattr(PatternCamera, "connect", move)
    arm = arm_of(robot)
    arm.connect()
    put = bus.servos["place"].copy()
    for _ in range(5):
        arm.state()  # the servos turn while they are spoken to
        time.sleep(0.02)
    assert bus.torque() == [1] * 6
    assert np.abs(bus.servos["place"] - put).max() <= 1
    assert [bus.read(id_, "Goal_Position") for id_ in IDS] == [bus.read(id_, "Present_Position") for id_ in IDS]
    robot.bus.disconnect()


def test_no_torque_comes_on_unless_every_servo_holds_its_place(robot, bus, monkeypatch):
    monkeypatch.setattr(Servos, "hold", lambda self: ["elbow_flex"])
    with pytest.raises(UserError, match="elbow_flex did not answer; the torque stays off"):
        arm_of(robot).connect()
    assert bus.torque() == [0] * 6
    robot.bus.disconnect(disable_torque=False)


def test_a_blocked_joint_is_not_pulled_from_afar(robot, bus):
    arm = arm_of(robot)
    arm.connect()
    arm.begin(0)
    blocked = arm.state()
    for _ in range(16):
        bus.servos["place"][0] = 2048
        sent = arm.send(np.array([80.0, 0, 0, 0, 0, 50]))
        arm.state()
    assert sent[0] <= blocked[0] + 16
    robot.bus.disconnect()


# ---- it is never left alone ------------------------------------------------------------------------------------


def test_the_torque_goes_off_though_something_fails_while_it_holds(robot, bus, monkeypatch):
    monkeypatch.setattr(safety, "_say", lambda line: 1 / 0)
    with pytest.raises(ZeroDivisionError), safely(robot, 0.0) as watchdog:
        arm_of(robot, watchdog).connect()
        assert bus.torque() == [1] * 6
    assert bus.torque() == [0] * 6
    watchdog.dismiss()


def test_the_watchdog_stays_if_the_arm_could_not_be_left_safe(robot, bus, monkeypatch):
    def fail(self) -> list[str]:
        raise ZeroDivisionError("a defect")

    with pytest.raises(ZeroDivisionError), safely(robot, 0.0) as watchdog:
        arm_of(robot, watchdog).connect()
        monkeypatch.setattr(Servos, "hold", fail)
    assert bus.torque() == [1] * 6
    watchdog.require_alive()
    watchdog.process.stdin.close()  # as the end of this process does
    wait_for_no_torque(bus)
    watchdog.process.wait(10)
    watchdog.dismiss()


def test_one_program_at_a_time_moves_an_arm(robot, bus):
    first = Watchdog(describe(robot.bus), 0.0)
    with pytest.raises(UserError, match=f"another program moves the arm on {bus.port}"):
        Watchdog(describe(robot.bus), 0.0)
    first.dismiss()
    Watchdog(describe(robot.bus), 0.0).dismiss()


def test_the_next_run_waits_for_the_watchdog_of_a_killed_one(robot, bus):
    for id_ in IDS:
        bus.write(id_, "Torque_Enable", 1)
    code = (
        f"import os, signal, sys; sys.path.insert(0, {str(ROOT)!r}); from robots.watchdog import Watchdog; "
        f"watchdog = Watchdog({describe(robot.bus)!r}, 2.0); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code])
    with pytest.raises(UserError, match="wait some seconds and try again"), safely(robot, 0.0):
        pytest.fail("the watchdog of the killed run would take its torque off")
    assert bus.torque() == [1] * 6, "it holds its place for a while"
    wait_for_no_torque(bus)
    deadline = time.monotonic() + 10
    while True:
        try:
            Watchdog(describe(robot.bus), 0.0).dismiss()
            break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
