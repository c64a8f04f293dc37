"""An SO-101 through LeRobot's own driver, on servos that are emulated on a pseudo-terminal (feetech_bus.py)."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scservo_sdk", reason="needs the extra `robots`")
pytest.importorskip("deepdiff", reason="needs the extra `robots`")

from feetech_bus import IDS, PING, READ, REGISTERS, SERVO, WRITE, FeetechBus, answer, checksum, obey, packets
from policy_example import SENTENCES
from so101_example import CALIBRATION, RATE_HZ, calibration_file, flags, random_reranker, so101_contract

from deas_vla.config import parse
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.export.reranker import Reranker
from deas_vla.improvement.best_of_n import Choice
from robots.arm import Arm
from robots.config import make_robot, settings_of
from robots.contract import fitting_contract
from robots.lerobot_arm import ASKS
from robots.rollout import main
from robots.safety import Limiter
from robots.servos import TRIES, Servos, describe
from robots.watchdog import Watchdog

ROOT = Path(__file__).parent.parent
HOMING, MIN, MAX = "Homing_Offset", "Min_Position_Limit", "Max_Position_Limit"

# Servos answer within milliseconds; a machine that is busy with other tests does not wait for them.
pytestmark = pytest.mark.realtime


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return random_reranker(tmp_path_factory.mktemp("so101") / "reranker", so101_contract())


@pytest.fixture
def arm(exported, tmp_path) -> Path:
    """A folder with the arm's calibration and its reranker."""
    calibration_file(tmp_path)
    (tmp_path / "reranker").symlink_to(exported)
    return tmp_path


@pytest.fixture
def bus():
    with FeetechBus() as bus:
        yield bus


def settings(arm: Path, port: str, changes: dict | None = None):
    argv = flags(arm, port, changes)
    return parse(settings_of(argv), argv)


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


# ---- the emulated servos ---------------------------------------------------------------------------------------


def test_the_protocol_of_the_emulated_servos():
    # Known packets of the servo's manual: ping of servo 1, and its answer.
    assert checksum(bytes([1, 2, PING])) == 0xFB
    assert answer(1) == bytes([0xFF, 0xFF, 1, 2, 0, 0xFC])
    whole = bytes([0xFF, 0xFF, 1, 4, READ, 56, 2, checksum(bytes([1, 4, READ, 56, 2]))])
    damaged = whole[:-1] + bytes([whole[-1] ^ 1])
    buffer = bytearray(b"\x07" + damaged + whole + whole[:5])
    assert list(packets(buffer)) == [(1, READ, bytes([56, 2]))]
    assert bytes(buffer) == whole[:5]

    servos = np.zeros(6, SERVO)
    lock, minimum = REGISTERS["Lock"][0], REGISTERS[MIN][0]
    assert obey(servos, 2, WRITE, bytes([minimum, 7, 0])) == answer(2)
    obey(servos, 2, WRITE, bytes([lock, 1]))
    obey(servos, 2, WRITE, bytes([minimum, 9, 0]))
    assert obey(servos, 2, READ, bytes([minimum, 2])) == answer(2, bytes([7, 0]))
    assert servos["refused"].tolist() == [0, 1, 0, 0, 0, 0]
    servos["silent"][1] = 1
    assert obey(servos, 2, PING, b"") == b"" and obey(servos, 9, PING, b"") == b""
    assert obey(servos, 0xFE, PING, b"") == b"".join(answer(id_) for id_ in (1, 3, 4, 5, 6))


# ---- playing ---------------------------------------------------------------------------------------------------


def test_it_is_calibrated_from_its_file_moves_within_limits_and_ends_without_torque(arm, bus, capfd):
    for id_ in IDS:
        bus.write(id_, "Goal_Position", 4000)  # left from another day
    main(settings(arm, bus.port, {"safety.max_step": 15}))
    told = capfd.readouterr()
    assert "the servos are given the calibration" in told.out and "deadlines missed" in told.out
    assert "its torque goes off in 0.1 s" in told.err

    found = {name: tuple(bus.read(i, r) for r in (HOMING, MIN, MAX)) for i, name in enumerate(CALIBRATION, 1)}
    assert found == CALIBRATION
    assert bus.torque() == [0] * 6
    assert not bus.servos["refused"].any(), "EEPROM was written while it was locked"
    for servo, (name, (_, low, high)) in zip(bus.servos, CALIBRATION.items(), strict=True):
        top = round(low + 0.8 * (high - low)) if name == "gripper" else high
        assert low - 1 <= servo["lowest"] and servo["highest"] <= top + 1, name
        if name in ("shoulder_lift", "gripper"):
            assert servo["highest"] >= top - 1, f"the policy wants more of {name} than there is"

    (one, two), contract, metadata = read_dataset(arm / "recorded" / "dataset", so101_contract())
    assert contract == so101_contract()
    for episode in (one, two):
        assert episode.instruction == SENTENCES[0] and episode.group == "failure"
        assert episode.length == round(0.6 * RATE_HZ)
        assert set(range(0, episode.length, 3)) <= set(episode.frame_steps.tolist())  # 3 of each chunk are played
        assert np.abs(np.diff(episode.actions, axis=0)).max() <= 15 + 1e-4
        # The arm goes where it is sent, as fast as it can.
        assert np.abs(episode.states[-1] - episode.actions[-1]).max() < 25
        assert episode.states[-1, 1] > 60
    assert np.abs(one.states[0] - two.states[0]).max() < 25, "it went back to its start"
    assert [fact["ticks"] for fact in metadata["played"]] == [15, 15]
    assert not (arm / "recorded" / "blocks").exists()


