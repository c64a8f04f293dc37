"""What the training loop needs to imitate weighted chunks: the loss as a module, and the batches.

A chunk that runs past its episode's end is imitated up to that end: the steps after it are masked in the loss, as
LeRobot masks ``action_is_pad``, though each sample counts alike however many steps it has.
"""

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from deas_vla.data.frames import FrameTable
from deas_vla.data.observation import Observation
from deas_vla.data.sampling import sample_indices
from deas_vla.errors import UserError
from deas_vla.improvement.weighted_imitation import Examples
from deas_vla.policies.augment import shift_observation
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.flow import sample_time
from deas_vla.training.loop import TrainingConfig, my_share, step_generator


class FlowImitation(nn.Module):
    """The policy's flow-matching loss as a module, so that distributed wrappers see one forward."""

    def __init__(self, policy: ChunkPolicy):
        super().__init__()
        self.policy = policy

    def forward(
        self, observation: Observation, chunks: Tensor, noise: Tensor, time: Tensor, valid: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean loss of (B, H, A) normalised chunks over their (B, H) valid steps.

        The noise is (B, K, H, A), its flow times (B, K).
        """
        return self.policy(observation, chunks, noise, time, valid).mean(), {}


class ImitationBatches:
    """Step number to this process's share of the batch: observations, chunks, noise, flow times and valid steps.

    Args:
        policy: for the chunk's shape, the device and the image augmentation.
        frames: the stored frames, images included.
        examples: what to imitate.
        config: batch size.
        flow_samples: K noise samples for each encoded observation.
        max_shift: images are shifted by up to this many pixels, anew at every use.
        seed: names the sequence of batches.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        policy: ChunkPolicy,
        frames: FrameTable,
        examples: Examples,
        config: TrainingConfig,
        *,
        flow_samples: int,
        max_shift: int,
        seed: int,
    ):
        weight = examples.weight
        if not (weight > 0).any():
            raise UserError("no chunk has a weight above 0: nothing to imitate (did every rollout fail?)")
        self.frames, self.examples, self.policy = frames, examples, policy
        self.probabilities = (weight / weight.sum()).double().numpy()
        self.size, self.share = config.batch_size, my_share(accelerator, config.batch_size)
        self.flow_samples, self.max_shift, self.seed = flow_samples, max_shift, seed
        self.device = accelerator.device

    def __call__(self, step: int) -> tuple[Observation, Tensor, Tensor, Tensor, Tensor]:
        # The whole batch is drawn by every process, which keeps its share: two processes train as one would.
        index = torch.from_numpy(sample_indices(self.seed, step, self.size, self.probabilities))
        generator = step_generator(self.seed, step)
        chunks, valid = self.examples.chunk[index], self.examples.valid[index]
        noise = torch.randn((self.size, self.flow_samples, *chunks.shape[1:]), generator=generator)
        time = sample_time((self.size, self.flow_samples), generator)
        observation = self.frames.observation(self.examples.start_frame[index])
        observation = shift_observation(observation, self.max_shift, generator, self.share)
        parts = (part[self.share].to(self.device) for part in (chunks, noise, time, valid))
        return observation.to(self.device), *parts
