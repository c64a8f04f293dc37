"""What the rest of the project asks of a policy that acts in chunks.

Shapes: B observations, N candidate chunks, K noise samples in training, H steps, A action columns, S state columns.
"""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from deas_vla.data.contract import Contract
from deas_vla.data.lerobot import IMAGES
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError
from deas_vla.files import atomic_path, write_json
from deas_vla.policies.lora import LoraConfig, Merged, adapted_layers, add_adapters, merge_adapters

TYPE_FILE = "policy_type.json"


class ChunkPolicy(nn.Module, ABC):
    """A policy that proposes chunks of H actions from one observation.

    An observation is encoded once; any number of chunks, normalised as in the contract, are sampled from that context.
    A new policy implements `encode`, `sample`, `loss` and `encoder_fingerprint`; `write` and `load` to be saved;
    `create` to be trained from scratch. `@register_policy("name")` (registry.py) makes it known everywhere.
    """

    contract: Contract  # of what goes in and comes out
    horizon: int  # H, steps in a chunk
    type_name: ClassVar[str] = ""  # under which it is registered
    Config: ClassVar[type | None] = None  # dataclass of what `create` needs; None: it is trained elsewhere
    # Which of its tensors the critic's features are pooled from, in words.
    feature_source: ClassVar[str] = "the tokens of its encoder"
    autocasts: bool = False  # whether it computes in bfloat16 whatever its weights are: replays then differ by more
    any_noise_scale: bool = True  # whether noise may be scaled otherwise than by 0 and 1, see `require_noise_scale`
    causal: bool = False  # whether no step of a chunk depends on later ones: `sample_first` is cheaper than `sample`
    # Of `write`, so that it writes all weights, also those of a checkpoint it was built on.
    standalone_settings: ClassVar[dict[str, bool]] = {}

    @abstractmethod
    def encode(self, observation: Observation) -> Context:
        """Runs the backbone on B observations as a batch; what else is in it changes a frame by rounding only."""

    @abstractmethod
    def sample(self, context: Context, noise: Tensor) -> Tensor:
        """(B, N, H, A) standard normal noise to (B, N, H, A) normalised chunks, N for each of B contexts."""

    def sample_first(self, context: Context, noise: Tensor, steps: int) -> Tensor:
        """(B, N, steps, A) how the chunks of `sample` begin, from the same (B, N, H, A) noise."""
        return self.sample(context, noise)[:, :, :steps]

    @abstractmethod
    def loss(
        self, context: Context, chunks: Tensor, noise: Tensor, time: Tensor, valid: Tensor | None = None
    ) -> Tensor:
        """(B,) how badly the policy would have proposed these chunks.

        Args:
            context: of B observations.
            chunks: (B, H, A) normalised chunks to imitate.
            noise: (B, K, H, A) standard normal, K samples that share the context.
            time: (B, K) flow times, see `deas_vla.policies.flow.sample_time`.
            valid: (B, H) True for steps that were played before the episode ended, None: all; the others do not count.
        """

    def forward(self, observation: Observation, *arguments: Tensor) -> Tensor:
        """(B,) losses from observations and the other arguments of `loss`: what a data-parallel wrapper calls."""
        return self.loss(self.encode(observation), *arguments)

    @property
    @abstractmethod
    def encoder_fingerprint(self) -> str:
        """SHA-256 over everything that the tokens and the state of a context depend on."""

    def freeze_encoder(self) -> None:
        """From here on trains only what leaves the critic's features as they are."""
        raise UserError(f"a policy of type {self.type_name} has no encoder that can be frozen")

    @property
    def encoder_modules(self) -> Sequence[nn.Module]:
        """The modules that the critic's tokens depend on, and nothing else."""
        raise UserError(f"a policy of type {self.type_name} does not say what its encoder is")

    def add_lora(self, config: LoraConfig) -> None:
        """From here on trains adapters alone."""
        add_adapters(self, self.encoder_modules, config)

    def merge_lora(self) -> Merged:
        """Folds the adapters of `add_lora` into the weights, so that the policy is saved as one that never had any."""
        return merge_adapters(self)

    def checkpoint_activations(self) -> None:
        """From here on training keeps fewer activations and computes the others again for the gradient."""
        raise UserError(f"activation_checkpointing: a policy of type {self.type_name} cannot")

    @classmethod
    def create(cls, config: Any, contract: Contract, instructions: list[str]) -> Self:
        """A new policy, to be trained from scratch on data with these instructions; config is of class `Config`."""
        raise UserError(f"a policy of type {cls.type_name} is not trained anew; start from a saved one")

    def origin(self) -> dict[str, str | int | None]:
        """What a reader of an export should know of the base model: its name, revision and tuning."""
        return {}

    def image_keys(self) -> dict[str, str]:
        """Camera of the contract to its key in LeRobot's observations."""
        return {camera.name: IMAGES + camera.name for camera in self.contract.cameras}

    def save_standalone(self, folder: str | Path, keep: bool = True) -> Merged:
        """Writes the policy whole, as `save` does: adapters merged, no checkpoint that it refers to.

        `keep`: adapters, if it has any, are merged in a copy; without it they are merged in place.
        """
        policy = copy.deepcopy(self) if keep and adapted_layers(self) else self
        merged = merge_adapters(policy)
        policy.save(folder, **self.standalone_settings)
        return merged

    def save(self, folder: str | Path, **settings: Any) -> None:
        """Writes the policy to a folder, whole or not at all; `load_policy` (registry.py) reads it."""
        if not self.type_name:
            raise UserError(f"{type(self).__name__} cannot be saved: decorate it with @register_policy(NAME)")
        with atomic_path(Path(folder)) as temporary:
            temporary.mkdir()
            self.write(temporary, **settings)
            write_json(temporary / TYPE_FILE, {"type": self.type_name})

    def write(self, folder: Path) -> None:
        """Writes the policy's files to an empty folder: JSON and safetensors."""
        raise UserError(f"a policy of type {self.type_name} cannot be saved")

    @classmethod
    def load(cls, folder: str | Path, contract: Contract | None = None) -> Self:
        """Reads what `save` wrote, in evaluation mode.

        Raises UserError, naming the file that is missing, cut off or does not fit, and ContractMismatch if a contract
        is given and the policy has another one.
        """
        raise UserError(f"{folder}: a policy of type {cls.type_name} cannot be loaded")


