"""A LeRobot policy's folder that refers to no other folder and to no hub, so that it can be moved.

LeRobot stores a policy's weights, and of the checkpoints that it was built from the name alone: where they lay on the
machine that trained it, or a name on a hub. When it reads the policy it looks there again for architectures,
tokenizers and image processors, and for weights that it then replaces. Here all of that but the weights is written to
``parts/`` beside the policy's own files, and the names become ``parts/…``.
"""

import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from deas_vla.errors import UserError
from deas_vla.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deas_vla.policies.lerobot.modeling import LeRobotPolicy

CONFIG, PREPROCESSOR = "config.json", "policy_preprocessor.json"
PARTS = "parts"
# Fields of any policy's configuration that say where it came from or goes to.
HISTORY = ("pretrained_path", "pretrained_revision", "repo_id")
# A switch with which LeRobot also makes every matrix product of the whole process less exact.
COMPILED = "compile_model"
# Where tokenizers and models note the folder that they were read from.
NOTES = ("name_or_path", "_name_or_path")
# A tokenizer's files. Without one it is read all the same: with no words, or with no padding.
WORDS = ("tokenizer_config.json", "tokenizer.json")
# Step of a preprocessor to its field that names a tokenizer or processor, and what stands for it.
STEPS = {
    "tokenizer_processor": ("tokenizer_name", f"{PARTS}/tokenizer"),
    "groot_n1_7_vlm_encode_v1": ("model_name", f"{PARTS}/processor"),
}


# ---- writing ---------------------------------------------------------------------------------------------------


def make_standalone(policy: "LeRobotPolicy", folder: Path) -> None:
    """Turns what `LeRobotPolicy.save` wrote into a folder that needs nothing else.

    Args:
        policy: that was written.
        folder: where; nobody else reads it yet.

    Raises:
        UserError: if its configuration names another folder that this version does not know to replace.
    """
    inner = policy.policy
    config = _read(folder / CONFIG)
    config |= dict.fromkeys(HISTORY) | {"device": "cpu"}
    if COMPILED in config:
        config[COMPILED] = False
    config |= WRITERS.get(inner.config.type, _nothing)(inner, folder)
    write_json(folder / CONFIG, config)

    steps = policy.processors.preprocessor.steps
    written = _read(folder / PREPROCESSOR)
    for step, entry in zip(steps, written["steps"], strict=True):
        name, settings = entry.get("registry_name"), entry["config"]
        if "device" in settings:
            settings["device"] = "cpu"
        if name in STEPS:
            field, place = STEPS[name]
            parts = _words_and_images(step)
            for part in parts:
                part.save_pretrained(folder / place)
            settings[field] = place
    write_json(folder / PREPROCESSOR, written)
    for path in sorted(folder.rglob("*.json")):
        write_json(path, _without_notes(_read(path)))
        _require_no_other_folder(path)


def _smolvla(inner: nn.Module, folder: Path) -> dict:
    both = inner.model.vlm_with_expert
    both.config.save_pretrained(folder / PARTS / "vlm")
    both.processor.save_pretrained(folder / PARTS / "vlm")
    return {"vlm_model_name": f"{PARTS}/vlm"}


def _multi_task_dit(inner: nn.Module, folder: Path) -> dict:
    observer = inner.observation_encoder
    seeing = (observer.vision_encoders or [observer.vision_encoder])[0].model
    # LeRobot wants "clip" in the names.
    places = {"vision_encoder_name": "clip_vision", "text_encoder_name": "clip_text"}
    towers = (seeing, observer.text_encoder.text_encoder)
    for name, model in zip(places.values(), towers, strict=True):
        _save_config(model, folder / PARTS / name)
    return {field: f"{PARTS}/{name}" for field, name in places.items()}


def _groot(inner: nn.Module, folder: Path) -> dict:
    place, model = folder / PARTS / "groot", inner._groot_model
    _save_config(model, place)
    base = Path(inner.config.base_model_path)
    # A checkpoint of NVIDIA's has horizons and embodiments beside its configuration.
    for path in sorted(base.glob("*.json")) if base.is_dir() else ():
        if not (place / path.name).exists() and not path.name.endswith("index.json"):
            shutil.copy(path, place)
    if Path(model.config.model_name).is_absolute():
        _save_config(model.backbone.model, place / "backbone")
        settings = _read(place / CONFIG)
        write_json(place / CONFIG, settings | {"model_name": "backbone"})
    return {"base_model_path": f"{PARTS}/groot"}


