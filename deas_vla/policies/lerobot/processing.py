"""Between the project's observations, commands and contract, and LeRobot's batches, normalised actions and features."""

import hashlib
import json
from dataclasses import replace
from functools import cached_property

import torch
from lerobot.configs.types import NormalizationMode
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import (
    NormalizerProcessorStep,
    PolicyProcessorPipeline,
    RelativeActionsProcessorStep,
    RenameObservationsProcessorStep,
    TokenizerProcessorStep,
    UnnormalizerProcessorStep,
)
from lerobot.processor.converters import create_transition
from torch import Tensor

from deas_vla.data.contract import ACTION_STD_FLOOR, STATE_STD_FLOOR, Contract, Statistics
from deas_vla.data.lerobot import EMPTY_CAMERA, IMAGES, camera_name
from deas_vla.data.observation import Observation
from deas_vla.errors import ContractMismatch, UserError

STATE, ACTION, TASK = "observation.state", "action", "task"
PATHS = ("tokenizer_name", "model_name", "device")  # settings that say where something lies, not what it is


class Processors:
    """A LeRobot policy's pre- and postprocessor; a policy that needs more than an observation has is a UserError."""

    def __init__(self, config, preprocessor: PolicyProcessorPipeline, postprocessor: PolicyProcessorPipeline) -> None:
        self.config, self.preprocessor, self.postprocessor = config, preprocessor, postprocessor
        # Every prompt is padded to one length, as masked tokens: what a frame becomes then does not depend on the
        # other instructions of its batch.
        padded = [
            replace(step, padding="max_length", tokenizer=step.input_tokenizer)
            if isinstance(step, TokenizerProcessorStep)
            else step
            for step in preprocessor.steps
        ]
        self._padded = replace(preprocessor, steps=padded)
        # What happens to an action on its way into the model, in this order.
        inwards = RelativeActionsProcessorStep | NormalizerProcessorStep
        self._inwards = [s for s in preprocessor.steps if isinstance(s, inwards) or _packs(s)]
        renaming = [step for step in preprocessor.steps if isinstance(step, RenameObservationsProcessorStep)]
        renames = {new: old for step in renaming for old, new in step.rename_map.items()}
        self.state_key = renames.get(STATE, STATE)
        # The policy's key of an image to the camera in the contract, and that to its key before the preprocessor.
        given = {key: renames.get(key, key) for key in config.image_features if not key.startswith(EMPTY_CAMERA)}
        self._cameras = {key: camera_name(old) for key, old in given.items()}
        self.camera_keys = {camera_name(old): old for old in given.values()}
        self._require_supported()

    def _require_supported(self) -> None:
        kind, known = self.config.type, {STATE, *self.config.image_features}
        other = [key for key in self.config.input_features if key not in known]
        if other:
            raise UserError(f"the {kind} policy reads {other[0]}, which an observation here does not have")
        if (count := getattr(self.config, "n_obs_steps", 1)) != 1:
            fix = "train it with --policy.n_obs_steps=1"
            raise UserError(f"the {kind} policy sees {count} observations at once, and a critic sees one; {fix}")
        for step in [*self.preprocessor.steps, *self.postprocessor.steps]:
            needed = []
            if isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep):
                modes = {key: step.norm_map.get(feature.type) for key, feature in step.features.items()}
                needed = [key for key, mode in modes.items() if mode not in (None, NormalizationMode.IDENTITY)]
            elif _packs(step) and not step.raw_stats:
                needed = [STATE, ACTION]
            if missing := [key for key in needed if not (step.stats or {}).get(key)]:
                # LeRobot would leave the numbers as they are.
                fix = "train it on the data set first (lerobot-train --policy.path=CHECKPOINT), which stores them"
                raise UserError(f"the {kind} policy has no normalisation statistics of {', '.join(missing)}; {fix}")
        if getattr(self.config, "use_relative_actions", False) and not self.relative:
            fix = "save its processors again, as lerobot-train --policy.use_relative_actions=true does"
            raise UserError(f"the {kind} policy's config.json says relative actions, its processors do not; {fix}")

    @property
    def relative(self) -> bool:
        """Whether the model's actions are differences to the state, which these processors add again."""
        steps = [*self.preprocessor.steps, *self.postprocessor.steps]
        plain = any(isinstance(step, RelativeActionsProcessorStep) and step.enabled for step in steps)
        return plain or any(getattr(step, "use_relative_action", False) for step in steps)  # GR00T's own

    def cameras(self, contract: Contract) -> tuple[list[int], int]:
        """The contract's index of each camera in the policy's order, and how many of the policy's are not in it."""
        names = [camera.name for camera in contract.cameras]
        keys = list(self._cameras)
        for step in self.preprocessor.steps:
            if _packs(step):
                keys = step._ordered_image_keys(dict.fromkeys(keys))
        present = [names.index(self._cameras[key]) for key in keys if self._cameras[key] in names]
        return present, len(self.config.image_features) - len(present)

    def require_fits(self, contract: Contract, resizes: bool = False) -> None:
        """Compares widths, cameras and image sizes (not the rate: a LeRobot policy has none), which LeRobot does not.

        A kind that `resizes` keeps the sizes, cameras and width of the state that its base was made for, whatever it is
        fine-tuned on: of these the state's statistics count, and one camera at least must be there.
        """
        lines, inputs = [], self.config.input_features
        state, action = inputs.get(STATE), self.config.output_features.get(ACTION)
        widths = {"state": state and state.shape[0], "action": action and action.shape[0]}
        if resizes and state is not None:
            widths["state"] = self._normalised_width(STATE) or widths["state"]
        for what, wanted in (("state", contract.state_dim), ("action", contract.action_dim)):
            if widths[what] not in (None, wanted):
                lines.append(f"{what}: {widths[what]} columns against {wanted}")
        sizes = {camera.name: (camera.height, camera.width) for camera in contract.cameras}
        mine = {name: tuple(inputs[key].shape[1:]) for key, name in self._cameras.items()}
        if resizes and sizes.keys() & mine.keys():
            mine = {name: sizes[name] for name in mine if name in sizes}
        for name in sorted(sizes.keys() | mine.keys()):
            if mine.get(name) != sizes.get(name):
                lines.append(f"camera {name}: {mine.get(name, 'none')} against {sizes.get(name, 'none')}")
        if lines:
            fix = "give the data set that it was trained on"
            theirs, ours = sorted(sizes.keys() - mine.keys()), sorted(mine.keys() - sizes.keys())
            if theirs or ours:
                fix = f"--cameras={(theirs or ['NAME'])[0]}={(ours or ['NAME'])[0]},… says which camera is which"
            what = f"the {self.config.type} policy and the contract"
            raise ContractMismatch(f"{what} do not fit together: {'; '.join(lines)}; {fix}")

    def _normalised_width(self, key: str) -> int | None:
        """How many columns the normaliser's statistics of a column of the batch have; None: it has none."""
        for step in self.preprocessor.steps:
            for numbers in ((getattr(step, "stats", None) or {}).get(key) or {}).values():
                if torch.as_tensor(numbers).ndim == 1 and len(numbers) > 1:
                    return len(numbers)
        return None

    def statistics(self) -> Statistics | None:
        """Those of the data that the policy was trained on; None where its normaliser has only quantiles, or those of
        relative actions.
        """
        for step in self.preprocessor.steps if not self.relative else ():
            stats = getattr(step, "stats", None) or {}
            if all({"mean", "std"} <= stats.get(key, {}).keys() for key in (STATE, ACTION)):
                numbers = []
                for key, floor in ((STATE, STATE_STD_FLOOR), (ACTION, ACTION_STD_FLOOR)):
                    mean, std = (torch.as_tensor(stats[key][k]).double() for k in ("mean", "std"))
                    numbers += [tuple(mean.tolist()), tuple(std.clamp_min(floor).tolist())]
                return Statistics(*numbers)
        return None

    def batch(self, observation: Observation) -> dict[str, Tensor]:
        """What the policy's model reads, for B observations; ``task`` holds the instructions: see `instructions_of`."""
        batch = {self.state_key: observation.state, TASK: list(observation.instruction)}
        for name, key in self.camera_keys.items():
            if name not in observation.images:
                continue  # a camera of the base policy that the robot lacks: see `require_fits`
            batch[key] = observation.images[name].permute(0, 3, 1, 2).float() / 255
        made = self._padded(batch)
        tensors = {key: value for key, value in made.items() if isinstance(value, Tensor)}
        return tensors | {TASK: _as_bytes(made.get(TASK, observation.instruction))}

    def actions(self, commands: Tensor, raw_state: Tensor) -> Tensor:
        """(B, H, A) commands to what the model learns to make, which may be relative to the (B, S) raw state."""
        transition = self._transition(raw_state, commands)
        for step in self._inwards:
            transition = step(transition)
        return transition[TransitionKey.ACTION]

    def commands(self, actions: Tensor, raw_state: Tensor) -> Tensor:
        """(M, H, A) chunks of the model to commands, as LeRobot's postprocessor gives them; raw state is (M, S)."""
        for step in self._inwards:
            if not isinstance(step, NormalizerProcessorStep):
                # Its counterpart behind the model adds the last state that this one has seen.
                step(self._transition(raw_state))
        return self.postprocessor(actions).to(actions.device)

    def _transition(self, raw_state: Tensor, commands: Tensor | None = None) -> dict:
        text = {TASK: [""] * len(raw_state)}
        return create_transition(observation={STATE: raw_state}, action=commands, complementary_data=text)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides how an observation becomes a batch; no path or device is in it."""
        digest = hashlib.sha256()
        for step in self._padded.steps:
            settings = {key: value for key, value in step.get_config().items() if key not in PATHS}
            digest.update(f"{type(step).__name__} {json.dumps(settings, sort_keys=True, default=str)}".encode())
            for key, tensor in sorted(step.state_dict().items()):
                digest.update(key.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
            if isinstance(step, TokenizerProcessorStep):
                digest.update(_tokenizer_as_text(step.input_tokenizer).encode())
            elif hasattr(step, "proc"):  # GR00T's: a whole processor of its own
                digest.update(_tokenizer_as_text(step.proc.tokenizer).encode())
                digest.update(step.proc.image_processor.to_json_string().encode())
        inputs = self.config.input_features
        features = {key: [str(feature.type), list(feature.shape)] for key, feature in inputs.items()}
        digest.update(json.dumps(features, sort_keys=True).encode())
        return digest.hexdigest()


def rename_cameras(
    preprocessor: PolicyProcessorPipeline, config, columns: dict[str, str], given: dict[str, str]
) -> None:
    """Lets a policy's preprocessor read the cameras of a contract, by LeRobot's own step, which is changed in place.

    `columns`: name of a camera in the contract to its column in the data set; `given`: to the policy's name of it,
    where the user says so.
    """
    known = {camera_name(key): key for key in config.image_features}
    if unknown := sorted({*given.values()} - known.keys()):
        raise UserError(f"--cameras: the policy has no camera {unknown[0]}; it has {', '.join(known)}")
    if unknown := sorted(given.keys() - columns.keys()):
        raise UserError(f"--cameras: the data set has no camera {unknown[0]}; it has {', '.join(columns)}")
    step = next((step for step in preprocessor.steps if isinstance(step, RenameObservationsProcessorStep)), None)
    if step is None:
        if given:
            raise UserError(f"--cameras: the {config.type} policy's processors have no step that renames cameras")
        return
    sources = {new: old for old, new in step.rename_map.items()}
    names = {column: name for name, column in columns.items()}
    wanted = {known[camera]: IMAGES + name for name, camera in given.items()}
    for key in config.image_features:
        column = sources.get(key, key)
        if key not in wanted and column in names and IMAGES + names[column] != column:
            wanted[key] = IMAGES + names[column]
    kept = {old: new for old, new in step.rename_map.items() if new not in wanted}
    step.rename_map = kept | {old: new for new, old in wanted.items() if old != new}


def _as_bytes(instructions: list[str]) -> Tensor:
    """(B, L) UTF-8, filled up with zeros: rows that can be repeated, joined and cut like any other."""
    encoded = [instruction.encode() for instruction in instructions]
    longest = max(map(len, encoded))
    return torch.tensor([list(text.ljust(longest, b"\0")) for text in encoded], dtype=torch.uint8)


def instructions_of(encoded: Tensor) -> list[str]:
    """The instructions in what `Processors.batch` made of them, padded or not."""
    return [bytes(row).rstrip(b"\0").decode() for row in encoded.tolist()]


def _packs(step) -> bool:
    """Whether this is GR00T's step that normalises, pads and packs everything at once; its module is heavy."""
    return type(step).__name__ == "GrootN17PackInputsStep"


def _tokenizer_as_text(tokenizer) -> str:
    """A tokenizer as text, without the padding and truncation of its last call."""
    if not tokenizer.is_fast:
        return json.dumps(tokenizer.get_vocab(), sort_keys=True)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    described = {k: v for k, v in described.items() if k not in ("padding", "truncation")}
    return json.dumps(described, sort_keys=True)
