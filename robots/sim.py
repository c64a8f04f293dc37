"""A simulated arm behind LeRobot's `Robot`, in real time.

Time passes whether or not a command comes, as it does for an arm: a command moves it for one period, and for every
period without one it holds its place, and what is in its gripper. It cannot be seen earlier than the clock allows.
"""

import time
from dataclasses import dataclass, field

import numpy as np
from lerobot.robots import Robot, RobotConfig

from deas_vla.envs.config import EnvConfig
from deas_vla.envs.registry import contract_of, make_env

# Seconds of holding that are made up for at most: a computer that is too slow must not fall behind for good.
MOST_HELD_S = 2.0


@RobotConfig.register_subclass("sim")
@dataclass(kw_only=True)
class SimConfig(RobotConfig):
    """A simulated arm in real time."""

    # What is simulated, and how it is seen.
    env: EnvConfig = field(default_factory=EnvConfig)


class Sim(Robot):
    """One simulated task as a robot. LeRobot finds this class by the name of its configuration.

    Attributes:
        contract: of the environment.
        succeeded: whether the task was done at any step since the reset.
        instruction: the task's own.
        limit: the task's time limit in control steps.
        held: periods without a command since the reset.
    """

    config_class = SimConfig
    name = "sim"

    def __init__(self, config: SimConfig):
        # LeRobot's own constructor makes a folder for calibrations, of which there are none here.
        self.config, self.robot_type, self.id, self.calibration = config, self.name, config.id, {}
        self.contract = contract_of(config.env)
        self.succeeded, self.held, self.instruction, self.limit = False, 0, "", 0
        self._env, self._seen_until = None, 0.0
        self._period = 1 / self.contract.rate_hz
        # What holding repeats: zero is no motion in all other columns, but lets go of what Meta-World's gripper holds.
        self._kept = np.array(
            [c.kind == "binary" or c.name.startswith("gripper") for c in self.contract.action]
        )
        self._hold = np.zeros(self.contract.action_dim, np.float32)

    @property
    def observation_features(self) -> dict:
        columns = {column.name: float for column in self.contract.state}
        return columns | {c.name: (c.height, c.width, 3) for c in self.contract.cameras}

    @property
    def action_features(self) -> dict:
        return {column.name: float for column in self.contract.action}

    @property
    def is_connected(self) -> bool:
        return self._env is not None

    @property
    def is_calibrated(self) -> bool:
        return True

    def connect(self, calibrate: bool = True) -> None:
        self._env = make_env(self.config.env)
        self.limit = self._env.horizon
        # The first step and the first picture compile and open what the later ones use.
        self._env.reset(0)
        self._env.step(self._hold)
        self._env.images()
        self.reset(0)

    def calibrate(self) -> None:
        """Nothing to calibrate."""

    def configure(self) -> None:
        """Nothing to configure."""

    def reset(self, scene: int) -> None:
        """Starts a scene, see `deas_vla.envs.protocol.ChunkEnv`; the clock starts with it."""
        self.instruction = self._env.reset(scene)["instruction"]
        self.succeeded, self.held = False, 0
        self._hold[:] = 0
        self._seen_until = time.perf_counter()

    def get_state(self) -> dict[str, float]:
        """The columns of an observation without its pictures, which a policy needs only where it decides."""
        time.sleep(max(0.0, self._seen_until - time.perf_counter()))
        names = (column.name for column in self.contract.state)
        return dict(zip(names, self._env.state().tolist(), strict=True))

    def get_observation(self) -> dict:
        return {**self.get_state(), **self._env.images()}

    def send_action(self, action: dict[str, float]) -> dict[str, float]:
        late = min(time.perf_counter() - self._seen_until, MOST_HELD_S)
        self._seen_until = max(self._seen_until, time.perf_counter() - MOST_HELD_S)
        for _ in range(int(late / self._period)):
            self._step(self._hold)
            self.held += 1
        command = np.array([action[column.name] for column in self.contract.action], np.float32)
        self._step(command)
        self._hold = np.where(self._kept, command, 0).astype(np.float32)
        return action

    def disconnect(self) -> None:
        self._env.close()
        self._env = None

    def _step(self, command: np.ndarray) -> None:
        # Meta-World counts the steps, those of holding too, and refuses to go on after 500; here the caller ends it.
        if self.config.env.name == "metaworld":
            self._env.simulator.curr_path_length = 0
        self.succeeded = bool(self._env.step(command)) or self.succeeded
        self._seen_until += self._period
