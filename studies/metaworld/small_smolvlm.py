"""A SmolVLM small enough for a CPU, as the folder that a SmolVLA is built on: nothing is downloaded."""

from pathlib import Path

from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from deas_vla.policies.small_vla.embedded import (
    BEGIN_TOKEN,
    EMBEDDING_STD,
    END_TOKEN,
    FAKE_TOKEN,
    GLOBAL_TOKEN,
    IMAGE_TOKEN,
    PAD_TOKEN,
    STOP_TOKEN,
    VOCABULARY_SIZE,
    build_tokenizer,
)

HEAD, MERGE = 16, 2


def write_small_smolvlm(
    folder: Path, sentences: list[str], image_size: int, *, patch: int = 8, width: int = 32, layers: int = 2
) -> Path:
    """Writes configuration and processor, not weights: ``lerobot-train --policy.vlm_model_name=FOLDER`` draws them.

    Args:
        folder: where.
        sentences: instructions whose words become one token each.
        image_size: height and width of the images in pixels; a token is a square of twice the patch's side.
        patch: side of a patch in pixels.
        width: of the text and the vision model; a multiple of 32.
        layers: of the text model; the vision model has half as many.

    Returns:
        The folder.
    """
    names = {
        "image_token": IMAGE_TOKEN,
        "fake_image_token": FAKE_TOKEN,
        "global_image_token": GLOBAL_TOKEN,
        "end_of_utterance_token": END_TOKEN,
    }
    words = PreTrainedTokenizerFast(
        tokenizer_object=build_tokenizer(sentences).backend_tokenizer,
        pad_token=PAD_TOKEN,
        bos_token=BEGIN_TOKEN,
        eos_token=STOP_TOKEN,
        extra_special_tokens=names,
    )
    text = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD // 2,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY_SIZE,
        "pad_token_id": words.pad_token_id,
        "initializer_range": EMBEDDING_STD,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers // 2,
        "num_attention_heads": width // HEAD,
        "image_size": image_size,
        "patch_size": patch,
    }
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=MERGE,
        image_token_id=words.convert_tokens_to_ids(IMAGE_TOKEN),
        pad_token_id=words.pad_token_id,
    )
    edge = {"size": {"longest_edge": image_size}, "max_image_size": {"longest_edge": image_size}}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**edge),
        words,
        SmolVLMVideoProcessor(**edge),
        image_seq_len=(image_size // (patch * MERGE)) ** 2,
    )
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
