"""How a simulator's tasks are seen and played: what all simulators share."""

from collections.abc import Collection
from dataclasses import dataclass, field

from deas_vla.errors import UserError, unknown


@dataclass
class EnvSettings:
    """Settings of a simulator; each has its own class, with more fields and its own defaults.

    Attributes:
        cameras: cameras that the policy sees, in order.
        camera_size: height and width of each image in pixels.
        horizon: time limit in control steps; 0 takes the task's own.
    """

    cameras: list[str] = field(default_factory=list)
    camera_size: int = 64
    horizon: int = 0

    def require_cameras(self, known: Collection[str]) -> None:
        """Refuses cameras that the robot does not have.

        Raises:
            UserError: if a camera is unknown or given twice, there is none, or the size is too small.
        """
        for camera in self.cameras:
            if camera not in known:
                raise UserError(unknown("camera", camera, known))
        if not self.cameras or len(set(self.cameras)) < len(self.cameras) or self.camera_size < 8:
            raise UserError("a policy needs one to three different cameras of at least 8 pixels")
