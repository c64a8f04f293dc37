"""What differs between kinds of LeRobot policies: how each encodes, samples and is trained."""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.data.observation import OTHER, TEXT
from deas_vla.policies.lerobot import adapters
from deas_vla.policies.lerobot.noise import widen
from deas_vla.registry import Registry

# What transformers call the feed-forward part of a layer, which holds most of its activations.
FEED_FORWARD = ("mlp", "ff", "ffn", "feed_forward")


@dataclass
class Encoded:
    """What a policy's encoder makes of B observations."""

    tokens: Tensor  # (B, L, D), what the critic reads; in padding anything
    camera: Tensor  # (L,) or (B, L) int64, index of the token's camera in the contract, `TEXT` or `OTHER`
    memory: dict[str, Tensor]  # what the sampler reads, first dimension B
    mask: Tensor | None = None  # (B, L) bool, True for real tokens; None: all are


class Adapter(ABC):
    """One kind of policy.

    Args:
        policy: LeRobot's.
        cameras: of each of the policy's image features, its index in the contract; `OTHER` where the robot lacks it.
        encoder: the modules that the critic's tokens depend on, and nothing else.
        horizon: steps of the chunks that the model makes, from the observation's own step on.
        width: columns of the model's noise, of which those beyond A pad; None: A.

    `steps` are those of the model's noise, of which those beyond `horizon` pad.
    """

    settings: tuple[str, ...] = ()  # fields of the configuration, beside weights and processing, that tokens depend on
    sees_padding = False  # whether the encoder reads padding like text: only prompts of one length share a batch
    largest_batch = 64  # most observations that are encoded together
    resizes = False  # whether it brings images of any size to its own, pads states, and does without some cameras
    # See `ChunkPolicy`.
    autocasts, any_noise_scale, causal = False, True, False

    def __init__(
        self, policy: nn.Module, cameras: list[int], encoder: list[nn.Module], horizon: int, width: int | None = None
    ) -> None:
        self.policy, self.config, self.cameras, self.encoder = policy, policy.config, cameras, encoder
        self.action_dim = self.config.action_feature.shape[0]
        self.horizon = self.steps = horizon
        self.width = width or self.action_dim

    @staticmethod
    def views(config, present: list[int], missing: int) -> list[int]:
        """The camera in the contract of each image that the model sees, and `OTHER` where it fills one in.

        `present`: those that the robot has, in the policy's order; `missing`: how many of the policy's it lacks.
        """
        return present + [OTHER] * missing

    def widened(self, noise: Tensor) -> Tensor:
        """(M, H, A) noise to the (M, steps, width) that the model starts from."""
        return widen(noise, self.steps, self.width)

    @abstractmethod
    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        """Runs the encoder on a batch that `processing.Processors` made."""

    @abstractmethod
    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Turns noise into chunks by the policy's own sampler, from the memory of B observations.

        (B·N, steps, width), the N candidates of an observation one after another, to (B·N, H, A); a causal model may be
        given the first h steps of the noise, and returns as many.
        """

    @abstractmethod
    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """(M, H, A) squared error of what the model predicts, in the units of its own training loss.

        The memory has M rows, the noise is (M, steps, width). `actions`: (M, H, A) chunks as the preprocessor makes
        them, perhaps padded in steps and columns; `time`: (M,) flow times, 0 for noise and 1 for the clean chunk.
        """

    def recomputed(self) -> list[nn.Module]:
        """The modules that activation checkpointing computes again: those that are called, wherever layers are not."""
        return [part for name, part in self.policy.named_modules() if name.rpartition(".")[2] in FEED_FORWARD]

    @staticmethod
    def write_parts(policy: nn.Module, folder: Path) -> dict[str, object]:
        """Writes what the policy is built from to `standalone.PARTS`; the fields of its configuration that name it."""
        return {}

    @staticmethod
    def renamed(policy: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """What LeRobot makes of weights of older files: other names, other shapes, some left out."""
        return weights


# LeRobot's name of a kind of policy to the class that adapts it; a file in `adapters/` has the name of its kind.
ADAPTERS: Registry[type[Adapter]] = Registry(
    "kind of LeRobot policy",
    "deas_vla.lerobot_adapters",
    {name: f"{adapters.__name__}.{name}" for _, name, _ in pkgutil.iter_modules(adapters.__path__)},
)
register_adapter = ADAPTERS.register


@contextmanager
def outputs_of(*modules: nn.Module) -> Iterator[list]:
    """Collects what modules return inside the block, in the order of their calls."""
    seen = []
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(lambda _, __, output: seen.append(output)))
        yield seen


def repeated(memory: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The memory of B observations with each row as often as makes `rows`."""
    return {name: value.repeat_interleave(rows // len(value), 0) for name, value in memory.items()}


def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of several; the shorter ones are padded along dimension 1, with zeros, ``camera`` with `TEXT`."""
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].dim() > 1 and len(lengths := {tensor.shape[1] for tensor in tensors}) > 1:
            fill, ends = TEXT if name == "camera" else 0, [0, 0] * (tensors[0].dim() - 2)
            tensors = [F.pad(tensor, (*ends, 0, max(lengths) - tensor.shape[1]), value=fill) for tensor in tensors]
        joined[name] = torch.cat(tensors)
    return joined


def camera_tokens(grids: list[Tensor], count: int, cameras: list[int]) -> tuple[Tensor, Tensor]:
    """(B, L, D) tokens of B = `count` observations, and the camera of each, (L,): one camera after another.

    `grids`: one of all cameras of one observation after another, or one a camera; tokens (…, L, D) or maps
    (…, C, h, w), which become a square of the shorter side, row-major.
    """
    grids = [
        F.adaptive_avg_pool2d(grid, min(grid.shape[-2:])).flatten(2).transpose(1, 2) if grid.dim() == 4 else grid
        for grid in grids
    ]
    tokens = grids[0].unflatten(0, (count, -1)) if len(grids) == 1 else torch.stack(grids, 1)
    return tokens.flatten(1, 2), torch.tensor(cameras).repeat_interleave(tokens.shape[2])
