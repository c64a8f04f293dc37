"""robosuite's control law for PandaOmron, lean: one compiled function per simulation step.

robosuite runs its controllers as Python objects in every physics step: 7 times slower at the same physics step of 2 ms,
17 times slower than at the 5 ms that recipes play (benchmarks/robosuite_control.py, one core). This is the same law for
the one robot that we use: operational-space control of the arm (Khatib 1987) with decoupled position and orientation
and a null-space posture, a torso position loop, velocity-controlled wheels, and a gripper that integrates open and
close commands. `tests/test_robosuite.py` compares it with robosuite's own loop.
"""

import math

import mujoco
import numba
import numpy as np

ARM_STIFFNESS, ARM_DAMPING = 150.0, 2.0 * math.sqrt(150.0)
POSTURE_STIFFNESS, POSTURE_DAMPING = 10.0, 2.0 * math.sqrt(10.0)
TORSO_STIFFNESS, TORSO_DAMPING = 2000.0, 2.0 * math.sqrt(2000.0)
POSITION_STEP, ROTATION_STEP = 0.05, 0.5  # metres and radians of a full command, in one control step
TORSO_STEP = 0.05  # metres
GRIPPER_SPEED = 0.2  # share of the half-range that one control step adds


@numba.njit(cache=True)
def _cholesky_solve(matrix, right):
    """Solves matrix · x = right for a small symmetric positive definite matrix; nearly singular pivots are floored."""
    n = matrix.shape[0]
    low = np.zeros((n, n))
    for j in range(n):
        pivot = matrix[j, j]
        for k in range(j):
            pivot -= low[j, k] * low[j, k]
        low[j, j] = math.sqrt(max(pivot, 1e-12))
        for i in range(j + 1, n):
            total = matrix[i, j]
            for k in range(j):
                total -= low[i, k] * low[j, k]
            low[i, j] = total / low[j, j]
    x = right.copy()
    for column in range(x.shape[1]):
        for i in range(n):
            for k in range(i):
                x[i, column] -= low[i, k] * x[k, column]
            x[i, column] /= low[i, i]
        for i in range(n - 1, -1, -1):
            for k in range(i + 1, n):
                x[i, column] -= low[k, i] * x[k, column]
            x[i, column] /= low[i, i]
    return x


@numba.njit(cache=True)
def _matmul(a, b):
    out = np.zeros((a.shape[0], b.shape[1]))
    for i in range(a.shape[0]):
        for k in range(a.shape[1]):
            for j in range(b.shape[1]):
                out[i, j] += a[i, k] * b[k, j]
    return out


