"""LeRobotPolicy: a policy that LeRobot made, as a chunk policy.

A saved one is LeRobot's folder, contract.json, critic_feature.json (the module named for a kind without an adapter) and
parts/ (of a standalone folder: what else it is built from).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deas_vla.data.contract import Contract, Statistics
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError, as_user_error, require
from deas_vla.files import read_json, write_json
from deas_vla.policies.chunk_policy import ChunkPolicy, recompute
from deas_vla.policies.fingerprint import Fingerprint
from deas_vla.policies.flow import hold_last
from deas_vla.policies.lerobot.adapter import ADAPTER_CONFIG, adapted_base, with_adapter
from deas_vla.policies.lerobot.base import ADAPTERS, Adapter, join, repeated
from deas_vla.policies.lerobot.standalone import CONFIG, PREPROCESSOR, find_parts, make_standalone, without_weights
from deas_vla.policies.registry import register_policy
from deas_vla.policies.weights import read_module, uninitialised

# How what is in a context's extras is called; the sampler's own memory has this before its names.
RAW_STATE, MEMORY = "raw_state", "memory."
WEIGHTS, CONTRACT, FEATURE = "model.safetensors", "contract.json", "critic_feature.json"
POSTPROCESSOR = "policy_postprocessor.json"


@register_policy("lerobot")
class LeRobotPolicy(ChunkPolicy):
    """A LeRobot policy for the robot of one contract.

    Noise and chunks have the contract's columns: the policy's own normalisation and padding stay inside, so that
    ``contract.to_command(sample(...))`` is what LeRobot's postprocessor gives, within the columns' limits.

    Args:
        policy: of a kind with an adapter in `adapters/`, or any that draws normal noise, with a `feature`.
        preprocessor, postprocessor: LeRobot's, made for this policy.
        contract: without statistics it gets those of the data that the policy was trained on.
        feature: for another kind of policy: name of the module that encodes its images, whose output the critic reads.

    Raises UserError if this kind of policy cannot give candidates, or reads what an observation does not have, and
    ContractMismatch if the contract has other columns, cameras or image sizes than the policy.
    """

    feature_source = "what the policy's own encoder makes of images and text, before what is trained with its head"

    def __init__(
        self, policy: nn.Module, preprocessor, postprocessor, contract: Contract, feature: str | None = None
    ) -> None:
        super().__init__()
        from deas_vla.policies.lerobot.processing import Processors

        self.processors = Processors(policy.config, preprocessor, postprocessor)
        adapter = _adapter_class(policy, feature)
        self.processors.require_fits(contract, adapter.resizes)
        views = adapter.views(policy.config, *self.processors.cameras(contract))
        self.adapter = adapter(policy, views) if feature is None else adapter(policy, views, feature)
        if contract.statistics is None:
            found = self.processors.statistics()
            if found is None:
                what = f"the {policy.config.type} policy does not hold mean and standard deviation of its actions"
                raise UserError(f"{what}; give a contract with the statistics of its data")
            contract = contract.with_statistics(found)
        self.policy, self.contract, self.horizon = policy, contract, self.adapter.horizon
        self._amp = bool(policy.config.use_amp)
        self.autocasts, self.any_noise_scale = self.adapter.autocasts or self._amp, self.adapter.any_noise_scale
        self.causal = self.adapter.causal
        self.feature, self._frozen, self._fingerprint = feature, False, Fingerprint()

    def encode(self, observation: Observation) -> Context:
        observation.require_fits(self.contract)
        batches = self._batches(observation)
        with torch.set_grad_enabled(self.training and torch.is_grad_enabled()):
            parts = join([self._encode(observation[rows]) for rows in batches])
        if len(batches) > 1:
            order = torch.tensor([row for rows in batches for row in rows]).argsort()
            parts = {name: tensor[order.to(tensor.device)] for name, tensor in parts.items()}
        tokens, mask, camera = (parts.pop(name) for name in ("tokens", "mask", "camera"))
        state = observation.state.to(tokens.device)
        return Context(tokens, mask, camera, self.contract.normalize_state(state), parts | {RAW_STATE: state.float()})

    def sample(self, context: Context, noise: Tensor) -> Tensor:
        return self.sample_first(context, noise, noise.shape[2])

    def sample_first(self, context: Context, noise: Tensor, steps: int) -> Tensor:
        memory, raw_state = self._memory(context)
        # Columns and steps that pad the noise follow from all of it: it is widened before it is cut.
        wide = self.adapter.widened(noise.flatten(0, 1))
        with self._autocast():
            actions = self.adapter.sample(memory, wide[:, :steps] if self.causal else wide).float()
        commands = self.processors.commands(actions, raw_state.repeat_interleave(noise.shape[1], 0))
        return self.contract.normalize_action(commands).unflatten(0, noise.shape[:2])[:, :, :steps]

    def loss(
        self, context: Context, chunks: Tensor, noise: Tensor, time: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        if valid is None:
            valid = torch.ones(chunks.shape[:2], dtype=torch.bool, device=chunks.device)
        chunks, samples = hold_last(chunks, valid), noise.shape[1]
        actions = self.processors.actions(self.contract.to_command(chunks), context.extras[RAW_STATE])
        memory = repeated(self._memory(context)[0], len(chunks) * samples)
        actions, noise = actions.repeat_interleave(samples, 0), self.adapter.widened(noise.flatten(0, 1))
        with self._autocast():
            error = self.adapter.error(memory, actions, noise, time.flatten()).float()
        error = error.mean(-1).unflatten(0, (-1, samples)).mean(1)
        return (error * valid).sum(1) / valid.sum(1).clamp_min(1)

    def freeze_encoder(self) -> None:
        """Frozen modules stay in evaluation mode: batch normalisation would otherwise go on counting."""
        self._frozen = True
        for module in self.adapter.encoder:
            module.requires_grad_(False).eval()

    @property
    def encoder_modules(self) -> list[nn.Module]:
        return self.adapter.encoder

    def checkpoint_activations(self) -> None:
        modules = self.adapter.recomputed()
        if not modules:
            raise UserError(f"activation_checkpointing: a policy of kind {self.policy.config.type} cannot")
        recompute(modules)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self._frozen:
            for module in self.adapter.encoder:
                module.eval()
        elif mode:
            self._fingerprint.forget()
        return self

    @property
    def encoder_fingerprint(self) -> str:
        config = self.policy.config
        settings = {
            "kind": config.type,
            "processing": self.processors.fingerprint,
            "contract": self.contract.fingerprint,
            "config": {name: getattr(config, name) for name in self.adapter.settings},
            "feature": self.feature,
        } | ({"use_amp": True} if self._amp else {})
        return self._fingerprint.of(self.adapter.encoder, settings, self.training and not self._frozen)

    def origin(self) -> dict[str, str | int | None]:
        return {"kind": self.policy.config.type, "feature": self.feature}

    def image_keys(self) -> dict[str, str]:
        keys = self.processors.camera_keys
        return {camera.name: keys[camera.name] for camera in self.contract.cameras}

    def write(self, folder: Path, standalone: bool = True) -> None:
        """Writes what LeRobot writes, and the contract; `standalone`: so that the folder needs nothing else, too."""
        self.policy.save_pretrained(folder)
        self.processors.preprocessor.save_pretrained(folder, config_filename=PREPROCESSOR)
        self.processors.postprocessor.save_pretrained(folder, config_filename=POSTPROCESSOR)
        write_json(folder / CONTRACT, self.contract.to_json())
        if self.feature is not None:
            write_json(folder / FEATURE, {"module": self.feature})
        if standalone:
            fields = _class_of(self.policy).write_parts(self.policy, folder)
            make_standalone(folder, self.processors.preprocessor.steps, fields)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        contract: Contract | None = None,
        feature: str | None = None,
        base: str | Path | None = None,
        *,
        columns: dict[str, str] | None = None,
        cameras: dict[str, str] | None = None,
        statistics: Callable[[], Statistics] | None = None,
    ) -> Self:
        """Reads a folder that `save` or LeRobot wrote (``…/pretrained_model``), in evaluation mode, and no hub.

        The contract is needed for a folder that LeRobot wrote; where one is stored, another is refused. An adapter of
        `peft` is merged into its base policy, in the folder `base` or the one that the adapter names. A file that is
        missing, cut off or does not fit is a UserError. Of a folder that LeRobot wrote: `columns` and `cameras`, see
        `processing.rename_cameras`; `statistics` of the data, asked for where it does not hold them.
        """
        require("lerobot.policies", "lerobot")
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        from deas_vla.policies.lerobot.processing import Processors, rename_cameras

        folder = Path(folder)
        origin = adapted_base(folder, base) if (folder / ADAPTER_CONFIG).is_file() else folder
        for path in (folder / CONFIG, origin / WEIGHTS, folder / PREPROCESSOR, folder / POSTPROCESSOR):
            if not path.is_file():
                raise UserError(f"{path}: missing, and no LeRobot policy is without it; copy it again")
        if (path := folder / CONTRACT).is_file():
            stored = Contract.from_json(read_json(path), path)
            if contract is not None:
                stored.require_same(contract, f"policy {folder}", "what it is used for")
            contract = stored
        elif contract is None:
            raise UserError(f"{folder} has no {CONTRACT} to say what its columns mean; give a contract")
        if feature is None and (folder / FEATURE).is_file():
            feature = str(read_json(folder / FEATURE).get("module"))
        with as_user_error(f"{folder}: LeRobot cannot read this policy", SafetensorError):
            config = PreTrainedConfig.from_pretrained(folder, local_files_only=True)
            overrides = {"device_processor": {"device": config.device}, **find_parts(config, folder)}
            config.use_peft = False
            with without_weights(folder):
                policy = _read_policy(get_policy_class(config.type), config, origin)
            if origin != folder:
                policy = with_adapter(policy, folder)
            processors = make_pre_post_processors(config, str(folder), preprocessor_overrides=overrides)
        if not (folder / CONTRACT).is_file():
            rename_cameras(processors[0], config, columns or {}, cameras or {})
            mine = Processors(config, *processors)
            # Cameras of the robot that LeRobot's policy was made without are none of its contract.
            seen = tuple(camera for camera in contract.cameras if camera.name in mine.camera_keys)
            contract = replace(contract, cameras=seen or contract.cameras)
            if contract.statistics is None and statistics is not None and mine.statistics() is None:
                contract = contract.with_statistics(statistics())
        return cls(policy, *processors, contract, feature).eval()

    def _batches(self, observation: Observation) -> list[list[int]]:
        """Rows that are encoded together: those of one instruction, where padding would be read as text."""
        size = self.adapter.largest_batch
        groups: dict[str, list[int]] = {}
        for row, instruction in enumerate(observation.instruction):
            groups.setdefault(instruction if self.adapter.sees_padding else "", []).append(row)
        return [rows[i : i + size] for rows in groups.values() for i in range(0, len(rows), size)]

    def _encode(self, observation: Observation) -> dict[str, Tensor]:
        """Tokens, mask and camera, of what the critic reads, and the sampler's memory; first dimension B."""
        device = next(self.policy.parameters()).device
        batch = self.processors.batch(observation)
        with self._autocast():
            made = self.adapter.encode({name: value.to(device) for name, value in batch.items()})
        camera = made.camera.to(device).expand(len(observation), -1)
        mask = torch.ones_like(camera, dtype=torch.bool) if made.mask is None else made.mask
        parts = {"tokens": made.tokens.float() * mask[..., None], "mask": mask, "camera": camera}
        return parts | {f"{MEMORY}{name}": value for name, value in made.memory.items()}

    def _autocast(self) -> torch.autocast:
        """As LeRobot trains and runs a policy with `use_amp`: in float16 on CUDA, in bfloat16 on a CPU."""
        return torch.autocast(next(self.policy.parameters()).device.type, enabled=self._amp)

    def _memory(self, context: Context) -> tuple[dict[str, Tensor], Tensor]:
        """The sampler's memory and the raw state of B observations."""
        if RAW_STATE not in context.extras:
            raise UserError("this context was made by another policy; encode the observation with this one")
        memory = {name.removeprefix(MEMORY): value for name, value in context.extras.items() if name != RAW_STATE}
        return memory, context.extras[RAW_STATE]


