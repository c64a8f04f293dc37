"""LeRobot's GR00T N1.7: a Qwen3-VL cut at a layer, and a diffusion transformer that attends to its tokens.

The vision-language self-attention has no mask: padding would be read as text. So only observations with one instruction
are encoded together, and what the masked cross-attention of the head reads is padded afterwards.
"""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from lerobot.policies.groot.configuration_groot import infer_groot_n1_7_action_horizon
from torch import Tensor, nn
from transformers.feature_extraction_utils import BatchFeature

from deas_vla.data.observation import OTHER, TEXT
from deas_vla.errors import UserError
from deas_vla.files import read_json, write_json
from deas_vla.policies.lerobot.base import Adapter, Encoded, register_adapter, repeated
from deas_vla.policies.lerobot.noise import GivenNoise
from deas_vla.policies.lerobot.standalone import CONFIG, PARTS, save_config


@register_adapter("groot")
class Groot(Adapter):
    """Tokens are the backbone's hidden states, before the layers that are trained with the head."""

    sees_padding = True
    settings = ("use_bf16",)

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        self.model, config = policy._groot_model, policy.config
        self.head = self.model.action_head
        if not self.head.config.use_alternate_vl_dit:
            raise UserError("this GR00T has a head without a mask for padding (use_alternate_vl_dit=False)")
        stored = infer_groot_n1_7_action_horizon(config.base_model_path, config.embodiment_tag)
        horizon = min(filter(None, (self.head.action_horizon, config.chunk_size, stored)))
        super().__init__(policy, cameras, [self.model.backbone], horizon, self.head.action_dim)
        self.steps, self.autocasts = self.head.action_horizon, config.use_bf16

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        inputs = self.policy._filter_groot_inputs(batch, include_action=False)
        with self._autocast():
            backbone_input, action_input = self.model.prepare_input(inputs)
            output = self.model.backbone(backbone_input)
            hidden, mask, image = output.backbone_features, output.backbone_attention_mask, output.image_mask
            made = self.head._encode_features(output, action_input)
        memory = {
            "features": made.backbone_features,
            "state": made.state_features,
            "embodiment": action_input.embodiment_id,
            # As the head calls them.
            "image_mask": image,
            "backbone_attention_mask": mask,
        }
        views = len(batch["image_grid_thw"]) // len(mask)
        return Encoded(hidden, self._layout(image, views), memory, mask)

    @torch.no_grad()
    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        rows, memory = len(memory["features"]), repeated(memory, len(noise))
        with self._autocast(), GivenNoise(noise, first=True), self._sharing(rows, len(noise)):
            features = (memory[name] for name in ("features", "state", "embodiment"))
            made = self.head.get_action_with_features(*features, BatchFeature(memory), BatchFeature({}))
        return made.action_pred[:, : self.horizon, : self.action_dim].float()

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        head, state = self.head, memory["state"]
        noise = noise[:, : actions.shape[1]]
        if head.training and head.state_dropout_prob > 0:
            dropped = torch.rand(len(state), device=state.device) < head.state_dropout_prob
            state = state * ~dropped[:, None, None]
        step = (time * head.num_timestep_buckets).long()
        noisy = (1 - time[:, None, None]) * noise + time[:, None, None] * actions
        with self._autocast():
            tokens = head.action_encoder(noisy, step, memory["embodiment"])
            if head.config.add_pos_embed:
                tokens = tokens + head.position_embedding(torch.arange(tokens.shape[1], device=tokens.device))
            made = head.model(
                hidden_states=torch.cat([state, tokens], 1),
                encoder_hidden_states=memory["features"],
                timestep=step,
                image_mask=memory["image_mask"],
                backbone_attention_mask=memory["backbone_attention_mask"],
            )
            velocity = head.action_decoder(made, memory["embodiment"])[:, -actions.shape[1] :]
        return (velocity.float() - (actions - noise)).square()[:, : self.horizon, : self.action_dim]

    @staticmethod
    def write_parts(policy: nn.Module, folder: Path) -> dict[str, object]:
        part, model, base = folder / PARTS / "groot", policy._groot_model, Path(policy.config.base_model_path)
        save_config(model, part)
        # A checkpoint of NVIDIA's has horizons and embodiments beside its configuration.
        for path in sorted(base.glob("*.json")) if base.is_dir() else ():
            if not (part / path.name).exists() and not path.name.endswith("index.json"):
                shutil.copy(path, part)
        if Path(model.config.model_name).is_absolute():
            save_config(model.backbone.model, part / "backbone")
            write_json(part / CONFIG, read_json(part / CONFIG) | {"model_name": "backbone"})
        return {"base_model_path": f"{PARTS}/groot"}

    def _layout(self, image: Tensor, views: int) -> Tensor:
        """(B, L) the camera of each token; of several images a camera, older ones are not read."""
        camera = torch.tensor([OTHER] * (views - len(self.cameras)) + self.cameras, device=image.device)
        each = image.sum(1, keepdim=True) // views
        number = (image.long().cumsum(1) - 1).clamp_min(0) // each
        return torch.where(image, camera[number.clamp_max(views - 1)], TEXT)

    @contextmanager
    def _sharing(self, rows: int, total: int) -> Iterator[None]:
        """Inside, cross-attention makes keys and values for each of `rows` observations, not of `total` candidates.

        The tokens of an observation's candidates become one sequence, which changes nothing for this attention.
        """

        def fold(_, inputs: tuple[Tensor], settings: dict) -> tuple[tuple[Tensor], dict]:
            (hidden,), shared = inputs, dict(settings)
            for name in ("encoder_hidden_states", "attention_mask"):
                shared[name] = settings[name].unflatten(0, (rows, -1))[:, 0]
            return (hidden.reshape(rows, -1, hidden.shape[-1]),), shared

        def unfold(_, __, made: Tensor) -> Tensor:
            return made.reshape(total, -1, made.shape[-1])

        with ExitStack() as stack:
            for block in self.head.model.transformer_blocks[::2]:  # those between them attend to themselves
                stack.enter_context(block.attn1.register_forward_pre_hook(fold, with_kwargs=True))
                stack.enter_context(block.attn1.register_forward_hook(unfold))
            yield

    def _autocast(self):
        """As LeRobot runs the model."""
        device = next(self.model.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocasts)
