"""What an arm is played by, without one: limits, the clock, keys, the recording, what fits together."""

import os
import pty
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_example import example_contract
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.data.contract import Camera, Column
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.improvement.best_of_n import Choice
from deas_vla.keys import Keys
from deas_vla.rollouts.play import Job
from robots.arm import Arm
from robots.contract import agreed
from robots.lerobot_arm import contract_of, slow_cameras
from robots.outcome import Judge
from robots.play import play
from robots.safety import Limiter
from robots.timing import Timing, summary

pytestmark = pytest.mark.unit

PLACES = (
    Column("shoulder.pos", "deg", "continuous", -90.0, 90.0),
    Column("gripper.pos", "range_0_100", "continuous", 0.0, 100.0),
    Column("drive", "command", "continuous", -1.0, 1.0),
)
ARM = example_contract(action=PLACES, statistics=None)


# ---- limits ----------------------------------------------------------------------------------------------------

numbers = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=8), st.floats(2, 50))
def test_commands_stay_within_limits_and_steps(commands, max_step):
    limiter = Limiter(ARM, max_step)
    before = np.array([80.0, 5.0, 0.0])
    limiter.start(before)
    for command in commands:
        allowed = limiter(np.array(command))
        assert (allowed >= [-90, 0, -1]).all() and (allowed <= [90, 100, 1]).all()
        assert (np.abs(allowed - before)[:2] <= max_step + 1e-9).all()
        before = allowed
    wanted = np.array(command).clip([-90, 0, -1], [90, 100, 1])
    for _ in range(limiter.steps_to(wanted)):
        limiter(wanted)
    np.testing.assert_allclose(limiter.last, wanted, atol=1e-9)


def test_a_command_that_is_allowed_is_played_as_it_is_and_not_counted():
    limiter = Limiter(ARM, 5)
    limiter.start(np.zeros(3))
    np.testing.assert_array_equal(limiter(np.array([4.9, 5, -1])), [4.9, 5, -1])
    assert limiter.changed == 0
    limiter(np.array([20.0, 5, 1]))
    assert limiter.changed == 1


