"""SmallVLAPolicy: a vision-language backbone and a flow-matching action head."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from deas_vla.data.contract import Contract
from deas_vla.data.grouping import in_fixed_groups
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.flow import flow_loss, hold_last, integrate, interpolate
from deas_vla.policies.small_vla.action_head import ActionHead
from deas_vla.policies.small_vla.backbone import Backbone, hash_tensors, new_backbone
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.policies.small_vla.context import ContextEncoder
from deas_vla.policies.small_vla.processing import PromptProcessor


class SmallVLAPolicy(ChunkPolicy):
    """A GR00T-style policy for the robot of one contract.

    Args:
        config: sizes and training mode.
        contract: with statistics; its cameras are shown to the backbone in order.
        sentences: instructions that the embedded backbone's tokenizer should know; others are spelled in bytes.
        backbone: a backbone and its processor to use instead of making them.

    Raises:
        UserError: if the robot has more columns than the encoders have room for, or the backbone cannot be read.
    """

    def __init__(
        self,
        config: SmallVLAConfig,
        contract: Contract,
        sentences: list[str] | None = None,
        backbone: tuple[Backbone, object] | None = None,
    ) -> None:
        super().__init__()
        for what in ("state", "action"):
            needed, room = getattr(contract, f"{what}_dim"), getattr(config, f"max_{what}_dim")
            if needed > room:
                raise UserError(f"max_{what}_dim={room}, but the robot has {needed} {what} columns; raise it")
        self.config, self.contract, self.horizon = config, contract, config.horizon
        self.backbone, self.processor = backbone or new_backbone(config, contract.cameras, sentences or [])
        self.prompts = PromptProcessor(
            self.processor,
            contract.cameras,
            self.backbone.accepted,
            config.max_instruction_tokens,
            self.backbone.image_token_id,
        )
        self.context_encoder = ContextEncoder(config, self.backbone.width)
        self.head = ActionHead(
            config, self.backbone.width, len(contract.cameras), contract.state_dim, contract.action_dim
        )
        times = torch.arange(config.denoising_steps) / config.denoising_steps
        self.register_buffer("times", times[None], persistent=False)
        self.register_buffer("token_camera", self.prompts.camera_index, persistent=False)

    # ---- the three calls of a policy -----------------------------------------------------------------------

    def encode(self, observation: Observation) -> Context:
        if self.training and torch.is_grad_enabled():
            with torch.set_grad_enabled(self._encoder_learns()):
                parts = self._tokens(observation)
        else:
            with torch.no_grad():
                parts = in_fixed_groups(
                    lambda rows: self._tokens(observation[rows]), len(observation), self.config.group
                )
        state = self.contract.normalize_state(observation.state.to(self.times.device))
        context = Context(
            tokens=parts["tokens"],
            mask=parts["mask"],
            camera=self.token_camera.expand(len(observation), -1),
            state=state,
        )
        context.extras.update(self._memory(context))
        return context

    def sample(self, context: Context, noise: Tensor) -> Tensor:
        conditioning = self.head.condition(self.times)
        steps = [conditioning.at(i) for i in range(self.config.denoising_steps)]
        state, memory = self.head.embed_state(context.state), self._memory(context)

        def predict(x: Tensor, step: int) -> Tensor:
            return self.head(x, steps[step], state, memory, context.mask)

        return integrate(predict, noise, self.config.denoising_steps)

    def loss(
        self,
        context: Context,
        chunks: Tensor,
        noise: Tensor,
        time: Tensor,
        valid: Tensor | None = None,
        reduction: str = "none",
    ) -> Tensor:
        if valid is not None:
            chunks = hold_last(chunks, valid)
        noisy = interpolate(chunks[:, None], noise, time)
        state, memory = self.head.embed_state(context.state), self._memory(context)
        predicted = self.head(noisy, self.head.condition(time), state, memory, context.mask)
        losses = flow_loss(predicted, chunks, valid)
        return losses.mean() if reduction == "mean" else losses

    # ---- parameters ----------------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def freeze_encoder(self) -> None:
        """Trains the action head only, from here on: features that were computed stay valid."""
        self.backbone.requires_grad_(False)
        self.context_encoder.requires_grad_(False)

    @property
    def encoder_fingerprint(self) -> str:
        settings = {
            "weights": hash_tensors(self._encoder_state()),
            "processing": self.prompts.fingerprint,
            "contract": self.contract.fingerprint,
            "config": {
                name: getattr(self.config, name)
                for name in ("select_layer", "backbone_dtype", "context_layers", "head_width", "group")
            },
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    # ---- files ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        from deas_vla.policies.small_vla.checkpoint import save_policy

        save_policy(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path, expected_contract: Contract | None = None) -> "SmallVLAPolicy":
        """Reads a policy that `save` wrote, in evaluation mode.

        Args:
            folder: of the policy.
            expected_contract: refuse a policy for another robot or with other statistics.

        Raises:
            UserError: naming the file that is missing, cut off or does not fit.
        """
        from deas_vla.policies.small_vla.checkpoint import load_policy

        return load_policy(Path(folder), expected_contract)

    # ---- details -------------------------------------------------------------------------------------------

    def _tokens(self, observation: Observation) -> dict[str, Tensor]:
        device = self.times.device
        inputs = {name: value.to(device) for name, value in self.prompts(observation).items()}
        mask = inputs["attention_mask"].bool()
        return {"tokens": self.context_encoder(self.backbone(inputs), mask), "mask": mask}

    def _memory(self, context: Context) -> dict[str, Tensor]:
        """What the head reads of a context; computed here for one that was made elsewhere and carries none."""
        return context.extras or self.head.read_context(context.tokens, context.mask, self.token_camera)

    def _encoder_state(self) -> dict[str, Tensor]:
        parts = {"backbone": self.backbone, "context_encoder": self.context_encoder}
        return {f"{p}.{name}": t for p, module in parts.items() for name, t in module.state_dict().items()}

    def _encoder_learns(self) -> bool:
        return any(
            parameter.requires_grad
            for part in (self.backbone, self.context_encoder)
            for parameter in part.parameters()
        )
