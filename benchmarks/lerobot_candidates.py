"""What do N candidates of a LeRobot policy cost, against one?

    python benchmarks/lerobot_candidates.py                     # two policies that are made here, with random weights
    python benchmarks/lerobot_candidates.py FOLDER FOLDER …     # policies that `LeRobotPolicy.save` wrote
    python benchmarks/lerobot_candidates.py --json              # and one JSON object as the last line

One decision of one robot. ``shared``: the observation is encoded once, and N chunks are sampled from what was encoded.
``repeated``: the observation is repeated N times and everything runs N times, in one batch, which is what LeRobot
offers. Times are medians of calls that took turns, in a new order every round. The policies made here are a
diffusion policy (a ResNet18 for each of two cameras of 96 pixels, 10 DDIM steps) and a SmolVLA (two cameras of 128
pixels, 8 layers of width 256, 10 flow steps): small, so that a CPU takes well under a second.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from lerobot_example import CONTRACT, SENTENCES, diffusion, observations, smolvla

from deas_vla.data.contract import Camera, Contract
from deas_vla.data.observation import Observation
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from studies.metaworld.small_smolvlm import write_small_smolvlm

CANDIDATES = (1, 2, 4, 10, 32)


def sized(size: int) -> Contract:
    return replace(CONTRACT, cameras=(Camera("left", size, size), Camera("wrist", size, size)))


def built_here(folder: Path) -> dict[str, LeRobotPolicy]:
    backbone = write_small_smolvlm(folder / "smolvlm", SENTENCES, 128, patch=16, width=256, layers=8)
    return {
        "diffusion": diffusion(
            sized(96), down_dims=(64, 128), spatial_softmax_num_keypoints=32, num_inference_steps=10
        ),
        "smolvla": smolvla(
            backbone,
            sized(128),
            num_vlm_layers=8,
            resize_imgs_with_padding=(128, 128),
            num_steps=10,
            max_action_dim=32,
            max_state_dim=32,
        ),
    }


def shared(policy: LeRobotPolicy, observation: Observation, noise: torch.Tensor) -> torch.Tensor:
    return policy.sample(policy.encode(observation), noise[None])


def repeated(policy: LeRobotPolicy, observation: Observation, noise: torch.Tensor) -> torch.Tensor:
    parts = policy._encode(observation[[0] * len(noise)])
    actions = policy.adapter.sample(
        {name.removeprefix("memory."): value for name, value in parts.items()}, policy.adapter.widened(noise)
    )
    return policy.processors.commands(actions, observation.state.expand(len(noise), -1))


@torch.inference_mode()
def measure(policy: LeRobotPolicy, repeats: int, seed: int) -> dict[str, float]:
    """Median milliseconds of one decision, by way and number of candidates."""
    generator = torch.Generator().manual_seed(seed)
    ways = {f"shared {n}": (shared, n) for n in CANDIDATES} | {"repeated 10": (repeated, 10)}
    seconds = {name: [] for name in ways}
    for repeat in range(-2, repeats):
        observation = observations(1, policy.contract, seed=repeat + 2)
        size = (policy.horizon, policy.contract.action_dim)
        order = torch.randperm(len(ways), generator=generator).tolist()
        for name, (way, n) in (list(ways.items())[i] for i in order):
            noise = candidate_noise(seed, 0, 0, repeat, n, *size)
            began = time.perf_counter()
            way(policy, observation, noise)
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="of saved policies")
    parser.add_argument("--repeats", type=int, default=20, help="timed decisions of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of images and noise (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as folder:
        if arguments.folders:
            policies = {str(path): LeRobotPolicy.load(path) for path in arguments.folders}
        else:
            policies = built_here(Path(folder))
        results = {}
        for name, policy in policies.items():
            results[name] = measure(policy, arguments.repeats, arguments.seed)
            print(f"{name}, {arguments.threads} CPU thread(s), median of {arguments.repeats}")
            for way, value in results[name].items():
                print(f"  {way:12s} {value:8.1f} ms   {value / results[name]['shared 1']:6.2f}x")
    if arguments.json:
        ratios = {name: values["shared 10"] / values["shared 1"] for name, values in results.items()}
        settings = {"threads": arguments.threads, "repeats": arguments.repeats, "torch": torch.__version__}
        print(json.dumps({"latency_ratio": ratios, "milliseconds": results} | settings))


if __name__ == "__main__":
    main()
