"""What differs between kinds of LeRobot policies: how each encodes, samples and is trained."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.errors import UserError
from deas_vla.policies.lerobot.noise import widen


@dataclass
class Encoded:
    """What a policy's encoder makes of B observations.

    Attributes:
        tokens: (B, L, D) float32, what the critic reads; padding is zero.
        mask: (B, L) bool, True for real tokens.
        camera: (L,) or (B, L) int64, index of the token's camera in the contract, or `TEXT` or `OTHER`.
        memory: what the sampler reads, first dimension B.
    """

    tokens: Tensor
    mask: Tensor
    camera: Tensor
    memory: dict[str, Tensor]


class Family(ABC):
    """One kind of policy.

    Args:
        policy: LeRobot's.
        cameras: for each of the policy's image features, in its order, the camera's index in the contract; `OTHER`
            for one that the robot lacks.

    Attributes:
        horizon: steps of the chunks that the model makes, from the observation's own step on.
        steps: steps of the model's noise, at least `horizon`; the steps beyond it pad.
        width: columns of the model's noise, at least A; the columns beyond A pad.
        settings: names of the configuration's fields, beside weights and processing, that tokens depend on.
        sees_padding: whether the encoder reads padding like words, so that no batch may have any.
        autocasts: whether it computes in bfloat16 whatever the type of its weights is.
        reads_sentences: whether the batch must hold the sentences themselves, see `processing.Processors.batch`.
    """

    horizon: int
    steps: int
    width: int
    settings: tuple[str, ...] = ()
    sees_padding = False
    autocasts = False
    reads_sentences = False

    def __init__(self, policy: nn.Module, cameras: list[int]) -> None:
        self.policy, self.config, self.cameras = policy, policy.config, cameras
        self.action_dim = self.config.action_feature.shape[0]

    @property
    @abstractmethod
    def encoder(self) -> list[nn.Module]:
        """The modules that the critic's tokens depend on, and nothing else."""

    @property
    def prefix(self) -> list[nn.Module]:
        """The modules that run in `encode`: the encoder, and what else only the sampler's memory depends on."""
        return self.encoder

    def widened(self, noise: Tensor) -> Tensor:
        """(M, H, A) noise to the (M, steps, width) that the model starts from."""
        return widen(noise, self.steps, self.width)

    @abstractmethod
    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        """Runs the encoder on a preprocessed batch."""

    @abstractmethod
    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        """Turns noise into chunks, by the policy's own sampler.

        Args:
            memory: of M rows, one for each chunk.
            noise: (M, steps, width) standard normal.

        Returns:
            (M, H, A) chunks as the model makes them.
        """

    @abstractmethod
    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Squared error of what the model predicts, in the units of its own training loss.

        Args:
            memory: of M rows.
            actions: (M, H, A) chunks as the preprocessor makes them, which may have padded steps and columns.
            noise: (M, steps, width) standard normal.
            time: (M,) flow times, 0 for noise and 1 for the clean chunk.

        Returns:
            (M, H, A).
        """


# Kind of policy, as LeRobot registers it, to the module and the class that adapt it.
FAMILIES = {
    "diffusion": ("diffusion", "Diffusion"),
    "multi_task_dit": ("multi_task_dit", "MultiTaskDiT"),
    "smolvla": ("smolvla", "SmolVLA"),
    "pi0": ("pi", "Pi0"),
    "pi05": ("pi", "Pi05"),
    "groot": ("groot", "Groot"),
    "xvla": ("xvla", "XVLA"),
}
# Kinds whose chunk is a function of the observation alone.
ONE_CHUNK = {"act": "its latent is zero at inference"}


def family_of(policy: nn.Module, cameras: list[int], feature: str | None) -> Family:
    """The adapter of a policy's kind.

    Args:
        policy: LeRobot's.
        cameras: see `Family`.
        feature: for a kind without an adapter of its own, the module whose output the critic reads.

    Raises:
        UserError: if its candidates would all be the same, or no adapter is written and no feature named.
    """
    kind = policy.config.type
    if kind in ONE_CHUNK:
        raise UserError(
            f"the policy is of kind '{kind}': {ONE_CHUNK[kind]}, so that all candidates would be one and the same "
            f"chunk; train one that samples ({', '.join(FAMILIES)})"
        )
    if kind not in FAMILIES and feature is None:
        raise UserError(
            f"the policy is of kind '{kind}', and there are adapters for {', '.join(FAMILIES)}; for another one name "
            "the module that encodes its images, as the critic's feature"
        )
    if feature is not None:
        from deas_vla.policies.lerobot.batched import Batched

        return Batched(policy, cameras, feature)
    module, name = FAMILIES[kind]
    return getattr(import_module(f"deas_vla.policies.lerobot.{module}"), name)(policy, cameras)


@contextmanager
def outputs_of(*modules: nn.Module) -> Iterator[list]:
    """Collects what modules return inside the block, in the order of their calls."""
    seen = []
    handles = [module.register_forward_hook(lambda _, __, output: seen.append(output)) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One batch of several; where they differ in length (dimension 1), the shorter ones are padded with zeros.

    Padding of ``camera`` is -1.
    """
    joined = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].dim() > 1 and len(lengths := {tensor.shape[1] for tensor in tensors}) > 1:
            fill, ends = -1 if name == "camera" else 0, [0, 0] * (tensors[0].dim() - 2)
            tensors = [
                F.pad(tensor, (*ends, 0, max(lengths) - tensor.shape[1]), value=fill) for tensor in tensors
            ]
        joined[name] = torch.cat(tensors)
    return joined


def square_grid(maps: Tensor) -> Tensor:
    """(B, C, h, w) feature maps to (B, side * side, C) tokens, row-major; side is the shorter of h and w."""
    side = min(maps.shape[-2:])
    return F.adaptive_avg_pool2d(maps, side).flatten(2).transpose(1, 2)


def camera_layout(cameras: list[int], tokens: int, device: torch.device) -> Tensor:
    """(L,) the camera of each token, for the same number of tokens a camera, one camera after another."""
    return torch.tensor(cameras, device=device).repeat_interleave(tokens)
