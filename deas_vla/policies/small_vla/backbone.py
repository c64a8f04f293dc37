"""The vision-language backbone: any image-text-to-text model of `transformers`, cut at a layer."""

import inspect
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deas_vla.data.contract import Camera
from deas_vla.errors import UserError, as_user_error, require
from deas_vla.policies.fingerprint import hash_tensors
from deas_vla.policies.lora import attention_layers
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.policies.small_vla.embedded import EMBEDDING_STD, build_embedded


class Backbone(nn.Module):
    """A `transformers` model that returns hidden states, without its language-modelling head, cut and tuned."""

    def __init__(self, model: nn.Module, config: SmallVLAConfig) -> None:
        super().__init__()
        self.model, settings = model, model.config
        cut_language_model(model, config.select_layer)
        self.width = settings.get_text_config().hidden_size
        self.image_token_id = getattr(settings, "image_token_id", None) or settings.image_token_index
        # Names of the model's inputs.
        self.accepted = set(inspect.signature(type(model).forward).parameters)
        # Of a backbone that the policy does not store; adapters change neither its weights nor, from here on, this.
        base = config.backbone and config.tune != "full"
        self.base_hash = hash_tensors(model.state_dict()) if base else None
        model.requires_grad_(config.tune == "full")
        if config.tune == "lora":
            add_lora(model, config.lora_rank, config.lora_alpha)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """(B, L, C) float32 hidden states after the last layer that was kept."""
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        extra = {"use_cache": False} if "use_cache" in self.accepted else {}
        return self.model(**inputs, **extra).last_hidden_state.float()


class ContextEncoder(nn.Module):
    """Layer norm and a few self-attention layers over the backbone's tokens (GR00T N1.5)."""

    def __init__(self, config: SmallVLAConfig, width: int) -> None:
        super().__init__()
        heads = next(n for n in range(max(1, width // config.head_width), 0, -1) if width % n == 0)
        sizes = {"dim_feedforward": config.mlp_ratio * width, "dropout": 0.0, "activation": F.silu}
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, **sizes, batch_first=True, norm_first=True)
            for _ in range(config.context_layers)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, C) backbone tokens and their (B, L) mask to (B, L, C) context tokens; padding becomes zero."""
        x = self.norm(tokens)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        return x * mask[..., None]


def cut_language_model(model: nn.Module, layers: int) -> None:
    """Keeps the first layers of the language model; 0 keeps all."""
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
    targets = attention_layers(model)
    if not targets:
        raise UserError(f"{type(model).__name__} has no attention layers for LoRA to adapt; use tune=full")
    peft.inject_adapter_in_model(peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets), model)


def build_backbone(
    config: SmallVLAConfig, cameras: tuple[Camera, ...], instructions: list[str], folder: Path | None = None
):
    """A backbone and its processor: from a checkpoint, or freshly initialised and embedded.

    `cameras` and `instructions` are what a new embedded backbone is made for; `folder` is of a saved policy's backbone,
    whose weights are still to be filled in if the policy stores them. What cannot be read is a UserError.
    """
    require("transformers", "groot")
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    dtype = getattr(torch, config.backbone_dtype)
    if config.backbone and (folder is None or config.tune != "full"):
        with as_user_error(f"backbone={config.backbone}: no image-text-to-text checkpoint that transformers reads"):
            model = AutoModelForImageTextToText.from_pretrained(config.backbone, dtype=dtype)
    else:
        if folder is None:
            model_config, processor = build_embedded(config.embedded, cameras, instructions)
        else:
            with as_user_error(f"{folder / 'config.json'}: not readable"):
                model_config = AutoConfig.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_config(model_config, dtype=dtype)
        if folder is None:
            # A narrow model's usual 0.02 makes text embeddings so short that normalising them makes training unstable.
            nn.init.normal_(model.get_input_embeddings().weight, std=EMBEDDING_STD)
    if source := folder or config.backbone:
        with as_user_error(f"{source}: its processor cannot be read"):
            processor = AutoProcessor.from_pretrained(source)
    return Backbone(getattr(model, "model", model), config), processor
