"""LeRobot's multi-task diffusion transformer: CLIP for images and text, a transformer conditioned on one vector.

The candidates share that vector. The sampler has no argument for noise: it is given by `GivenNoise`.
"""

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn

from deas_vla.data.observation import TEXT
from deas_vla.policies.lerobot.adapters.diffusion import denoising_error, history_of_one
from deas_vla.policies.lerobot.base import Adapter, Encoded, camera_tokens, outputs_of, register_adapter, repeated
from deas_vla.policies.lerobot.noise import GivenNoise
from deas_vla.policies.lerobot.standalone import PARTS, save_config


@register_adapter("multi_task_dit")
class MultiTaskDiT(Adapter):
    """Tokens are CLIP's patches, a grid a camera, and one for the instruction; the narrower are filled with zeros."""

    settings = ("image_resize_shape", "image_crop_shape", "use_separate_rgb_encoder_per_camera")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        super().__init__(policy, cameras, _towers(policy.observation_encoder), policy.config.horizon)
        self.observer = policy.observation_encoder

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        history = history_of_one(batch, self.config)
        history |= {name: batch[name] for name in (OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)}
        *vision, language = self.encoder
        with outputs_of(*vision) as image_outputs, outputs_of(language) as text_outputs:
            condition = self.observer.encode(history)
        # The first token is CLIP's summary of the image; the patches follow it, row by row.
        maps = [self._as_map(output.last_hidden_state[:, 1:]) for output in image_outputs]
        images, camera = camera_tokens(maps, len(condition), self.cameras)
        parts = [images, text_outputs[0].pooler_output[:, None]]
        width = max(part.shape[-1] for part in parts)
        tokens = torch.cat([F.pad(part, (0, width - part.shape[-1])) for part in parts], 1)
        return Encoded(tokens, F.pad(camera, (0, 1), value=TEXT), {"condition": condition})

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        with GivenNoise(noise, first=True):
            model, condition = self.policy.noise_predictor, repeated(memory, len(noise))["condition"]
            return self.policy.objective.conditional_sample(model, len(noise), condition)

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        predict = partial(self.policy.noise_predictor, conditioning_vec=memory["condition"])
        if self.config.is_diffusion:
            return denoising_error(self.policy.objective.noise_scheduler, predict, actions, noise, time)
        rest, t = 1 - self.config.sigma_min, time[:, None, None]
        x = t * actions + (1 - rest * t) * noise
        return (predict(x, time) - (actions - rest * noise)).square()

    @staticmethod
    def write_parts(policy: nn.Module, folder: Path) -> dict[str, object]:
        # LeRobot wants "clip" in the names.
        names = {"vision_encoder_name": "clip_vision", "text_encoder_name": "clip_text"}
        first, *_, language = _towers(policy.observation_encoder)
        for name, model in zip(names.values(), (first, language), strict=True):
            save_config(model, folder / PARTS / name)
        return {field: f"{PARTS}/{name}" for field, name in names.items()}

    def _as_map(self, tokens: Tensor) -> Tensor:
        """(B, P, C) patches to (B, C, h, w), by the shape of the image that CLIP was shown."""
        config = self.config
        first = next(iter(config.image_features.values())).shape[1:]
        height, width = config.image_crop_shape or config.image_resize_shape or first
        patch = self.encoder[0].config.patch_size
        return tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))


def _towers(observer: nn.Module) -> list[nn.Module]:
    """CLIP's encoders of images, and the one of text behind them."""
    vision = observer.vision_encoders or [observer.vision_encoder]
    return [*(encoder.model for encoder in vision), observer.text_encoder.text_encoder]
