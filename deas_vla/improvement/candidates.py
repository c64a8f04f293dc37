"""The policy's own candidates at stored frames: for critics whose target asks the policy, and to be weighted."""

from pathlib import Path

import torch
from torch import Tensor

from deas_vla.data.frames import FrameTable
from deas_vla.features.cache import BLOCK, FrameCache
from deas_vla.policies.chunk_policy import ChunkPolicy, candidate_noise


class CandidateCache(FrameCache):
    """(F, N, H, A) float32 normalised chunks, as the critic would be asked about them.

    Args:
        folder: where it is kept: of one policy only, because the key knows its encoder, not its action head.
        policy: proposes the chunks.
        frames: the stored observations.
        count: N.
        seed: of the noise.
        noise_scale: multiplies it.
        block: frames a file.
    """

    def __init__(
        self,
        folder: Path,
        policy: ChunkPolicy,
        frames: FrameTable,
        count: int,
        seed: int,
        noise_scale: float = 1.0,
        block: int = BLOCK,
    ):
        depends = f"{policy.encoder_fingerprint} candidates {count} {seed} {noise_scale}"
        super().__init__(folder, frames, depends, block)
        self.policy = policy.eval()
        self.count, self.seed, self.noise_scale = count, seed, noise_scale

    def compute(self, rows: Tensor) -> Tensor:
        shape = (self.count, self.policy.horizon, self.policy.contract.action_dim)
        noise = torch.stack([candidate_noise(self.seed, frame, 0, 0, *shape) for frame in rows.tolist()])
        context = self.policy.encode(self.frames.observation(rows))
        chunks = self.policy.sample(context, self.noise_scale * noise.to(context.tokens.device))
        contract = self.policy.contract
        return contract.normalize_action(contract.to_command(chunks)).float()
