"""LeRobot's π0 (and π0.5, see `pi05.py`): a PaliGemma and an action expert that reads its keys and values."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from lerobot.policies.common.flow_matching import euler_integrate
from lerobot.policies.common.vla_utils import make_att_2d_masks, pad_vector, prepare_attention_masks_4d
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from transformers import DynamicCache

from deas_vla.data.observation import TEXT
from deas_vla.policies.lerobot.base import Adapter, Encoded, register_adapter, repeated

# Tokens of candidates that are one sequence. They attend to one another's keys in vain, behind a mask: that grows with
# the square of their number, and beyond this one a second sequence is cheaper.
SEQUENCE = 512


class SharedPrefix(Adapter):
    """A language model that encodes the prefix, and an action expert that reads its keys and values in flow matching.

    The candidates of an observation are one sequence of the expert's tokens, each attending to the prefix and to its
    own candidate: the prefix's keys and values are neither copied nor read again for each of them.
    """

    resizes = True
    # Of two cameras of 512 pixels, 32,768 patches at once: more are no faster, and take memory.
    largest_batch = 16

    def __init__(self, policy: nn.Module, cameras: list[int], encoder: list[nn.Module], flow_steps: int) -> None:
        super().__init__(policy, cameras, encoder, policy.config.chunk_size, policy.config.max_action_dim)
        self.model, self.flow_steps = policy.model, flow_steps

    def run(
        self, both: nn.Module, embedded: Tensor, pad: Tensor, attention: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, L, D) last hidden states of the embedded prefix, and what the expert reads of it."""
        (hidden, _), cache = both.forward(
            attention_mask=attention,
            position_ids=torch.cumsum(pad, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=True,
        )
        # (B, layers, 2, heads, L, d): a row for each observation.
        packed = torch.stack([torch.stack([layer.keys, layer.values], 1) for layer in cache.layers], 1)
        return hidden, {"cache": packed, "pad": pad}

    @abstractmethod
    def run_expert(
        self, embedded: Tensor, attention: Tensor, position: Tensor, cache: DynamicCache, condition: list[Tensor]
    ) -> Tensor:
        """(B, L, D) last hidden states of the expert's embedded tokens, behind a prefix whose cache may be appended to.

        `attention`: (B, L, P + L) bool, what each token reads of the P tokens of the prefix and of the others;
        `position`: (B, L), counted from the prefix's first; `condition`: what else LeRobot's `embed_suffix` returns.
        """

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        noise = noise.unflatten(0, (len(memory["pad"]), -1))
        parts = noise.split(max(1, SEQUENCE // noise.shape[2]), 1)
        return torch.cat([self._sampled(memory, part) for part in parts], 1).flatten(0, 1)[..., : self.action_dim]

    def _sampled(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        """(B, N, h, width) noise to chunks of the same shape."""
        cache, prefix, (rows, count, steps, _) = _cache_of(memory), memory["pad"], noise.shape
        state = repeated({name: memory[name] for name in memory.keys() & {"state"}}, rows * count)

        def velocity(x: Tensor, time: Tensor) -> Tensor:
            embedded, pad, kind, *condition = self.model.embed_suffix(**state, noisy_actions=x, timestep=time)
            length = pad.shape[1]
            own = torch.block_diag(*make_att_2d_masks(pad, kind[:, :length])[:count])
            attention = torch.cat([prefix[:, None].expand(-1, len(own), -1), own.expand(rows, -1, -1)], 2)
            position = prefix.sum(1)[:, None] + torch.arange(length, device=x.device).repeat(count)
            # One time for all of them.
            condition = [each[::count] for each in condition if each is not None]
            made = self.run_expert(
                embedded.reshape(rows, count * length, -1), attention, position, cache, condition
            ).reshape(rows * count, length, -1)
            cache.crop(prefix.shape[1])
            return self.model.action_out_proj(made[:, -steps:].float())

        return euler_integrate(velocity, noise.flatten(0, 1), self.flow_steps).view(noise.shape)

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        # LeRobot's time runs the other way: 1 is noise.
        actions, time = pad_vector(actions, self.width), 1 - time
        x = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        rest = {"prefix_pad_masks": memory["pad"], "past_key_values": _cache_of(memory)}
        rest |= {name: memory[name] for name in memory.keys() & {"state"}}
        velocity = self.model.denoise_step(x_t=x, timestep=time, **rest)
        return (velocity - (noise - actions)).square()[..., : self.action_dim]


def _cache_of(memory: dict[str, Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for number, layer in enumerate(memory["cache"].unbind(1)):
        cache.update(layer[:, 0], layer[:, 1], number)
    return cache


@register_adapter("pi0")
class Pi0(SharedPrefix):
    """Tokens are the language model's last hidden states of images and text; π0's state is not among them."""

    settings = ("image_resolution", "dtype", "empty_cameras")
    reads_state = True

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        encoder = [policy.model.paligemma_with_expert.paligemma.model]
        super().__init__(policy, cameras, encoder, policy.config.num_inference_steps)
        # It would keep no keys and values for the candidates to share; results are the same without it.
        self.model.gradient_checkpointing_disable()

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        images, present = self.policy._preprocess_images(batch)
        text_tokens, both = batch[OBS_LANGUAGE_TOKENS], self.model.paligemma_with_expert
        embedded, pad, kind = self.model.embed_prefix(images, present, text_tokens, batch[OBS_LANGUAGE_ATTENTION_MASK])
        # LeRobot's own choice: other kinds of attention do not take its mask.
        both.paligemma.model.language_model.config._attn_implementation = "eager"
        hidden, memory = self.run(both, embedded, pad, prepare_attention_masks_4d(make_att_2d_masks(pad, kind)))
        if self.reads_state:
            memory["state"] = self.policy.prepare_state(batch)
        text = text_tokens.shape[1]
        camera = torch.tensor(self.cameras).repeat_interleave((pad.shape[1] - text) // len(images))
        return Encoded(hidden, F.pad(camera, (0, text), value=TEXT), memory, pad)

    def run_expert(
        self, embedded: Tensor, attention: Tensor, position: Tensor, cache: DynamicCache, condition: list[Tensor]
    ) -> Tensor:
        both = self.model.paligemma_with_expert
        both.gemma_expert.model.config._attn_implementation = "eager"
        (_, made), _ = both.forward(
            attention_mask=prepare_attention_masks_4d(attention),
            position_ids=position,
            past_key_values=cache,
            inputs_embeds=[None, embedded],
            use_cache=False,
            adarms_cond=[None, *(condition or [None])],
        )
        return made

    @staticmethod
    def renamed(policy: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return policy._fix_pytorch_state_dict_keys(weights, policy.config)
