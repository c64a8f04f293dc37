"""Is what a stage was said to take what it took?

    python benchmarks/estimates.py                                # all combinations
    python benchmarks/estimates.py --combinations=critic,lora     # some
    python benchmarks/estimates.py --json                         # and one JSON object as the last line

Each combination of a model and its sizes runs in a process of its own that has imported everything: it says what the
stage takes, as a recipe does before it starts, and goes through it. Memory is the most that was resident, less what was
after the imports; sizes are such that what is estimated is most of it. With --long_s=SECONDS the trial ends with a part
of the batch that takes so long, as it does with large models, and is scaled. ``worst_memory`` and ``worst_time`` are
the ratios of estimate and measured that are furthest from 1.
"""

import argparse
import json
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the processes here are forks, which a GPU does not survive

import numpy as np
import torch
import transformers  # noqa: F401 (imported before anything is measured)
from torch import nn

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.data.contract import Camera, Column, Contract, Statistics
from deas_vla.data.episodes import Episode
from deas_vla.data.frames import FrameTable
from deas_vla.data.options import build_chunks
from deas_vla.features.cache import FeatureCache
from deas_vla.features.features import FeatureConfig
from deas_vla.features.image_encoder import ImageEncoder, ImageEncoderConfig, ImageEncoderLearning
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig, SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.training import estimate, loop
from deas_vla.training.critic import filled
from deas_vla.training.estimate import Needs, cache_needs, resident, training_needs
from deas_vla.training.imitation import Examples, FlowImitation, imitation_batches
from deas_vla.training.loop import TrainingConfig, make_accelerator, train
from deas_vla.training.presets import preset

SIZE, STATE, ACTION, HORIZON = 64, 16, 12, 16
CONTRACT = Contract(
    embodiment="benchmark",
    rate_hz=20.0,
    state=tuple(Column(f"joint_{i}.pos", "rad") for i in range(STATE)),
    action=tuple(Column(f"joint_{i}.command", "command", "continuous", -1.0, 1.0) for i in range(ACTION)),
    cameras=(Camera("front", SIZE, SIZE), Camera("wrist", SIZE, SIZE)),
    statistics=Statistics((0.0,) * STATE, (1.0,) * STATE, (0.0,) * ACTION, (1.0,) * ACTION),
)
# Of a training: so many that its beginning and end are a small part of it.
STEPS = 20
WORDS = ["lift the red cube"]
BACKBONE = EmbeddedBackboneConfig(
    patch_size=8, vision_width=256, vision_layers=4, text_width=256, text_layers=4, head_width=64, mlp_ratio=4
)


def episodes(frames: int) -> list[Episode]:
    """One episode of so many stored frames of noise."""
    rng, steps = np.random.default_rng(0), 4 * (frames - 1)
    success = np.zeros(steps, bool)
    success[-1] = True
    return [
        Episode(
            instruction=WORDS[0],
            source="demonstration",
            scene=0,
            states=rng.normal(size=(steps + 1, STATE)).astype(np.float32),
            actions=rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32),
            rewards=success.astype(np.float32),
            success=success,
            truncated=False,
            frame_steps=np.arange(0, steps + 1, 4),
            images={
                camera.name: rng.integers(0, 256, (frames, SIZE, SIZE, 3), dtype=np.uint8)
                for camera in CONTRACT.cameras
            },
        )
    ]


class Stage:
    """What a recipe has in its hands when a stage begins: `needs` says what it takes, `run` goes through it."""

    def __init__(self, folder: Path):
        self.folder, self.accelerator = folder, make_accelerator()

    def needs(self) -> Needs:
        raise NotImplementedError

    def run(self) -> None:
        raise NotImplementedError


class Training(Stage):
    module: nn.Module
    config: TrainingConfig

    def batch_at(self, step: int) -> tuple:
        raise NotImplementedError

    def needs(self) -> Needs:
        return training_needs(self.accelerator, "training", self.module, self.batch_at, self.config, "training")

    def run(self) -> None:
        train(self.accelerator, self.module, self.batch_at, self.config, self.folder, name="training", seed=0)


class Critic(Training):
    def __init__(self, folder: Path, config: CriticConfig, features: int, training: TrainingConfig):
        super().__init__(folder)
        self.module, self.config, self.features = DeasCritic(config, features, STATE, ACTION), training, features

    def batch_at(self, step: int) -> tuple:
        size = self.config.batch_size
        observation = torch.randn(size, self.features), torch.randn(size, STATE)
        returns = torch.randn(size), torch.full((size,), 0.8)
        return (CriticBatch(*observation, torch.randn(size, HORIZON, ACTION), *returns, *observation),)


class Images(Training):
    def __init__(self, folder: Path, training: TrainingConfig):
        super().__init__(folder)
        encoder = ImageEncoder(len(CONTRACT.cameras), 64)
        self.module = ImageEncoderLearning(encoder, ImageEncoderConfig(), STATE, 4 * STATE)
        self.config = training

    def batch_at(self, step: int) -> tuple:
        size = self.config.batch_size
        images = [torch.randint(0, 256, (size, SIZE, SIZE, 3), dtype=torch.uint8) for _ in CONTRACT.cameras]
        ones = torch.ones(size)
        return images, torch.randn(size, STATE), ones, ones, torch.randn(size, 4 * STATE), ones


