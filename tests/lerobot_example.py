"""Small LeRobot policies of several kinds, made from configurations: nothing is downloaded."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from data_example import example_contract
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config
from lerobot.policies.pi0 import modeling_pi0, processor_pi0
from lerobot.policies.pi05 import modeling_pi05, processor_pi05
from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma, PiGemmaForCausalLM
from lerobot.processor import TokenizerProcessorStep
from tiny_checkpoints import TEMPLATE, write_checkpoint
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, GemmaConfig, GemmaTokenizer, PaliGemmaConfig

from deas_vla.data.contract import Camera, Contract, Statistics
from deas_vla.data.observation import Observation
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.small_vla.embedded import build_tokenizer
from studies.metaworld.small_smolvlm import write_small_smolvlm

SIZE, H, A = 64, 16, 2
SENTENCES = ["lift the red cube", "open the left drawer of the cabinet and put the red cube into it"]
CONTRACT = example_contract(cameras=(Camera("left", SIZE, SIZE), Camera("wrist", SIZE, SIZE)), statistics=None)


def features(contract: Contract) -> dict[str, dict[str, PolicyFeature]]:
    """What a policy for this robot sees and makes, in LeRobot's notation."""
    seen = {"observation.state": PolicyFeature(FeatureType.STATE, (contract.state_dim,))}
    for camera in contract.cameras:
        shape = (3, camera.height, camera.width)
        seen[f"observation.images.{camera.name}"] = PolicyFeature(FeatureType.VISUAL, shape)
    made = {"action": PolicyFeature(FeatureType.ACTION, (contract.action_dim,))}
    return {"input_features": seen, "output_features": made}


def statistics(contract: Contract) -> dict[str, dict[str, Tensor]]:
    """Of a data set whose states and actions have neither mean 0 nor spread 1."""
    made = {}
    for key, width in (("observation.state", contract.state_dim), ("action", contract.action_dim)):
        mean = 0.1 * torch.arange(1, width + 1)
        spread = 0.4 + 0.1 * torch.arange(width)
        made[key] = {"mean": mean, "std": spread, "min": mean - 2 * spread, "max": mean + 2 * spread}
        made[key] |= {"q01": mean - 1.9 * spread, "q99": mean + 1.9 * spread}
    for camera in contract.cameras:
        colours = {"mean": 0.45, "std": 0.25, "min": 0.0, "max": 1.0}
        made[f"observation.images.{camera.name}"] = {k: torch.full((3, 1, 1), v) for k, v in colours.items()}
    return made


def make(kind: str, contract: Contract = CONTRACT, seed: int = 0, **settings) -> LeRobotPolicy:
    """A freshly drawn policy of one kind, in evaluation mode."""
    torch.manual_seed(seed)
    config = make_policy_config(kind, device="cpu", push_to_hub=False, **features(contract), **settings)
    policy = get_policy_class(kind)(config)
    processors = make_pre_post_processors(config, dataset_stats=statistics(contract))
    if settings.get("use_relative_actions"):
        # Its normaliser holds those of differences.
        rows = statistics(contract).values()
        numbers = [tuple(each[name].tolist()) for each in list(rows)[:2] for name in ("mean", "std")]
        contract = contract.with_statistics(Statistics(*numbers))
    return LeRobotPolicy(policy, *processors, contract).eval()


def diffusion(contract: Contract = CONTRACT, seed: int = 0, **changes) -> LeRobotPolicy:
    settings = {
        "n_obs_steps": 1,
        "horizon": H,
        "n_action_steps": 8,
        "crop_shape": None,
        "pretrained_backbone_weights": None,
        "spatial_softmax_num_keypoints": 4,
        "down_dims": (16, 32),
        "diffusion_step_embed_dim": 16,
        "num_train_timesteps": 20,
        "num_inference_steps": 3,
        "noise_scheduler_type": "DDIM",
    }
    return make("diffusion", contract, seed, **(settings | changes))


def smolvla(folder: Path, contract: Contract = CONTRACT, seed: int = 0, **changes) -> LeRobotPolicy:
    if not folder.exists():
        write_small_smolvlm(folder, SENTENCES, SIZE, patch=16)
    settings = {
        "vlm_model_name": str(folder),
        "num_vlm_layers": 2,
        "resize_imgs_with_padding": (SIZE, SIZE),
        "chunk_size": H,
        "n_action_steps": 8,
        "num_steps": 3,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "tokenizer_max_length": 24,
    }
    return make("smolvla", contract, seed, **(settings | changes))


