"""LeRobot's SmolVLA: a small vision-language model and an action expert that reads its keys and values."""

from pathlib import Path

import torch
from lerobot.policies.common.vla_utils import make_att_2d_masks
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from transformers import DynamicCache

from deas_vla.data.observation import OTHER, TEXT
from deas_vla.errors import UserError
from deas_vla.policies.lerobot.adapters.pi0 import SharedPrefix
from deas_vla.policies.lerobot.base import Encoded, outputs_of, register_adapter
from deas_vla.policies.lerobot.standalone import PARTS


@register_adapter("smolvla")
class SmolVLA(SharedPrefix):
    """Tokens are the language model's last hidden states of images and text.

    The state token is left out, whose projection is trained with the expert: images and text do not attend to it, so
    that features stay valid while the expert learns.
    """

    # An action token attends to those before it.
    causal = True
    settings = ("resize_imgs_with_padding", "add_image_special_tokens", "prefix_length", "empty_cameras")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        if policy.config.adapt_to_pi_aloha:
            raise UserError("adapt_to_pi_aloha is not supported here: its actions have units of their own")
        super().__init__(policy, cameras, [policy.model.vlm_with_expert.get_vlm_model()], policy.config.num_steps)

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        text = (batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK])
        with outputs_of(self.encoder[0].connector) as image_outputs:
            embedded, pad, kind = self.model.embed_prefix(
                *self.policy.prepare_images(batch), *text, self.policy.prepare_state(batch)
            )
        hidden, memory = self.run(self.model.vlm_with_expert, embedded, pad, make_att_2d_masks(pad, kind))
        # The state token and what follows it are left out.
        before, after = (2, 1) if self.config.add_image_special_tokens else (0, 0)
        layout = []
        for camera in self.cameras:
            layout += [OTHER] * before + [camera] * image_outputs[0].shape[1] + [OTHER] * after
        layout += [TEXT] * text[0].shape[1]
        return Encoded(hidden[:, : len(layout)], torch.tensor(layout), memory, pad[:, : len(layout)])

    def run_expert(
        self, embedded: Tensor, attention: Tensor, position: Tensor, cache: DynamicCache, condition: list[Tensor]
    ) -> Tensor:
        (_, made), _ = self.model.vlm_with_expert.forward(
            attention_mask=attention,
            position_ids=position,
            past_key_values=cache,
            inputs_embeds=[None, embedded],
            use_cache=True,
        )
        return made

    @staticmethod
    def views(config, present: list[int], missing: int) -> list[int]:
        return present + [OTHER] * min(missing, config.empty_cameras)

    @staticmethod
    def write_parts(policy: nn.Module, folder: Path) -> dict[str, object]:
        both = policy.model.vlm_with_expert
        both.config.save_pretrained(folder / PARTS / "vlm")
        both.processor.save_pretrained(folder / PARTS / "vlm")
        return {"vlm_model_name": f"{PARTS}/vlm"}
