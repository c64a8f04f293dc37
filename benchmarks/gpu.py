"""What does a GPU make of this: latency of N candidates, features, critic updates, memory of training?

    python benchmarks/gpu.py --json=gpu.json                 # on a GPU, at true size, at most ten minutes
    python benchmarks/gpu.py --size=small --device=cpu       # the same on a CPU in a minute, to see that it works

Weights are random and nothing is downloaded. Each part runs in a process of its own, within a time of its own: one that
fails, or takes longer, is a line of the table, and the others go on. Parts (``--parts`` chooses among them):

``n15``      one decision (encode, N chunks, critic, choice) of the built-in policy with the dimensions of GR00T N1.5
             (3 cameras of 224 pixels, 4 flow steps), in bfloat16, for N = 1 to 32, against N = 1 without a critic
``pi05``     the same of LeRobot's π0.5 (3 cameras, chunks of 50 steps, 10 flow steps), beside what OpenTau published
             (pull request 525, RTX 5090, no critic): N = 4 +1.2 %, 8 +1.7 %, 16 +25 %, 32 +82 %
``features`` frames a second on their way to the critic's features, against the backbone's forward alone
``critic``   updates a second of the default critic: eager, torch.compile'd, and as one CUDA graph
``memory``   the peak of three steps of training the policy's head by LoRA
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from accelerate import Accelerator
from torch import nn

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.data.contract import Camera, Column, Contract, Statistics
from deas_vla.data.observation import Observation
from deas_vla.features.features import Features, fit_projection, pool_tokens
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import NoiseKey
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.lora import LoraConfig
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig, SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.scorers.deas import DeasScorer
from deas_vla.training.imitation import FlowImitation
from deas_vla.training.loop import TrainingConfig, train
from deas_vla.training.presets import preset

CANDIDATES = (1, 4, 8, 10, 16, 32)
# Latency over that of N = 1: OpenTau, pull request 525, RTX 5090, bfloat16.
PUBLISHED = {4: 1.012, 8: 1.017, 16: 1.25, 32: 1.82}
# Seconds that a part may take, process, policy and compiling included; together less than ten minutes.
SECONDS = {"n15": 110, "pi05": 170, "features": 80, "critic": 140, "memory": 80}
# Timed calls are repeated until there are so many, or their time is up.
REPEATS, WARM_UP = 30, 3
INSTRUCTION = "put the red cube into the drawer"
Rows = list[dict[str, object]]


# ---- what is measured --------------------------------------------------------------------------------------------


def contract_of(size: str) -> Contract:
    """A RoboCasa-like robot: 16 state and 12 action columns, three cameras."""
    pixels, states, actions = (224, 16, 12) if size == "full" else (32, 4, 3)
    return Contract(
        embodiment="benchmark",
        rate_hz=20.0,
        state=tuple(Column(f"state.{i}", "m") for i in range(states)),
        action=tuple(Column(f"action.{i}", "command", "continuous", -1.0, 1.0) for i in range(actions)),
        cameras=tuple(Camera(name, pixels, pixels) for name in ("left", "right", "wrist")),
        statistics=Statistics((0.0,) * states, (1.0,) * states, (0.0,) * actions, (1.0,) * actions),
    )


def observations(contract: Contract, count: int) -> Observation:
    """On the CPU, as a robot or a data set gives them."""
    shape = (count, contract.cameras[0].height, contract.cameras[0].width, 3)
    images = {camera.name: torch.randint(0, 256, shape, dtype=torch.uint8) for camera in contract.cameras}
    return Observation(images, torch.randn(count, contract.state_dim), [INSTRUCTION] * count)


def n15(size: str, device: torch.device) -> SmallVLAPolicy:
    """Widths and depths of GR00T N1.5: SigLIP so400m, 12 layers of Qwen3 1.7B, 4 + 16 layers of its action head."""
    config = SmallVLAConfig(embedded=EmbeddedBackboneConfig(patch_size=8), context_layers=1)
    if size == "full":
        vision = {"patch_size": 14, "vision_width": 1152, "vision_layers": 27}
        backbone = EmbeddedBackboneConfig(**vision, text_width=2048, text_layers=12, head_width=64, mlp_ratio=3)
        head = {"width": 1536, "layers": 16, "head_width": 48, "mlp_ratio": 4, "context_layers": 4}
        config = SmallVLAConfig(embedded=backbone, backbone_dtype="bfloat16", max_instruction_tokens=32, **head)
    with torch.device(device):  # three billion weights are drawn in a moment there
        policy = SmallVLAPolicy(config, contract_of(size), [INSTRUCTION])
    return policy.to(device).eval()


def pi05(size: str, device: torch.device) -> ChunkPolicy:
    """LeRobot's own, its tokenizer replaced by one that is made here."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from lerobot.policies.pi05 import processor_pi05
    from lerobot_example import gemma_tokenizer, make, pi

    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder) / "paligemma"
        if size == "small":
            return pi("pi05", words, contract_of(size)).to(device).eval()
        gemma_tokenizer([INSTRUCTION]).save_pretrained(words)
        step = processor_pi05.TokenizerProcessorStep

        def local(tokenizer_name: str, **settings):
            return step(tokenizer_name=str(words), **settings)

        with mock.patch.object(processor_pi05, "TokenizerProcessorStep", local), torch.device(device):
            policy = make("pi05", contract_of(size), dtype="bfloat16")
    return policy.to(device).eval()