def observations(count: int, contract: Contract = CONTRACT, seed: int = 0, sentences=SENTENCES) -> Observation:
    """Random images and states; the sentences take turns."""
    generator = torch.Generator().manual_seed(seed)
    images = {
        camera.name: torch.randint(
            0, 256, (count, camera.height, camera.width, 3), dtype=torch.uint8, generator=generator
        )
        for camera in contract.cameras
    }
    state = torch.randn(count, contract.state_dim, generator=generator)
    return Observation(images, state, [sentences[i % len(sentences)] for i in range(count)])


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip_folder(folder: Path) -> Path:
    """A CLIP of width 32 with patches of 16 pixels, and a tokenizer; LeRobot wants "clip" in its name."""
    words = build_tokenizer(SENTENCES)
    layers = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 24, "vocab_size": 1024, "max_position_embeddings": 32, **layers}
    text |= {"pad_token_id": 0, "bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id}
    vision = {"hidden_size": 32, "image_size": SIZE, "patch_size": 16, **layers}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def multi_task_dit(folder: Path, contract: Contract = CONTRACT, seed: int = 0, **changes) -> LeRobotPolicy:
    if not folder.exists():
        clip_folder(folder)
    settings = {
        "vision_encoder_name": str(folder),
        "text_encoder_name": str(folder),
        "n_obs_steps": 1,
        "horizon": H,
        "n_action_steps": 8,
        "objective": "flow_matching",
        "num_integration_steps": 3,
        "num_train_timesteps": 20,
        "num_inference_steps": 3,
        "hidden_dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "timestep_embed_dim": 16,
        "image_crop_shape": (SIZE, SIZE),
        "tokenizer_max_length": 24,
    }
    made = make("multi_task_dit", contract, seed, **(settings | changes))
    return shake(made, made.policy.noise_predictor)


def xvla(folder: Path, contract: Contract = CONTRACT, seed: int = 0, **changes) -> LeRobotPolicy:
    if not folder.exists():
        build_tokenizer(SENTENCES).save_pretrained(folder)
    vision = {
        "depths": (1, 1),
        "patch_size": (7, 3),
        "patch_stride": (4, 4),
        "patch_padding": (3, 1),
        "patch_prenorm": (False, True),
        "embed_dim": (16, 32),
        "num_heads": (2, 2),
        "num_groups": (2, 2),
        "window_size": 4,
        "drop_path_rate": 0.0,
        "projection_dim": 32,
    }
    text = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 128,
        "dropout": 0.0,
        "init_std": 0.2,
        "pad_token_id": 0,
    }
    settings = {
        "florence_config": {"vision_config": vision, "text_config": text, "image_token_id": 3},
        "tokenizer_name": str(folder),
        "tokenizer_max_length": 24,
        "chunk_size": H,
        "n_action_steps": 8,
        "hidden_size": 32,
        "depth": 2,
        "num_heads": 2,
        "num_domains": 2,
        "len_soft_prompts": 2,
        "max_len_seq": 128,
        "action_mode": "auto",
        "max_action_dim": A,
        "max_state_dim": 8,
        "num_denoising_steps": 3,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
    }
    return make("xvla", contract, seed, **(settings | changes))


def groot(folder: Path, contract: Contract = CONTRACT, seed: int = 0, **changes) -> LeRobotPolicy:
    """GR00T N1.7 with a Qwen3-VL of two layers, four tokens an image; its model makes chunks of 20 steps."""
    backbone = folder / "qwen3_vl"
    if not folder.exists():
        write_checkpoint("qwen3_vl", backbone)
        words = AutoTokenizer.from_pretrained(backbone)
        words.chat_template = TEMPLATE
        words.save_pretrained(backbone)
        attention = {"num_attention_heads": 2, "attention_head_dim": 16, "dropout": 0.0, "positional_embeddings": None}
        base = GR00TN17Config(
            model_name=str(backbone),
            backbone_embedding_dim=32,
            select_layer=2,
            hidden_size=32,
            input_embedding_dim=32,
            action_horizon=20,
            max_state_dim=8,
            max_action_dim=8,
            max_num_embodiments=12,
            state_dropout_prob=0.0,
            diffusion_model_cfg={
                "num_layers": 8,
                "norm_type": "ada_norm",
                "output_dim": 32,
                "interleave_self_attention": True,
                **attention,
            },
            vl_self_attention_cfg={"num_layers": 1, **attention},
        )
        torch.manual_seed(seed)
        GR00TN17(base, load_backbone_weights=False).save_pretrained(folder)
    settings = {
        "base_model_path": str(folder),
        "max_state_dim": 8,
        "max_action_dim": 8,
        "chunk_size": H,
        "n_action_steps": 8,
        "use_bf16": False,
    }
    torch.manual_seed(seed)
    config = make_policy_config("groot", device="cpu", push_to_hub=False, **features(contract), **(settings | changes))
    policy = get_policy_class("groot")(config)
    before, after = make_pre_post_processors(config, dataset_stats=statistics(contract))
    encode = before.steps[3]
    encode.model_name, encode.image_target_size, encode.image_crop_size = str(backbone), [16, 16], None
    made = LeRobotPolicy(policy, before, after, contract).eval()
    return shake(made, policy._groot_model.action_head)


