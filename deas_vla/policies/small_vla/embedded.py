"""The embedded backbone: a vision-language model and its processor, made here, with nothing to download."""

from deas_vla.data.contract import Camera
from deas_vla.errors import UserError
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig

PAD_TOKEN, BEGIN_TOKEN, STOP_TOKEN, IMAGE_TOKEN = "<pad>", "<s>", "</s>", "<image>"
# What Idefics3's processor writes around images and turns.
FAKE_TOKEN, GLOBAL_TOKEN, END_TOKEN = "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"
VOCABULARY_SIZE = 1024
EMBEDDING_STD = 0.2  # standard deviation of new word embeddings, about that of the image tokens beside them

# Words that robots' instructions use: they become one token each. Any other word is spelled in bytes.
WORDS = (
    "a all and at away back banana bar basket behind below beside big block blue bottle bottom bowl bowls box bread",
    "brown burner button cabinet can cans cart center cereal clear close coffee corner counter cube cup cutting desk",
    "dish door drawer drop egg faucet first fish flip food fridge from front fruit gently grasp green gripper grey",
    "hand handle heat in inside into it item kettle knife knob lamp left lever lid lift lower machine meat microwave",
    "middle milk mug near new next object of off on onto open orange out oven over pan peach peg pick pin pink place",
    "plate pot potato pour press pull purple push put reach red release right robot rotate round second serve set",
    "shelf shut sink slide small spatula spoon spout square stack start stop stove sugar switch table take that the",
    "then thermal third to tomato top toward towel turn twist under up upright vegetable water wheel white wine wipe",
    "with wooden yellow",
)


def build_tokenizer(instructions: list[str]):
    """A byte-level tokenizer: the words above and those of the given instructions are one token each."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = sorted(set(" ".join((*WORDS, *instructions)).lower().replace(".", " ").split()))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD_TOKEN, BEGIN_TOKEN, STOP_TOKEN, IMAGE_TOKEN, FAKE_TOKEN, GLOBAL_TOKEN, END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD_TOKEN, bos_token=BEGIN_TOKEN, eos_token=STOP_TOKEN
    )


def build_embedded(config: EmbeddedBackboneConfig, cameras: tuple[Camera, ...], instructions: list[str]):
    """A `transformers` model configuration and a processor, whose tokenizer knows the words of the instructions.

    Raises UserError if the cameras are not square, of one size, a multiple of a token's side.
    """
    from transformers import Idefics3Config, Idefics3ImageProcessor, Idefics3Processor
    from transformers.image_utils import PILImageResampling

    sizes = {(camera.height, camera.width) for camera in cameras}
    side, token = max(max(size) for size in sizes), config.patch_size * config.merge
    if sizes != {(side, side)} or side % token:
        raise UserError(
            f"the embedded backbone needs square cameras of one size, a multiple of {token} pixels; "
            f"got {', '.join(f'{c.name} {c.height}x{c.width}' for c in cameras)}; "
            f"--policy.image_size={4 * token} brings images to {4 * token}x{4 * token}"
        )
    tokenizer = build_tokenizer(instructions)
    image_processor = Idefics3ImageProcessor(
        do_image_splitting=False,
        resample=PILImageResampling.BICUBIC,
        size={"longest_edge": side},
        max_image_size={"longest_edge": side},
    )
    processor = Idefics3Processor(image_processor, tokenizer, image_seq_len=(side // token) ** 2)
    text, vision = (
        {
            "hidden_size": width,
            "intermediate_size": config.mlp_ratio * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // config.head_width,
        }
        for width, layers in ((config.text_width, config.text_layers), (config.vision_width, config.vision_layers))
    )
    model_config = Idefics3Config(
        vision_config=vision | {"image_size": side, "patch_size": config.patch_size},
        text_config=text
        | {"model_type": "llama", "vocab_size": VOCABULARY_SIZE, "pad_token_id": tokenizer.pad_token_id},
        scale_factor=config.merge,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        pad_token_id=tokenizer.pad_token_id,
    )
    return model_config, processor