@numba.njit(cache=True)
def _write_torques(state, frames, dynamics, goal, home, address, limits, control):
    """Writes the torques of arm and torso, which the limits, (U, 2), allow, into `control`, (U,).

    Positions are (3,), rotations (3, 3): of end-effector and base in the world, of the goal in the base frame. The
    base's spatial velocity is (6,), rotational first; dynamics are mass matrix (V, V), end-effector Jacobian (6, V) and
    bias forces (V,); `home` is the (7,) posture of the null space. Addresses are unpacked in order.
    """
    qpos, qvel = state
    position, rotation, base_position, base_rotation, base_velocity = frames
    full_mass, full_jacobian, bias = dynamics
    goal_position, goal_rotation, goal_torso = goal
    arm_q, arm_v, torso_q, torso_v, arm_u, torso_u = address
    joints = home.shape[0]
    arm = slice(arm_v, arm_v + joints)
    mass, jacobian = full_mass[arm, arm].copy(), full_jacobian[:, arm].copy()
    posture = POSTURE_STIFFNESS * (home - qpos[arm_q : arm_q + joints]) - POSTURE_DAMPING * qvel[arm]

    # What is wanted at the end effector, as accelerations: position, then rotation (sum of cross products of axes).
    # The velocity is that of all joints, so the base's own velocity is taken off.
    velocity = _matmul(full_jacobian, qvel.reshape(-1, 1))[:, 0]
    target = base_position.copy()
    for k in range(3):
        target += base_rotation[:, k] * goal_position[k]
    wanted = np.empty((6, 1))
    wanted[:3, 0] = ARM_STIFFNESS * (target - position) - ARM_DAMPING * (velocity[:3] - base_velocity[3:])
    wanted[3:, 0] = -ARM_DAMPING * (velocity[3:] - base_velocity[:3])
    goal_in_world = _matmul(base_rotation, goal_rotation)
    for axis in range(3):
        wanted[3:, 0] += ARM_STIFFNESS * 0.5 * np.cross(rotation[:, axis], goal_in_world[:, axis])

    # Task-space inertia, decoupled for position and rotation; the posture acts where it does not move the hand.
    inverse_inertia = _matmul(jacobian, _cholesky_solve(mass, jacobian.T.copy()))
    wrench = np.empty((6, 1))
    for part in (slice(0, 3), slice(3, 6)):
        wrench[part] = _cholesky_solve(inverse_inertia[part, part].copy(), wanted[part].copy())
    wrench -= _cholesky_solve(inverse_inertia, _matmul(jacobian, posture.reshape(-1, 1)))
    torque = _matmul(jacobian.T.copy(), wrench) + _matmul(mass, posture.reshape(-1, 1))
    lift = TORSO_STIFFNESS * (goal_torso[0] - qpos[torso_q]) - TORSO_DAMPING * qvel[torso_v]
    control[arm_u : arm_u + joints] = torque[:, 0] + bias[arm]
    control[torso_u] = full_mass[torso_v, torso_v] * lift + bias[torso_v]
    control[:] = np.minimum(np.maximum(control, limits[:, 0]), limits[:, 1])


