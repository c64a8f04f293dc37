"""LeRobot's multi-task diffusion transformer: CLIP for images and text, a transformer conditioned on one vector.

The candidates share that vector. The sampler has no argument for noise: it is given by `GivenNoise`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.data.observation import TEXT
from deas_vla.policies.lerobot.adapters.diffusion import denoising_error
from deas_vla.policies.lerobot.base import Adapter, Encoded, camera_layout, outputs_of, register_adapter, square_grid
from deas_vla.policies.lerobot.noise import GivenNoise
from deas_vla.policies.lerobot.standalone import PARTS, save_config

STATE, IMAGES = "observation.state", "observation.images"
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"


@register_adapter("multi_task_dit")
class MultiTaskDiT(Adapter):
    """Tokens are CLIP's patches, a grid a camera, and one for the instruction; the narrower are filled with zeros."""

    settings = ("image_resize_shape", "image_crop_shape", "use_separate_rgb_encoder_per_camera")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        super().__init__(policy, cameras)
        self.observer = policy.observation_encoder
        self.horizon = self.steps = self.config.horizon
        self.width = self.action_dim

    @property
    def encoder(self) -> list[nn.Module]:
        return [*self._vision, self.observer.text_encoder.text_encoder]

    @property
    def prefix(self) -> list[nn.Module]:
        return [self.observer]

    @property
    def _vision(self) -> list[nn.Module]:
        encoders = self.observer.vision_encoders or [self.observer.vision_encoder]
        return [encoder.model for encoder in encoders]

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        images = torch.stack([batch[key] for key in self.config.image_features], 1)
        # One step of history: (B, 1, S) and (B, 1, cameras, C, h, w).
        history = {STATE: batch[STATE][:, None], IMAGES: images[:, None]}
        history |= {name: batch[name] for name in (TOKENS, MASK)}
        with outputs_of(*self._vision) as image_outputs, outputs_of(self.encoder[-1]) as text_outputs:
            condition = self.observer.encode(history)
        # The first token is CLIP's summary of the image; the patches follow it, row by row.
        patches = [output.last_hidden_state[:, 1:] for output in image_outputs]
        grids = [square_grid(self._as_map(tokens)) for tokens in patches]
        stacked = grids[0].unflatten(0, images.shape[:2]) if len(grids) == 1 else torch.stack(grids, 1)
        text = text_outputs[0].pooler_output[:, None]
        width = max(stacked.shape[-1], text.shape[-1])
        parts = [F.pad(part, (0, width - part.shape[-1])) for part in (stacked.flatten(1, 2), text)]
        tokens = torch.cat(parts, 1).float()
        camera = camera_layout(self.cameras, stacked.shape[2], tokens.device)
        return Encoded(
            tokens,
            torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device),
            F.pad(camera, (0, 1), value=TEXT),
            {"condition": condition},
        )

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        with GivenNoise(noise, first=True):
            model, condition = self.policy.noise_predictor, memory["condition"]
            return self.policy.objective.conditional_sample(model, len(noise), condition)

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        def predict(x: Tensor, moment: Tensor) -> Tensor:
            return self.policy.noise_predictor(x, moment, conditioning_vec=memory["condition"])

        if self.config.is_diffusion:
            return denoising_error(self.policy.objective.noise_scheduler, predict, actions, noise, time)
        rest = 1 - self.config.sigma_min
        t = time[:, None, None]
        x = t * actions + (1 - rest * t) * noise
        return (predict(x, time) - (actions - rest * noise)).square()

    def write_parts(self, folder: Path) -> dict[str, object]:
        # LeRobot wants "clip" in the names.
        names = {"vision_encoder_name": "clip_vision", "text_encoder_name": "clip_text"}
        towers = (self._vision[0], self.observer.text_encoder.text_encoder)
        for name, model in zip(names.values(), towers, strict=True):
            save_config(model, folder / PARTS / name)
        return {field: f"{PARTS}/{name}" for field, name in names.items()}

    def _as_map(self, tokens: Tensor) -> Tensor:
        """(B, P, C) patches to (B, C, h, w), by the shape of the image that CLIP was shown."""
        config = self.config
        first = next(iter(config.image_features.values())).shape[1:]
        height, width = config.image_crop_shape or config.image_resize_shape or first
        patch = self._vision[0].config.patch_size
        return tokens.transpose(1, 2).unflatten(2, (height // patch, width // patch))