class Policy(Training):
    def __init__(self, folder: Path, policy: SmallVLAConfig, training: TrainingConfig, *, freeze: bool = False):
        super().__init__(folder)
        made = SmallVLAPolicy(policy, CONTRACT, WORDS)
        if freeze:
            made.freeze_encoder()
        self.module, self.config = FlowImitation(made), training
        data = episodes(64)
        chunks = build_chunks(data, CONTRACT, horizon=HORIZON)
        self.batches = imitation_batches(
            self.accelerator, FrameTable.of(data), Examples.recorded(chunks, torch.ones(len(chunks))), training,
            flow_samples=2, max_shift=2, seed=0,
        )  # fmt: skip

    def batch_at(self, step: int) -> tuple:
        return self.batches(step)


class Caching(Stage):
    def __init__(self, folder: Path, policy: SmallVLAConfig, frames: int):
        super().__init__(folder)
        made = SmallVLAPolicy(policy, CONTRACT, WORDS)
        self.cache = FeatureCache(folder, made, FrameTable.of(episodes(frames)), FeatureConfig())

    def needs(self) -> Needs:
        return cache_needs(self.accelerator, self.cache, "features")[0]

    def run(self) -> None:
        filled(self.accelerator, self.cache, "features")


def short(batch_size: int, **settings) -> TrainingConfig:
    return TrainingConfig(**({"steps": STEPS, "batch_size": batch_size, "checkpoint_every": 100} | settings))


COMBINATIONS: dict[str, Callable[[Path], Stage]] = {
    "features": lambda folder: Caching(folder, SmallVLAConfig(embedded=BACKBONE), 128),
    "image_encoder": lambda folder: Images(folder, short(256)),
    "critic": lambda folder: Critic(folder, CriticConfig(hidden_dim=1024), 256, short(256)),
    "critic_published": lambda folder: Critic(folder, preset("published").critic, 2048, short(256)),
    "checkpoint": lambda folder: Critic(
        folder, CriticConfig(hidden_dim=1024), 256, short(64, checkpoint_every=STEPS - 1)
    ),
    "full": lambda folder: Policy(folder, SmallVLAConfig(embedded=BACKBONE), short(4)),
    "frozen": lambda folder: Policy(
        folder, SmallVLAConfig(embedded=BACKBONE, width=256, layers=6), short(16), freeze=True
    ),
    "lora": lambda folder: Policy(folder, SmallVLAConfig(embedded=BACKBONE, tune="lora"), short(4)),
}


def in_fork(work: Callable[[], dict]) -> dict:
    """What `work` returns in a process of its own."""
    read, write = os.pipe()
    process = os.fork()
    if not process:
        status = 1
        try:
            os.write(write, json.dumps(work()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    if os.waitpid(process, 0)[1]:
        raise SystemExit("a process failed")
    return json.loads(answer)


def compared(make: Callable[[Path], Stage]) -> dict:
    """Estimate and what was measured, each bytes of memory and seconds."""
    imports = resident()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        stage = make(Path(folder))
        held, began = resident() - imports, time.perf_counter()
        needs = stage.needs()
        tried, began = time.perf_counter() - began, time.perf_counter()
        stage.run()
        seconds = time.perf_counter() - began
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = {"memory": held + needs.memory, "seconds": needs.seconds, "trial_seconds": tried}
    return {"estimate": said, "measured": {"memory": peak - imports, "seconds": seconds}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--combinations", default=",".join(COMBINATIONS), help="default: all, %(default)s")
    parser.add_argument(
        "--long_s", type=float, default=estimate.LONG_S, help="default: %(default)s, as recipes have it"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    estimate.LONG_S = arguments.long_s
    # Imported at its first step.
    weight = nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], fused=True).step()
    loop._tensorboard()

    results = {}
    print("combination         memory: said   measured  ratio    time: said  measured  ratio    trial")
    for name in arguments.combinations.split(","):
        make = COMBINATIONS[name]
        result = results[name] = in_fork(lambda make=make: compared(make))
        said, took = result["estimate"], result["measured"]
        result["ratio"] = {key: said[key] / took[key] for key in took}
        print(
            f"{name:18s} {said['memory'] / 2**20:9.0f} MiB {took['memory'] / 2**20:6.0f} MiB "
            f"{result['ratio']['memory']:6.2f}  {said['seconds']:10.1f} s {took['seconds']:7.1f} s "
            f"{result['ratio']['seconds']:6.2f} {said['trial_seconds']:6.1f} s",
            flush=True,
        )
    if arguments.json:
        worst = {
            f"worst_{name}": max((result["ratio"][key] for result in results.values()), key=lambda r: abs(math.log(r)))
            for name, key in (("memory", "memory"), ("time", "seconds"))
        }
        print(json.dumps(worst | {"combinations": results}))


if __name__ == "__main__":
    main()
