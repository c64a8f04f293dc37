"""SmallVLAPolicy: a vision-language backbone and a flow-matching action head.

Files of a saved policy:

config.json          settings, format, and the hash of the backbone's weights where they are only referred to
contract.json        columns, cameras, rate and statistics
model.safetensors    every weight that is not in a checkpoint of its own
backbone/            the backbone's configuration, tokenizer and image processor
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from deas_vla.config import from_json, to_json
from deas_vla.data.contract import Contract
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import read_json, write_json
from deas_vla.policies.chunk_policy import ChunkPolicy, recompute
from deas_vla.policies.fingerprint import Fingerprint
from deas_vla.policies.flow import flow_loss, hold_last, integrate, interpolate
from deas_vla.policies.lora import Merged
from deas_vla.policies.registry import register_policy
from deas_vla.policies.small_vla.action_head import ActionHead
from deas_vla.policies.small_vla.backbone import ContextEncoder, build_backbone
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.policies.small_vla.processing import PromptProcessor
from deas_vla.policies.weights import read_into, uninitialised

FORMAT = "deas_vla SmallVLAPolicy 2"
WEIGHTS, CONFIG, CONTRACT, BACKBONE = "model.safetensors", "config.json", "contract.json", "backbone"


@register_policy("small_vla")
class SmallVLAPolicy(ChunkPolicy):
    """A GR00T-style policy for the robot of one contract, whose cameras are shown to the backbone in order.

    The embedded backbone's tokenizer knows the words of `instructions`, others are spelled in bytes. `folder` is that
    of a saved policy's backbone, read instead of making a new one. Raises UserError if the backbone cannot be read.
    """

    Config = SmallVLAConfig
    standalone_settings: ClassVar[dict[str, bool]] = {"standalone": True}
    feature_source = "the tokens that the action head attends to, after the backbone's last layer that is kept"

    def __init__(
        self, config: SmallVLAConfig, contract: Contract, instructions: Sequence[str] = (), folder: Path | None = None
    ) -> None:
        super().__init__()
        self.config, self.contract, self.horizon = config, contract, config.horizon
        cameras, tokens = contract.cameras, config.max_instruction_tokens
        if side := config.image_size:
            cameras = tuple(replace(camera, height=side, width=side) for camera in cameras)
        self.backbone, self.processor = build_backbone(config, cameras, list(instructions), folder)
        self.prompts = PromptProcessor(self.processor, cameras, self.backbone, tokens)
        self.context_encoder = ContextEncoder(config, self.backbone.width)
        sizes = self.backbone.width, len(cameras), contract.state_dim, contract.action_dim
        self.head = ActionHead(config, *sizes)
        times = torch.arange(config.denoising_steps) / config.denoising_steps
        self.register_buffer("times", times[None], persistent=False)
        self.register_buffer("token_camera", self.prompts.camera_index, persistent=False)
        self._fingerprint = Fingerprint()

    @classmethod
    def create(cls, config: SmallVLAConfig, contract: Contract, instructions: list[str]) -> Self:
        return cls(config, contract, instructions)

    def encode(self, observation: Observation) -> Context:
        observation.require_fits(self.contract)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training and _learn(*self.encoder_modules)):
            if torch.is_grad_enabled():
                tokens, mask = self._tokens(observation)
            else:
                size = self.config.encode_batch
                starts = range(0, len(observation), size)
                parts = [self._tokens(observation[start : start + size]) for start in starts]
                tokens, mask = (torch.cat(part) for part in zip(*parts, strict=True))
        context = Context(
            tokens=tokens,
            mask=mask,
            camera=self.token_camera.expand(len(observation), -1),
            state=self.contract.normalize_state(observation.state.to(tokens.device)),
        )
        context.extras.update(self._memory(context))
        return context

    def sample(self, context: Context, noise: Tensor) -> Tensor:
        steps = [self.head.condition(time[:, None]) for time in self.times.unbind(1)]
        state, memory = self.head.embed_state(context.state), self._memory(context)

        def predict(x: Tensor, step: int) -> Tensor:
            return self.head(x, steps[step], state, memory, context.mask)

        return integrate(predict, noise, self.config.denoising_steps)

    def loss(
        self, context: Context, chunks: Tensor, noise: Tensor, time: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        if valid is not None:
            # The head sees all H noisy steps, as at inference: what was not played is filled in, then masked.
            chunks = hold_last(chunks, valid)
        noisy = interpolate(chunks[:, None], noise, time)
        state, memory = self.head.embed_state(context.state), self._memory(context)
        predicted = self.head(noisy, self.head.condition(time), state, memory, context.mask)
        return flow_loss(predicted, chunks, valid)

    def freeze_encoder(self) -> None:
        for part in self.encoder_modules:
            part.requires_grad_(False).eval()

    def merge_lora(self) -> Merged:
        learnt = self.backbone.base_hash and any(".lora_" in name for name, _ in self.backbone.named_parameters())
        merged = super().merge_lora()
        if learnt:
            # From here on it is saved as a fully tuned one, with all its weights.
            self.config = replace(self.config, tune="full")
            self.backbone.base_hash = None
        return merged

    def checkpoint_activations(self) -> None:
        self.backbone.model.gradient_checkpointing_enable({"use_reentrant": False})
        recompute([*self.context_encoder.layers, *self.head.blocks])

    def train(self, mode: bool = True) -> Self:
        """What does not learn stays in evaluation mode: with its dropout it would give other features."""
        super().train(mode)
        for part in self.encoder_modules:
            part.train(mode and _learn(part))
        if mode and _learn(*self.encoder_modules):
            self._fingerprint.forget()
        return self

    @property
    def encoder_fingerprint(self) -> str:
        names = ("select_layer", "backbone_dtype", "context_layers", "head_width")
        settings = {
            "processing": self.prompts.fingerprint,
            "contract": self.contract.fingerprint,
            "config": {name: getattr(self.config, name) for name in names},
        }
        return self._fingerprint.of(self.encoder_modules, settings, self.training and _learn(*self.encoder_modules))

    def origin(self) -> dict[str, str | int | None]:
        return {
            "backbone": self.config.backbone or "embedded",
            "backbone_weights": self.backbone.base_hash,
            "tune": self.config.tune,
        }

    def write(self, folder: Path, standalone: bool = False) -> None:
        """Writes all but the weights of a checkpoint that the backbone is read from; `standalone`: those, too."""
        weights = self.state_dict()
        names = weights if standalone else self._stored()
        stored = {name: weights[name].detach().cpu().contiguous() for name in names}
        save_file(stored, folder / WEIGHTS)
        self.backbone.model.config.save_pretrained(folder / BACKBONE)
        self.processor.save_pretrained(folder / BACKBONE)
        # As a fully tuned one, which stores all its weights.
        config = replace(self.config, tune="full") if standalone else self.config
        base_hash = None if standalone else self.backbone.base_hash
        settings = {"format": FORMAT, "backbone_hash": base_hash, "policy": to_json(config)}
        write_json(folder / CONFIG, settings)
        write_json(folder / CONTRACT, self.contract.to_json())

    @classmethod
    def load(cls, folder: str | Path, contract: Contract | None = None) -> Self:
        folder = Path(folder)
        settings = read_json(folder / CONFIG)
        if settings.get("format") != FORMAT or not {"backbone_hash", "policy"} <= settings.keys():
            raise UserError(f"{folder / CONFIG}: format {settings.get('format')!r} is not {FORMAT!r}")
        config = from_json(SmallVLAConfig, settings["policy"], folder / CONFIG)
        stored = Contract.from_json(read_json(folder / CONTRACT), folder / CONTRACT)
        if contract is not None:
            stored.require_same(contract, f"policy {folder}", "what it is used for")
        # A backbone that is only referred to is read by its own checkpoint's reader.
        with nullcontext() if config.backbone and config.tune != "full" else uninitialised():
            policy = cls(config, stored, folder=folder / BACKBONE)
        given, found = settings["backbone_hash"], policy.backbone.base_hash
        if given != found:
            what = f"this policy was trained on another backbone than the one at {config.backbone}"
            raise UserError(f"{folder / CONFIG}: {what} (weights {str(given)[:12]} against {str(found)[:12]})")
        path, state = folder / WEIGHTS, policy.state_dict()
        with as_user_error(f"{path}: missing, cut off or damaged; save the policy again", SafetensorError):
            wrong = read_into({name: state[name] for name in policy._stored()}, path)
        if wrong:
            first = f"the first is {wrong[0]}"
            raise UserError(f"{path}: {len(wrong)} weights do not fit the settings in {CONFIG} beside it, {first}")
        return policy.eval()

    def _stored(self) -> list[str]:
        """Names of the weights that are written: all but those of a backbone that has a checkpoint of its own."""
        own = self.backbone.base_hash is None
        return [n for n in self.state_dict() if own or not n.startswith("backbone.") or ".lora_" in n]

    @property
    def encoder_modules(self) -> tuple[nn.Module, nn.Module]:
        return self.backbone, self.context_encoder

    def _tokens(self, observation: Observation) -> tuple[Tensor, Tensor]:
        """(B, L, C) context tokens and their (B, L) mask."""
        inputs = {name: value.to(self.times.device) for name, value in self.prompts(observation).items()}
        mask = inputs["attention_mask"].bool()
        return self.context_encoder(self.backbone(inputs), mask), mask

    def _memory(self, context: Context) -> dict[str, Tensor]:
        """What the head reads of a context; computed here for one that was made elsewhere and carries none."""
        return context.extras or self.head.read_context(context.tokens, context.mask, self.token_camera)


def _learn(*modules: nn.Module) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())
