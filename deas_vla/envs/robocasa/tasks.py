"""RoboCasa's tasks as we play them: their names are RoboCasa's own, so here are only the settings and the contract."""

from dataclasses import dataclass, field

from deas_vla.data.contract import Contract
from deas_vla.envs.panda_omron import ROBOCASA_CAMERAS, panda_omron_contract
from deas_vla.envs.settings import EnvSettings


@dataclass
class RobocasaSettings(EnvSettings):
    """How RoboCasa's kitchens are seen and played.

    Attributes:
        cameras: cameras that the policy sees, in order: of robot0_agentview_left, robot0_agentview_right and
            robot0_eye_in_hand.
        split: kitchens and objects to choose from: ``pretrain``, ``target`` or ``all``.
    """

    cameras: list[str] = field(default_factory=lambda: ["robot0_agentview_left", "robot0_eye_in_hand"])
    split: str = "pretrain"


def robocasa_contract(settings: RobocasaSettings, task: str) -> Contract:
    """RoboCasa's contract with the configured cameras, the same for all tasks; imports no simulator.

    Raises:
        UserError: if a camera is unknown, or the size is too small.
    """
    settings.require_cameras(ROBOCASA_CAMERAS)
    return panda_omron_contract(tuple(settings.cameras), settings.camera_size)
