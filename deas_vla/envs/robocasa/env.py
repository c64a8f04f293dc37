"""RoboCasa's kitchens, through its own gymnasium wrapper, as a `Simulator`.

Written against RoboCasa 1.0.1 (`robocasa.wrappers.gym_wrapper.RoboCasaGymEnv`): observations are a flat dictionary
of ``state.<group>``, ``video.<camera>`` and ``annotation.human.task_description``; actions a dictionary of
``action.<group>``. The groups are those of `panda_omron.py`, so nothing here depends on an order of columns.
"""

import importlib
from dataclasses import dataclass

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.envs.panda_omron import (
    ACTION_GROUPS,
    ROBOCASA_CAMERAS,
    STATE_GROUPS,
    PandaOmronSettings,
    columns_of,
    panda_omron_contract,
)
from deas_vla.envs.protocol import SteppedEnv
from deas_vla.envs.registry import register_simulator
from deas_vla.errors import UserError, unknown

INSTALL_COMMANDS = (
    "git clone https://github.com/ARISE-Initiative/robosuite && git clone https://github.com/robocasa/robocasa",
    '.venv/bin/uv pip install --no-deps -e ./robosuite -e ./robocasa "mujoco==3.3.1" "numpy==2.2.5"',
)
ASSET_COMMANDS = (
    "python -m robocasa.scripts.setup_macros",
    "python -m robocasa.scripts.download_kitchen_assets  # about 10 GB",
)
RENDER_CAMERA = "robot0_agentview_center"


@dataclass
class RobocasaSettings(PandaOmronSettings):
    """How RoboCasa's kitchens are seen and played."""

    split: str = "pretrain"  # Kitchens and objects to choose from: pretrain, target or all.


@register_simulator("robocasa")
class RobocasaEnv(SteppedEnv):
    """One of RoboCasa's tasks; a `Simulator`. If it, its versions or its assets are missing, a UserError."""

    settings_class = RobocasaSettings

    @classmethod
    def contract_for(cls, settings: RobocasaSettings, task: str) -> Contract:
        """The same for all tasks; see `Simulator`."""
        return panda_omron_contract(settings)

    def __init__(self, settings: RobocasaSettings, task: str):
        self.settings, self.task = settings, task
        self.contract = panda_omron_contract(settings)
        wrapper = _import_wrapper()
        tasks = list(importlib.import_module("robocasa").ALL_KITCHEN_ENVIRONMENTS)
        if task not in tasks:
            raise UserError(unknown("RoboCasa task", task, tasks))
        registry = importlib.import_module("robocasa.utils.dataset_registry_utils")
        self.horizon = settings.horizon or registry.get_task_horizon(task)
        try:
            self._gym = wrapper.RoboCasaGymEnv(
                env_name=task,
                camera_widths=settings.camera_size,
                camera_heights=settings.camera_size,
                split=settings.split,
            )
        except FileNotFoundError as error:
            missing = f"RoboCasa's kitchen assets are missing ({error.filename or error})"
            raise UserError(f"{missing}: {'; '.join(ASSET_COMMANDS)}") from error
        self._kitchen = self._gym.env
        self._groups = {group: columns_of(self.contract.action, group) for group in ACTION_GROUPS}
        self.scene = -1
        self._commands: list[np.ndarray] = []

    @property
    def steps(self) -> int:
        return len(self._commands)

    def reset(self, scene: int) -> dict:
        """Starts a scene: its number seeds the kitchen, the objects and their places."""
        self.scene, self._commands = int(scene), []
        self._look(True)
        self._observation, _ = self._gym.reset(seed=self.scene)
        self.instruction = self._observation["annotation.human.task_description"]
        frame = self.frame()
        self._look(False)
        return frame

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        own = "its own: python -m robocasa.scripts.download_datasets"
        fix = f"give recorded ones, --demos.dataset=LEROBOT_FOLDER; {own}"
        raise UserError(f"RoboCasa has no scripted expert for {self.task}; {fix}")

    def step(self, command: np.ndarray) -> bool:
        action = {f"action.{group}": command[columns].astype(np.float64) for group, columns in self._groups.items()}
        self._observation, _, _, _, info = self._gym.step(action)
        self._commands.append(command)
        return bool(info["success"])

    def state(self) -> np.ndarray:
        return np.concatenate([self._observation[f"state.{group}"] for group in STATE_GROUPS]).astype(np.float32)

    def images(self) -> dict[str, np.ndarray]:
        if not self._gym.enable_render:
            self._look(True)
            self._observation = self._gym.get_observation(self._kitchen._get_observations(force_update=True))
            self._look(False)
        return {camera.name: self._observation[f"video.{camera.name}"] for camera in self.contract.cameras}

    def render(self, height: int, width: int) -> np.ndarray:
        image = self._kitchen.sim.render(height=height, width=width, camera_name=RENDER_CAMERA)
        return np.ascontiguousarray(image[::-1])

    def save(self) -> tuple[int, tuple[np.ndarray, ...]]:
        """The scene, and every command so far: RoboCasa's tasks keep part of their state in Python objects."""
        return self.scene, tuple(self._commands)

    def restore(self, state: tuple[int, tuple[np.ndarray, ...]]) -> None:
        """Starts the scene again and replays its commands: seconds, where robosuite takes microseconds."""
        scene, commands = state
        self.reset(scene)
        for command in commands:
            self.step(command)

    def close(self) -> None:
        self._gym.close()

    def _look(self, on: bool) -> None:
        """The wrapper draws every camera at every step unless told otherwise; we draw where asked."""
        self._gym.enable_render = on
        for camera in ROBOCASA_CAMERAS:
            for attribute in ("enabled", "active"):
                self._kitchen.modify_observable(f"{camera}_image", attribute, on)


def _import_wrapper():
    try:
        return importlib.import_module("robocasa.wrappers.gym_wrapper")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "robocasa":
            raise UserError(f"RoboCasa needs {error.name}, which is not installed: pip install {error.name}") from error
        fix = f"in an environment of its own: {'; '.join(INSTALL_COMMANDS + ASSET_COMMANDS)}"
        raise UserError(f"RoboCasa is not installed (it is in no package registry); {fix}") from error
    except AssertionError as error:  # it checks versions when it is imported
        raise UserError(f"RoboCasa does not run with what is installed: {error}") from error