def _rotation_matrix(vector: np.ndarray) -> np.ndarray:
    """(3,) axis times angle in radians to a (3, 3) rotation (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + math.sin(angle) * cross + (1.0 - math.cos(angle)) * cross @ cross


class MobileControl:
    """Turns named commands into actuator controls, step by step, for a MuJoCo model with robosuite's PandaOmron."""

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData):
        self.model, self.data = model, data

        def address(*joints: str) -> np.ndarray:
            return np.array([model.joint(name).qposadr[0] for name in joints])

        def actuators(*names: str) -> np.ndarray:
            return np.array([model.actuator(name).id for name in names])

        wheels, torso = ("forward", "side", "yaw"), "mobilebase0_joint_torso_height"
        self.arm_q = address(*(f"robot0_joint{i}" for i in range(1, 8)))
        self.base_q = address(*(f"mobilebase0_joint_mobile_{wheel}" for wheel in wheels))
        self.base_u = actuators(*(f"mobilebase0_actuator_mobile_{wheel}" for wheel in wheels))
        self.gripper_q = address(*(f"gripper0_right_finger_joint{i}" for i in (1, 2)))
        self.gripper_u = actuators(*(f"gripper0_right_gripper_finger_joint{i}" for i in (1, 2)))
        self.torso_q = int(address(torso)[0])
        self._address = (
            int(self.arm_q[0]),
            int(model.joint("robot0_joint1").dofadr[0]),
            self.torso_q,
            int(model.joint(torso).dofadr[0]),
            *actuators("robot0_torq_j1", "mobilebase0_actuator_torso_height").tolist(),
        )
        self._limits = model.actuator_ctrlrange.copy()
        self.hand_site = model.site("gripper0_right_grip_site").id
        self.hand_body = model.body("robot0_right_hand").id
        self._arm_site = model.site("robot0_right_center").id
        self.base_site = model.site("mobilebase0_center").id

        self._mass, self._jacobian = np.zeros((model.nv, model.nv)), np.zeros((6, model.nv))
        self._base_velocity = np.zeros(6)
        self._state = (data.qpos, data.qvel)
        self._frames = (
            data.site_xpos[self.hand_site],
            data.site_xmat[self.hand_site].reshape(3, 3),
            data.site_xpos[self._arm_site],
            data.site_xmat[self._arm_site].reshape(3, 3),
            self._base_velocity,
        )
        self._dynamics = (self._mass, self._jacobian, data.qfrc_bias)
        # Everything that the next command depends on, and its parts: views of one array, saved as a whole.
        self.memory = np.zeros(23)
        self.home, self.gripper, self.base_yaw, self.goal_position, rotation, self.goal_torso = np.split(
            self.memory, [7, 9, 10, 13, 22]
        )
        self.goal_rotation = rotation.reshape(3, 3)
        self._goal = (self.goal_position, self.goal_rotation, self.goal_torso)

    def reset(self) -> None:
        """Forgets everything and takes the present pose as goal and posture; kinematics must be up to date."""
        self.home[:] = self.data.qpos[self.arm_q]
        self.gripper[:] = 0.0
        self.base_yaw[:] = self._yaw()
        # robosuite starts from the world pose here, although later goals are in the base frame. A first command in
        # base mode reads it; we start from the pose in the base frame, which is what the frame of the goal asks for.
        self.goal_position[:], self.goal_rotation[:] = self._hand_in_base()
        self.goal_torso[:] = self.data.qpos[self.torso_q]

    def set_goal(self, command: dict[str, np.ndarray]) -> None:
        """Takes one command, by the groups of `ACTION_GROUPS`; kinematics must be up to date.

        Position and rotation of the end effector are shares of 5 cm along and of 0.5 rad about the axes of the base,
        the torso's is one of 5 cm; forward, side and yaw are velocities.
        """
        *base, torso = command["base_motion"]
        # In base mode the arm's goal moves from the last goal, so that it keeps up with a moving base; in arm mode from
        # where the hand is.
        if command["control_mode"][0] <= 0.5:
            self.goal_position[:], self.goal_rotation[:] = self._hand_in_base()
        self.goal_position += POSITION_STEP * command["end_effector_position"]
        turned = _rotation_matrix(ROTATION_STEP * command["end_effector_rotation"])
        self.goal_rotation[:] = turned @ self.goal_rotation
        self.goal_torso[:] = self.data.qpos[self.torso_q] + TORSO_STEP * torso

        sign = 1.0 if command["gripper_close"][0] > 0.5 else -1.0
        self.gripper[:] = np.clip(self.gripper + np.array([-sign, sign]) * GRIPPER_SPEED, -1.0, 1.0)
        # The wheels' joints turn with the base: forward and side are given as the base stands now.
        turn = self._yaw() - self.base_yaw[0]
        cos, sin = math.cos(turn), math.sin(turn)
        wheels = np.array([base[0] * cos + base[1] * sin, -base[0] * sin + base[1] * cos, base[2]])
        for actuators, share in ((self.base_u, wheels), (self.gripper_u, self.gripper)):
            low, high = self._limits[actuators, 0], self._limits[actuators, 1]
            self.data.ctrl[actuators] = np.clip((low + high) / 2 + (high - low) / 2 * share, low, high)

    def substep(self) -> None:
        """Computes the torques and advances the physics by one simulation step; kinematics are up to date after it."""
        model, data = self.model, self.data
        mujoco.mj_fullM(model, self._mass, data.qM)
        mujoco.mj_jacSite(model, data, self._jacobian[:3], self._jacobian[3:], self.hand_site)
        mujoco.mj_objectVelocity(model, data, mujoco.mjtObj.mjOBJ_SITE, self._arm_site, self._base_velocity, 0)
        _write_torques(
            self._state, self._frames, self._dynamics, self._goal, self.home, self._address, self._limits, data.ctrl
        )
        mujoco.mj_step2(model, data)
        mujoco.mj_step1(model, data)

    def _hand_in_base(self) -> tuple[np.ndarray, np.ndarray]:
        data = self.data
        turn = data.site_xmat[self._arm_site].reshape(3, 3).T
        position = turn @ (data.site_xpos[self.hand_site] - data.site_xpos[self._arm_site])
        return position, turn @ data.site_xmat[self.hand_site].reshape(3, 3)

    def _yaw(self) -> float:
        turn = self.data.site_xmat[self.base_site]
        return math.atan2(turn[3], turn[0])
