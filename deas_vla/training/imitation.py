"""Weighted imitation: behaviour cloning, filtered behaviour cloning and advantage-weighted fine-tuning.

They differ in which chunks are imitated and how much each counts. A chunk is drawn with probability p_i = w_i / Σ w,
which has the gradient of the weighted loss Σ_i p_i L_flow(s_i, a_i); the weights are constants. Cloning has w = 1 for
chunks of demonstrations, filtered cloning also for those of successful rollouts. Advantage weighting has
w = min(exp((A − mean A) / (β std A)), w_max): by default the chunks are N of the policy's own at a recorded state, and
A(s, a_i) = score(s, a_i) − mean_j score(s, a_j), so that weights say what to do, not where one is; with ``proposals=0``
they are those that were played, and A(s, a) = score(s, a) − V(s). The authors' prototype, w = min(exp(3 (min_k Q_k −
V)), 100) without normalisation, multiplies the loss while V and Q still learn, and is not detached.

Shapes: O chunks to imitate, F stored frames, M frames at which the policy is asked, N proposals each, H steps,
A action columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deas_vla.data.frames import FrameTable
from deas_vla.data.observation import Observation
from deas_vla.data.options import Chunks
from deas_vla.data.sampling import sample_indices
from deas_vla.errors import UserError, require_ranges
from deas_vla.improvement.selection import CANDIDATE_NOISE
from deas_vla.policies.augment import shift_observation
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.flow import sample_time
from deas_vla.scorers.scorer import Encoded, Scorer
from deas_vla.training.loop import TrainingConfig, my_share, step_generator


@dataclass
class Examples:
    """O chunks to imitate."""

    start_frame: Tensor  # (O,) int64 row of the frame table: what is seen before the chunk
    chunk: Tensor  # (O, H, A) float32 normalised commands
    valid: Tensor  # (O, H) bool, True for steps that are imitated: those before the episode ended
    weight: Tensor  # (O,) how much each counts

    @classmethod
    def recorded(cls, options: Chunks, weight: Tensor) -> "Examples":
        """What was really played, at these weights."""
        return cls(options.start_frame, options.chunk, options.valid, weight)

    @classmethod
    def proposed(cls, rows: Tensor, chunks: Tensor, weight: Tensor) -> "Examples":
        """(M, N, H, A) proposals at the frames of (M,) rows, at (M, N) weights."""
        flat = chunks.flatten(0, 1)
        valid = torch.ones(flat.shape[:2], dtype=torch.bool)
        return cls(rows.repeat_interleave(chunks.shape[1]), flat, valid, weight.flatten())

    def probabilities(self) -> np.ndarray:
        """(O,) float64 how often each is drawn."""
        if not (self.weight > 0).any():
            raise UserError("no chunk has a weight above 0: nothing to imitate (did every rollout fail?)")
        return (self.weight / self.weight.sum()).double().numpy()


def cloning_weights(options: Chunks, *, filtered: bool) -> Tensor:
    """(O,) 1 for chunks of demonstrations and, if filtered, of successful rollouts; 0 for others."""
    kept = options.group != options.FAILURE if filtered else options.group == options.DEMONSTRATION
    return kept.float()


@dataclass
class AdvantageWeighting:
    """How advantages become weights."""

    # β, in standard deviations of the advantages over the data: small values imitate only the best chunks.
    temperature: float = 0.5
    maximum: float = 20.0  # Largest weight, as a multiple of the weight of an average chunk (A = mean A).
    proposals: int = 8  # Chunks that the policy proposes at each frame; 0: the recorded ones are weighted instead.
    frames: int = 6000  # Frames of the rollouts at which it is asked, drawn at random.
    noise_scale: float = CANDIDATE_NOISE  # The policy's noise is multiplied by this for its proposals.

    def __post_init__(self):
        ranges = {"above 0": "temperature noise_scale", "at least 1": "maximum frames", "at least 0": "proposals"}
        require_ranges(self, "weighting.", ranges)
        if self.proposals == 1:
            raise UserError("weighting.proposals=1 must be 0 or at least 2: one chunk has no better one")


def advantage_weights(advantages: Tensor, weighting: AdvantageWeighting) -> Tensor:
    """Advantages of any shape to weights of mean 1; mean A and std A are over all of them."""
    std = advantages.std().clamp_min(1e-6)
    scaled = (advantages - advantages.mean()) / (weighting.temperature * std)
    weights = scaled.clamp_max(torch.tensor(weighting.maximum).log()).exp()
    return weights / weights.mean()


@torch.inference_mode()
def advantages_of(scorer: Scorer, encoded: Encoded, options: Chunks, batch_size: int = 4096) -> Tensor:
    """(O,) score of every recorded chunk minus V of the frame where it starts, of the F encoded ones."""
    parts = zip(options.start_frame.split(batch_size), options.chunk.split(batch_size), strict=True)
    return torch.cat([scorer.advantage(encoded.rows(frames), chunk) for frames, chunk in parts])


@torch.inference_mode()
def advantages_among(scorer: Scorer, encoded: Encoded, chunks: Tensor, batch_size: int = 512) -> Tensor:
    """(M, N) score of every one of (M, N, H, A) proposed chunks minus the mean score of those at its frame."""
    rows = torch.arange(len(chunks)).split(batch_size)
    scores = torch.cat([scorer.score(encoded.rows(part), chunks[part]) for part in rows])
    return scores - scores.mean(1, keepdim=True)


class FlowImitation(nn.Module):
    """The policy's flow-matching loss as a module, so that distributed wrappers see one forward."""

    def __init__(self, policy: ChunkPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, *batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss over what `imitation_batches` gives; each chunk counts alike however many valid steps it has."""
        return self.policy(*batch).mean(), {}


def imitation_batches(
    accelerator: Accelerator,
    frames: FrameTable,
    examples: Examples,
    config: TrainingConfig,
    *,
    flow_samples: int,
    max_shift: int,
    seed: int,
) -> Callable[[int], tuple[Observation | Tensor, ...]]:
    """From a step's number to this process's share of the batch.

    B observations, (B, H, A) normalised chunks, (B, K, H, A) noise, (B, K) flow times and (B, H) valid steps.

    K is `flow_samples`, noise samples for each encoded observation; images are shifted by `max_shift` of 64 pixels.
    """
    size, share, probabilities = config.batch_size, my_share(accelerator, config.batch_size), examples.probabilities()

    def batch_at(step: int) -> tuple[Observation | Tensor, ...]:
        # The whole batch is drawn by every process, which keeps its share: two processes train as one would.
        index = torch.from_numpy(sample_indices(seed, step, size, probabilities))
        generator = step_generator(seed, step)
        chunks, valid = examples.chunk[index], examples.valid[index]
        noise = torch.randn((size, flow_samples, *chunks.shape[1:]), generator=generator)
        time = sample_time((size, flow_samples), generator)
        observation = frames.observation(examples.start_frame[index])
        observation = shift_observation(observation, max_shift, generator, share)
        return observation, *(part[share] for part in (chunks, noise, time, valid))

    return batch_at


def first_loss(policy: ChunkPolicy, batch_at: Callable[[int], tuple[Observation | Tensor, ...]]) -> Tensor:
    """The loss of one observation of the first batch, a scalar."""
    policy.train()
    device = next(policy.parameters()).device
    batch = [part[:1].to(device) for part in batch_at(0)]
    return policy(*batch).sum()
