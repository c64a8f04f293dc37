"""The vision-language backbone: any image-text-to-text model of `transformers`, cut at a layer."""

import inspect
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.data.contract import Camera
from deas_vla.errors import UserError, as_user_error, require
from deas_vla.policies.fingerprint import hash_tensors
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.policies.small_vla.embedded import EMBEDDING_STD, build_embedded


class Backbone(nn.Module):
    """A `transformers` model that returns hidden states, without its language-modelling head, cut and tuned."""

    def __init__(self, model: nn.Module, config: SmallVLAConfig) -> None:
        super().__init__()
        self.model = model
        cut_language_model(model, config.select_layer)
        # Adapters change neither the base weights nor, from here on, this hash.
        base = config.backbone and config.tune != "full"
        self.base_hash = hash_tensors(model.state_dict()) if base else None
        model.requires_grad_(config.tune == "full")
        if config.tune == "lora":
            add_lora(model, config.lora_rank, config.lora_alpha)

    @property
    def width(self) -> int:
        return self.model.config.get_text_config().hidden_size

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def image_token_id(self) -> int:
        config = self.model.config
        return getattr(config, "image_token_id", None) or config.image_token_index

    @property
    def accepted(self) -> set[str]:
        """Names of the model's inputs."""
        return set(inspect.signature(type(self.model).forward).parameters)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, L, C) float32 hidden states after the last layer that was kept."""
        inputs = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        extra = {"use_cache": False} if "use_cache" in self.accepted else {}
        return self.model(**inputs, **extra).last_hidden_state.float()


class ContextLayer(nn.Module):
    """Pre-norm self-attention over the real tokens, and a feed-forward layer."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.query_key_value(self.norm(x)).view(batch, length, 3, self.heads, -1).transpose(1, 3)
        attended = F.scaled_dot_product_attention(*packed.unbind(2), attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.silu(self.up(self.norm_mlp(x))))


class ContextEncoder(nn.Module):
    """Layer norm and a few self-attention layers over the backbone's tokens (GR00T N1.5)."""

    def __init__(self, config: SmallVLAConfig, width: int) -> None:
        super().__init__()
        heads = max(1, width // config.head_width)
        while width % heads:
            heads -= 1
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(ContextLayer(width, heads, config.mlp_ratio) for _ in range(config.context_layers))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, C) backbone tokens and their (B, L) mask to (B, L, C) context tokens; padding becomes zero."""
        x = self.norm(tokens)
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        return x * mask[..., None]


def cut_language_model(model: nn.Module, layers: int) -> None:
    """Keeps the first layers of the language model; 0 keeps all.

    Raises:
        UserError: if there are fewer layers.
    """
    if layers == 0:
        return
    decoder = model.get_decoder()
    if layers > len(decoder.layers):
        raise UserError(f"select_layer={layers}, but the language model has {len(decoder.layers)} layers")
    decoder.layers = decoder.layers[:layers]
    decoder.config.num_hidden_layers = layers
    if getattr(decoder.config, "layer_types", None):
        decoder.config.layer_types = decoder.config.layer_types[:layers]


def add_lora(model: nn.Module, rank: int, alpha: int) -> None:
    """Adds trainable low-rank adapters to every linear layer of every attention, in vision and language."""
    peft = require("peft", "groot")
    targets = [
        f"{name}.{child}"
        for name, module in model.named_modules()
        if "Attention" in type(module).__name__
        for child, layer in module.named_children()
        if isinstance(layer, nn.Linear)
    ]
    if not targets:
        raise UserError(f"{type(model).__name__} has no attention layers for LoRA to adapt; use tune=full")
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model)


def new_backbone(config: SmallVLAConfig, cameras: tuple[Camera, ...], instructions: list[str]):
    """A backbone from its checkpoint, or a freshly initialised embedded one, and its processor.

    Raises:
        UserError: if the checkpoint cannot be read.
    """
    require("transformers", "groot")
    from transformers import AutoModelForImageTextToText

    if config.backbone:
        return _load_checkpoint(config), _read_processor(config.backbone)
    model_config, processor = build_embedded(config.embedded, cameras, instructions)
    model = _headless(AutoModelForImageTextToText.from_config(model_config))
    # A narrow model's usual 0.02 makes text embeddings so short that normalising them makes training unstable.
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    return Backbone(model, config), processor


def saved_backbone(config: SmallVLAConfig, folder: Path):
    """The backbone of a saved policy, with weights still to be filled in if the policy stores them.

    Raises:
        UserError: if a file of its configuration or processor is missing or broken.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText

    processor = _read_processor(str(folder))
    if config.backbone and config.tune != "full":
        return _load_checkpoint(config), processor
    with as_user_error(f"{folder / 'config.json'}: not readable"):
        model_config = AutoConfig.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_config(model_config, dtype=getattr(torch, config.backbone_dtype))
    return Backbone(_headless(model), config), processor


def _load_checkpoint(config: SmallVLAConfig) -> Backbone:
    from transformers import AutoModelForImageTextToText

    dtype = getattr(torch, config.backbone_dtype)
    problem = f"backbone={config.backbone}: no image-text-to-text checkpoint that transformers reads"
    with as_user_error(problem):
        model = AutoModelForImageTextToText.from_pretrained(config.backbone, dtype=dtype)
    return Backbone(_headless(model), config)


def _headless(model: nn.Module) -> nn.Module:
    return getattr(model, "model", model)


def _read_processor(path: str):
    from transformers import AutoProcessor

    with as_user_error(f"{path}: its processor cannot be read"):
        return AutoProcessor.from_pretrained(path)
