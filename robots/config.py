"""Settings of robots/rollout.py: its own, and under ``--robot`` those of the robot that is named."""

import importlib
import math
import pkgutil
from dataclasses import dataclass, field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from deas_vla.config import read_file
from deas_vla.errors import UserError, unknown
from robots.outcome import OutcomeSource
from robots.robot import ROBOTS, Robot
from robots.safety import HOME_SPEED, MAX_LAG

TYPE = "--robot.type"
TYPE_HELP = """Attributes:
    type: sim, a robot of LeRobot's, or FILE.py:NAME of one that a file registers (robots/robot.py); on the command
        line only, since all other settings of the robot follow from it.
"""
DEFAULT_TYPE = "sim"


@dataclass
class PolicyFolder:
    """What decides."""

    # Folder that deas-vla export wrote.
    path: str = "outputs/reranker"


@dataclass
class SafetyConfig:
    """What keeps the arm safe."""

    # Largest change of a commanded position in one tick, in the column's unit: degrees, or percent of a range.
    max_step: float = 5.0
    # Largest distance of a commanded position from the measured one, in the column's unit: what a joint that is blocked
    # is pulled by, and what a gripper grips by.
    max_lag: float = MAX_LAG
    # Share of max_step that the arm moves in a tick where no policy moves it: back to its start, after the keys s, f
    # and r and after the last episode.
    home_speed: float = HOME_SPEED
    # Seconds that the arm holds its position in the end before its torque goes off: time to support it.
    hold_s: float = 3.0

    def __post_init__(self):
        if not 0 < self.max_step < math.inf or not 0 <= self.hold_s < math.inf:
            raise UserError("safety.max_step must be above 0, and safety.hold_s at least 0; both finite")
        if not self.max_step <= self.max_lag < math.inf or not 0 < self.home_speed <= 1:
            raise UserError(
                "safety.max_lag must be finite and at least safety.max_step, safety.home_speed above 0 and at most 1"
            )


@dataclass
class RolloutConfig:
    """Plays an exported reranker on a robot and records every episode with its outcome."""

    # The instruction; empty: the simulated task's own.
    task: str = ""
    # Episodes to record.
    episodes: int = 10
    # Folder of this stage; recipes/train_critic.py takes it as --rollouts.
    output: str = "outputs/robot"
    # Who says how an episode went: sim (the simulator), keys (s, f, r, q at the terminal), or success or failure for
    # all of them; auto: the simulator where there is one, else keys.
    outcome: OutcomeSource = "auto"
    # Time limit of an episode in seconds; null: the simulated task's own, 30 for an arm.
    seconds: float | None = None
    # Ticks a second; null: the simulator's own, 30 for an arm. Must be the rate that the policy was trained at.
    rate_hz: float | None = None
    # Images are stored every so many ticks, besides where the policy decides; 0: only there.
    frame_every: int = 8
    # Names the policy's noise, and chooses the simulator's scenes, 0 to 99.
    seed: int = 1
    # What decides.
    policy: PolicyFolder = field(default_factory=PolicyFolder)
    # What keeps the arm safe.
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    def __post_init__(self):
        if self.episodes < 1 or self.frame_every < 0:
            raise UserError("episodes must be at least 1, and frame_every at least 0")
        for name in ("seconds", "rate_hz"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be above 0 and finite")


def settings_of(argv: list[str]) -> type[RolloutConfig]:
    """The settings that a command line is read into: those of the robot that it names are among them.

    Raises:
        UserError: if there is no such robot, or a configuration file names another one.
    """
    name = _given(argv, TYPE)
    if name is None:
        name = DEFAULT_TYPE
        _refuse_another_type(_given(argv, "--config"), name)
    registered = _registered(name)
    theirs = _lerobots(name) if registered is None else registered.config_class
    fitting = getattr(theirs, "for_arguments", None)
    theirs = theirs if fitting is None else fitting(argv)
    # One class may have several names, and LeRobot reads the type off the class: here it is a value of its own.
    robot = make_dataclass(
        theirs.__name__,
        [("type", str, name)],
        bases=(theirs,),
        kw_only=True,
        module=theirs.__module__,
        namespace={"__doc__": f"Settings of {name}.\n\n{TYPE_HELP}"},
    )
    return make_dataclass(
        RolloutConfig.__name__,
        [("robot", robot)],
        bases=(RolloutConfig,),
        kw_only=True,
        module=__name__,
        namespace={"__doc__": RolloutConfig.__doc__},
    )


def make_robot(config: Any) -> Robot:
    """The robot for its settings; nothing is opened.

    Raises:
        UserError: if a package is missing, or the robot refuses its settings.
    """
    registered = _registered(config.type)
    if registered is None:
        from robots.lerobot_arm import LeRobotArm as registered
    return registered(config)


def _registered(name: str) -> type[Robot] | None:
    """The registered class of that name; None if it has to be one of LeRobot's."""
    return ROBOTS.get(name) if ":" in name or name in ROBOTS.names() else None


def _lerobots(name: str) -> type:
    """LeRobot's configuration of a robot."""
    import lerobot.cameras
    import lerobot.robots
    from lerobot.utils.import_utils import register_third_party_plugins

    for package in (lerobot.robots, lerobot.cameras):
        for module in pkgutil.iter_modules(package.__path__):
            if module.ispkg:
                importlib.import_module(f"{package.__name__}.{module.name}")
    register_third_party_plugins()
    known = lerobot.robots.RobotConfig.get_known_choices()
    if name not in known:
        raise UserError(unknown("robot", name, sorted({*known, *ROBOTS.names()})))
    return known[name]


def _given(argv: list[str], flag: str) -> str | None:
    """The value of a flag; the last one counts, as for every other flag."""
    value = None
    for token, following in pairwise([*argv, None]):
        if token.startswith(flag + "="):
            value = token.removeprefix(flag + "=")
        elif token == flag and following is not None:
            value = following
    return value


def _refuse_another_type(file: str | None, name: str) -> None:
    robot = read_file(Path(file)).get("robot") if file else None
    asked = robot.get("type", name) if isinstance(robot, dict) else name
    if asked != name:
        raise UserError(
            f"{file}: robot.type is {asked}, but all other settings of the robot follow from its type: give "
            f"{TYPE}={asked} on the command line"
        )
