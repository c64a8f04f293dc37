"""A LeRobot policy's folder that refers to no other folder and to no hub, so that it can be moved.

LeRobot stores the names of the checkpoints that a policy was built from, and looks there again for architectures,
tokenizers and image processors. Here these are written to ``parts/``, and the names become ``parts/…``.
"""

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from deas_vla.errors import UserError
from deas_vla.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, PREPROCESSOR = "config.json", "policy_preprocessor.json"
PARTS = "parts"
# Fields of any policy's configuration that say where it came from or goes to.
HISTORY = ("pretrained_path", "pretrained_revision", "repo_id")
NOTES = ("name_or_path", "_name_or_path")  # where tokenizers and models note the folder that they were read from
TOKEN_TABLES = ("merges", "vocab")  # a tokenizer's pieces of text, which may begin with a slash and are no paths
# A tokenizer's files. Without one it is read all the same: without a vocabulary, or without padding.
TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
# Step of a preprocessor to its field that names a tokenizer or processor, and what stands for it.
STEPS = {
    "tokenizer_processor": ("tokenizer_name", f"{PARTS}/tokenizer"),
    "groot_n1_7_vlm_encode_v1": ("model_name", f"{PARTS}/processor"),
}


def make_standalone(folder: Path, steps: Sequence, fields: dict[str, object]) -> None:
    """Turns the folder of a LeRobot policy, with the parts that its adapter wrote, into one that needs nothing else.

    The steps are its preprocessor's, the fields those of `Adapter.write_parts`. Where a file of it names another folder
    that this version does not know to replace, a UserError.
    """
    config = read_json(folder / CONFIG)
    config |= dict.fromkeys(HISTORY) | {"device": "cpu"}
    if "compile_model" in config:
        # With it LeRobot also makes every matrix product of the whole process less exact.
        config["compile_model"] = False
    write_json(folder / CONFIG, config | fields)

    written = read_json(folder / PREPROCESSOR)
    for step, entry in zip(steps, written["steps"], strict=True):
        name, settings = entry.get("registry_name"), entry["config"]
        if "device" in settings:
            settings["device"] = "cpu"
        if name in STEPS:
            field, part_name = STEPS[name]
            whole = getattr(step, "proc", None)
            parts = [whole.tokenizer, whole.image_processor, whole.video_processor] if whole else [step.input_tokenizer]
            for part in parts:
                part.save_pretrained(folder / part_name)
            settings[field] = part_name
    write_json(folder / PREPROCESSOR, written)
    for path in sorted(folder.rglob("*.json")):
        _remove_notes(path)


def save_config(model: "PreTrainedModel", folder: Path) -> None:
    """Writes a model's configuration with the type of its weights, which only saving its weights would note."""
    model.config.dtype = model.dtype
    model.config.save_pretrained(folder)


def _texts(item: object) -> Iterator[str]:
    """The texts of a JSON value that is a text or lists of them, however deep."""
    if isinstance(item, str):
        yield item
    elif isinstance(item, list):
        for part in item:
            yield from _texts(part)


def _remove_notes(path: Path) -> None:
    """Removes the notes of where things were read from, and refuses any other absolute path."""

    def cleaned(value: dict) -> dict:
        value = {key: item for key, item in value.items() if key not in NOTES}
        for key, item in value.items():
            for text in [] if key in TOKEN_TABLES else _texts(item):
                if os.path.isabs(text):
                    fix = "train the policy from a checkpoint that needs none"
                    raise UserError(f"{path.name} of the policy names another folder ({key} = {text}); {fix}")
        return value

    write_json(path, json.loads(path.read_text(encoding="utf-8"), object_hook=cleaned))


def find_parts(config, folder: Path) -> dict[str, dict[str, str]]:
    """Makes the relative paths in LeRobot's configuration of a policy absolute, in place.

    Returns the same for the preprocessor, as overrides for LeRobot's reader. A missing part, which LeRobot would look
    for on a hub, is a UserError.
    """
    needed = []
    for field, value in vars(config).items():
        if isinstance(value, str) and value.startswith(f"{PARTS}/"):
            needed.append(folder / value)
            setattr(config, field, str(folder / value))
    overrides = {}
    for entry in read_json(folder / PREPROCESSOR).get("steps", []):
        field, part_name = STEPS.get(entry.get("registry_name"), (None, None))
        if field is not None and entry["config"].get(field) == part_name:
            needed += [folder / part_name / name for name in TOKENIZER_FILES]
            overrides[entry["registry_name"]] = {field: str(folder / part_name)}
    for part in needed:
        if not part.exists():
            raise UserError(f"{part}: missing, and the policy is not whole without it; copy it again")
    return overrides


@contextmanager
def without_weights(folder: Path) -> Iterator[None]:
    """A block in which the parts of a standalone folder are built from their configurations; others change nothing.

    LeRobot calls `PreTrainedModel.from_pretrained` for weights that it then replaces, whatever it is told, so that
    method is replaced, in the whole process: read one policy at a time.
    """
    if not (folder / PARTS).is_dir():
        yield
        return
    from transformers import PreTrainedModel  # a diffusion policy needs nothing of it

    def from_configuration(cls, folder, *_, config=None, **settings):
        dtype = settings.pop("torch_dtype", settings.pop("dtype", None))
        if config is None:
            config, settings = cls.config_class.from_pretrained(folder, return_unused_kwargs=True, **settings)
        name = getattr(config, "model_name", None)
        if isinstance(name, str) and (Path(folder) / name).is_dir():
            config.model_name = str(Path(folder) / name)
        known = inspect.signature(cls.__init__).parameters
        settings = {name: value for name, value in settings.items() if name in known}
        return cls._from_config(config, dtype=dtype or config.dtype, **settings)

    with mock.patch.object(PreTrainedModel, "from_pretrained", classmethod(from_configuration)):
        yield
