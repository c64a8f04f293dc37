"""LeRobot's Diffusion Policy: a ResNet a camera, a U-Net that turns noise into chunks.

The candidates share the conditioning vector. With DDIM, which needs a tenth of the steps, a chunk is a function of its
first noise. DDPM draws fresh noise at every step, which here follows from the first (see `noise.py`) and has one scale:
zero noise stays zero, others than 0 and 1 are refused.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalResidualBlock1d
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from deas_vla.policies.flow import TIME_BETA, TIME_CUTOFF
from deas_vla.policies.lerobot.base import Adapter, Encoded, camera_tokens, outputs_of, register_adapter, repeated
from deas_vla.policies.lerobot.noise import GivenNoise


def uniform_of(time: Tensor) -> Tensor:
    """Flow times of `flow.sample_time` back to uniform numbers: 0 is clean, 1 is noise."""
    return (TIME_CUTOFF * (1 - time)) ** TIME_BETA


def diffusion_steps(time: Tensor, count: int) -> Tensor:
    """Flow times to numbers of diffusion steps, int64 from 0 (nearly clean) on, equally likely as in LeRobot."""
    return (uniform_of(time) * count).long().clamp(0, count - 1)


def denoising_error(
    scheduler, predict: Callable[[Tensor, Tensor], Tensor], actions: Tensor, noise: Tensor, time: Tensor
) -> Tensor:
    """(M, H, A) squared error of a network that predicts noise or chunk from noisy chunks and diffusion steps (M,).

    The scheduler is of `diffusers`; the rest is as in `Adapter.error`.
    """
    steps = diffusion_steps(time, scheduler.config.num_train_timesteps)
    target = noise if scheduler.config.prediction_type == "epsilon" else actions
    return (predict(scheduler.add_noise(actions, noise, steps), steps) - target).square()


def history_of_one(batch: dict[str, Tensor], config) -> dict[str, Tensor]:
    """State and images as a history of one step: (B, 1, S) and (B, 1, cameras, C, h, w)."""
    images = torch.stack([batch[key] for key in config.image_features], 1)
    return {OBS_STATE: batch[OBS_STATE][:, None], OBS_IMAGES: images[:, None]}


@register_adapter("diffusion")
class Diffusion(Adapter):
    """Tokens are the last feature map of the ResNets: it keeps where things are, and no keypoint was chosen yet."""

    settings = ("resize_shape", "crop_shape", "use_separate_rgb_encoder_per_camera")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        self.model = policy.diffusion
        each = self.model.rgb_encoder
        encoders = each if isinstance(each, nn.ModuleList) else [each]
        super().__init__(policy, cameras, [encoder.backbone for encoder in encoders], policy.config.horizon)
        self.any_noise_scale = self.config.noise_scheduler_type == "DDIM"

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        with outputs_of(*self.encoder) as maps:
            condition = self.model._prepare_global_conditioning(history_of_one(batch, self.config))
        return Encoded(*camera_tokens(maps, len(condition), self.cameras), {"condition": condition})

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        # DDIM draws none.
        with nullcontext() if self.any_noise_scale else GivenNoise(noise, first=False):
            condition = repeated(memory, len(noise))["condition"]
            return self.model.conditional_sample(len(noise), global_cond=condition, noise=noise)

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        predict = partial(self.model.unet, global_cond=memory["condition"])
        return denoising_error(self.model.noise_scheduler, predict, actions, noise, time)

    def recomputed(self) -> list[nn.Module]:
        return [part for part in self.model.unet.modules() if isinstance(part, DiffusionConditionalResidualBlock1d)]

    @staticmethod
    def write_parts(policy: nn.Module, folder: Path) -> dict[str, object]:
        # Weights that torchvision would fetch, only for them to be replaced.
        return {"pretrained_backbone_weights": None}
