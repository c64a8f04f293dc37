"""LeRobot's SmolVLA: a small vision-language model and an action expert that reads its keys and values.

The prefix (images, text, state) runs once an observation; its keys and values are copied for each candidate, which
costs memory traffic and no arithmetic. In training, the samples of noise share the prefix as well.
"""

from pathlib import Path

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks, pad_vector
from torch import Tensor, nn

from deas_vla.data.observation import OTHER, TEXT
from deas_vla.errors import UserError
from deas_vla.policies.lerobot.base import Adapter, Encoded, outputs_of, pack, register_adapter, unpack
from deas_vla.policies.lerobot.standalone import PARTS

TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"


@register_adapter("smolvla")
class SmolVLA(Adapter):
    """Tokens are the language model's last hidden states of images and text.

    The state token is left out: it passes through a projection that is trained with the expert, and images and text
    do not attend to it, so that features stay valid while the expert learns. The critic gets the state beside them.
    """

    settings = ("resize_imgs_with_padding", "add_image_special_tokens", "prefix_length", "empty_cameras")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        super().__init__(policy, cameras)
        if self.config.adapt_to_pi_aloha:
            raise UserError("adapt_to_pi_aloha is not supported here: its actions have units of their own")
        self.model = policy.model
        self.horizon = self.steps = self.config.chunk_size
        self.width = self.config.max_action_dim

    @property
    def encoder(self) -> list[nn.Module]:
        return [self.model.vlm_with_expert.get_vlm_model()]

    @property
    def prefix(self) -> list[nn.Module]:
        return [*self.encoder, self.model.state_proj]

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        images, present = self.policy.prepare_images(batch)
        state = self.policy.prepare_state(batch)
        with outputs_of(self.encoder[0].connector) as image_outputs:
            embedded, pad, kind = self.model.embed_prefix(images, present, batch[TOKENS], batch[MASK], state)
        (hidden, _), cache = self.model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(pad, kind),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        camera = self._layout(image_outputs[0].shape[1], batch[TOKENS].shape[1], hidden.device)
        mask = pad[:, : len(camera)]
        tokens = hidden[:, : len(camera)].float() * mask[..., None]
        return Encoded(tokens, mask, camera, {"cache": pack(cache), "pad": pad})

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        cache = unpack(memory["cache"])

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            return self.model.denoise_step(memory["pad"], cache, x, time)

        return euler_integrate(velocity, noise, self.config.num_steps)[..., : self.action_dim]

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        # LeRobot's time runs the other way: 1 is noise.
        actions, time = pad_vector(actions, self.width), 1 - time
        x = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        velocity = self.model.denoise_step(memory["pad"], unpack(memory["cache"]), x, time)
        return (velocity - (noise - actions)).square()[..., : self.action_dim]

    def write_parts(self, folder: Path) -> dict[str, object]:
        both = self.model.vlm_with_expert
        both.config.save_pretrained(folder / PARTS / "vlm")
        both.processor.save_pretrained(folder / PARTS / "vlm")
        return {"vlm_model_name": f"{PARTS}/vlm"}

    def _layout(self, image_tokens: int, text_tokens: int, device: torch.device) -> Tensor:
        """(L,) the camera of each token of the prefix, the state token and what follows it left out."""
        before, after = (2, 1) if self.config.add_image_special_tokens else (0, 0)
        layout = []
        for camera in self.cameras:
            layout += [OTHER] * before + [camera] * image_tokens + [OTHER] * after
        return torch.tensor(layout + [TEXT] * text_tokens, device=device)
