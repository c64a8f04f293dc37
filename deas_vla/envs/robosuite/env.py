"""robosuite's scenes and success checks with RoboCasa's robot under RoboCasa's contract, in our own lean loop.

robosuite builds the scene, places the objects and says what success is. Everything between is ours, and differs from
robosuite's environments: the control law is compiled (`control.py`), physics steps take 5 ms (robosuite: 2), Lift's
cube starts within 12 cm of the middle (robosuite: 3), the policy's images show collision geometry in flat colours, and
images are drawn only where asked. A success rate here is not one of robosuite's benchmark.
"""

import zlib
from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.envs.panda_omron import RATE_HZ, columns_of
from deas_vla.envs.registry import register_simulator
from deas_vla.envs.rendering import SceneRenderer
from deas_vla.envs.robosuite.tasks import RobosuiteSettings, build_simulator, robosuite_contract, task_of
from deas_vla.envs.stepping import SteppedEnv
from deas_vla.errors import UserError

ARM_START_SPREAD = 0.02  # radians, robosuite's own
RENDER_CAMERA = "robot0_agentview_left"


@dataclass(frozen=True)
class RobosuiteState:
    """Everything that the continuation of an episode depends on; plain numbers, so that any process can restore it.

    Attributes:
        scene: number of the scene.
        steps: control steps played.
        physics: MuJoCo's integration state: positions, velocities, controls, warm start of the solver.
        fixtures: (bodies, 7) poses of the bodies that the scene moved in the model itself.
        control: state of the controllers and of the gripper.
        expert: state of the scripted expert.
    """

    scene: int
    steps: int
    physics: np.ndarray
    fixtures: np.ndarray
    control: np.ndarray
    expert: object