def test_a_signal_stops_it_and_the_same_command_goes_on(arm, bus, capfd):
    config = settings(arm, bus.port)
    first = arm / "recorded" / "blocks" / "episode-00000.json"

    def interrupt() -> None:
        wait_until(first.exists, 60)
        goals = bus.servos["goals"].max()
        wait_until(lambda: bus.servos["goals"].max() > goals + 3, 10)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        main(config)
    thread.join()
    assert bus.torque() == [0] * 6
    assert signal.getsignal(signal.SIGTERM) is before
    assert "the arm holds its position" in capfd.readouterr().err
    kept = first.read_text()

    main(config)
    assert bus.torque() == [0] * 6
    episodes, _, metadata = read_dataset(arm / "recorded" / "dataset", so101_contract())
    assert len(episodes) == 2 and metadata["played"][0] == json.loads(kept)


def test_a_servo_that_stops_answering_gives_one_line_and_the_others_stop(arm, bus, capfd):
    def cut() -> None:
        wait_until(lambda: bus.servos["goals"].max() > 8, 60)
        bus.silence(3)

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(UserError) as caught:
        main(settings(arm, bus.port))
    thread.join()
    assert str(caught.value) == f"servo 3 (elbow_flex) on {bus.port} does not answer: see to its cable and its power"
    assert bus.torque() == [0, 0, 1, 0, 0, 0]
    told = capfd.readouterr().err
    assert "elbow_flex did not answer: cut the arm's power before you touch it" in told
    assert not (arm / "recorded" / "dataset").exists()


def test_an_error_of_our_own_leaves_no_torque_and_keeps_its_traceback(arm, bus, monkeypatch, capfd):
    calls = []

    def choose(self, observation, keys):
        calls.append(keys)
        if len(calls) == 4:
            raise ZeroDivisionError("a defect")
        chunks = torch.full((1, 1, 3, 6), 5.0)
        return Choice(chunks, torch.zeros(1, dtype=torch.long), None, None)

    monkeypatch.setattr(Reranker, "choose", choose)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        main(settings(arm, bus.port))
    assert bus.servos["goals"].max() > 5 and bus.torque() == [0] * 6
    assert "the arm holds its position" in capfd.readouterr().err


def test_a_killed_process_leaves_no_torque(arm, bus):
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]; import so101_example; "
        "from robots.rollout import start; start(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *flags(arm, bus.port, {"seconds": 60})]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        wait_until(lambda: bus.servos["goals"].max() > 20 or killed.poll() is not None, 90)
        assert bus.torque() == [1] * 6
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_until(lambda: bus.torque() == [0] * 6, 10)
    assert "watchdog: the program that moved the arm is gone; torque off" in killed.stderr.read()


@pytest.mark.parametrize(("late", "succeeds"), [(1, True), (TRIES - 1, True), (TRIES, False)])
def test_an_answer_that_comes_too_late_is_asked_for_again(arm, bus, late, succeeds):
    """The servos' kit takes it for the answer to the next question, and reads past its end."""
    bus_of_robot = make_robot(settings(arm, bus.port).robot).bus
    bus_of_robot.connect()
    bus.servos["late"][0] = late
    if succeeds:
        assert bus_of_robot.ping("shoulder_pan") is not None
    else:
        with pytest.raises(ConnectionError, match="cut short"):
            bus_of_robot.ping("shoulder_pan")
    bus_of_robot.disconnect(disable_torque=False)


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one(arm, bus):
    """One register is slow, another is read after it; with the kit's own clearing, one is read as the other."""
    robot = make_robot(settings(arm, bus.port).robot)
    robot.bus.connect()
    bus.write(1, "Goal_Position", 1234)
    for _ in range(3):
        bus.servos["slow"][0] = 1
        assert robot.bus.read("Present_Position", "shoulder_pan", normalize=False) == 2048
        assert robot.bus.read("Goal_Position", "shoulder_pan", normalize=False) == 1234
    robot.bus.disconnect(disable_torque=False)


