"""What does choosing among N candidates cost, against playing the first one?

    python benchmarks/best_of_n.py            # a table
    python benchmarks/best_of_n.py --json     # and one JSON object as the last line

One decision of one robot: the plain policy encodes its observation and samples one chunk; best-of-N encodes the same
observation once, samples N chunks that share the encoding and its projected keys and values, and scores them with the
critic. ``latency_ratio`` is best-of-10 over the plain policy, the ratio of the medians of calls that took turns, in a
new order every round: what ran just before decides what is in the processor's cache.
"""

import argparse
import json
import statistics
import time

import torch

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.contract import Contract, Statistics
from deas_vla.data.observation import Observation
from deas_vla.envs.registry import contract_of, env_config
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.features.image_encoder import ImageEncoder, ImageEncoderConfig
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.scorers.deas import DeasScorer


def demo_contract() -> Contract:
    """The demo's: RoboCasa's 16 state and 12 action columns, two cameras of 64 pixels."""
    contract = contract_of(env_config("robosuite", "lift"))
    state, action = contract.state_dim, contract.action_dim
    return contract.with_statistics(Statistics((0.0,) * state, (1.0,) * state, (0.0,) * action, (1.0,) * action))


CONTRACT = demo_contract()
CAMERAS = [camera.name for camera in CONTRACT.cameras]
STATE, ACTION, SIZE = CONTRACT.state_dim, CONTRACT.action_dim, CONTRACT.cameras[0].height
CANDIDATES = (1, 2, 4, 8, 10, 16, 32)


def random_observation(generator: torch.Generator) -> Observation:
    images = {
        name: torch.randint(0, 256, (1, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator) for name in CAMERAS
    }
    return Observation(images, torch.randn(1, STATE, generator=generator), ["lift the red cube"])


def decision_makers(seed: int) -> dict[str, BestOfN]:
    """The plain policy, and best-of-N with the demo critic for several N."""
    torch.manual_seed(seed)
    contract, config = CONTRACT, FeatureConfig()
    policy = SmallVLAPolicy(SmallVLAConfig(), contract, ["lift the red cube"]).eval()
    with torch.no_grad():
        context = policy.encode(random_observation(torch.Generator().manual_seed(seed)))
        size = pool_tokens(context, config, len(contract.cameras)).shape[1]
    projection = fit_projection(torch.randn(2 * config.dim, size), config.dim)
    encoder = ImageEncoder(len(contract.cameras), ImageEncoderConfig().dim)
    features = Features(contract, config, projection, encoder)
    sizes = CriticConfig(horizon=policy.horizon, hidden_dim=256, num_layers=3)  # as the demo has it
    scorer = DeasScorer.untrained(features, sizes, policy.encoder_fingerprint).eval()
    makers = {"policy": BestOfN(policy)}
    return makers | {f"best_of_{n}": BestOfN(policy, n, "best", scorer) for n in CANDIDATES}


def measure(makers: dict[str, BestOfN], repeats: int, seed: int) -> dict[str, float]:
    """Median milliseconds of one decision for each decision maker."""
    generator = torch.Generator().manual_seed(seed)
    seconds = {name: [] for name in makers}
    for repeat in range(-3, repeats):
        observation, key = random_observation(generator), NoiseKey(seed, 0, 0, repeat)
        order = torch.randperm(len(makers), generator=generator).tolist()
        for name, maker in (list(makers.items())[i] for i in order):
            began = time.perf_counter()
            maker.choose(observation, [key])
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60, help="timed decisions of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and noise (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    milliseconds = measure(decision_makers(arguments.seed), arguments.repeats, arguments.seed)
    print(f"one decision, one observation, {arguments.threads} CPU thread(s), median of {arguments.repeats}")
    print("decision maker     latency   against the policy")
    for name, value in milliseconds.items():
        print(f"{name:14s}  {value:7.1f} ms   {value / milliseconds['policy']:6.2f}x")
    if arguments.json:
        result = {"latency_ratio": milliseconds["best_of_10"] / milliseconds["policy"]}
        settings = {
            "threads": arguments.threads,
            "repeats": arguments.repeats,
            "torch": torch.__version__,
            "milliseconds": milliseconds,
        }
        print(json.dumps(result | settings))


if __name__ == "__main__":
    main()
