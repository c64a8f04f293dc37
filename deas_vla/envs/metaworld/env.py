"""Meta-World's tasks as a `ChunkEnv`: its own steps, rewards and success; scenes by number, branches, small images.

The policy sees camera images and its own hand, never the object's place. Images are drawn without shadows and without
the arm's meshes (90,000 triangles, most of the cost); hand, objects and goals are all there.
"""

import zlib
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.envs.metaworld.experts import Memory, NoisyExpert
from deas_vla.envs.metaworld.tasks import VIEWS, MetaworldSettings, View, metaworld_contract, task_of
from deas_vla.envs.registry import register_simulator
from deas_vla.envs.rendering import SceneRenderer, choose_gl
from deas_vla.envs.stepping import SteppedEnv
from deas_vla.errors import require

# Meta-World's groups of geometry are 0 (floor, walls), 1 (what is to be seen) and 4 (what collides); the arm's meshes
# are put into a group of their own.
SCENE_GROUPS, ARM_GROUP = (0, 1), 2
RENDER_CAMERA = "workspace_right"
# LeRobot's place of corner2.
CORNER2 = (0.75, 0.075, 0.7)
# What a scene moves in the model itself.
FIXTURES = ("body_pos", "body_quat", "site_pos")
# Of these are the attributes that Meta-World keeps between steps; models, spaces and renderers are not among them.
PLAIN = (bool, int, float, str, tuple, list, dict, np.ndarray, np.generic, type(None))


@dataclass(frozen=True)
class MetaworldState:
    """Everything that the continuation of an episode depends on; plain numbers, so that any process can restore it.

    Attributes:
        scene: number of the scene.
        steps: control steps played.
        physics: MuJoCo's integration state.
        fixtures: poses of bodies and sites in the model.
        attributes: what Meta-World's environment remembers: goals, first places, its last observation.
        observation: (39,) what the expert sees.
        expert: state of the scripted expert.
    """

    scene: int
    steps: int
    physics: np.ndarray
    fixtures: tuple[np.ndarray, ...]
    attributes: dict
    observation: np.ndarray
    expert: Memory