def recompute(modules: Iterable[nn.Module]) -> None:
    """Makes modules, whose outputs depend on their arguments alone, keep no activations for the gradient."""
    for module in modules:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def require_noise_scale(policy: ChunkPolicy, scale: float) -> None:
    """Refuses a noise scale, other than 0 and 1, that a policy would apply to a part of its noise only."""
    if not policy.any_noise_scale and scale not in (0, 1):
        problem = "this policy's sampler draws fresh noise at every step, which cannot be scaled"
        fix = "set noise_scale to 1 or 0, or use the policy with a DDIM scheduler (noise_scheduler_type)"
        raise UserError(f"noise_scale={scale:g}: {problem}; {fix}")


def candidate_noise(seed: int, scene: int, sample: int, decision: int, n: int, horizon: int, action_dim: int) -> Tensor:
    """(n, H, A) float32 standard normal: the noise of one decision's candidates, a pure function of its arguments.

    The first n of N candidates are the same for every N, so that best-of-1 is the plain policy and a larger N only adds
    candidates; no process, batch or order of evaluation changes anything. The key names the seed of the evaluation or
    collection, the initial state, which of several episodes there, and the decision in the episode.
    """
    stream = seeded(f"candidate noise {seed} {scene} {sample} {decision}".encode())
    return torch.from_numpy(stream.standard_normal((n, horizon, action_dim)).astype(np.float32))


def seeded(name: bytes) -> np.random.Generator:
    """A generator (Philox) that any bytes seed; the same numbers on every processor."""
    key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))