@pytest.mark.parametrize(("lost", "succeeds"), [(ASKS - 1, True), (ASKS, False)])
def test_an_answer_that_is_lost_while_it_connects_is_asked_for_again(arm, bus, lost, succeeds):
    """LeRobot's handshake reads the servos' firmware and model with one chance each."""
    robot = make_robot(settings(arm, bus.port).robot)
    device = Arm(robot, so101_contract(), Limiter(so101_contract(), 15), None)
    bus.servos["lost"][2] = lost
    if succeeds:
        device.connect()
        robot.bus.disconnect()
    else:
        with pytest.raises(UserError, match=r"so_follower does not connect|does not answer"):
            device.connect()


# ---- before anything moves -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rate_hz": 30}, ["rate: 25 Hz against 30 Hz"]),
        (
            {"robot.cameras": "{front: {type: pattern, width: 640, height: 480, fps: 30}}"},
            ["cameras front: 16 × 16 against 480 × 640"],
        ),
        (
            {"robot.cameras": "{top: {type: pattern, width: 16, height: 16, fps: 30}}"},
            ["cameras front: the robot has none"],
        ),
        (
            {"robot.cameras": "{front: {type: pattern, width: 16, height: 16, fps: 15}}"},
            ["camera front: 15 frames a second against 25 Hz"],
        ),
        ({"robot.use_degrees": "false"}, ["action shoulder_pan.pos: deg against range_m100_100"]),
        ({"robot.type": "so100_follower"}, ["embodiment: so101_follower against so100_follower"]),
    ],
)
def test_rule_07_a_mismatch_is_refused_before_the_port_is_opened(arm, changes, words):
    config = settings(arm, str(arm / "no-such-port"), changes)
    with pytest.raises(ContractMismatch) as caught:
        fitting_contract(so101_contract(), make_robot(config.robot), config.rate_hz)
    assert all(word in str(caught.value) for word in words)


def test_limits_are_those_of_the_calibration_and_the_drivers_name_is_an_embodiment(arm):
    robot = make_robot(settings(arm, "none").robot)
    limits = {c.name: (c.low, c.high) for c in robot.contract.action}
    assert limits["shoulder_pan.pos"] == pytest.approx((-1000 * 360 / 4095, 1000 * 360 / 4095))
    assert limits["gripper.pos"] == (0, 100)
    contract = fitting_contract(so101_contract(embodiment="so_follower"), robot, RATE_HZ)
    assert contract.action[-1].high == 80


def test_what_is_missing_is_one_line(arm, bus):
    outputs = (arm / f"output-{number}" for number in range(9))

    def refused(port: str = bus.port, **changes: object) -> str:
        changes = {name.replace("__", "."): value for name, value in changes.items()}
        with pytest.raises(UserError) as caught:
            main(settings(arm, port, {"output": next(outputs)} | changes))
        (line,) = str(caught.value).splitlines()
        return line

    assert "lerobot-calibrate --robot.type=so101_follower" in refused(robot__id="another")
    assert "does not open" in refused(str(arm / "no-such-port"))
    assert not bus.servos["goals"].any()
    assert 'say what the robot is to do: --task="..."' in refused(task=None)
    bus.silence(2)
    assert "servo 2 (shoulder_lift)" in refused()
    bus.servos["silent"] = 1
    assert "is the arm's power on?" in refused()
    assert bus.torque() == [0] * 6


# ---- the watchdog ----------------------------------------------------------------------------------------------


def test_the_watchdog_ignores_the_terminals_signals_and_nothing_moves_without_it(arm, bus):
    robot = make_robot(settings(arm, bus.port).robot)
    watchdog = Watchdog(describe(robot.bus), 0.0)
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            watchdog.process.send_signal(number)
        time.sleep(0.3)
        watchdog.require_alive()
        watchdog.process.kill()
        watchdog.process.wait()
        with pytest.raises(UserError, match="the watchdog of the arm has died"):
            watchdog.require_alive()
    finally:
        watchdog.dismiss()
    sent_away = Watchdog(describe(robot.bus), 0.0)
    bus.write(1, "Torque_Enable", 1)
    sent_away.dismiss()
    assert sent_away.process.returncode == 0 and bus.torque()[0] == 1, "it has nothing to do any more"


def test_old_answers_on_the_wire_are_not_taken_for_new_ones(arm, bus):
    """A sync read that fails at one servo leaves the answers of the others behind, each like the next one."""
    robot = make_robot(settings(arm, bus.port).robot)
    robot.bus.connect()
    bus.servos["place"] = places = [1100, 1200, 1300, 1400, 1500, 1600]
    bus.silence(2)
    with pytest.raises(ConnectionError):
        robot.bus.sync_read("Present_Position", normalize=False)
    servos = Servos.on(robot.bus)
    assert servos.hold() == ["shoulder_lift"]
    assert [bus.read(id_, "Goal_Position") for id_ in IDS] == [places[0], 0, *places[2:]]
    for id_ in IDS:
        bus.write(id_, "Torque_Enable", 1)
    assert servos.torque_off() == ["shoulder_lift"]
    assert bus.torque() == [0, 1, 0, 0, 0, 0]
    robot.bus.disconnect(disable_torque=False)
