"""What do N candidates of a LeRobot policy cost, against one?

    python benchmarks/lerobot_candidates.py                     # two policies that are made here, with random weights
    python benchmarks/lerobot_candidates.py FOLDER FOLDER …     # policies that `LeRobotPolicy.save` wrote
    python benchmarks/lerobot_candidates.py --json              # and one JSON object as the last line
    python benchmarks/lerobot_candidates.py --true_size         # a SmolVLA of 450 M random weights; minutes, 4 GiB

One decision of one robot. ``shared``: the observation is encoded once, and N chunks are sampled from what was encoded.
``repeated``: the observation is repeated N times and everything runs N times, in one batch, which is what LeRobot
offers. Times are medians of calls that took turns, in a new order every round. The policies made here are a
diffusion policy (a ResNet18 for each of two cameras of 96 pixels, 10 DDIM steps) and a SmolVLA (two cameras of 128
pixels, 8 layers of width 256, 10 flow steps): small, so that a CPU takes well under a second.

``--true_size``: LeRobot's own configuration (16 layers, chunks of 50, 10 flow steps, images brought to 512 pixels) for
two cameras of 480x640, and a critic of 16 steps, untrained. A decision is `BestOfN.choose`: of N = 10 candidates the 16
steps that are scored, then the chosen chunk whole; of N = 1 the chunk. ``whole``: 10 chunks of 50 steps. Features are
pooled tokens, encoded one observation at a time, in batches, and in batches in bfloat16 (which LeRobot gives the
backbone where it is built on pretrained weights). CPU seconds of this process; medians.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from lerobot_example import CONTRACT, SENTENCES, diffusion, make, observations, smolvla
from transformers import SmolVLMConfig

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.contract import Camera, Contract
from deas_vla.data.observation import Observation
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.scorers.deas import DeasScorer
from studies.metaworld.small_smolvlm import write_small_smolvlm

# Observations that are encoded together in the measurement of features.
BATCH = 4
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


def true_size(folder: Path) -> LeRobotPolicy:
    """A SmolVLA with the sizes of SmolVLM2-500M, of which LeRobot uses the first 16 layers."""
    write_small_smolvlm(folder, SENTENCES, 512, patch=16)
    written = SmolVLMConfig.from_pretrained(folder).to_dict()
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_attention_heads": 15, "num_key_value_heads": 5}
    text |= {"head_dim": 64, "num_hidden_layers": 16, "vocab_size": 49280, "max_position_embeddings": 8192}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    written["text_config"] |= text
    written["vision_config"] |= vision
    SmolVLMConfig(**written | {"scale_factor": 4}).save_pretrained(folder)
    contract = replace(CONTRACT, cameras=(Camera("left", 480, 640), Camera("wrist", 480, 640)))
    return make("smolvla", contract, vlm_model_name=str(folder))


def cpu_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@torch.inference_mode()
def measure_true_size(policy: LeRobotPolicy, repeats: int) -> dict[str, float]:
    """CPU seconds of decisions and of a frame's features, and what bfloat16 changes in these."""
    frames, size = observations(BATCH, policy.contract), (policy.horizon, policy.contract.action_dim)
    one, keys, config = frames[[0]], [NoiseKey(0, 0, 0, 0)], FeatureConfig()

    def features(observation: Observation) -> torch.Tensor:
        return pool_tokens(policy.encode(observation), config, len(policy.contract.cameras))

    pooled = features(frames)
    critic = Features(policy.contract, config, fit_projection(pooled, config.dim))
    scorer = DeasScorer.untrained(critic, CriticConfig(horizon=16), policy.encoder_fingerprint).eval()
    plain, best, noise = BestOfN(policy), BestOfN(policy, 10, "best", scorer), candidate_noise(0, 0, 0, 0, 10, *size)
    ways = {
        "decision 1": lambda: plain.choose(one, keys),
        "decision 10": lambda: best.choose(one, keys),
        "whole 10": lambda: shared(policy, one, noise),
    }
    one_by_one, together = (lambda: [features(frames[[row]]) for row in range(BATCH)]), (lambda: features(frames))
    ways |= {"frame, one at a time": one_by_one, "frame, batch": together}

    def timed(ways: dict) -> dict[str, float]:
        rounds = [{name: cpu_seconds(way) for name, way in ways.items()} for _ in range(repeats)]
        found = {name: statistics.median(each[name] for each in rounds) for name in ways}
        return {name: value / BATCH if name.startswith("frame") else value for name, value in found.items()}

    seconds = timed(ways)
    policy.policy.model.vlm_with_expert.to(torch.bfloat16)
    seconds |= timed({"frame, batch, bfloat16": together})
    difference = (features(frames) - pooled).norm() / pooled.norm()
    return seconds | {"bfloat16 changes features by": float(difference)}


def report_true_size(found: dict[str, float], policy: LeRobotPolicy) -> dict[str, float]:
    """Prints what was measured, and returns the ratios that the project wants below 1.6 and above 2.5."""
    for name, value in found.items():
        print(f"  {name:30s} {value:8.4f}")
    each = found["frame, one at a time"]
    ratios = {
        "decision 10 / decision 1": found["decision 10"] / found["decision 1"],
        "frames per CPU second, batch / one at a time": each / found["frame, batch"],
        "frames per CPU second, bfloat16 batch / one at a time": each / found["frame, batch, bfloat16"],
        "weights, millions": sum(parameter.numel() for parameter in policy.parameters()) / 1e6,
        "peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    for name, value in ratios.items():
        print(f"  {name:54s} {value:8.2f}")
    return ratios


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
    parser.add_argument("--true_size", action="store_true", help="a SmolVLA at its real size")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of images and noise (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as folder:
        if arguments.true_size:
            policy = true_size(Path(folder) / "smolvlm")
            found = measure_true_size(policy, min(arguments.repeats, 3))
            ratios = report_true_size(found, policy)
            if arguments.json:
                print(json.dumps(ratios | found | {"threads": arguments.threads, "torch": torch.__version__}))
            return
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