@register_simulator("metaworld")
class MetaworldEnv(SteppedEnv):
    """One Meta-World task; a `ChunkEnv`.

    Args:
        settings: how the task is seen and played.
        task: its name.

    Raises:
        UserError: if Meta-World or an OpenGL library is missing, or the settings do not fit.

    Attributes:
        observation: (39,) Meta-World's own observation of the present state.
        reward: Meta-World's own shaped reward of the last step.
    """

    settings_class = MetaworldSettings
    restores_any_scene = True

    def __init__(self, settings: MetaworldSettings, task: str):
        self.settings, self.task = settings, task
        self.contract = metaworld_contract(settings, task)
        spec = task_of(task)
        self.instruction, self.horizon = spec.instruction, settings.horizon or spec.horizon
        choose_gl()
        environments = require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS
        experts = require("metaworld.policies", "metaworld").ENV_POLICY_MAP

        import mujoco

        self._mujoco = mujoco
        self.simulator = _build(environments[task])
        self.model, self.data = self.simulator.model, self.simulator.data
        self._physics_size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        for view in VIEWS.values():
            _place(self.model, view)
        _group_arm(self.model)
        self.expert = NoisyExpert(experts[task](), settings.expert_noise, settings.expert_grasp_bias)
        self._fixture_start, self._attribute_start = self._fixtures(), self._attributes()
        self._observer: SceneRenderer | None = None
        self._renderer: SceneRenderer | None = None
        self.scene, self.steps, self.reward = -1, 0, 0.0
        self.observation = np.zeros(39)

    @classmethod
    def contract_for(cls, settings: MetaworldSettings, task: str) -> Contract:
        """See `Simulator`."""
        return metaworld_contract(settings, task)

    # ---- episodes ------------------------------------------------------------------------------------------

    def reset(self, scene: int) -> dict:
        """Starts a scene; see `ChunkEnv`. Nothing of what was played before is left."""
        self.scene, self.steps, self.reward = int(scene), 0, 0.0
        self._set_fixtures(self._fixture_start)
        self._set_attributes(self._attribute_start)
        simulator = self.simulator
        simulator.np_random = np.random.default_rng([zlib.crc32(self.task.encode()), self.scene])
        # Twice, as Meta-World does: the first time, some tasks look at objects that have not been moved yet. The second
        # time the scene is not drawn but kept.
        for kept in (False, True):
            simulator._freeze_rand_vec = kept
            self._mujoco.mj_resetData(self.model, self.data)
            self.observation = simulator.reset_model().astype(np.float64)
        # As Meta-World's own reset: nothing was seen before the first observation.
        simulator._prev_obs = self.observation[:18].copy()
        self.observation[18:36] = simulator._prev_obs
        # Some scenes move a fixture last of all; the image must show it where it is.
        self._mujoco.mj_fwdPosition(self.model, self.data)
        self.expert.reset()
        return self.frame()

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        """(4,) the scripted expert's next command."""
        return self.expert.command(self.observation, noise)

    def step(self, command: np.ndarray) -> bool:
        """Plays one (4,) command within the limits; returns whether the task has succeeded, by Meta-World's check."""
        self.simulator.curr_path_length = 0  # it would refuse to go on after 500; the time limit is ours
        self.observation, reward, _, _, info = self.simulator.step(command)
        self.reward = float(reward)
        self.steps += 1
        return bool(info["success"])

    # ---- observations --------------------------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """(4,) float32: where the hand is (metres, world) and how far the fingers are open (0 to 1)."""
        return self.observation[:4].astype(np.float32)

    def images(self) -> dict[str, np.ndarray]:
        """Camera name to (h, w, 3) uint8, without shadows and without the arm."""
        if self._observer is None:
            size = self.settings.camera_size
            self._observer = SceneRenderer(self.model, size, size, groups=SCENE_GROUPS, sites=True)
        return {
            camera.name: self._observer.render(self.model, self.data, VIEWS[camera.name].camera)
            for camera in self.contract.cameras
        }

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8, full quality, for people."""
        if self._renderer is None or self._renderer.size != (height, width):
            if self._renderer is not None:
                self._renderer.close()
            groups = (*SCENE_GROUPS, ARM_GROUP)
            self._renderer = SceneRenderer(self.model, height, width, full=True, groups=groups, sites=True)
        return self._renderer.render(self.model, self.data, VIEWS[RENDER_CAMERA].camera)

    # ---- branching -----------------------------------------------------------------------------------------

    def save(self) -> MetaworldState:
        """The complete state; see `ChunkEnv`. It can be restored in any process with the same configuration."""
        physics = np.empty(self._physics_size)
        self._mujoco.mj_getState(self.model, self.data, physics, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        return MetaworldState(
            scene=self.scene,
            steps=self.steps,
            physics=physics,
            fixtures=self._fixtures(),
            attributes=self._attributes(),
            observation=self.observation.copy(),
            expert=deepcopy(self.expert.memory),
        )

    def restore(self, state: MetaworldState) -> None:
        """Goes back to a saved state; see `ChunkEnv`."""
        self.scene, self.steps = state.scene, state.steps
        self._set_fixtures(state.fixtures)
        self._set_attributes(state.attributes)
        integration = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self.model, self.data, state.physics, integration)
        # Positions only: a whole forward pass would touch the solver's warm start, and the last bits with it.
        self._mujoco.mj_fwdPosition(self.model, self.data)
        self.observation = state.observation.copy()
        self.expert.memory = deepcopy(state.expert)

    def close(self) -> None:
        for renderer in (self._observer, self._renderer):
            if renderer is not None:
                renderer.close()
        self._observer = self._renderer = None

    def _fixtures(self) -> tuple[np.ndarray, ...]:
        return tuple(getattr(self.model, name).copy() for name in FIXTURES)

    def _set_fixtures(self, poses: tuple[np.ndarray, ...]) -> None:
        for name, pose in zip(FIXTURES, poses, strict=True):
            getattr(self.model, name)[:] = pose

    def _attributes(self) -> dict:
        return deepcopy({k: v for k, v in vars(self.simulator).items() if isinstance(v, PLAIN)})

    def _set_attributes(self, attributes: dict) -> None:
        mine = vars(self.simulator)
        for name in [k for k, v in mine.items() if isinstance(v, PLAIN) and k not in attributes]:
            del mine[name]
        mine.update(deepcopy(attributes))


def _build(environment: type):
    """Meta-World's environment of a task, ready to be reset: goals are seen by the expert, scenes are drawn anew."""
    simulator = environment()
    # What its `set_task` does, which would draw one of 50 fixed scenes from a pickle.
    simulator._set_task_called = True
    simulator._partially_observable = False
    # Made while the goal was hidden, it would clip the goal to zero.
    vars(simulator).pop("sawyer_observation_space", None)
    simulator.seeded_rand_vec = True
    return simulator


def _place(model, view: View) -> None:
    import mujoco

    camera = model.camera(view.camera)
    if view.look_at is not None:
        back = np.array(view.offset) / np.linalg.norm(view.offset)
        right = np.cross((0.0, 0.0, 1.0), back)
        right /= np.linalg.norm(right)
        turn = np.stack([right, np.cross(back, right), back], axis=1)  # columns: the camera's x, y and z
        camera.pos[:] = np.array(view.look_at) + view.offset
        mujoco.mju_mat2Quat(camera.quat, turn.ravel())
        camera.fovy[:] = view.field_of_view
    elif view.camera == "corner2":
        camera.pos[:] = CORNER2
        upright = np.empty(4)
        mujoco.mju_mulQuat(upright, camera.quat, np.array([0.0, 0.0, 0.0, 1.0]))
        camera.quat[:] = upright


def _group_arm(model) -> None:
    """Puts what is to be seen of the robot, all but the hand, into a group of its own."""
    hand = model.body("hand").id
    for geom in range(model.ngeom):
        bodies, body = [], model.geom_bodyid[geom]
        while body:
            bodies.append(body)
            body = model.body_parentid[body]
        if model.body("base").id in bodies and hand not in bodies and model.geom_group[geom] == 1:
            model.geom_group[geom] = ARM_GROUP
