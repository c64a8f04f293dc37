"""What simulators on MuJoCo share: scenes by number, images, and states that can be saved and restored."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from deas_vla.envs.protocol import EnvSettings, SteppedEnv
from deas_vla.envs.rendering import SceneRenderer

POSES = ("body_pos", "body_quat", "site_pos")  # what a scene may move in the model itself


@dataclass
class ExpertMemory:
    """What a scripted expert remembers between steps."""

    phase: str = "start"  # of an expert that has some
    steps: int = 0  # control steps spent in it
    # (2,) metres by which it misjudges the object's place, in x and y of the world.
    bias: np.ndarray = field(default_factory=lambda: np.zeros(2))


@dataclass(frozen=True)
class MujocoState:
    """Everything that the continuation of an episode depends on; plain numbers, so that any process can restore it."""

    scene: int
    steps: int
    physics: np.ndarray  # MuJoCo's integration state: positions, velocities, controls, warm start of the solver
    poses: tuple[np.ndarray, ...]  # `POSES`
    expert: ExpertMemory
    own: Any  # what the simulator itself remembers besides


class MujocoEnv(SteppedEnv, ABC):
    """Base of a `Simulator` on MuJoCo.

    A subclass calls `use`, and has `contract_for`, `begin`, `step`, `state`, `own`, `resume` and an `expert` with
    `command` and a `memory`.
    """

    policy_groups: ClassVar[tuple[int, ...]]  # of geometry, which the policy's cameras show
    people_groups: ClassVar[tuple[int, ...]]
    sites: ClassVar[bool] = False  # whether both show the sites of group 0, where goals are marked with them
    people_camera: ClassVar[str]
    camera_names: ClassVar[Mapping[str, str]] = {}  # the simulator's, where they differ from the contract's
    restores_any_scene = True
    settings: EnvSettings
    expert: Any

    def __init__(self, settings: EnvSettings, task: str, instruction: str, horizon: int):
        self.settings, self.task, self.instruction = settings, task, instruction
        self.horizon = settings.horizon or horizon
        self.contract = self.contract_for(settings, task)

    def use(self, model, data) -> None:
        """Takes the simulator's model, as it is at the beginning of every scene, and its data."""
        import mujoco

        self._mujoco, self.model, self.data = mujoco, model, data
        self._integration = mujoco.mjtState.mjSTATE_INTEGRATION
        self._first_poses = self._poses()
        self._renderers: dict[bool, SceneRenderer] = {}
        self.scene, self.steps = -1, 0

    @abstractmethod
    def begin(self, rng: np.random.Generator) -> None:
        """Starts the scene that `rng` draws; data and the model's poses are as at first."""

    @abstractmethod
    def own(self) -> Any:
        """A copy of what the simulator remembers between steps, besides physics, poses and expert."""

    @abstractmethod
    def resume(self, own: Any) -> None:
        """Takes up what `own` gave; physics, poses and expert are back, but nothing is computed from them."""

    def reset(self, scene: int) -> dict:
        self.scene, self.steps = int(scene), 0
        self._mujoco.mj_resetData(self.model, self.data)
        self._set_poses(self._first_poses)
        self.begin(np.random.default_rng([zlib.crc32(self.task.encode()), self.scene]))
        self.expert.memory = ExpertMemory()
        return self.frame()

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        return self.expert.command(noise)

    def save(self) -> MujocoState:
        physics = np.empty(self._mujoco.mj_stateSize(self.model, self._integration))
        self._mujoco.mj_getState(self.model, self.data, physics, self._integration)
        memory = deepcopy(self.expert.memory)
        return MujocoState(self.scene, self.steps, physics, self._poses(), memory, self.own())

    def restore(self, state: MujocoState) -> None:
        self.scene, self.steps = state.scene, state.steps
        self._set_poses(state.poses)
        self._mujoco.mj_setState(self.model, self.data, state.physics, self._integration)
        self.expert.memory = deepcopy(state.expert)
        self.resume(state.own)

    def images(self) -> dict[str, np.ndarray]:
        """Camera name to (h, w, 3) uint8: the policy's groups of geometry, without shadows."""
        size = self.settings.camera_size
        return {camera.name: self._draw(camera.name, size, size, False) for camera in self.contract.cameras}

    def render(self, height: int, width: int) -> np.ndarray:
        return self._draw(self.people_camera, height, width, True)

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _draw(self, camera: str, height: int, width: int, full: bool) -> np.ndarray:
        renderer = self._renderers.get(full)
        if renderer is None or renderer.size != (height, width):
            if renderer is not None:
                renderer.close()
            groups = self.people_groups if full else self.policy_groups
            renderer = SceneRenderer(self.model, height, width, groups, full=full, sites=self.sites)
            self._renderers[full] = renderer
        return renderer.render(self.data, self.camera_names.get(camera, camera))

    def _poses(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self.model, name).copy() for name in POSES)

    def _set_poses(self, poses: tuple[np.ndarray, ...]) -> None:
        for name, pose in zip(POSES, poses, strict=True):
            getattr(self.model, name)[:] = pose
