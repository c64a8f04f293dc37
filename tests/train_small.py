"""Trains a small policy, critic and image encoder for a few steps; a script, so that a launcher can start it twice.

python tests/train_small.py FOLDER MICRO_BATCHES
"""

import sys
from pathlib import Path

import numpy as np
import torch
from data_example import example_contract, example_episode
from safetensors.torch import save_file

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.data.frames import FrameTable
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.data.sampling import sample_indices
from deas_vla.features.image_encoder import ImageEncoderConfig
from deas_vla.launch import leave_process_group
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig, SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.training.image_encoder import train_image_encoder
from deas_vla.training.imitation import Examples, FlowImitation, imitation_batches
from deas_vla.training.loop import TrainingConfig, make_accelerator, my_share, train


def main(folder: Path, micro_batches: int) -> None:
    sizes = {"steps": 6, "batch_size": 8, "micro_batches": micro_batches}
    config = TrainingConfig(**sizes, learning_rate=1e-3, log_every=2, checkpoint_every=4)
    accelerator = make_accelerator()
    torch.set_num_threads(1)
    contract = example_contract()
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, 12, success) for success in (True, False, True)]
    frames = FrameTable.of(episodes)
    options = build_options(
        episodes, contract, horizon=4, reward_discount=0.9, bootstrap_discount=0.99, reward=RewardSpec()
    )

    torch.manual_seed(0)
    small = EmbeddedBackboneConfig(patch_size=4, vision_layers=1, text_layers=1)
    policy = SmallVLAPolicy(SmallVLAConfig(embedded=small, horizon=4, layers=2), contract, ["lift the cube"])
    # The head starts at zero output, where a difference in the noise or the images would not be seen.
    for parameter in policy.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    batches = imitation_batches(
        accelerator,
        frames,
        Examples.recorded(options, torch.ones(len(options))),
        config,
        flow_samples=2,
        max_shift=2,
        seed=0,
    )
    train(accelerator, FlowImitation(policy), batches, config, folder / "policy", name="policy", seed=0)

    torch.manual_seed(0)
    critic = DeasCritic(CriticConfig(horizon=4, hidden_dim=32, num_layers=2), 5, 3, 2)
    features = torch.randn(len(frames), 5)
    state = contract.normalize_state(frames.state)
    chances = np.full(len(options), 1 / len(options))
    share = my_share(accelerator, config.batch_size)

    def batch_at(step: int) -> tuple[CriticBatch]:
        rows = torch.from_numpy(sample_indices(0, step, config.batch_size, chances)[share])
        start, end = options.start_frame[rows], options.end_frame[rows]
        return (
            CriticBatch(
                features[start], state[start], options.chunk[rows], options.returns[rows],
                options.bootstrap[rows], features[end], state[end],
            ),
        )  # fmt: skip

    train(
        accelerator, critic, batch_at, config, folder / "critic",
        name="critic", seed=0, after_step=DeasCritic.update_target,
    )  # fmt: skip
    encoder = train_image_encoder(
        accelerator, ImageEncoderConfig(dim=4, dropout=0.0), config, episodes, frames, contract,
        torch.ones(len(frames), dtype=torch.bool), folder, horizon=4, seed=0,
    )  # fmt: skip
    if accelerator.is_main_process:
        tensors = {f"policy.{k}": v for k, v in policy.state_dict().items()}
        tensors |= {f"critic.{k}": v for k, v in critic.state_dict().items()}
        tensors |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
        tensors = {k: v.clone().contiguous() for k, v in tensors.items()}
        save_file(tensors, folder / "weights.safetensors", metadata={"processes": str(accelerator.num_processes)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    leave_process_group()
