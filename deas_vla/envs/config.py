"""What to simulate: one plain dataclass for every simulator, so that a worker process can be told in one message."""

from collections.abc import Collection
from dataclasses import dataclass, field

from deas_vla.errors import UserError, unknown


@dataclass
class EnvSettings:
    """How tasks are seen and played.

    Attributes:
        cameras: cameras the policy sees, in order, by RoboCasa's names; for Meta-World of ``workspace_right``,
            ``workspace_left``, ``gripper`` and ``corner2``.
        camera_size: height and width of each image in pixels.
        horizon: time limit in control steps; 0 takes the task's own.
        simulation_timestep: seconds of one physics step (robosuite only); it must divide the 0.05 s of a control
            step. 0.002 is robosuite's own; 0.005 is twice as fast.
        spawn_range: robosuite's Lift only: the cube starts within this many metres of the middle of the table in x
            and y (robosuite's own: 0.03), turned by up to 45 degrees.
        expert_noise: standard deviation of the scripted expert's action noise, in units of a full arm command.
        expert_grasp_bias: standard deviation in metres, per horizontal axis, of where the expert wrongly believes the
            grasp (in Meta-World: the object) to be; drawn anew at every attempt (there: every half second).
        split: RoboCasa only: kitchens and objects to draw from: ``pretrain``, ``target`` or ``all``.
    """

    cameras: list[str] = field(default_factory=lambda: ["robot0_agentview_left", "robot0_eye_in_hand"])
    camera_size: int = 64
    horizon: int = 0
    simulation_timestep: float = 0.005
    spawn_range: float = 0.12
    expert_noise: float = 0.0
    expert_grasp_bias: float = 0.0
    split: str = "pretrain"


@dataclass
class EnvConfig(EnvSettings):
    """Which task, seen and played how.

    Attributes:
        name: the simulator: ``robosuite`` or ``metaworld`` (from their wheels), or ``robocasa`` (needs its own
            installation and assets).
        task: ``lift``, ``stack``, ``pick_place_can`` or ``door``; for RoboCasa the name of one of its environments,
            for example ``PickPlaceCounterToCabinet``; for Meta-World one of its 50, for example ``drawer-open-v3``.
    """

    name: str = "robosuite"
    task: str = "lift"


def check_cameras(config: EnvSettings, known: Collection[str]) -> None:
    """Refuses cameras that the robot does not have.

    Args:
        config: its cameras and their size.
        known: names of the cameras that there are.

    Raises:
        UserError: if a camera is unknown or given twice, there is none, or the size is too small.
    """
    for camera in config.cameras:
        if camera not in known:
            raise UserError(unknown("camera", camera, known))
    if not config.cameras or len(set(config.cameras)) < len(config.cameras) or config.camera_size < 8:
        raise UserError("a policy needs one to three different cameras of at least 8 pixels")
