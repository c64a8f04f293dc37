"""A robot that no library knows is one file outside the project: it is played, recorded, and left safe."""

import sys
import time

import pytest

pytest.importorskip("lerobot", reason="needs the extra `lerobot`")

from so101_example import random_reranker

from deas_vla.config import parse
from deas_vla.data.contract import Statistics
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import ContractMismatch, UserError
from robots.config import make_robot, settings_of
from robots.rollout import main
from robots.watchdog import Watchdog

TOY = '''
"""A lift of two joints without a serial bus: every call is written into a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deas_vla.data.contract import Camera, Column, Contract
from robots.robot import Robot, register_robot

JOINTS = (Column("lift", "mm", "continuous", -50.0, 50.0), Column("grip", "mm", "continuous", 0.0, 80.0))


@dataclass
class LiftConfig:
    # where it writes what it is asked
    log: str = "log.txt"


@register_robot("lift")
class Lift(Robot):
    config_class, name = LiftConfig, "lift"
    contract = Contract("lift", 25.0, JOINTS, JOINTS, (Camera("front", 16, 16),))

    def __init__(self, config):
        self.log, self.position = Path(config.log), {"lift": 0.0, "grip": 40.0}

    def note(self, line):
        with self.log.open("a") as file:
            print(line, file=file)

    def connect(self):
        self.is_connected = True
        self.note("connect")

    def read(self, images):
        seen = {"front": np.zeros((16, 16, 3), np.uint8)} if images else {}
        return {**seen, **self.position}

    def send(self, command):
        self.position = dict(command)
        self.note("send")
        return command

    def hold(self):
        self.note("hold")
        return []

    def torque_off(self):
        self.note("torque_off")
        return []

    def disconnect(self):
        self.note("disconnect")

    def rescue(self):
        return {"port": str(self.log), "modules": [__name__], "log": str(self.log)}


def open_device(description):
    return Lift(LiftConfig(log=description["log"]))
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the robot's file, and a reranker that was exported for it."""
    (tmp_path / "toy_lift.py").write_text(TOY)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("toy_lift", None)


def settings(folder, *more: str):
    flags = [
        f"--robot.type={folder / 'toy_lift.py'}:lift",
        f"--robot.log={folder / 'log.txt'}",
        f"--policy.path={folder / 'reranker'}",
        f"--output={folder / 'recorded'}",
        "--task=lift the red cube",
        "--outcome=failure",
        "--episodes=2",
        "--seconds=0.3",
        "--safety.hold_s=0",
        *more,
    ]
    return parse(settings_of(flags), flags)


def trained_contract(folder):
    """What a policy for this robot was trained under."""
    contract = make_robot(settings(folder).robot).contract
    return contract.with_statistics(Statistics((0.0, 0.0), (10.0, 10.0), (0.0, 40.0), (30.0, 30.0)))


def log(folder) -> list[str]:
    return (folder / "log.txt").read_text().split()


def test_a_robot_from_outside_is_played_recorded_and_left_safe(folder):
    contract = trained_contract(folder)
    random_reranker(folder / "reranker", contract)
    main(settings(folder))
    calls = log(folder)
    assert calls[0] == "connect" and calls[-3:] == ["hold", "torque_off", "disconnect"]
    assert calls.count("send") >= 16
    episodes, recorded, metadata = read_dataset(folder / "recorded" / "dataset", contract)
    assert [episode.length for episode in episodes] == [8, 8]
    assert recorded.action == contract.action and metadata["settings"]["robot"]["type"].endswith("toy_lift.py:lift")
    assert all(abs(episode.actions[:, 0]).max() <= 50 for episode in episodes)

    with pytest.raises(ContractMismatch, match="rate: 25 Hz against 50 Hz"):
        main(settings(folder, "--rate_hz=50", f"--output={folder / 'other'}"))


def test_an_error_of_its_device_is_one_line_and_it_is_left_safe(folder, monkeypatch):
    random_reranker(folder / "reranker", trained_contract(folder))
    import toy_lift

    def fail(self, command):
        raise OSError("the cable is out")

    monkeypatch.setattr(toy_lift.Lift, "send", fail)
    with pytest.raises(UserError, match="lift does not move: the cable is out"):
        main(settings(folder))
    assert log(folder)[-3:] == ["hold", "torque_off", "disconnect"]


def test_another_process_leaves_it_safe_when_this_one_is_gone(folder):
    watchdog = Watchdog(make_robot(settings(folder).robot).rescue(), 0.0)
    watchdog.process.stdin.close()  # as the end of this process does
    watchdog.process.wait(20)
    deadline = time.monotonic() + 5
    while log(folder) != ["hold", "torque_off"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    watchdog.dismiss()


def test_its_own_settings_are_flags_and_what_is_not_there_is_one_line(folder):
    with pytest.raises(UserError, match=r"unknown flag --robot\.port"):
        settings(folder, "--robot.port=1")
    with pytest.raises(UserError, match="toy_lft"):
        settings_of(["--robot.type=toy_lft:lift"])
