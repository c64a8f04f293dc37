"""Vision-language checkpoints of several families, a few thousand weights each, as folders on disk."""

from pathlib import Path

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SiglipImageProcessor,
)

from deas_vla.policies.small_vla.embedded import build_tokenizer

FAMILIES = ("llava", "paligemma", "qwen3_vl")
# Says where images and words go, as the chat templates of real checkpoints do.
TEMPLATE = (
    "{% for message in messages %}<s>{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    made = build_tokenizer([])
    made.add_special_tokens({"additional_special_tokens": special})
    return made


def text(kind: str, layers: int = 2, **more) -> dict:
    return {
        "model_type": kind,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 1100,
        "pad_token_id": 0,
        "initializer_range": 0.2,
        **more,
    }


def siglip(**more) -> dict:
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "vision_use_head": False,
        **more,
    }


def llava():
    words = tokenizer([])
    pixels = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(pixels, words, patch_size=8, vision_feature_select_strategy="full")
    config = LlavaConfig(
        vision_config=siglip(),
        text_config=text("llama"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return config, processor


def paligemma():
    words = tokenizer([])
    pixels = SiglipImageProcessor(size={"height": 16, "width": 16})
    pixels.image_seq_length = 4
    processor = PaliGemmaProcessor(pixels, words)
    config = PaliGemmaConfig(
        vision_config=siglip(projection_dim=32),
        text_config=text("gemma"),
        projection_dim=32,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return config, processor


def qwen3_vl():
    words = tokenizer(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"])
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    limits = {"shortest_edge": 256, "longest_edge": 256}
    pixels = Qwen2VLImageProcessor(size=limits, **sizes)
    processor = Qwen3VLProcessor(pixels, words, Qwen3VLVideoProcessor(**sizes), chat_template=TEMPLATE)
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    ids = {f"{name}_token_id": words.convert_tokens_to_ids(token) for name, token in names.items()}
    for name in ("vision_start", "vision_end"):
        ids[f"{name}_token_id"] = words.convert_tokens_to_ids(f"<|{name}|>")
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10_000.0}
    config = Qwen3VLConfig(vision_config=vision, text_config=text("qwen3_vl_text", rope_parameters=rope), **ids)
    return config, processor


def write_checkpoint(family: str, folder: Path, seed: int = 0) -> Path:
    """A randomly initialised checkpoint of one family, as a user would have it on disk."""
    config, processor = {"llava": llava, "paligemma": paligemma, "qwen3_vl": qwen3_vl}[family]()
    torch.manual_seed(seed)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
