"""Meta-World's tasks as a `Simulator`: its own steps, rewards and success; scenes by number, branches, small images.

The policy sees camera images and its own hand, never the object's place. Images are drawn without shadows and without
the arm's meshes (90,000 triangles, most of the cost); hand, objects and goals are all there.
"""

from copy import deepcopy

import numpy as np

from deas_vla.envs.metaworld.experts import NoisyExpert
from deas_vla.envs.metaworld.tasks import VIEWS, MetaworldSettings, View, metaworld_contract, task_of
from deas_vla.envs.mujoco_env import MujocoEnv
from deas_vla.envs.registry import register_simulator
from deas_vla.envs.rendering import choose_gl, look_back
from deas_vla.errors import require

# Meta-World's groups of geometry are 0 (floor, walls), 1 (what is to be seen) and 4 (what collides); the arm's meshes
# are put into a group of their own.
SCENE_GROUPS, ARM_GROUP = (0, 1), 2
CORNER2 = (0.75, 0.075, 0.7)  # LeRobot's place of corner2
# Of these are the attributes that Meta-World keeps between steps; models, spaces and renderers are not among them.
PLAIN = (bool, int, float, str, tuple, list, dict, np.ndarray, np.generic, type(None))


@register_simulator("metaworld")
class MetaworldEnv(MujocoEnv):
    """One Meta-World task; a `Simulator`, with Meta-World's (39,) `observation` of now and shaped last `reward`.

    Raises UserError if Meta-World or an OpenGL library is missing, or the settings do not fit.
    """

    settings_class = MetaworldSettings
    contract_for = staticmethod(metaworld_contract)
    policy_groups, people_groups = SCENE_GROUPS, (*SCENE_GROUPS, ARM_GROUP)
    sites = True
    people_camera = "workspace_right"
    camera_names = {name: view.camera for name, view in VIEWS.items()}  # noqa: RUF012

    def __init__(self, settings: MetaworldSettings, task: str):
        spec = task_of(task)
        super().__init__(settings, task, spec.instruction, spec.horizon)
        choose_gl()
        environments = require("metaworld.env_dict", "metaworld").ALL_V3_ENVIRONMENTS
        experts = require("metaworld.policies", "metaworld").ENV_POLICY_MAP

        self.simulator = _build(environments[task])
        self.use(self.simulator.model, self.simulator.data)
        for view in VIEWS.values():
            _place(self.model, view)
        _group_arm(self.model)
        self.expert = NoisyExpert(experts[task](), settings.expert_noise, settings.expert_grasp_bias)
        self._first_attributes = self._attributes()
        self.reward, self.observation = 0.0, np.zeros(39)

    def begin(self, rng: np.random.Generator) -> None:
        self._set_attributes(self._first_attributes)
        simulator, self.reward = self.simulator, 0.0
        simulator.np_random = rng
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

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        return self.expert.command(self.observation, noise)

    def step(self, command: np.ndarray) -> bool:
        """Plays one (4,) command within the limits; returns whether the task has succeeded, by Meta-World's check."""
        self.simulator.curr_path_length = 0  # it would refuse to go on after 500; the time limit is ours
        self.observation, reward, _, _, info = self.simulator.step(command)
        self.reward = float(reward)
        self.steps += 1
        return bool(info["success"])

    def state(self) -> np.ndarray:
        """(4,) float32: where the hand is (metres, world) and how far the fingers are open (0 to 1)."""
        return self.observation[:4].astype(np.float32)

    def own(self) -> tuple[dict, np.ndarray]:
        """What Meta-World's environment remembers (goals, first places), and the (39,) observation."""
        return self._attributes(), self.observation.copy()

    def resume(self, own: tuple[dict, np.ndarray]) -> None:
        attributes, observation = own
        self._set_attributes(attributes)
        # Positions only: a whole forward pass would touch the solver's warm start, and the last bits with it.
        self._mujoco.mj_fwdPosition(self.model, self.data)
        self.observation = observation.copy()

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
        camera.pos[:] = np.array(view.look_at) + view.offset
        mujoco.mju_mat2Quat(camera.quat, look_back(view.offset).ravel())
        camera.fovy[:] = view.field_of_view
    elif view.camera == "corner2":
        camera.pos[:] = CORNER2
        upright = np.empty(4)
        mujoco.mju_mulQuat(upright, camera.quat, np.array([0.0, 0.0, 0.0, 1.0]))
        camera.quat[:] = upright


def _group_arm(model) -> None:
    """Puts what is to be seen of the robot, all but the hand, into a group of its own."""
    base, hand = (_below(model, name)[model.geom_bodyid] for name in ("base", "hand"))
    model.geom_group[base & ~hand & (model.geom_group == 1)] = ARM_GROUP


def _below(model, name: str) -> np.ndarray:
    """(bodies,) bool: a body and all that hangs on it."""
    found = np.arange(model.nbody) == model.body(name).id
    for body in range(1, model.nbody):  # parents come first
        found[body] |= found[model.body_parentid[body]]
    return found
