"""LeRobot's π0 (and π0.5, see `pi05.py`): a PaliGemma and an action expert that reads its keys and values.

The prefix (images and text; for π0.5 also the state, as text) runs once an observation; its keys and values are
copied for each candidate, which costs memory traffic and no arithmetic. In training, the samples of noise share it too.
"""

from collections.abc import Callable

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks, pad_vector, prepare_attention_masks_4d
from torch import Tensor, nn

from deas_vla.data.observation import TEXT
from deas_vla.policies.lerobot.base import Adapter, Encoded, camera_layout, pack, register_adapter, unpack

TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"


@register_adapter("pi0")
class Pi0(Adapter):
    """Tokens are the language model's last hidden states of images and text; π0's state is not among them."""

    settings = ("image_resolution", "dtype", "empty_cameras")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        super().__init__(policy, cameras)
        self.model = policy.model
        # It would keep no keys and values for the candidates to share; results are the same without it.
        self.model.gradient_checkpointing_disable()
        self.horizon = self.steps = self.config.chunk_size
        self.width = self.config.max_action_dim

    @property
    def encoder(self) -> list[nn.Module]:
        return [self.model.paligemma_with_expert.paligemma.model]

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        images, present = self.policy._preprocess_images(batch)
        embedded, pad, kind = self.model.embed_prefix(images, present, batch[TOKENS], batch[MASK])
        both = self.model.paligemma_with_expert
        # LeRobot's own choice: other kinds of attention do not take its mask.
        both.paligemma.model.language_model.config._attn_implementation = "eager"
        (hidden, _), cache = both.forward(
            attention_mask=prepare_attention_masks_4d(make_att_2d_masks(pad, kind)),
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        text = batch[TOKENS].shape[1]
        layout = camera_layout(self.cameras, (pad.shape[1] - text) // len(images), hidden.device)
        camera = torch.cat([layout, layout.new_full((text,), TEXT)])
        memory = {"cache": pack(cache), "pad": pad} | self._state(batch)
        return Encoded(hidden.float() * pad[..., None], pad, camera, memory)

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        velocity = self._velocity(memory)
        return euler_integrate(velocity, noise, self.config.num_inference_steps)[..., : self.action_dim]

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        # LeRobot's time runs the other way: 1 is noise.
        actions, time = pad_vector(actions, self.width), 1 - time
        x = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        return (self._velocity(memory)(x, time) - (noise - actions)).square()[..., : self.action_dim]

    @staticmethod
    def renaming(policy: nn.Module, names: list[str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        return lambda weights: policy._fix_pytorch_state_dict_keys(weights, policy.config)

    def _state(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the expert reads beside the prefix."""
        return {"state": self.policy.prepare_state(batch)}

    def _velocity(self, memory: dict[str, Tensor]):
        rest = {"prefix_pad_masks": memory["pad"], "past_key_values": unpack(memory["cache"])}
        rest |= {name: memory[name] for name in memory.keys() & {"state"}}
        return lambda x, time: self.model.denoise_step(x_t=x, timestep=time, **rest)
