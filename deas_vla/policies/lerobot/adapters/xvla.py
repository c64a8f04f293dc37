"""LeRobot's X-VLA: a Florence-2 encoder and a transformer with soft prompts that predicts the clean chunk.

LeRobot's sampler encodes and draws noise inside one call, so its few lines (predict the chunk, mix it with the same
noise at the next lower level) are here. Actions and losses depend on the action space of its configuration.
"""

from pathlib import Path

import torch
from lerobot.policies.common.vla_utils import pad_vector
from lerobot.policies.xvla import modeling_xvla
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from torch.func import vmap

from deas_vla.data.observation import OTHER, TEXT
from deas_vla.policies.lerobot.adapters.diffusion import uniform_of
from deas_vla.policies.lerobot.base import Adapter, Encoded, register_adapter, repeated
from deas_vla.policies.lerobot.standalone import PARTS


@register_adapter("xvla")
class XVLA(Adapter):
    """Tokens are the encoder's hidden states of the first camera and the text, and the other cameras' features.

    X-VLA attends to the padding of its instructions, which has always one length here; pooling leaves it out.
    """

    settings = ("resize_imgs_with_padding", "num_image_views", "dtype")

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        self.model = policy.model
        super().__init__(policy, cameras, [self.model.vlm], policy.config.chunk_size, self.model.dim_action)
        self.dtype = self.model._get_target_dtype()

    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        inputs = self.policy._build_model_inputs(batch)
        present = inputs["image_mask"]
        memory = self.model.forward_vlm(inputs["input_ids"], inputs["image_input"].to(self.dtype), present)
        tokens, others = memory["vlm_features"], memory["aux_visual_inputs"]
        text = batch[OBS_LANGUAGE_TOKENS].shape[1]
        each = tokens.shape[1] - text
        # Views beyond the cameras are blank; a view's first token is the mean of the others; text is behind the first.
        views = present.shape[1]
        layout = []
        for view in self.cameras[:views] + [OTHER] * (views - len(self.cameras)):
            layout += [OTHER] + [view] * (each - 1)
        layout[each:each] = [TEXT] * text
        shown = present.repeat_interleave(each, 1)
        mask = torch.cat([shown[:, :each], batch[OBS_LANGUAGE_ATTENTION_MASK], shown[:, each:]], 1)
        memory |= {"proprio": inputs["proprio"].to(self.dtype), "domain_id": inputs["domain_id"]}
        return Encoded(torch.cat([tokens, others], 1), torch.tensor(layout), memory, mask)

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        # Its transformer attends from observation to action too: nothing of the observation can be kept between steps.
        memory, noise = repeated(memory, len(noise)), noise.to(self.dtype)
        steps = max(1, self.config.num_denoising_steps)
        chunk = torch.zeros_like(noise)
        for step in range(steps, 0, -1):
            level = torch.full((len(noise),), step / steps, device=noise.device, dtype=self.dtype)
            chunk = self._predict(memory, noise, chunk, level)
        return self.model.action_space.postprocess(chunk)

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        actions = pad_vector(actions.to(self.dtype), self.width, truncate=True)
        # LeRobot draws levels of noise uniformly.
        predicted = self._predict(memory, noise.to(self.dtype), actions, uniform_of(time).to(self.dtype))

        def one_step(made: Tensor, wanted: Tensor) -> Tensor:
            return sum(self.model.action_space.compute_loss(made[None, None], wanted[None, None]).values())

        # The action space's losses are means over steps: of single steps they are what is asked for.
        return vmap(vmap(one_step))(predicted, actions)[..., None]

    @staticmethod
    def write_parts(policy: nn.Module, folder: Path) -> dict[str, object]:
        return {"tokenizer_name": f"{PARTS}/tokenizer"}

    @staticmethod
    def renamed(policy: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        old = modeling_xvla._is_vendored_florence_state_dict(weights)
        return modeling_xvla._remap_vendored_florence_state_dict(weights) if old else weights

    def _predict(self, memory: dict[str, Tensor], noise: Tensor, chunk: Tensor, level: Tensor) -> Tensor:
        """The chunk that the model sees behind a mix of a chunk and noise."""
        mixed = noise * level.view(-1, 1, 1) + chunk * (1 - level).view(-1, 1, 1)
        state, mixed = self.model.action_space.preprocess(memory["proprio"], mixed)
        return self.model.transformer(**memory | {"proprio": state}, action_with_noise=mixed, t=level)