def _nothing(inner: nn.Module, folder: Path) -> dict:
    return {}


# Kind of policy to what writes its parts and gives the fields of its configuration that name them. The kinds that
# are not here are built from their configuration alone.
WRITERS: dict[str, Callable[[nn.Module, Path], dict]] = {
    "smolvla": _smolvla,
    "multi_task_dit": _multi_task_dit,
    "groot": _groot,
    "xvla": lambda inner, folder: {"tokenizer_name": f"{PARTS}/tokenizer"},
    # Weights that torchvision would fetch, only for them to be replaced.
    "diffusion": lambda inner, folder: {"pretrained_backbone_weights": None},
}


def _save_config(model: "PreTrainedModel", place: Path) -> None:
    """Writes a model's configuration with the type of its numbers, which only saving its weights would note."""
    model.config.dtype = model.dtype
    model.config.save_pretrained(place)


def _words_and_images(step) -> list:
    """The tokenizer of a step, and the image processors where it has some."""
    if hasattr(step, "input_tokenizer"):
        return [step.input_tokenizer]
    return [step.proc.tokenizer, step.proc.image_processor, step.proc.video_processor]


def _without_notes(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_notes(item) for key, item in value.items() if key not in NOTES}
    return [_without_notes(item) for item in value] if isinstance(value, list) else value


def _require_no_other_folder(path: Path) -> None:
    for key, text in _texts(_read(path)):
        if os.path.isabs(text):
            raise UserError(
                f"{path.name} of the policy names another folder ({key} = {text}), and this version does not know "
                "how to do without it; train the policy from a checkpoint of a kind that it knows"
            )


def _texts(value: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from _texts(item, f"{key}.{name}".lstrip("."))


# ---- reading ---------------------------------------------------------------------------------------------------


def is_standalone(folder: Path) -> bool:
    return (folder / PARTS).is_dir()


def find_parts(config, folder: Path) -> dict[str, dict[str, str]]:
    """Makes the places in a policy's configuration those of its folder, wherever that is now.

    Args:
        config: LeRobot's, changed in place.
        folder: that it was read from.

    Returns:
        The same for the steps of the preprocessor: overrides for LeRobot's reader.

    Raises:
        UserError: naming the part that is missing; LeRobot would look for it on a hub.
    """
    for field, value in vars(config).items():
        if isinstance(value, str) and value.startswith(f"{PARTS}/"):
            setattr(config, field, str(_there(folder / value)))
    overrides = {}
    for entry in _read(folder / PREPROCESSOR).get("steps", []):
        field, place = STEPS.get(entry.get("registry_name"), (None, None))
        if field is not None and entry["config"].get(field) == place:
            for name in WORDS:
                _there(folder / place / name)
            overrides[entry["registry_name"]] = {field: str(folder / place)}
    return overrides


def _there(part: Path) -> Path:
    if not part.exists():
        raise UserError(f"{part}: missing, and the policy is not whole without it; copy it again")
    return part


def without_weights(folder: Path):
    """A block in which the parts of a standalone folder are built from their configurations.

    LeRobot builds a policy with the weights of the checkpoints that it started from, and then replaces them with the
    policy's own; a standalone folder holds only these. Other folders are read as always.
    """
    return _from_configurations() if is_standalone(folder) else nullcontext()


@contextmanager
def _from_configurations() -> Iterator[None]:
    from transformers import PreTrainedModel  # a diffusion policy needs nothing of it

    original = PreTrainedModel.__dict__["from_pretrained"]

    def from_configuration(cls, place, *_, config=None, **settings):
        dtype = settings.pop("torch_dtype", settings.pop("dtype", None))
        if config is None:
            config, settings = cls.config_class.from_pretrained(place, return_unused_kwargs=True, **settings)
        name = getattr(config, "model_name", None)
        if isinstance(name, str) and (Path(place) / name).is_dir():
            config.model_name = str(Path(place) / name)
        known = inspect.signature(cls.__init__).parameters
        settings = {name: value for name, value in settings.items() if name in known}
        return cls._from_config(config, dtype=dtype or config.dtype, **settings)

    PreTrainedModel.from_pretrained = classmethod(from_configuration)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = original


def _read(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cut off or damaged ({error})") from error