def _class_of(policy: nn.Module) -> type[Adapter]:
    """The adapter of a policy's kind; `Adapter` itself for a kind without one."""
    kind = policy.config.type
    return ADAPTERS.get(kind) if kind in ADAPTERS.names() else Adapter


def _adapter_class(policy: nn.Module, feature: str | None) -> type[Adapter]:
    from deas_vla.policies.lerobot.batched import Batched

    kind, known = policy.config.type, ", ".join(ADAPTERS.names())
    if kind == "act":
        same = "its latent is zero at inference, so that all candidates would be one and the same chunk"
        raise UserError(f"the policy is of kind 'act': {same}; train one that samples ({known})")
    if feature is not None:
        return Batched
    if kind not in ADAPTERS.names():
        fix = "name the module that encodes its images, as the critic's feature"
        raise UserError(f"the policy is of kind '{kind}', and there are adapters for {known}; {fix}")
    return ADAPTERS.get(kind)


def _read_policy(policy_class: type[nn.Module], config, folder: Path) -> nn.Module:
    """LeRobot's policy with the weights of a folder; those of today's names are read with one copy in memory."""
    if config.type in ADAPTERS.names():
        with uninitialised():
            policy = policy_class(config)
        if read_module(policy, folder / WEIGHTS):
            return policy.to(config.device).eval()
        del policy
    policy = policy_class.from_pretrained(folder, config=config, local_files_only=True)
    _require_loaded(policy, folder / WEIGHTS)
    return policy


def _require_loaded(policy: nn.Module, path: Path) -> None:
    """LeRobot loads with a warning what fits, and leaves the rest as it was drawn; π0 even goes on without weights."""
    state = policy.state_dict()
    missing = {tensor.data_ptr() for tensor in state.values() if tensor.numel()}
    weights = _class_of(policy).renamed(policy, load_file(path))
    # Of several names of one weight LeRobot reads the last, too.
    for name, stored in {name if name in state else f"model.{name}": value for name, value in weights.items()}.items():
        mine = state.get(name)
        if mine is None:
            raise UserError(f"{path}: {name} is not a weight of this policy; is {CONFIG} another's?")
        if mine.shape != stored.shape or not torch.equal(mine.cpu(), stored.to(mine.dtype)):
            raise UserError(f"{path}: {name} was not loaded; its {CONFIG} is of another policy")
        missing.discard(mine.data_ptr())
    absent = [name for name, tensor in state.items() if tensor.data_ptr() in missing]
    if absent:
        raise UserError(f"{path}: {len(absent)} weights of the policy are not in it, {absent[0]}")
