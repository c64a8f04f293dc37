"""How much faster does the critic train from cached features than with the backbone in its training loop?

    python benchmarks/feature_cache.py            # a table
    python benchmarks/feature_cache.py --json     # and one JSON object as the last line

Both sides make the same optimiser steps on the same batches with the default critic. One looks features up; the
other runs the frozen backbone on the frames at both ends of every option, as published code does. It does so in its
fastest way: large batches, pooled and projected as a whole.

Two backbones: the demo's, which is smaller than the critic itself, so that the cache can save only so much; and one
of the same family with some 20 million parameters, a hundredth of what GR00T or pi0 carry. ``speedup`` is that of the
latter, ``speedup_demo`` that of the former; with a real vision-language model it is far above both.
"""

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.data.contract import Contract, Statistics
from deas_vla.data.episodes import Episode
from deas_vla.data.frames import FrameTable
from deas_vla.data.options import Options, RewardSpec, build_options
from deas_vla.data.sampling import sample_indices
from deas_vla.envs.registry import contract_of, env_config
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig, SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy


def demo_contract() -> Contract:
    """The demo's: RoboCasa's 16 state and 12 action columns, two cameras of 64 pixels."""
    contract = contract_of(env_config("robosuite", "lift"))
    state, action = contract.state_dim, contract.action_dim
    return contract.with_statistics(Statistics((0.0,) * state, (1.0,) * state, (0.0,) * action, (1.0,) * action))


CONTRACT = demo_contract()
CAMERAS = [camera.name for camera in CONTRACT.cameras]
STATE, ACTION, SIZE = CONTRACT.state_dim, CONTRACT.action_dim, CONTRACT.cameras[0].height
BACKBONES = {
    "demo": EmbeddedBackboneConfig(),
    "small": EmbeddedBackboneConfig(
        patch_size=8, merge=2, vision_width=256, vision_layers=6,
        text_width=384, text_layers=6, head_width=64, mlp_ratio=4,
    ),
}  # fmt: skip


def random_episode(rng: np.random.Generator, steps: int, success: bool) -> Episode:
    """Images every four steps, as rollouts have them; what is on them does not matter for the speed."""
    frames = np.arange(0, steps + 1, 4)
    done = np.zeros(steps, bool)
    done[-1] = success
    return Episode(
        instruction="lift the red cube",
        source="rollout",
        scene=0,
        states=rng.normal(size=(steps + 1, STATE)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32),
        rewards=done.astype(np.float32),
        success=done,
        truncated=not success,
        frame_steps=frames,
        images={name: rng.integers(0, 256, (len(frames), SIZE, SIZE, 3), dtype=np.uint8) for name in CAMERAS},
    )


class Comparison:
    """One policy, one critic, one data set; a step with the cache and one without."""

    def __init__(self, backbone: EmbeddedBackboneConfig, batch_size: int):
        rng = np.random.default_rng(0)
        contract = CONTRACT
        episodes = [random_episode(rng, 80, i % 2 == 0) for i in range(8)]
        torch.manual_seed(0)
        self.batch_size = batch_size
        config = SmallVLAConfig(embedded=backbone, encode_batch=32)
        self.policy = SmallVLAPolicy(config, contract, ["lift the red cube"]).eval()
        self.config = FeatureConfig()
        self.frames = FrameTable.of(episodes)
        critic = CriticConfig()
        self.options = build_options(
            episodes,
            contract,
            horizon=critic.horizon,
            reward_discount=critic.reward_discount,
            bootstrap_discount=critic.bootstrap_discount,
            reward=RewardSpec(),
        )
        began = time.perf_counter()
        pooled = pool_tokens(self.encode(torch.arange(len(self.frames))), self.config, 2)
        projection = fit_projection(pooled, self.config.dim)
        self.inputs = Features(contract, self.config, projection)
        self.features = self.inputs.of_pooled(pooled, self.frames.images)
        self.state = CONTRACT.normalize_state(self.frames.state)
        self.cache_seconds = time.perf_counter() - began
        self.critic = DeasCritic(critic, self.config.dim, STATE, ACTION).train()
        self.optimizer = torch.optim.AdamW(self.critic.parameters(), lr=3e-4, foreach=True)

    @torch.no_grad()
    def encode(self, rows: Tensor):
        return self.policy.encode(self.frames.observation(rows))

    def step(self, number: int, cached: bool) -> float:
        """Seconds of one optimiser step, making its batch included."""
        began = time.perf_counter()
        chances = np.full(len(self.options), 1 / len(self.options))
        batch = self.options.batch(torch.from_numpy(sample_indices(0, number, self.batch_size, chances)))
        ends = torch.cat([batch.start_frame, batch.end_frame])
        if cached:
            features, state = self.features[ends], self.state[ends]
        else:
            context = self.encode(ends)
            pooled = pool_tokens(context, self.config, 2)
            features = self.inputs.project(pooled)
            state = CONTRACT.normalize_state(self.frames.state[ends])
        loss, _ = self.critic.loss(critic_batch(batch, features, state))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.critic.update_target()
        return time.perf_counter() - began


def critic_batch(options: Options, features: Tensor, state: Tensor) -> CriticBatch:
    (start, end), (state_start, state_end) = features.chunk(2), state.chunk(2)
    return CriticBatch(
        features=start,
        state=state_start,
        chunk=options.chunk,
        returns=options.returns,
        bootstrap=options.bootstrap,
        next_features=end,
        next_state=state_end,
    )


def measure(backbone: str, batch_size: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a step with and without the cache, and of caching a frame."""
    comparison = Comparison(BACKBONES[backbone], batch_size)
    seconds = {True: [], False: []}
    comparison.step(0, cached=True)
    # In turn, so that whatever else the machine does falls on both.
    for repeat in range(repeats):
        seconds[False].append(comparison.step(repeat, cached=False))
        seconds[True] += [comparison.step(10 * repeat + i, cached=True) for i in range(10)]
    cached, inside = (statistics.median(seconds[key]) for key in (True, False))
    parameters = sum(p.numel() for p in comparison.policy.backbone.parameters())
    return {
        "parameters": parameters,
        "cached_ms_per_step": 1e3 * cached,
        "backbone_ms_per_step": 1e3 * inside,
        "cache_ms_per_frame": 1e3 * comparison.cache_seconds / len(comparison.frames),
        "speedup": inside / cached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="options a step (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = {name: measure(name, arguments.batch_size, arguments.repeats) for name in BACKBONES}
    print(f"critic training, batch {arguments.batch_size}, {arguments.threads} CPU thread(s), median of the steps")
    print("backbone  parameters   in the loop     from the cache   speed-up   making the cache, once")
    for name, row in results.items():
        print(
            f"{name:8s}  {row['parameters'] / 1e6:8.1f} M  {row['backbone_ms_per_step']:8.0f} ms/step"
            f"  {row['cached_ms_per_step']:8.1f} ms/step  {row['speedup']:7.1f}x"
            f"  {row['cache_ms_per_frame']:8.1f} ms/frame"
        )
    if arguments.json:
        headline = {"speedup": results["small"]["speedup"], "speedup_demo": results["demo"]["speedup"]}
        settings = {"batch_size": arguments.batch_size, "threads": arguments.threads, "torch": torch.__version__}
        print(json.dumps(headline | settings | {"backbones": results}))


if __name__ == "__main__":
    main()
