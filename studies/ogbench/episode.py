"""One episode of an OGBench manipulation task: its own data, buttons and locks, in a model that many episodes share.

Resets are the library's own code. Steps are this file's: the same trajectory without what only pictures and
`info` dictionaries need.
"""

import warnings

import mujoco
import numpy as np

from studies.ogbench.control import ArmControl, turn_about_z, yaw_of

# How the observation is scaled.
CENTRE, POSITION_SCALE = np.array([0.425, 0.0, 0.0]), 10.0
GRIPPER_SCALE, CONTACT_FORCE, BUTTON_SCALE = 3.0, 50.0, 120.0
# Joint of each sliding part, the scale of its position, and its damping when its button has unlocked and locked it.
SLIDERS = {"drawer": ("drawer_slide", 18.0), "window": ("window_slide", 15.0)}
FREE, LOCKED = 2.0, 1e6
# Metres: a cube or a sliding part this near its goal is there; a button this deep is pressed; a scene's cube this
# far outside of the workspace has been thrown out by the simulator and is put back.
NEAR, PRESSED, OUTSIDE = 0.04, -0.02, 0.2


def make_official(env_name: str):
    """The library's environment, compiled, with its otherwise unseeded draws following the seed of `reset`.

    A reset plays a few random actions in the goal's scene, drawn from an action space that is made anew, unseeded,
    at every look. What they leave behind is small (the first force reading, where the solver starts), but makes
    trajectories differ that should be equal.
    """
    import gymnasium

    with warnings.catch_warnings():
        # About a screen that is not there, and about float64 bounds.
        warnings.simplefilter("ignore")
        import ogbench.manipspace  # noqa: F401  (registers the environments)

        spec = gymnasium.spec(env_name)
        official = gymnasium.envs.registration.load_env_creator(spec.entry_point)

        class Seeded(official):
            actions = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)

            @property
            def action_space(self):
                return self.actions

            def reset(self, *, seed=None, **options):
                self.actions.seed(seed)
                return super().reset(seed=seed, **options)

        env = Seeded(**spec.kwargs, visualize_info=False)
    env.reset(seed=0)
    return env