def test_an_arm_that_was_left_outside_its_limits_comes_back_in_small_steps():
    limiter = Limiter(ARM, 5)
    limiter.start(np.array([100.0, 50.0, 0.0]))
    np.testing.assert_array_equal(limiter(np.array([300.0, 50, 0])), [95, 50, 0])
    np.testing.assert_array_equal(limiter(np.array([0.0, 50, 0])), [90, 50, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_never_played(bad):
    limiter = Limiter(ARM, 5)
    limiter.start(np.zeros(3))
    with pytest.raises(UserError, match=r"NaN or infinity in gripper\.pos"):
        limiter(np.array([0, bad, 0]))


def test_steps_are_not_limited_blindly():
    with pytest.raises(UserError, match=r"does not say where shoulder\.pos, gripper\.pos are"):
        Limiter(ARM, 5).start(None)
    Limiter(example_contract(), 5).start(None)  # commands and flags say where to nothing


def test_a_goal_stays_near_the_measured_place():
    # The drive is no place; the gripper's place is told in another unit than it is commanded in.
    state = (PLACES[2], replace(PLACES[1], unit="mm"), PLACES[0])
    limiter = Limiter(replace(ARM, state=state), max_step=5, max_lag=12)
    limiter.start(np.array([16.0, 50.0, 0.0]))
    for _ in range(20):
        limiter.see(np.array([0.0, 0.0, 16.0]))  # it is blocked
        allowed = limiter(np.array([80.0, 100.0, 1.0]))
    np.testing.assert_array_equal(allowed, [28, 100, 1])
    assert limiter.changed == 20
    limiter.see(np.array([0.0, 0.0, -40.0]))  # it was pushed away
    np.testing.assert_array_equal(limiter(np.array([80.0, 100.0, 1.0])), [-28, 100, 1])


# ---- back to the start -----------------------------------------------------------------------------------------


def test_an_arm_goes_back_to_its_start_slowly_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("robots.arm.Timing.wait", lambda self: None)
    state, goals = {c.name: 0.0 for c in PLACES}, []

    def follow(action: dict) -> dict:
        goals.append(action["shoulder.pos"])
        state.update(action)
        return action

    robot = SimpleNamespace(name="toy", reset=lambda scene: None, read=lambda images: state, send=follow)
    contract = replace(ARM, state=PLACES, action=PLACES)
    arm = Arm(robot, contract, Limiter(contract, max_step=5), None, home_speed=0.2)
    arm.begin(0)
    assert not goals and "goes back" not in capsys.readouterr().out
    state["shoulder.pos"] = 60.0
    arm.begin(0)
    assert goals == list(range(59, -1, -1))
    assert "the arm goes back to where it began, slowly: 3.0 s" in capsys.readouterr().out


# ---- the clock -------------------------------------------------------------------------------------------------


def test_late_ticks_are_counted_and_never_made_up_for(monkeypatch):
    now = [100.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("robots.timing.time", clock)
    timing = Timing(10.0)
    timing.start()
    ends = []
    for busy in (0.03, 0.25, 0.09, 0.1, 0.0):
        now[0] += busy
        timing.wait()
        ends.append(round(now[0] - 100, 6))
    # The second tick takes a quarter of a second; the one after it still has its whole period.
    assert ends == [0.1, 0.35, 0.45, 0.55, 0.65]
    facts = timing.facts()
    assert (facts["ticks"], facts["missed"], facts["worst_late_ms"]) == (5, 1, 150.0)
    assert summary([facts, facts]).startswith("2 of 10 deadlines missed, at worst by 150 ms")


# ---- outcomes --------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """A terminal as the standard input, and the end at which somebody types."""
    typing, screen = pty.openpty()
    with os.fdopen(screen, "r") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        yield typing
    os.close(typing)


def test_keys_come_one_by_one_and_the_terminal_is_left_as_it_was(terminal):
    keys = Keys("")
    with keys:
        assert keys.pressed() is None
        os.write(terminal, b"xSf")
        assert [keys.pressed(1), keys.pressed(1), keys.pressed(1), keys.pressed()] == ["x", "s", "f", None]
    os.write(terminal, b"s")
    assert keys.pressed(0.05) is None, "without Enter a terminal gives nothing again"


@pytest.mark.parametrize(("key", "verdict"), [("s", "success"), ("f", "failure"), ("r", "again"), ("q", "quit")])
def test_a_key_ends_an_episode_or_answers_after_it(terminal, key, verdict):
    with Judge("auto", SimpleNamespace(name="arm", succeeded=None)) as judge:
        assert judge.now() is None
        os.write(terminal, b"x" + key.encode())
        time.sleep(0.02)
        assert (judge.now(), judge.now()) == (None, verdict)
        os.write(terminal, b"x" + key.encode())
        assert judge.at_the_end() == verdict
        os.write(terminal, b"s\n")
        assert judge.ready("episode 1 of 2")
        os.write(terminal, b"sq")
        assert not judge.ready("episode 2 of 2")


@pytest.mark.parametrize(
    "bytes_of_key",
    [b"\x1b[F", b"\x1bOS", b"\x1b[13~", b"\x1b[12~", b"\x1bs", b"\x1b[12;40R", b"\x1b[1;5F"],
    ids=["End", "F4", "F3", "F2", "Alt-s", "a cursor report", "Ctrl-End"],
)
def test_a_key_that_sends_several_bytes_says_nothing_of_an_episode(terminal, bytes_of_key):
    with Keys("") as keys:
        os.write(terminal, bytes_of_key + b"s")
        assert [keys.pressed(1), keys.pressed(1), keys.pressed()] == [None, "s", None]
        os.write(terminal, b"\x1b")
        assert keys.pressed(1) == "q", "Esc, which stops LeRobot's own programs"


@pytest.mark.parametrize("enter", [b"\r", b"\n"])
def test_the_enter_key_starts_an_episode(terminal, enter):
    """It sends a carriage return, which Python 3.12.0 and 3.12.1 do not let the terminal change."""
    with Judge("auto", SimpleNamespace(name="arm", succeeded=None)) as judge:
        os.write(terminal, b"x" + enter + b"q")
        assert judge.ready("episode 1 of 1")


def test_a_simulator_says_itself_how_it_went():
    robot = SimpleNamespace(name="sim", succeeded=False)
    with Judge("auto", robot) as judge:
        assert judge.ready("") and judge.now() is None and judge.at_the_end() == "failure"
        robot.succeeded = True
        assert judge.now() == "success"


def test_a_robot_that_does_not_know_needs_keys_and_keys_need_a_terminal(monkeypatch):
    with pytest.raises(UserError, match="does not know whether it succeeded"):
        Judge("sim", SimpleNamespace(name="arm", succeeded=None))
    with open(os.devnull) as nothing:
        monkeypatch.setattr("sys.stdin", nothing)
        with pytest.raises(UserError, match="need a terminal"):
            Judge("auto", SimpleNamespace(name="arm", succeeded=None))
    with Judge("failure", SimpleNamespace(name="arm", succeeded=None)) as judge:
        assert judge.now() is None and judge.at_the_end() == "failure"


# ---- the recording ---------------------------------------------------------------------------------------------


class Scripted:
    """An arm, a judge and a reranker in one: chunks of two steps, and a verdict after each."""

    execute_steps = 2

    def __init__(self, contract, verdicts: list, at_the_end: str):
        self.contract, self.verdicts, self.end = contract, iter(verdicts), at_the_end
        self.limiter, self.sent = SimpleNamespace(changed=0), []

    def state(self):
        return np.full(3, len(self.sent), np.float32)

    def images(self):
        return {c.name: np.full((c.height, c.width, 3), len(self.sent), np.uint8) for c in self.contract.cameras}

    def frame(self, instruction):
        return {"images": self.images(), "state": self.state(), "instruction": instruction}

    def send(self, command):
        self.sent.append(command)
        return np.full(2, len(self.sent), np.float32)  # after the limits

    def choose(self, observation, keys):
        self.keys = keys
        return Choice(torch.zeros(1, 1, 4, 2), torch.zeros(1, dtype=torch.long), None, None)

    def now(self):
        return next(self.verdicts)

    def at_the_end(self):
        return self.end


@pytest.mark.parametrize(
    ("verdicts", "at_the_end", "verdict"),
    [
        ([None] * 5, "success", "success"),
        ([None] * 5, "failure", "failure"),
        ([None] * 4 + ["success"], "failure", "success"),
        ([None] * 4 + ["failure"], "success", "failure"),
    ],
)
def test_what_is_played_is_a_valid_episode(monkeypatch, verdicts, at_the_end, verdict):
    monkeypatch.setattr("robots.timing.Timing.wait", lambda self: None)
    contract = example_contract(rate_hz=1000.0)
    all_ = Scripted(contract, verdicts, at_the_end)
    result = play(all_, all_, all_, Job(7, 1), instruction="lift", limit=5, seed=3, frame_every=3)
    episode = result.episode
    episode.validate(contract, "the recording")
    success = verdict == "success"
    assert result.verdict == verdict == result.facts["outcome"]
    assert (episode.group, episode.scene, episode.instruction) == (verdict, 7, "lift")
    assert episode.frame_steps.tolist() == [0, 2, 3, 4, 5]  # where it is decided, every third step, and the end
    assert episode.images["left"][:, 0, 0, 0].tolist() == [0, 2, 3, 4, 5]
    assert episode.actions[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert episode.states[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert episode.rewards.tolist() == [0, 0, 0, 0, float(success)]
    assert episode.success.tolist() == [False] * 4 + [success] and episode.truncated == (not success)
    assert (all_.keys[0].seed, all_.keys[0].sample, all_.keys[0].decision) == (3, 1, 2)


# ---- what fits together ----------------------------------------------------------------------------------------


def test_rule_07_order_is_the_policys_and_limits_are_the_narrower():
    policy = replace(ARM, action=(replace(PLACES[0], low=-50.0, high=None), *PLACES[1:]))
    robot = replace(
        ARM,
        state=ARM.state[::-1],
        action=(PLACES[2], replace(PLACES[0], low=-80.0, high=70.0), PLACES[1]),
        cameras=ARM.cameras[::-1],
    )
    contract = agreed(policy, robot)
    assert [c.name for c in contract.action] == [c.name for c in PLACES]
    assert (contract.action[0].low, contract.action[0].high) == (-50, 70)
    assert contract.state == policy.state and contract.cameras == policy.cameras
    agreed(policy, replace(robot, embodiment="driver", rate_hz=20.0), aliases=("driver", "toy"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"embodiment": "other"}, "embodiment: toy against other"),
        ({"rate_hz": 30.0}, "rate: 20 Hz against 30 Hz"),
        ({"state": ARM.state[:2]}, "state position.z: the robot has none"),
        ({"state": (*ARM.state, Column("force", "N"))}, "state force: the policy knows none"),
        ({"state": (*ARM.state[:2], replace(ARM.state[2], unit="mm"))}, "state position.z: m against mm"),
        ({"action": PLACES[1:]}, "action shoulder.pos: the robot has none"),
        ({"action": (replace(PLACES[0], unit="rad"), *PLACES[1:])}, "action shoulder.pos: deg against rad"),
        ({"action": (*PLACES, Column("wrist.pos", "deg"))}, "action wrist.pos: the policy knows none"),
        (
            {"action": (replace(PLACES[0], low=100.0, high=120.0), *PLACES[1:])},
            "action shoulder.pos: no position is within the limits of both",
        ),
        ({"cameras": ARM.cameras[:1]}, "cameras wrist: the robot has none"),
        ({"cameras": (ARM.cameras[0], Camera("wrist", 480, 640))}, "cameras wrist: 16 × 16 against 480 × 640"),
    ],
)
def test_rule_07_every_difference_is_shown(change, words):
    with pytest.raises(ContractMismatch) as caught:
        agreed(ARM, replace(ARM, **change))
    assert words in str(caught.value)


def test_units_that_nobody_stated_come_with_the_command_that_states_them():
    policy = replace(ARM, action=(replace(PLACES[0], unit="unknown"), *PLACES[1:]))
    with pytest.raises(ContractMismatch, match=r"unknown against deg; units: deas-vla declare DATASET --units="):
        agreed(policy, ARM)


def test_a_camera_that_is_slower_than_the_robot_is_named():
    cameras = {"front": SimpleNamespace(fps=15), "wrist": SimpleNamespace(fps=30)}
    assert slow_cameras(SimpleNamespace(cameras=cameras), 30.0) == ["camera front: 15 frames a second against 30 Hz"]


def test_a_robot_that_does_not_tell_its_units_is_refused():
    with pytest.raises(UserError, match="does not say in which units"):
        contract_of(SimpleNamespace(name="walker", observation_features={"leg.pos": float}))
