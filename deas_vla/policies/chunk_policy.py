"""What the rest of the project asks of a policy that acts in chunks."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Context, Observation


class ChunkPolicy(nn.Module, ABC):
    """A policy that proposes chunks of H actions from one observation.

    An observation is encoded once; any number of chunks are then sampled from, or scored by, that context. Chunks
    are normalised as in the contract; `contract.to_command` turns them into what is played.

    Attributes:
        contract: columns, cameras, rate and normalisation of what goes in and comes out.
        horizon: H, steps in a chunk.
    """

    contract: Contract
    horizon: int

    @abstractmethod
    def encode(self, observation: Observation) -> Context:
        """Runs the backbone on B observations.

        In evaluation mode a frame's tokens are the same, bit for bit, whatever else is in the batch (on one kind of
        processor with one number of threads).
        """

    @abstractmethod
    def sample(self, context: Context, noise: Tensor) -> Tensor:
        """Turns noise into chunks, N for each of B contexts.

        Args:
            context: of B observations.
            noise: (B, N, H, A) standard normal.

        Returns:
            (B, N, H, A) normalised chunks.
        """

    @abstractmethod
    def loss(
        self,
        context: Context,
        chunks: Tensor,
        noise: Tensor,
        time: Tensor,
        valid: Tensor | None = None,
        reduction: str = "none",
    ) -> Tensor:
        """How badly the policy would have proposed these chunks.

        Args:
            context: of B observations.
            chunks: (B, H, A) normalised chunks to imitate.
            noise: (B, K, H, A) standard normal, K samples that share the context.
            time: (B, K) flow times, see `deas_vla.policies.flow.sample_time`.
            valid: (B, H) True for steps that were played before the episode ended; None: all.
            reduction: ``none`` for one loss a sample, ``mean`` for their mean.

        Returns:
            (B,) losses, or their mean.
        """

    def forward(
        self,
        observation: Observation,
        chunks: Tensor,
        noise: Tensor,
        time: Tensor,
        valid: Tensor | None = None,
    ) -> Tensor:
        """(B,) losses from observations: what a data-parallel wrapper calls."""
        return self.loss(self.encode(observation), chunks, noise, time, valid)

    @property
    @abstractmethod
    def encoder_fingerprint(self) -> str:
        """SHA-256 over everything that the tokens and the state of a context depend on."""

    @abstractmethod
    def save(self, folder: str | Path) -> None:
        """Writes the policy to a folder, whole or not at all."""


def candidate_noise(
    seed: int, scene: int, sample: int, decision: int, n: int, horizon: int, action_dim: int
) -> Tensor:
    """The noise of one decision's candidates, a pure function of its arguments.

    The first n of N candidates are the same for every N, so that best-of-1 is the plain policy and a larger N only
    adds candidates; no process, batch or order of evaluation changes anything.

    Args:
        seed: seed of the evaluation or collection.
        scene: number of the initial state.
        sample: which of several episodes in that scene.
        decision: number of the decision inside the episode.
        n: how many candidates.
        horizon: H.
        action_dim: A.

    Returns:
        (n, H, A) float32 standard normal.
    """
    digest = hashlib.sha256(f"candidate noise {seed} {scene} {sample} {decision}".encode()).digest()
    stream = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(stream.standard_normal((n, horizon, action_dim)).astype(np.float32))