def scorer_of(policy: ChunkPolicy, device: torch.device) -> DeasScorer:
    """The default critic, not trained, on features of its true size."""
    contract, config = policy.contract, preset("default").features
    with torch.inference_mode():
        pooled = pool_tokens(policy.encode(observations(contract, 4)), config, len(contract.cameras)).cpu()
    features = Features(contract, config, fit_projection(pooled, config.dim))
    critic = CriticConfig(horizon=min(16, policy.horizon))
    return DeasScorer.untrained(features, critic, policy.encoder_fingerprint).to(device).eval()


# ---- time and memory ---------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    """Until the GPU has done what it was given: kernels run behind the call that starts them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Callable[[], object], device: torch.device, until: float) -> float:
    """Median of repeated calls, from the call until the GPU is done, no longer than `until` (`time.monotonic`)."""
    taken = []
    for repeat in range(WARM_UP + REPEATS):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        if repeat >= WARM_UP:
            taken.append(1e3 * (time.perf_counter() - began))
        if time.monotonic() > until and taken:
            break
    return statistics.median(taken)


# ---- parts -------------------------------------------------------------------------------------------------------


def latency(build: Callable, published: dict[int, float], size: str, device: torch.device, until: float) -> Rows:
    """Of one decision, for each N in turn."""
    policy = build(size, device)
    scorer, seen, rows = scorer_of(policy, device), observations(policy.contract, 1), []
    # LeRobot's policies choose their own number types; the built-in one is cast as in training.
    cast = torch.autocast(device.type, torch.bfloat16, enabled=size == "full" and policy.type_name == "small_vla")
    for number, count in enumerate(CANDIDATES):
        rule, critic = ("best", scorer) if count > 1 else ("first", None)
        decide = BestOfN(policy, count, rule, critic)
        share = time.monotonic() + (until - time.monotonic()) / (len(CANDIDATES) - number)
        with cast:
            taken = milliseconds(lambda decide=decide: decide.choose(seen, [NoiseKey(0, 0, 0, 0)]), device, share)
        row = {"what": f"N = {count}", "ms": taken, "of N = 1": taken / rows[0]["ms"] if rows else 1.0}
        rows.append(row | ({"published": published[count]} if count in published else {}))
    return rows


