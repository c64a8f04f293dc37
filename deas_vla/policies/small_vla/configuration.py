"""Settings of the GR00T-style policy."""

from dataclasses import dataclass, field

from deas_vla.errors import UserError, require_ranges


@dataclass
class EmbeddedBackboneConfig:
    """A vision-language model small enough for a CPU, built from these sizes instead of a checkpoint.

    A real `transformers` model (Idefics3: SigLIP vision tower, pixel shuffle, Llama) with new weights.
    """

    patch_size: int = 16  # Side of a vision patch in pixels.
    merge: int = 1  # Side of the square of patches that pixel shuffle merges into one token.
    vision_width: int = 96  # Width of the vision transformer.
    vision_layers: int = 1  # Layers of the vision transformer.
    text_width: int = 96  # Width of the language model, and of the tokens that the action head sees.
    text_layers: int = 1  # Layers of the language model.
    head_width: int = 32  # Width of one attention head, in both transformers.
    mlp_ratio: int = 2  # Width of the feed-forward layers, in multiples of the model width.


@dataclass
class SmallVLAConfig:
    """A vision-language backbone and a flow-matching transformer over action chunks.

    After GR00T N1.5 (NVIDIA 2025): backbone tokens, cut at a layer, through a layer norm and a few self-attention
    layers, are what a diffusion transformer attends to while it turns noise into an action chunk.
    """

    # Folder or hub name of a transformers image-text-to-text checkpoint; empty for the embedded backbone.
    backbone: str = ""
    embedded: EmbeddedBackboneConfig = field(default_factory=EmbeddedBackboneConfig)  # Sizes of the embedded backbone.
    # Side in pixels of the square that images are brought to before the backbone; 0: cameras as they are.
    image_size: int = 0
    tune: str = "full"  # How the backbone is tuned: frozen, lora or full.
    lora_rank: int = 16  # Rank of the LoRA adapters.
    lora_alpha: int = 32  # Scale of the LoRA adapters: their output is multiplied by alpha / rank.
    select_layer: int = 0  # Language-model layers to keep, counted from the first; 0 keeps all.
    backbone_dtype: str = "float32"  # Number type of the backbone's weights: float32 or bfloat16.
    max_instruction_tokens: int = 16  # Room for the instruction, in tokens; every prompt is padded to the same length.
    # Most frames that are encoded at once outside training: bounds the memory of filling a cache.
    encode_batch: int = 64
    # Self-attention layers over the backbone's tokens, before the action head (4 in GR00T N1.5).
    context_layers: int = 0
    horizon: int = 16  # Steps in an action chunk (H).
    width: int = 64  # Width of the action head.
    # Layers of the action head: cross-attention and self-attention in turn, cross-attention first (16 in GR00T N1.5).
    layers: int = 2
    head_width: int = 32  # Width of one attention head of the action head.
    mlp_ratio: int = 2  # Width of the feed-forward layers, in multiples of the width.
    denoising_steps: int = 4  # Euler steps from noise to a chunk.

    def __post_init__(self) -> None:
        for name, known in (("tune", ("frozen", "lora", "full")), ("backbone_dtype", ("float32", "bfloat16"))):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(known)}")
        if self.width % self.head_width:
            raise UserError(f"width={self.width} is not a multiple of head_width={self.head_width}")
        counts = "horizon layers denoising_steps max_instruction_tokens encode_batch"
        require_ranges(self, "", {"at least 1": counts, "at least 0": "image_size"})
