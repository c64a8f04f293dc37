"""LeRobot's π0 and π0.5: a PaliGemma and an action expert that reads its keys and values.

The prefix (images and words; for π0.5 also the state, as words) runs once an observation; its keys and values are
copied for each candidate, which costs memory traffic and no arithmetic. In training, the draws of noise share it too.
"""

import torch
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks, pad_vector, prepare_attention_masks_4d
from torch import Tensor, nn

from deas_vla.data.observation import TEXT
from deas_vla.policies.lerobot.cache import pack, unpack
from deas_vla.policies.lerobot.families import Encoded, Family, camera_layout

TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"


class Pi0(Family):
    """Tokens are the language model's last hidden states of images and words; π0's state is not among them."""

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
        words = batch[TOKENS].shape[1]
        layout = camera_layout(self.cameras, (pad.shape[1] - words) // len(images), hidden.device)
        camera = torch.cat([layout, layout.new_full((words,), TEXT)])
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

    def _state(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the expert is told beside the prefix."""
        return {"state": self.policy.prepare_state(batch)}

    def _velocity(self, memory: dict[str, Tensor]):
        rest = {"prefix_pad_masks": memory["pad"], "past_key_values": unpack(memory["cache"])}
        rest |= {name: memory[name] for name in memory.keys() & {"state"}}
        return lambda x, time: self.model.denoise_step(x_t=x, timestep=time, **rest)


class Pi05(Pi0):
    """Tokens as π0's; the state is among them, as words that the preprocessor writes."""

    def _state(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}
