"""From LeRobot's batches to observations; a batch that does not fit the policy is refused."""

import torch
from torch import Tensor

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.errors import UserError

STATE, TASK = "observation.state", "task"


def observation_of(batch: dict, image_keys: dict[str, str], contract: Contract) -> Observation:
    """What a policy sees in a batch of LeRobot's.

    Args:
        batch: behind the preprocessor: (B, 3, h, w) images, float32 in [0, 1] or uint8; (B, S) states in raw units;
            B instructions as ``task``.
        image_keys: camera to its key in the batch.
        contract: of the policy.

    Raises:
        UserError: if something is missing, or an image has another size, type or range. LeRobot itself compares
            names only, and lets any policy crop or resize what it is given.
    """
    images = {}
    for camera in contract.cameras:
        key = image_keys[camera.name]
        if key not in batch:
            there = ", ".join(name for name in batch if name.startswith("observation.image")) or "no images"
            raise UserError(
                f"the observation lacks {key}, the policy's camera {camera.name}; it has {there}: "
                f'name the right one, --rename_map=\'{{"KEY": "{key}"}}\''
            )
        size, wanted = tuple(batch[key].shape[1:]), (3, camera.height, camera.width)
        if size != wanted:
            raise UserError(
                f"{key} is {size}, the policy was trained on {wanted}: let the environment or the camera give "
                "images of that size"
            )
        images[camera.name] = _pixels(batch[key], key)
    for key in (STATE, TASK):
        if key not in batch:
            raise UserError(
                f"the observation lacks {key}; the policy reads the robot's state and its instruction"
            )
    return Observation(images, batch[STATE].float(), list(batch[TASK]))


def _pixels(image: Tensor, key: str) -> Tensor:
    """(B, 3, h, w) LeRobot's image to (B, h, w, 3) uint8: exactly the pixels that the camera gave.

    LeRobot has divided them by 255, and the policy's own processor will do it again. Between the two an observation is
    uint8, as it is recorded: its hash names the episode, and with it the noise, in every program alike.
    """
    if image.dtype != torch.uint8:
        if not image.is_floating_point() or not (image.amin() >= 0 and image.amax() <= 1):
            raise UserError(f"{key} is not an image from 0 to 1; nothing may normalise it before the policy")
        image = (image * 255).round().to(torch.uint8)
    return image.permute(0, 2, 3, 1).contiguous()
