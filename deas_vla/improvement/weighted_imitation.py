"""Weighted imitation: behaviour cloning, filtered behaviour cloning and advantage-weighted fine-tuning.

They differ in one thing: which chunks are imitated, and how much each counts. With weights w_i of the chunks a_i that
follow the observations s_i, what is minimised is

    E_{i ~ p} [ L_flow(s_i, a_i) ],   p_i = w_i / Σ_j w_j:

a chunk is drawn with probability proportional to its weight, which has the gradient of the weighted loss Σ_i p_i L_i
and spends no computation on chunks that count for nothing. The weights are constants: no gradient flows through them.

- behaviour cloning: w = 1 for chunks of demonstrations, 0 for others;
- filtered behaviour cloning: w = 1 for chunks of demonstrations and of rollouts that succeeded;
- advantage-weighted: w = min(exp((A − mean A) / (β std A)), w_max), with one mean and one standard deviation over all
  chunks and states. By default the chunks are the policy's own: at a recorded state it proposes N of them, and
  A(s, a_i) = score(s, a_i) − mean_j score(s, a_j). Each state then has better and worse chunks, so the weights say what
  to do, not where one is; but a state whose proposals differ more in score gets more weight in all. With
  ``proposals=0`` the chunks are those that were played, and A(s, a) = score(s, a) − V(s).

This is not the advantage-weighted regression that DEAS's authors prototyped: there w = min(exp(3 (min_k Q_k − V)), 100)
of the recorded chunk, without normalisation, multiplies the loss while V and Q still learn, and is not detached.

Shapes: O chunks to imitate, F stored frames, M frames at which the policy is asked, N proposals each, H steps,
A action columns.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deas_vla.data.frames import FrameTable
from deas_vla.data.options import Chunks
from deas_vla.errors import UserError
from deas_vla.features.cache import BLOCK, FrameCache
from deas_vla.improvement.selection import CANDIDATE_NOISE
from deas_vla.policies.chunk_policy import ChunkPolicy, candidate_noise, require_noise_scale
from deas_vla.scorers.scorer import Encoded, Scorer


@dataclass
class Examples:
    """O chunks to imitate.

    Attributes:
        start_frame: (O,) int64 row of the frame table: what is seen before the chunk.
        chunk: (O, H, A) float32 normalised commands.
        valid: (O, H) bool, True for steps that are imitated: those that were played before the episode ended.
        weight: (O,) how much each counts.
    """

    start_frame: Tensor
    chunk: Tensor
    valid: Tensor
    weight: Tensor

    @classmethod
    def recorded(cls, options: Chunks, weight: Tensor) -> "Examples":
        """What was really played, at these weights."""
        return cls(options.start_frame, options.chunk, options.valid, weight)

    @classmethod
    def proposed(cls, rows: Tensor, chunks: Tensor, weight: Tensor) -> "Examples":
        """(M, N, H, A) proposals at the frames of (M,) rows, at (M, N) weights."""
        valid = torch.ones(chunks.shape[:3], dtype=torch.bool)
        start = rows.repeat_interleave(chunks.shape[1])
        return cls(start, chunks.flatten(0, 1), valid.flatten(0, 1), weight.flatten())


# ---- weights -----------------------------------------------------------------------------------------------------


def demonstration_weights(options: Chunks) -> Tensor:
    """(O,) weight 1 for options of demonstrations: plain behaviour cloning."""
    return torch.as_tensor(options.group == options.DEMONSTRATION).float()


def filtered_bc_weights(options: Chunks) -> Tensor:
    """(O,) weight 1 for options of demonstrations and successful rollouts, 0 for those of failures."""
    return (options.group != options.FAILURE).float()


@dataclass
class AdvantageWeighting:
    """How advantages become weights."""

    # β, in standard deviations of the advantages over the data: small values imitate only the best chunks.
    temperature: float = 0.5
    # Largest weight, as a multiple of the weight of an average chunk (A = mean A).
    maximum: float = 20.0
    # Chunks that the policy proposes at each frame; 0: the recorded ones are weighted instead.
    proposals: int = 8
    # Frames of the rollouts at which it is asked, drawn at random.
    frames: int = 6000
    # The policy's noise is multiplied by this for its proposals.
    noise_scale: float = CANDIDATE_NOISE

    def __post_init__(self):
        if self.temperature <= 0 or self.maximum < 1:
            raise UserError(f"temperature ({self.temperature}) must be above 0 and maximum ({self.maximum}) at least 1")
        if self.proposals < 0 or self.proposals == 1 or self.frames < 1 or self.noise_scale <= 0:
            raise UserError(
                f"proposals ({self.proposals}) must be 0 or at least 2, frames ({self.frames}) at least 1 and "
                f"noise_scale ({self.noise_scale}) above 0"
            )


def advantage_weights(advantages: Tensor, weighting: AdvantageWeighting) -> Tensor:
    """Advantages of any shape to weights of mean 1: min(exp((A − mean A) / (β std A)), w_max), see above.

    Mean and standard deviation are over all advantages, so that the temperature means the same for every task, reward
    scale and critic.
    """
    std = advantages.std().clamp_min(1e-6)
    scaled = (advantages - advantages.mean()) / (weighting.temperature * std)
    weights = scaled.clamp_max(torch.tensor(weighting.maximum).log()).exp()
    return weights / weights.mean()


@torch.inference_mode()
def advantages_of(scorer: Scorer, encoded: Encoded, options: Chunks, batch_size: int = 4096) -> Tensor:
    """(O,) score of every recorded chunk minus V of the frame where it starts.

    Args:
        scorer: a trained one.
        encoded: (F, D) features and (F, S) states of every stored frame.
        options: what was played: start frames and normalised chunks.
        batch_size: options scored at once.
    """
    parts = zip(options.start_frame.split(batch_size), options.chunk.split(batch_size), strict=True)
    return torch.cat([scorer.advantage(encoded.rows(frames), chunk) for frames, chunk in parts])


@torch.inference_mode()
def advantages_among(scorer: Scorer, encoded: Encoded, chunks: Tensor, batch_size: int = 512) -> Tensor:
    """(M, N) score of every proposed chunk minus the mean score of those at its frame.

    Args:
        scorer: a trained one.
        encoded: (M, D) features and (M, S) states of the frames.
        chunks: (M, N, H, A) normalised chunks of the policy.
        batch_size: frames scored at once.
    """
    rows = torch.arange(len(chunks)).split(batch_size)
    scores = torch.cat([scorer.score(encoded.rows(part), chunks[part]) for part in rows])
    return scores - scores.mean(1, keepdim=True)


# ---- proposals ---------------------------------------------------------------------------------------------------


class CandidateCache(FrameCache):
    """(F, N, H, A) float32 normalised chunks that a policy proposes at stored frames, as a critic would score them.

    They are weighted and imitated, or asked for by a critic whose target takes the best of them (Q-chunking).

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
        require_noise_scale(policy, noise_scale)
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
