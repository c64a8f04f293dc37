"""RoboCasa's robot by name: the columns of PandaOmron's state and action, in the order of its LeRobot data sets.

The order is that of `PandaOmron_modality.json` in RoboCasa 1.0. The simulator, and RoboCasa's HDF5 files, keep the same
numbers in another one: everything here goes by name.
"""

from dataclasses import dataclass, field

from deas_vla.data.contract import Column, Contract
from deas_vla.envs.protocol import EnvSettings

RATE_HZ = 20.0
ROBOCASA_CAMERAS = ("robot0_agentview_left", "robot0_agentview_right", "robot0_eye_in_hand")

# Group, axes and unit of each part of the vector.
STATE_GROUPS = {
    "base_position": (("x", "y", "z"), "m"),
    "base_rotation": (("x", "y", "z", "w"), "quaternion"),
    "end_effector_position_relative": (("x", "y", "z"), "m"),
    "end_effector_rotation_relative": (("x", "y", "z", "w"), "quaternion"),
    "gripper_qpos": (("right", "left"), "m"),
}
ACTION_GROUPS = {
    "base_motion": (("forward", "side", "yaw", "torso"), "command"),
    "control_mode": (("base",), "flag"),
    "end_effector_position": (("x", "y", "z"), "command"),
    "end_effector_rotation": (("x", "y", "z"), "command"),
    "gripper_close": (("close",), "flag"),
}


@dataclass
class PandaOmronSettings(EnvSettings):
    """How PandaOmron's tasks are seen and played."""

    # Cameras that the policy sees, in order: of robot0_agentview_left, robot0_agentview_right and robot0_eye_in_hand.
    cameras: list[str] = field(default_factory=lambda: ["robot0_agentview_left", "robot0_eye_in_hand"])


def panda_omron_contract(settings: EnvSettings) -> Contract:
    """The contract of PandaOmron with the configured cameras: 16 state columns, 12 action columns, 20 Hz."""
    action = []
    for group, (axes, unit) in ACTION_GROUPS.items():
        kind, low = ("binary", 0.0) if unit == "flag" else ("continuous", -1.0)
        action += [Column(f"{group}.{axis}", unit, kind, low, 1.0) for axis in axes]
    return Contract(
        embodiment="panda_omron",
        rate_hz=RATE_HZ,
        state=tuple(Column(f"{group}.{axis}", unit) for group, (axes, unit) in STATE_GROUPS.items() for axis in axes),
        action=tuple(action),
        cameras=settings.require_cameras(ROBOCASA_CAMERAS),
    )


def columns_of(columns: tuple[Column, ...], group: str) -> list[int]:
    """Positions of the columns of one group, in order; ``columns_of(contract.action, "gripper_close")`` is [11]."""
    return [i for i, column in enumerate(columns) if column.name.split(".")[0] == group]