@register_simulator("robosuite")
class RobosuiteEnv(SteppedEnv):
    """One robosuite task; a `ChunkEnv`.

    Args:
        settings: how the task is seen and played.
        task: its name.

    Raises:
        UserError: if robosuite or an OpenGL library is missing, or the settings do not fit.
    """

    settings_class = RobosuiteSettings
    restores_any_scene = True

    def __init__(self, settings: RobosuiteSettings, task: str):
        self.settings, self.task = settings, task
        self.contract = robosuite_contract(settings, task)
        spec = task_of(task)
        self.instruction = spec.instruction
        self.horizon = settings.horizon or spec.horizon
        self._substeps = (
            round(1 / RATE_HZ / settings.simulation_timestep) if settings.simulation_timestep > 0 else 0
        )
        if self._substeps < 1 or abs(self._substeps * settings.simulation_timestep * RATE_HZ - 1) > 1e-9:
            raise UserError(
                f"simulation_timestep {settings.simulation_timestep:g} s does not divide a control step of "
                f"{1 / RATE_HZ:g} s; use 0.002, 0.0025 or 0.005"
            )
        self._simulator = build_simulator(settings, task)

        import mujoco

        from deas_vla.envs.robosuite.control import MobileControl
        from deas_vla.envs.robosuite.experts import make_expert

        self.model, self.data = self._simulator.sim.model._model, self._simulator.sim.data._data
        self.model.opt.timestep = settings.simulation_timestep
        self._mujoco = mujoco
        self._physics_size = mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_INTEGRATION)
        self.control = MobileControl(self.model, self.data)
        self._start = self.data.qpos.copy()
        self._start[self.control.arm_q] = self._simulator.robots[0].init_qpos
        self._start[self.control.base_q[:2]] = spec.base_start
        self._fixtures = np.flatnonzero((self.model.body_parentid == 0) & (self.model.body_weldid == 0))[1:]
        self._fixture_start = self._fixture_poses()
        self._retire_unused_objects()
        self.expert = make_expert(self)
        self._columns = {
            group: columns_of(self.contract.action, group)
            for group in ("base_motion", "end_effector_position", "end_effector_rotation")
        }
        self._close = columns_of(self.contract.action, "gripper_close")[0]
        self._mode = columns_of(self.contract.action, "control_mode")[0]
        self._observer: SceneRenderer | None = None
        self._renderer: SceneRenderer | None = None
        self.scene, self.steps = -1, 0

    @classmethod
    def contract_for(cls, settings: RobosuiteSettings, task: str) -> Contract:
        """See `Simulator`."""
        return robosuite_contract(settings, task)

    # ---- episodes ------------------------------------------------------------------------------------------

    def reset(self, scene: int) -> dict:
        """Starts a scene; see `ChunkEnv`. Nothing of what was played before is left."""
        self.scene, self.steps = int(scene), 0
        rng = np.random.default_rng([zlib.crc32(self.task.encode()), self.scene])
        self._mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = self._start
        self.data.qpos[self.control.arm_q] += ARM_START_SPREAD * rng.standard_normal(7)
        self._set_fixture_poses(self._fixture_start)
        self._place_objects(rng)
        self._mujoco.mj_step1(self.model, self.data)
        self.control.reset()
        self.expert.reset()
        return self.frame()

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        """(12,) the scripted expert's next command."""
        return self.expert.command(noise)

    def step(self, command: np.ndarray) -> bool:
        """Plays one (12,) command within the limits; returns whether the task has succeeded."""
        command = command.astype(np.float64)
        motion = command[self._columns["base_motion"]]
        self.control.set_goal(
            position=command[self._columns["end_effector_position"]],
            rotation=command[self._columns["end_effector_rotation"]],
            torso=motion[3],
            base=motion[:3],
            gripper_close=command[self._close] > 0.5,
            base_mode=command[self._mode] > 0.5,
        )
        for _ in range(self._substeps):
            self.control.substep()
        self.steps += 1
        return self.success()

    def success(self) -> bool:
        """robosuite's own check, on the state as it is now."""
        return bool(self._simulator._check_success())

    # ---- observations --------------------------------------------------------------------------------------

    def state(self) -> np.ndarray:
        """(16,) float32 proprioceptive state in the contract's order.

        Quaternions are as RoboCasa's but for their sign: RoboCasa makes w positive, and a gripper that points down
        has w near zero, so that its quaternion jumps; here its largest component, x, is positive.
        """
        data, control = self.data, self.control
        base_position, base = (
            data.site_xpos[control.base_site],
            data.site_xmat[control.base_site].reshape(3, 3),
        )
        hand_position, hand = data.site_xpos[control.hand_site], data.xmat[control.hand_body].reshape(3, 3)
        out = np.empty(16, dtype=np.float32)
        out[0:3] = base_position
        out[3:7] = self._quaternion(base, positive=3)
        out[7:10] = base.T @ (hand_position - base_position)
        out[10:14] = self._quaternion(base.T @ hand, positive=0)
        out[14:16] = data.qpos[control.gripper_q]
        return out

    def _quaternion(self, matrix: np.ndarray, positive: int) -> np.ndarray:
        wxyz = np.empty(4)
        self._mujoco.mju_mat2Quat(wxyz, np.ascontiguousarray(matrix).ravel())
        xyzw = wxyz[[1, 2, 3, 0]]
        return -xyzw if xyzw[positive] < 0 else xyzw

    def images(self) -> dict[str, np.ndarray]:
        """Camera name to (h, w, 3) uint8: collision geometry, in flat colours."""
        if self._observer is None:
            self._observer = SceneRenderer(self.model, self.settings.camera_size, self.settings.camera_size)
        return {
            camera.name: self._observer.render(self.model, self.data, camera.name)
            for camera in self.contract.cameras
        }

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8, full quality, for people."""
        if self._renderer is None or self._renderer.size != (height, width):
            if self._renderer is not None:
                self._renderer.close()
            self._renderer = SceneRenderer(self.model, height, width, full=True)
        return self._renderer.render(self.model, self.data, RENDER_CAMERA)

    # ---- branching -----------------------------------------------------------------------------------------

    def save(self) -> RobosuiteState:
        """The complete state; see `ChunkEnv`. It can be restored in any process with the same configuration."""
        physics = np.empty(self._physics_size)
        self._mujoco.mj_getState(self.model, self.data, physics, self._mujoco.mjtState.mjSTATE_INTEGRATION)
        return RobosuiteState(
            scene=self.scene,
            steps=self.steps,
            physics=physics,
            fixtures=self._fixture_poses(),
            control=self.control.save(),
            expert=deepcopy(self.expert.memory),
        )

    def restore(self, state: RobosuiteState) -> None:
        """Goes back to a saved state; see `ChunkEnv`."""
        self.scene, self.steps = state.scene, state.steps
        self._set_fixture_poses(state.fixtures)
        self._mujoco.mj_setState(
            self.model, self.data, state.physics, self._mujoco.mjtState.mjSTATE_INTEGRATION
        )
        self._mujoco.mj_step1(self.model, self.data)
        self.control.restore(state.control)
        self.expert.memory = deepcopy(state.expert)

    def close(self) -> None:
        for renderer in (self._observer, self._renderer):
            if renderer is not None:
                renderer.close()
        self._observer = self._renderer = None

    # ---- scenes --------------------------------------------------------------------------------------------

    def _fixture_poses(self) -> np.ndarray:
        return np.concatenate(
            [self.model.body_pos[self._fixtures], self.model.body_quat[self._fixtures]], axis=1
        )

    def _set_fixture_poses(self, poses: np.ndarray) -> None:
        self.model.body_pos[self._fixtures], self.model.body_quat[self._fixtures] = poses[:, :3], poses[:, 3:]

    def _place_objects(self, rng: np.random.Generator) -> None:
        """Draws the objects' poses with robosuite's samplers: into the joints, or into the model if there are none."""
        sampler = self._simulator.placement_initializer
        for part in (sampler, *getattr(sampler, "samplers", {}).values()):
            part.rng = rng
        for position, quaternion, item in sampler.sample().values():
            pose = np.concatenate([position, quaternion])
            if item.name in self._unused:
                continue
            body = self.model.body(item.root_body)
            if (
                body.jntnum[0] == 1
                and self.model.jnt_type[body.jntadr[0]] == self._mujoco.mjtJoint.mjJNT_FREE
            ):
                address = self.model.jnt_qposadr[body.jntadr[0]]
                self.data.qpos[address : address + 7] = pose
            else:
                self.model.body_pos[body.id], self.model.body_quat[body.id] = pose[:3], pose[3:]

    def _retire_unused_objects(self) -> None:
        """robosuite's single-object bins keep the other objects: far away, out of the physics and standing still."""
        self._unused = set()
        if getattr(self._simulator, "single_object_mode", 0) != 2:
            return
        for i, item in enumerate(self._simulator.objects):
            if item.name == self._simulator.obj_to_use:
                continue
            self._unused.add(item.name)
            body = self.model.body(item.root_body)
            joint = body.jntadr[0]
            self._start[self.model.jnt_qposadr[joint] :][:7] = (10.0 + i, 10.0, 10.0, 1.0, 0.0, 0.0, 0.0)
            self.model.dof_damping[body.dofadr[0] : body.dofadr[0] + 6] = 1e6
            geoms = np.flatnonzero(self.model.body_rootid[self.model.geom_bodyid] == body.id)
            self.model.geom_contype[geoms] = self.model.geom_conaffinity[geoms] = 0
