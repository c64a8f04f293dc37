"""The arm's control law of OGBench's manipulation tasks, lean.

An action moves the gripper relative to where it is; inverse kinematics turns the goal into joint positions, by damped
Gauss-Newton steps. The numbers are those of `ogbench.manipspace` to the last bit, so that a trajectory is the same:
sums keep their order, and what comes from a library (sines, products, the solver) comes from the same one.
"""

import math

import mujoco
import numpy as np

Quaternion = tuple[float, float, float, float]

MAX_ITERATIONS = 20
# Metres and radians at which the goal is reached.
TOLERANCE = 1e-4
# Below this, θ² is so small that sine and cosine are replaced by series.
SMALL = 1e-10


def turn_about_z(angle: float) -> Quaternion:
    """The rotation by an angle in radians about the vertical axis."""
    squared = angle * angle
    if squared < SMALL:
        fourth = squared * squared
        return (1.0 - squared / 8.0 + fourth / 384.0, 0.0, 0.0, (0.5 - squared / 48.0 + fourth / 3840.0) * angle)
    size = math.sqrt(squared)
    return float(np.cos(0.5 * size)), 0.0, 0.0, float(np.sin(0.5 * size)) / size * angle


def yaw_of(rotation: Quaternion) -> float:
    """The angle of a rotation about the vertical axis, in radians."""
    w, x, y, z = rotation
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y**2 + z**2)))


def product(a: Quaternion, b: Quaternion) -> Quaternion:
    """First b, then a."""
    w0, x0, y0, z0 = a
    w1, x1, y1, z1 = b
    return (
        -x0 * x1 - y0 * y1 - z0 * z1 + w0 * w1,
        x0 * w1 + y0 * z1 - z0 * y1 + w0 * x1,
        -x0 * z1 + y0 * w1 + z0 * x1 + w0 * y1,
        x0 * y1 - y0 * x1 + z0 * w1 + w0 * z1,
    )


def inverse(rotation: Quaternion) -> Quaternion:
    w, x, y, z = rotation
    return w, -x, -y, -z


class ArmControl:
    """Turns actions into actuator controls.

    Args:
        env: OGBench's environment, after its first reset; its model and its arm's model are used, its data are not.
    """

    def __init__(self, env):
        self._arm_actuators, self._gripper_actuator = env._arm_actuator_ids, int(env._gripper_actuator_ids[0])
        self._arm_joints, self._gripper_joint = env._arm_joint_ids, int(env._gripper_opening_joint_id)
        self._pinch = int(env._pinch_site_id)
        self._bounds = env._workspace_bounds.T.tolist()
        self._down = tuple(env._effector_down_rotation.wxyz.tolist())
        # Where the arm's end is, seen from the fingers.
        offset = env._T_pa.wxyz_xyz.tolist()
        self._offset_rotation, self._offset = tuple(offset[:4]), tuple(offset[4:])

        self._model = env._ik._model
        self._data = mujoco.MjData(self._model)
        self._site = int(env._ik._site_ids[0])
        self._max_change = env._ik._max_angle_change
        self._damping = env._ik._damping
        self._site_position = self._data.site_xpos[self._site]
        self._site_matrix = self._data.site_xmat[self._site]
        self._qpos = self._data.qpos
        self._jacobian = np.empty((6, self._model.nv))
        self._jacobian_halves = self._jacobian[:3], self._jacobian[3:]
        self._error = np.empty(6)
        self._error_halves = self._error[:3], self._error[3:]
        self._quaternion, self._turn = np.empty(4), np.empty(4)

    def views(self, data: mujoco.MjData) -> tuple[np.ndarray, ...]:
        """What `command` reads and writes of an episode's data; valid as long as the data live."""
        return data.qpos, data.ctrl, data.site_xpos[self._pinch], data.site_xmat[self._pinch]

    def command(self, views: tuple[np.ndarray, ...], action: list[float]) -> None:
        """Writes the controls of one action.

        Args:
            views: from `views`.
            action: how far to move (x, y, z in metres, yaw in radians) and how much to close the gripper (share).
        """
        qpos, ctrl, position, matrix = views
        mujoco.mju_mat2Quat(self._quaternion, matrix)
        turned = product(turn_about_z(action[3]), turn_about_z(yaw_of(self._quaternion.tolist())))
        yaw = yaw_of(product(turned, inverse(self._down)))
        goal = product(turn_about_z(min(max(yaw, -math.pi), math.pi)), self._down)
        where = [
            min(max(here + step, low), high)
            for here, step, (low, high) in zip(position.tolist(), action, self._bounds, strict=False)
        ]
        _, *offset = product(product(goal, (0.0, *self._offset)), inverse(goal))
        where = np.array([o + w for o, w in zip(offset, where, strict=True)])

        ctrl[self._arm_actuators] = self._joints(where, product(goal, self._offset_rotation), qpos[self._arm_joints])
        opening = min(max(float(qpos[self._gripper_joint]) / 0.8, 0.0), 1.0) + action[4]
        ctrl[self._gripper_actuator] = 255.0 * min(max(opening, 0.0), 1.0)

    def _joints(self, position: np.ndarray, rotation: Quaternion, start: np.ndarray) -> np.ndarray:
        """Joint positions that bring the arm's end to a pose, or near it."""
        model, data, error, jacobian, turn = self._model, self._data, self._error, self._jacobian, self._turn
        move, rotate = self._error_halves
        goal = np.array(rotation)
        self._qpos[:] = start
        for _ in range(MAX_ITERATIONS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            np.subtract(position, self._site_position, out=move)
            mujoco.mju_mat2Quat(self._quaternion, self._site_matrix)
            mujoco.mju_negQuat(self._quaternion, self._quaternion)
            mujoco.mju_mulQuat(turn, goal, self._quaternion)
            mujoco.mju_quat2Vel(rotate, turn, 1.0)
            if math.sqrt(move.dot(move)) <= TOLERANCE and math.sqrt(rotate.dot(rotate)) <= TOLERANCE:
                break
            mujoco.mj_jacSite(model, data, *self._jacobian_halves, self._site)
            change = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + self._damping, error)
            largest = max(map(abs, change.tolist()))
            if largest > self._max_change:
                change *= self._max_change / largest
            mujoco.mj_integratePos(model, self._qpos, change, 1.0)
        return self._qpos
