"""Image augmentation for training, on uint8 images, reproducible from a generator."""

import torch
from torch import Tensor

from deas_vla.data.observation import Observation


def random_shift(images: Tensor, max_shift: int, generator: torch.Generator | None = None) -> Tensor:
    """Moves every image by up to `max_shift` pixels each way; what moves in repeats the border (DrQ, 2021).

    Args:
        images: (B, h, w, C).
        max_shift: largest shift in pixels; 0 changes nothing.
        generator: source of randomness, on the CPU.

    Returns:
        (B, h, w, C) of the same type.
    """
    if max_shift == 0:
        return images
    batch, height, width, channels = images.shape
    shift = torch.randint(-max_shift, max_shift + 1, (2, batch, 1), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) + shift[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shift[1]).clamp(0, width - 1)
    pixel = (rows[:, :, None] * width + columns[:, None, :]).reshape(batch, -1)
    flat = images.reshape(batch, height * width, channels)
    return flat[torch.arange(batch, device=images.device)[:, None], pixel].view_as(images)


def shift_observation(
    observation: Observation, max_shift: int, generator: torch.Generator | None = None
) -> Observation:
    """`random_shift` on every camera of every sample; state and instruction stay."""
    images = {name: random_shift(image, max_shift, generator) for name, image in observation.images.items()}
    return Observation(images=images, state=observation.state, instruction=observation.instruction)