def shake(policy: LeRobotPolicy, part: torch.nn.Module) -> LeRobotPolicy:
    """Moves the weights of a part: a new one is zero in places, where a mistake would not be seen."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def gemma_tokenizer(sentences: list[str]) -> GemmaTokenizer:
    """The class of PaliGemma's tokenizer: few words, and bytes for all others."""
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
    words = sorted({word for sentence in sentences for word in sentence.split()})
    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *alphabet, *sorted({*"▁\n", *"".join(words)})]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in names:
                names.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return GemmaTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges)


@contextmanager
def small_pi(tokenizer: Path | None = None):
    """Inside the block LeRobot builds and reads π0 and π0.5 with small networks.

    Their configuration knows two sizes, of billions of weights, and the code knows the size of PaliGemma's vision model
    and vocabulary. These sizes are replaced: two layers, four tokens an image. All else is LeRobot's own: constructors,
    processors, and the readers and writers of files.

    Args:
        tokenizer: folder that stands for the name of PaliGemma's tokenizer on the hub; None: as always.
    """
    width = 32

    def paligemma(config: PaliGemmaConfig):
        config.text_config.vocab_size, config.text_config.initializer_range = 1100, 0.2
        small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        for name, value in (small | {"projection_dim": width}).items():
            setattr(config.vision_config, name, value)
        return PaliGemmaForConditionalGenerationWithPiGemma(config)

    def expert(config: GemmaConfig):
        config.vocab_size, config.initializer_range = 1100, 0.2
        return PiGemmaForCausalLM(config)

    def words(tokenizer_name: str, **settings) -> TokenizerProcessorStep:
        return TokenizerProcessorStep(tokenizer_name=str(tokenizer or tokenizer_name), **settings)

    sizes = {"width": width, "depth": 2, "mlp_dim": 48, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8}
    with pytest.MonkeyPatch.context() as patch:
        for model, processor in ((modeling_pi0, processor_pi0), (modeling_pi05, processor_pi05)):
            patch.setattr(model, "get_gemma_config", lambda variant, of=model: of.GemmaConfig(**sizes))
            patch.setattr(model, "PaliGemmaForConditionalGenerationWithPiGemma", paligemma)
            patch.setattr(model, "PiGemmaForCausalLM", expert)
            patch.setattr(processor, "TokenizerProcessorStep", words)
        yield


def pi(kind: str, folder: Path, contract: Contract = CONTRACT, seed: int = 0, **changes) -> LeRobotPolicy:
    if not folder.exists():
        gemma_tokenizer(SENTENCES).save_pretrained(folder)
    settings = {
        "image_resolution": (28, 28),
        "chunk_size": H,
        "n_action_steps": 8,
        "num_inference_steps": 3,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "tokenizer_max_length": 64,
    }
    with small_pi(folder):
        made = make(kind, contract, seed, **(settings | changes))
    return shake(made, made.policy.model.paligemma_with_expert.gemma_expert)


def maker(folder: Path):
    """Makes policies by the name of their kind; what they are made from is kept in a folder."""
    makers = {
        "diffusion": diffusion,
        "diffusion_ddpm": lambda **changes: diffusion(noise_scheduler_type="DDPM", **changes),
        "dit_flow": lambda **changes: multi_task_dit(folder / "clip", **changes),
        "dit_diffusion": lambda **changes: multi_task_dit(
            folder / "clip", objective="diffusion", noise_scheduler_type="DDIM", **changes
        ),
        "smolvla": lambda **changes: smolvla(folder / "smolvlm", **changes),
        "pi0": lambda **changes: pi("pi0", folder / "paligemma", **changes),
        "pi05": lambda **changes: pi("pi05", folder / "paligemma", **changes),
        "groot": lambda **changes: groot(folder / "gr00t-n1.7", **changes),
        "xvla": lambda **changes: xvla(folder / "words", **changes),
    }
    return lambda kind, **changes: makers[kind](**changes)


KINDS = ("diffusion", "diffusion_ddpm", "dit_flow", "dit_diffusion", "smolvla", "pi0", "pi05", "groot", "xvla")


def made_once(make):
    """The policy of a kind, made when it is first asked for; a test finds it as it was, and changes no weights."""
    made = {}

    def get(kind: str):
        if kind not in made:
            made[kind] = make(kind)
        made[kind].eval().zero_grad()
        return made[kind]

    return get
