"""LeRobotPolicy: a policy that LeRobot made, as a chunk policy."""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError, require
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.flow import hold_last
from deas_vla.policies.small_vla.backbone import hash_tensors

# How what is in a context's extras is called; the sampler's own memory has this before its names.
RAW_STATE, MEMORY = "raw_state", "memory."


class LeRobotPolicy(ChunkPolicy):
    """A LeRobot policy for the robot of one contract.

    The observation is encoded once; candidates and draws of noise are rows that share what was encoded. Noise and
    chunks at this boundary have the contract's columns: the policy's own normalisation and padding stay inside, so
    that ``contract.to_command(sample(...))`` is what LeRobot's postprocessor gives, within the columns' limits.

    Args:
        policy: of a kind in `families.FAMILIES`, or any that draws normal noise, with a `feature`.
        preprocessor: LeRobot's, made for this policy.
        postprocessor: likewise.
        contract: what the columns mean. Without statistics it gets those of the data that the policy was trained on.
        feature: for another kind of policy: name of the module that encodes its images, whose output the critic reads.

    Raises:
        UserError: if this kind of policy cannot give candidates, or reads what an observation does not have.
        ContractMismatch: if the contract has other columns, cameras or image sizes than the policy.
    """

    def __init__(
        self, policy: nn.Module, preprocessor, postprocessor, contract: Contract, feature: str | None = None
    ) -> None:
        super().__init__()
        require("lerobot.policies", "lerobot")
        from deas_vla.policies.lerobot.families import family_of
        from deas_vla.policies.lerobot.processing import Processors

        self.processors = Processors(policy.config, preprocessor, postprocessor)
        self.family = family_of(policy, self.processors.cameras(contract), feature)
        self.processors.require_fits(contract)
        if contract.statistics is None:
            contract = contract.with_statistics(self.processors.statistics())
        self.policy, self.contract, self.horizon = policy, contract, self.family.horizon
        self.feature, self._frozen = feature, False

    # ---- the three calls of a policy -----------------------------------------------------------------------

    def encode(self, observation: Observation) -> Context:
        from deas_vla.policies.lerobot.families import join

        learns = self.training and torch.is_grad_enabled() and _learns(self.family.prefix)
        padded = self.family.sees_padding and len(set(observation.instruction)) > 1
        with torch.set_grad_enabled(learns):
            if learns and not padded:
                parts = self._encode(observation)
            else:
                # One by one: a matrix product of another batch size rounds differently in its last bits.
                parts = join([self._encode(observation[[row]]) for row in range(len(observation))])
        state = observation.state.to(parts["tokens"].device)
        tokens, mask, camera = (parts.pop(name) for name in ("tokens", "mask", "camera"))
        return Context(
            tokens, mask, camera, self.contract.normalize_state(state), parts | {RAW_STATE: state.float()}
        )

    def sample(self, context: Context, noise: Tensor) -> Tensor:
        count, rows = noise.shape[1], noise.flatten(0, 1)
        memory, raw_state = self._memory(context, count)
        actions = self.family.sample(memory, self.family.widened(rows))
        commands = self.processors.commands(actions, raw_state)
        return self.contract.normalize_action(commands).view(noise.shape)

    def loss(
        self,
        context: Context,
        chunks: Tensor,
        noise: Tensor,
        time: Tensor,
        valid: Tensor | None = None,
        reduction: str = "none",
    ) -> Tensor:
        if valid is not None:
            chunks = hold_last(chunks, valid)
        draws = noise.shape[1]
        actions = self.processors.actions(self.contract.to_command(chunks), context.extras[RAW_STATE])
        memory, _ = self._memory(context, draws)
        error = self.family.error(
            memory,
            actions.repeat_interleave(draws, 0),
            self.family.widened(noise.flatten(0, 1)),
            time.flatten(),
        )
        error = error.mean(-1).unflatten(0, (-1, draws)).mean(1)
        if valid is None:
            losses = error.mean(1)
        else:
            losses = (error * valid).sum(1) / valid.sum(1).clamp_min(1)
        return losses.mean() if reduction == "mean" else losses

    # ---- parameters ----------------------------------------------------------------------------------------

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def freeze_encoder(self) -> None:
        """Trains what does not change the critic's features only, from here on: those that were computed stay valid.

        Frozen modules stay in evaluation mode: batch normalisation would otherwise go on counting.
        """
        self._frozen = True
        for module in self.family.encoder:
            module.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "LeRobotPolicy":
        super().train(mode)
        if self._frozen:
            for module in self.family.encoder:
                module.eval()
        return self

    @property
    def autocasts(self) -> bool:
        """Whether it computes in bfloat16 though its weights may be float32: replays differ by more."""
        return self.family.autocasts

    @property
    def encoder_fingerprint(self) -> str:
        weights = {
            f"{number}.{name}": tensor
            for number, module in enumerate(self.family.encoder)
            for name, tensor in module.state_dict().items()
        }
        config = self.family.config
        settings = {
            "kind": config.type,
            "weights": hash_tensors(weights),
            "processing": self.processors.fingerprint,
            "contract": self.contract.fingerprint,
            "config": {name: getattr(config, name) for name in self.family.settings},
            "feature": self.feature,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    # ---- files ---------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, standalone: bool = False) -> None:
        """Writes what LeRobot writes for a policy and its processors, and the contract beside it.

        Args:
            folder: whole or not at all.
            standalone: LeRobot refers to the checkpoints that a policy was built from by path or by name; True
                writes what is needed of them too, so that the folder can be moved and asks no hub.
        """
        from deas_vla.policies.lerobot.checkpoint import save_policy

        save_policy(self, Path(folder), standalone)

    @classmethod
    def load(
        cls, folder: str | Path, contract: Contract | None = None, feature: str | None = None
    ) -> "LeRobotPolicy":
        """Reads a folder that `save` or LeRobot wrote (``…/pretrained_model``), in evaluation mode.

        Args:
            folder: of the policy; nothing is looked up on a hub.
            contract: what the columns mean, which LeRobot does not store: needed for a folder that LeRobot wrote.
                Where a contract is stored, another one is refused.
            feature: see the class; `save` stores it.

        Raises:
            UserError: naming the file that is missing, cut off or does not fit.
        """
        require("lerobot.policies", "lerobot")
        from deas_vla.policies.lerobot.checkpoint import load_policy

        return load_policy(Path(folder), contract, feature)

    # ---- details -------------------------------------------------------------------------------------------

    def _encode(self, observation: Observation) -> dict[str, Tensor]:
        device = next(self.policy.parameters()).device
        batch = self.processors.batch(observation, self.family.reads_sentences)
        batch = {name: value.to(device) for name, value in batch.items()}
        made = self.family.encode(batch)
        parts = {"tokens": made.tokens, "mask": made.mask}
        parts["camera"] = made.camera.expand(len(observation), -1)
        return parts | {f"{MEMORY}{name}": value for name, value in made.memory.items()}

    def _memory(self, context: Context, count: int) -> tuple[dict[str, Tensor], Tensor]:
        """The sampler's memory and the raw state, each row `count` times."""
        if RAW_STATE not in context.extras:
            raise UserError("this context was made by another policy; encode the observation with this one")
        rows = {name: value.repeat_interleave(count, 0) for name, value in context.extras.items()}
        raw_state = rows.pop(RAW_STATE)
        return {name.removeprefix(MEMORY): value for name, value in rows.items()}, raw_state


def _learns(modules: list[nn.Module]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())
