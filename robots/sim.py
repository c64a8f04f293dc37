"""A simulated arm in real time.

Time passes whether or not a command comes, as it does for an arm: a command moves it for one period, and for every
period without one it holds its position, and what is in its gripper. It cannot be seen earlier than the clock allows.
"""

import time
from dataclasses import dataclass
from typing import Self

import numpy as np

from deas_vla.envs.protocol import EnvSettings
from deas_vla.envs.registry import SIMULATORS, EnvConfig, contract_of, make_env
from deas_vla.envs.simulator import with_simulator
from deas_vla.errors import UserError
from robots.robot import Robot, register_robot

# Seconds of holding that are made up for at most: a computer that is too slow must not fall behind for good.
MOST_HELD_S = 2.0


@dataclass
class SimConfig:
    """A simulated arm in real time."""

    # The simulator, see the recipes' --env.
    env: str = "robosuite"
    # One of its tasks.
    task: str = "lift"
    # How it is seen and played: settings of the simulator.
    simulator: EnvSettings | None = None

    def __post_init__(self):
        if self.simulator is None:
            self.simulator = SIMULATORS.get(self.env).settings_class()

    @classmethod
    def for_arguments(cls, argv: list[str]) -> type[Self]:
        """See `with_simulator`."""
        return with_simulator(cls, argv, "robot.")

    @property
    def env_config(self) -> EnvConfig:
        return EnvConfig(self.env, self.task, self.simulator)


@register_robot("sim")
class Sim(Robot):
    """One simulated task as a robot.

    Attributes:
        held: periods without a command since the reset.
    """

    config_class = SimConfig
    name = "sim"
    simulated = True

    def __init__(self, config: SimConfig):
        self.config, self.contract = config, contract_of(config.env_config)
        self.succeeded, self.held = False, 0
        self._env, self._seen_until = None, 0.0
        self._period = 1 / self.contract.rate_hz
        # What holding repeats: zero is no motion in all other columns, but lets go of what Meta-World's gripper holds.
        self._kept = np.array([c.kind == "binary" or c.name.startswith("gripper") for c in self.contract.action])
        self._hold = np.zeros(self.contract.action_dim, np.float32)

    @property
    def is_connected(self) -> bool:
        return self._env is not None

    def connect(self) -> None:
        env = make_env(self.config.env_config)
        if missing := [name for name in ("step", "state", "images") if not hasattr(env, name)]:
            env.close()
            raise UserError(
                f"--robot.env={self.config.env}: the simulator lacks {', '.join(missing)}, which a simulated arm needs "
                "to play single steps; make its class one of deas_vla.SteppedEnv (docs/simulators.md)"
            )
        self._env = env
        self.limit = self._env.horizon
        # The first step and the first image compile and open what the later ones use.
        self._env.reset(0)
        self._env.step(self._hold)
        self._env.images()
        self.reset(0)

    def reset(self, scene: int) -> None:
        """Starts a scene, see `deas_vla.envs.protocol.Simulator`; the clock starts with it."""
        self.instruction = self._env.reset(scene)["instruction"]
        self.succeeded, self.held = False, 0
        self._hold[:] = 0
        self._seen_until = time.perf_counter()

    def read(self, images: bool) -> dict:
        time.sleep(max(0.0, self._seen_until - time.perf_counter()))
        names = (column.name for column in self.contract.state)
        state = dict(zip(names, self._env.state().tolist(), strict=True))
        return state | self._env.images() if images else state

    def send(self, command: dict[str, float]) -> dict[str, float]:
        late = min(time.perf_counter() - self._seen_until, MOST_HELD_S)
        self._seen_until = max(self._seen_until, time.perf_counter() - MOST_HELD_S)
        for _ in range(int(late / self._period)):
            self._step(self._hold)
            self.held += 1
        values = np.array([command[column.name] for column in self.contract.action], np.float32)
        self._step(values)
        self._hold = np.where(self._kept, values, 0).astype(np.float32)
        return command

    def hold(self) -> list[str]:
        return []

    def torque_off(self) -> list[str]:
        return []

    def disconnect(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _step(self, command: np.ndarray) -> None:
        self.succeeded = bool(self._env.step(command)) or self.succeeded
        self._seen_until += self._period
