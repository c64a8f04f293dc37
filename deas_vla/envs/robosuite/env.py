"""robosuite's scenes and success checks with RoboCasa's robot under RoboCasa's contract, in our own lean loop.

robosuite builds the scene, places the objects and says what success is. Everything between is ours, and differs from
robosuite's environments: the control law is compiled (`control.py`), physics steps take 5 ms (robosuite: 2), Lift's
cube starts within 12 cm of the middle (robosuite: 3), the policy's images show collision geometry in flat colours, and
images are drawn only where asked. A success rate here is not one of robosuite's benchmark.
"""

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.envs.mujoco_env import MujocoEnv
from deas_vla.envs.panda_omron import ACTION_GROUPS, RATE_HZ, columns_of, panda_omron_contract
from deas_vla.envs.registry import register_simulator
from deas_vla.envs.robosuite.tasks import COLLISION_GROUP, VISUAL_GROUP, RobosuiteSettings, build_simulator, task_of
from deas_vla.errors import UserError

ARM_START_SPREAD = 0.02  # radians, robosuite's own


@register_simulator("robosuite")
class RobosuiteEnv(MujocoEnv):
    """One robosuite task; a `Simulator`. A missing package or OpenGL library, or wrong settings, are a UserError."""

    settings_class = RobosuiteSettings
    policy_groups, people_groups = (COLLISION_GROUP,), (VISUAL_GROUP,)
    people_camera = "robot0_agentview_left"

    @classmethod
    def contract_for(cls, settings: RobosuiteSettings, task: str) -> Contract:
        """RoboCasa's contract for PandaOmron; see `Simulator`."""
        task_of(task)
        return panda_omron_contract(settings)

    def __init__(self, settings: RobosuiteSettings, task: str):
        spec = task_of(task)
        super().__init__(settings, task, spec.instruction, spec.horizon)
        timestep = settings.simulation_timestep
        self._substeps = round(1 / RATE_HZ / timestep) if timestep > 0 else 0
        if self._substeps < 1 or abs(self._substeps * timestep * RATE_HZ - 1) > 1e-9:
            problem = f"simulation_timestep {timestep:g} s does not divide a control step of {1 / RATE_HZ:g} s"
            raise UserError(f"{problem}; use 0.002, 0.0025 or 0.005")
        self._simulator = build_simulator(settings, task)

        from deas_vla.envs.robosuite.control import MobileControl
        from deas_vla.envs.robosuite.experts import make_expert

        self.use(self._simulator.sim.model._model, self._simulator.sim.data._data)
        self.model.opt.timestep = timestep
        self.control = MobileControl(self.model, self.data)
        self._start = self.data.qpos.copy()
        self._start[self.control.arm_q] = self._simulator.robots[0].init_qpos
        self._start[self.control.base_q[:2]] = spec.base_start
        self._retire_unused_objects()
        self.expert = make_expert(self)
        self._columns = {group: columns_of(self.contract.action, group) for group in ACTION_GROUPS}

    def begin(self, rng: np.random.Generator) -> None:
        self.data.qpos[:] = self._start
        self.data.qpos[self.control.arm_q] += ARM_START_SPREAD * rng.standard_normal(7)
        self._place_objects(rng)
        self._mujoco.mj_step1(self.model, self.data)
        self.control.reset()

    def step(self, command: np.ndarray) -> bool:
        self.control.set_goal({group: command[each].astype(np.float64) for group, each in self._columns.items()})
        for _ in range(self._substeps):
            self.control.substep()
        self.steps += 1
        return bool(self._simulator._check_success())

    def state(self) -> np.ndarray:
        """(16,) float32 proprioceptive state in the contract's order.

        Quaternions are as RoboCasa's but for their sign: RoboCasa makes w positive, and a gripper that points down
        has w near zero, so that its quaternion jumps; here its largest component, x, is positive.
        """
        data, control = self.data, self.control
        base_position, base = data.site_xpos[control.base_site], data.site_xmat[control.base_site].reshape(3, 3)
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

    def own(self) -> np.ndarray:
        """(23,) state of the controllers and of the gripper."""
        return self.control.memory.copy()

    def resume(self, own: np.ndarray) -> None:
        self._mujoco.mj_step1(self.model, self.data)
        self.control.memory[:] = own

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
            if body.jntnum[0] == 1 and self.model.jnt_type[body.jntadr[0]] == self._mujoco.mjtJoint.mjJNT_FREE:
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
