"""Image augmentation for training, on uint8 images, reproducible from a generator."""

import torch
from torch import Tensor

from deas_vla.data.observation import Observation

# Shifts are given in pixels of images of this many a side: two pixels of 640 would move nothing that a policy sees.
SIDE = 64


def random_shift(
    images: Tensor, max_shift: int, generator: torch.Generator | None = None, share: slice = slice(None)
) -> Tensor:
    """Moves (B, h, w, C) images by up to `max_shift` pixels each way; what moves in repeats the border (DrQ, 2021).

    Only those of `share` (of one process) are moved and returned; the generator, on the CPU, draws for all B.
    """
    if max_shift == 0:
        return images[share]
    shift = torch.randint(0, 2 * max_shift + 1, (2, len(images)), generator=generator)[:, share].T.tolist()
    mine = images[share]
    height, width = mine.shape[1:3]
    rows, columns = (
        torch.arange(-max_shift, size + max_shift, device=mine.device).clamp(0, size - 1) for size in (height, width)
    )
    framed = mine[:, rows][:, :, columns]
    # A window of each framed image: copying rows is several times faster than gathering pixels.
    moved = torch.empty_like(mine)
    for image, target, (down, right) in zip(framed, moved, shift, strict=True):
        target.copy_(image[down : down + height, right : right + width])
    return moved


def shift_observation(
    observation: Observation, max_shift: int, generator: torch.Generator | None = None, share: slice = slice(None)
) -> Observation:
    """`random_shift` on every camera of every sample of a share; state and instruction stay.

    Images that are larger than `SIDE` are shifted by as large a part of theirs.
    """
    shifted = {}
    for name, image in observation.images.items():
        pixels = round(max_shift * max(1.0, min(image.shape[1:3]) / SIDE))
        shifted[name] = random_shift(image, pixels, generator, share)
    return Observation(shifted, observation.state[share], observation.instruction[share])