def feature_rate(size: str, device: torch.device, until: float) -> Rows:
    """Images in memory to features, and the backbone on inputs that lie ready on the device, by batches alike."""
    policy, count = n15(size, device), 32 if size == "full" else 4
    scorer, seen = scorer_of(policy, device), observations(policy.contract, count)
    inputs = {name: value.to(device) for name, value in policy.prompts(seen).items()}
    ways = {
        "backbone alone": lambda: policy.backbone(inputs),
        "to the critic's features": lambda: scorer.encode(policy.encode(seen), seen),
    }
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=size == "full"):
        for number, (name, call) in enumerate(ways.items()):
            share = time.monotonic() + (until - time.monotonic()) / (len(ways) - number)
            rate = 1e3 * count / milliseconds(call, device, share)
            rows.append({"what": name, "frames/s": rate, "of the first": rate / rows[0]["frames/s"] if rows else 1.0})
    return rows


def critic_updates(size: str, device: torch.device, until: float) -> Rows:
    """The step of the training loop without its sampling: loss, gradients, clipping, AdamW, target networks."""
    training, count = preset("default").training, 256 if size == "full" else 8
    config = CriticConfig() if size == "full" else CriticConfig(hidden_dim=16, num_layers=2)
    features, states, actions = (320, 16, 12) if size == "full" else (6, 4, 3)
    rows = []

    def batch() -> CriticBatch:
        wide, narrow = torch.randn(2, count, features), torch.randn(2, count, states)
        chunk = torch.randn(count, config.horizon, actions)
        option = (chunk, -torch.rand(count), torch.full((count,), 0.8))
        return CriticBatch(wide[0], narrow[0], *option, wide[1], narrow[1]).to(device)

    batches = [batch() for _ in range(4)]

    def updates(way: str) -> Callable[[], object]:
        torch.manual_seed(0)
        critic = DeasCritic(config, features, states, actions).to(device).train()
        graph = way == "CUDA graph"
        optimizer = torch.optim.AdamW(critic.parameters(), lr=1e-4, fused=True, capturable=graph)
        # Without a GPU nothing is generated: that would take a minute.
        loss_of = torch.compile(critic, backend="inductor" if device.type == "cuda" else "aot_eager")
        loss_of = loss_of if way == "torch.compile" else critic
        trained, order = [p for p in critic.parameters() if p.requires_grad], iter(range(1 << 30))

        def step(given: CriticBatch) -> None:
            optimizer.zero_grad(set_to_none=True)
            loss_of(given)[0].backward()
            nn.utils.clip_grad_norm_(trained, training.gradient_clip)
            optimizer.step()
            critic.update_target()

        return captured(step, batches) if graph else lambda: step(batches[next(order) % len(batches)])

    ways = ["eager", "torch.compile", *(["CUDA graph"] if device.type == "cuda" else [])]
    for number, way in enumerate(ways):
        share = time.monotonic() + (until - time.monotonic()) / (len(ways) - number)
        try:
            row = {"updates/s": 1e3 / milliseconds(updates(way), device, share)}
        except Exception as error:
            row = {"error": first_line(error)}
        if "updates/s" in row and "updates/s" in (first := rows[0] if rows else row):
            row["of eager"] = row["updates/s"] / first["updates/s"]
        rows.append({"what": way} | row)
    return rows


def captured(step: Callable[[CriticBatch], None], batches: list[CriticBatch]) -> Callable[[], object]:
    """A whole step as one CUDA graph, which reads and writes where it did when it was captured."""
    order = iter(range(1 << 30))
    fixed = CriticBatch(**{name: value.clone() for name, value in vars(batches[0]).items() if value is not None})
    # What is made at the first steps (moments, libraries' work space) must be there before; on a stream of its own.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step(fixed)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(fixed)

    def replay() -> None:
        given = batches[next(order) % len(batches)]
        for name, value in vars(given).items():
            if value is not None:
                getattr(fixed, name).copy_(value)
        graph.replay()

    return replay