class Episode:
    """One episode.

    Args:
        env: from `make_official`, shared by all episodes.
        control: of the same.
        max_steps: actions of an episode that does not succeed.

    Attributes:
        steps: actions played.
        reward: of the present state: goals reached minus goals.
        success: whether all goals are reached and there was time left to see it.
        over: whether nothing more is played.
    """

    def __init__(self, env, control: ArmControl, max_steps: int):
        self._env, self._model, self._control, self._max_steps = env, env.model, control, max_steps
        self._data = data = mujoco.MjData(env.model)
        self._views = control.views(data)
        self._arm, self._gripper = env._arm_joint_ids, int(env._gripper_opening_joint_id)
        self._position, self._matrix = self._views[2:]
        self._force = data.cfrc_ext[env.model.body("ur5e/robotiq/right_pad").id]
        cubes = [data.joint(f"object_joint_{i}") for i in range(getattr(env, "_num_cubes", 0))]
        self._cubes = [joint.qpos for joint in cubes]
        self._cube_speeds = [joint.qvel for joint in cubes]
        self._cube_goals = [data.mocap_pos[i] for i in getattr(env, "_cube_target_mocap_ids", [])]
        buttons = [env.model.joint(f"buttonbox_joint_{i}") for i in range(getattr(env, "_num_buttons", 0))]
        self._button_q = np.array([joint.qposadr[0] for joint in buttons], np.int64)
        self._button_v = np.array([joint.dofadr[0] for joint in buttons], np.int64)
        self._is_scene = hasattr(env, "_drawer_site_id")
        sliders = SLIDERS if self._is_scene else {}
        self._sliders = [(data.joint(name).qpos, data.joint(name).qvel, scale) for name, scale in sliders.values()]
        self._slider_v = np.array([env.model.joint(name).dofadr[0] for name, _ in sliders.values()], np.int64)
        self._damping = env.model.dof_damping
        self._toggles = toggles(env)
        self._quaternion = np.empty(4)

    def reset(self, seed: int) -> np.ndarray:
        """Begins the episode that the library's ``reset(seed=seed)`` begins; returns its observation, (S,) float64."""
        env = self._env
        env._data = self._data
        observation, _ = env.reset(seed=seed)
        # Throws of a cube out of the scene draw from it.
        self._random = env.np_random
        if len(self._button_q):
            self._buttons = env._cur_button_states.copy()
            self._button_goals = env._target_button_states.copy()
        self._slider_goals = [getattr(env, f"_target_{name}_pos") for name in SLIDERS] if self._is_scene else []
        self.steps, self.success = 0, False
        self.reward = float(sum(reached := self._reached()) - len(reached))
        return observation

    @property
    def over(self) -> bool:
        return self.success or self.steps == self._max_steps

    def step(self, action: list[float]) -> None:
        """Plays one action, as `ArmControl.command` takes it.

        The library tells success with the next step, so what is reached with the last step does not count.
        """
        model, data = self._model, self._data
        self._control.command(self._views, action)
        if self._is_scene:
            self._lock()
        before = data.qpos[self._button_q]
        mujoco.mj_step(model, data, nstep=self._env._n_steps)
        mujoco.mj_rnePostConstraint(model, data)  # forces on the fingers
        if self._is_scene:
            self._put_back()
        if len(before):
            pressed = (before > PRESSED) & (data.qpos[self._button_q] <= PRESSED)
            if pressed.any():
                self._buttons = (self._buttons + self._toggles[pressed].sum(0)) % 2
                if self._is_scene:
                    self._lock()
            # The gripper's place is read from here on, and the solver of the next step starts from here.
            mujoco.mj_forward(model, data)
        reached = self._reached()
        self.steps += 1
        self.reward = float(sum(reached) - len(reached))
        self.success = all(reached) and self.steps < self._max_steps

    def observe(self) -> np.ndarray:
        """(S,) float64, as the library's `compute_observation`."""
        qpos, qvel = self._data.qpos, self._data.qvel
        mujoco.mju_mat2Quat(self._quaternion, self._matrix)
        yaw = yaw_of(self._quaternion.tolist())
        opening = min(max(float(qpos[self._gripper]) / 0.8, 0.0), 1.0)
        touch = min(max(np.sqrt(self._force.dot(self._force)) / CONTACT_FORCE, 0.0), 1.0)
        parts = [
            qpos[self._arm],
            qvel[self._arm],
            (self._position - CENTRE) * POSITION_SCALE,
            (np.cos(yaw), np.sin(yaw), opening * GRIPPER_SCALE, touch),
        ]
        for cube in self._cubes:
            yaw = yaw_of(cube[3:].tolist())
            parts += [(cube[:3] - CENTRE) * POSITION_SCALE, cube[3:], (np.cos(yaw), np.sin(yaw))]
        for i, state in enumerate(self._buttons if len(self._button_q) else ()):
            position, speed = qpos[self._button_q[i]] * BUTTON_SCALE, qvel[self._button_v[i]]
            parts.append((state == 0, state == 1, position, speed))
        for position, speed, scale in self._sliders:
            parts += [position * scale, speed]
        return np.concatenate(parts)

    def _reached(self) -> list[bool]:
        """Which goals are reached."""
        reached = []
        for cube, goal in zip(self._cubes, self._cube_goals, strict=True):
            away = cube[:3] - goal
            reached.append(bool(np.sqrt(away.dot(away)) <= NEAR))
        if len(self._button_q):
            reached += (self._buttons == self._button_goals).tolist()
        for (position, _, _), goal in zip(self._sliders, self._slider_goals, strict=True):
            reached.append(abs(float(position[0]) - goal) <= NEAR)
        return reached

    def _lock(self) -> None:
        """Sets this episode's locks in the model, which other episodes use too: a locked joint is a stiff one."""
        self._damping[self._slider_v] = np.where(self._buttons == 0, LOCKED, FREE)

    def _put_back(self) -> None:
        """Puts a scene's cube back on the table if the simulator has thrown it out."""
        low, high = self._env._workspace_bounds
        for cube, speed in zip(self._cubes, self._cube_speeds, strict=True):
            if (cube[:3] <= low - OUTSIDE).any() or (cube[:3] >= high + OUTSIDE).any():
                cube[:2] = self._random.uniform(*self._env._object_sampling_bounds)
                cube[2] = 0.02
                cube[3:] = turn_about_z(self._random.uniform(0, 2 * np.pi))
                speed[:] = 0.0
                mujoco.mj_forward(self._model, self._data)


def toggles(env) -> np.ndarray:
    """(B, B) of 0 and 1: which buttons change when button b is pressed; in a puzzle, its neighbours too."""
    count = getattr(env, "_num_buttons", 0)
    columns = getattr(env, "_num_cols", None)
    place = np.arange(count)
    if columns is None:
        return np.eye(count, dtype=np.int64)
    rows, columns = place // columns, place % columns
    away = np.abs(rows[:, None] - rows) + np.abs(columns[:, None] - columns)
    return (away <= 1).astype(np.int64)