def training_memory(size: str, device: torch.device, until: float) -> Rows:
    """Through the training loop of the recipes."""
    policy, count = n15(size, device), 8 if size == "full" else 2
    policy.freeze_encoder()
    policy.add_lora(LoraConfig("head"))
    shape = (policy.horizon, policy.contract.action_dim)

    def batch_at(step: int) -> tuple:
        valid = torch.ones(count, policy.horizon, dtype=torch.bool)
        noise, time = torch.randn(count, 2, *shape), torch.rand(count, 2)
        return observations(policy.contract, count), torch.randn(count, *shape), noise, time, valid

    config, module = TrainingConfig(steps=3, batch_size=count), FlowImitation(policy)
    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="bf16" if size == "full" else "no")
    with tempfile.TemporaryDirectory() as folder:
        work = partial(train, accelerator, module, batch_at, config, Path(folder), name="lora", seed=0)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            work()
            rows = [{"what": "weights", "GiB": before / 2**30}]
            peak = torch.cuda.max_memory_allocated(device) - before
            return [*rows, {"what": "training, beside them", "GiB": peak / 2**30}]
        work()
    return [{"what": "training went through; memory is measured on a GPU"}]


PARTS: dict[str, Callable[[str, torch.device, float], Rows]] = {
    "n15": partial(latency, n15, {}),
    "pi05": partial(latency, pi05, PUBLISHED),
    "features": feature_rate,
    "critic": critic_updates,
    "memory": training_memory,
}


# ---- all of them -------------------------------------------------------------------------------------------------


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run_here(name: str, size: str, device: torch.device, seconds: float) -> dict:
    """Rows of a part, or its error, in this process."""
    began = time.monotonic()
    torch.manual_seed(0)
    try:
        # A part leaves some of its time for what cannot be stopped: its last call.
        result = {"rows": PARTS[name](size, device, began + 0.8 * seconds)}
    except Exception as error:
        result = {"error": first_line(error)}
    gc.collect()
    return result | {"seconds": round(time.monotonic() - began, 1)}


def run_apart(name: str, size: str, device: torch.device, seconds: float) -> dict:
    """The same in another process, which is ended when its time is up; what it says stands in its last line."""
    command = [sys.executable, __file__, f"--only={name}", f"--size={size}", f"--device={device}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s", "seconds": seconds}
    except (IndexError, json.JSONDecodeError):
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        return {"error": f"exit status {done.returncode}: {lines[-1]}", "seconds": None}


def table(results: dict[str, dict]) -> str:
    """One line a row."""
    lines = []
    for name, result in results.items():
        rows = result.get("rows") or [{"what": "failed", "error": result["error"]}]
        for row in rows:
            values = [
                f"{key} {value:.3g}" if isinstance(value, float) else f"{value}"
                for key, value in row.items()
                if key != "what"
            ]
            lines.append(f"{name:9s} {row['what']:25s} {'   '.join(values)}".rstrip())
    return "\n".join(lines)


def run_all(parts: list[str], size: str, device: torch.device, run: Callable = run_apart) -> dict:
    """Results by part; `run` is one of the two above."""
    return {name: run(name, size, device, SECONDS[name]) for name in parts}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("full", "small"), default="full", help="of the networks")
    parser.add_argument("--device", default="cuda", help="cuda or cpu (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas (default: all)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    parser.add_argument("--only", choices=tuple(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device, parts = torch.device(arguments.device), arguments.parts.split(",")
    if unknown := set(parts) - PARTS.keys():
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --size=small --device=cpu shows that it works")
    if arguments.only:
        print(json.dumps(run_here(arguments.only, arguments.size, device, SECONDS[arguments.only])))
        return
    results = run_all(parts, arguments.size, device)
    print(table(results))
    if arguments.json:
        machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        facts = {"device": machine, "size": arguments.size, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(facts | {"parts": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
