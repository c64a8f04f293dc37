"""What does one training update cost, against the matrix products it cannot do without?

    python -m studies.ogbench.update_benchmark                                   # the networks of the publications
    python -m studies.ogbench.update_benchmark --hidden-dim 256 --num-layers 3   # those of the OGBench recipes
    python -m studies.ogbench.update_benchmark --profile                         # where the time goes
    python -m studies.ogbench.update_benchmark --json                            # and one JSON object as the last line

An update is what the training loop does with a batch of OGBench's cube-single (28 state columns, 5 action columns):
it draws 256 options of 5 actions from a table of 200,000 rows, trains V, two Q networks of 101 bins and a flow policy
in one backward pass, evaluates V(s') and the target networks, clips the gradient, takes a step of AdamW and moves the
target networks. Nothing is left out: the time is that between two batches of `deas_vla.training.loop.train`.

The floor is the time of the matrix products alone, at the rate of a 1024 x 1024 product that is measured every few
updates in the same run. ``fraction_of_peak`` is floor over time; both are medians of CPU time, over all threads.
Where there is a GPU, updates per second are measured on it as well: eager, compiled, and as one CUDA graph.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from deas_vla.training.loop import TrainingConfig, step_generator, train
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.deas import critic_batch
from studies.ogbench.transitions import OptionTable, Transitions

STATE, ACTION, HORIZON, BATCH, ROWS, EPISODE = 28, 5, 5, 256, 200_000, 1000
PEAK_SIZE, PEAK_EVERY = 1024, 10
# What operators do, for the table of --profile; the rest is counted as "other".
GROUPS = {
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"),
    "GELU": ("aten::gelu", "aten::gelu_backward"),
    "layer norm": ("aten::native_layer_norm", "aten::native_layer_norm_backward", "aten::addcmul"),
    "AdamW": ("aten::_fused_adamw_", "Optimizer.step#AdamW.step"),
    "softmax": (
        "aten::_softmax", "aten::_log_softmax", "aten::_softmax_backward_data", "aten::_log_softmax_backward_data",
    ),
    "sums, products, copies": (
        "aten::mul", "aten::mul_", "aten::add", "aten::add_", "aten::sum", "aten::mean", "aten::copy_", "aten::lerp_",
        "aten::fill_", "aten::linalg_vector_norm", "aten::index", "aten::erf",
    ),
}  # fmt: skip


class CriticAndPolicy(nn.Module):
    """The critic and the flow policy, with one loss."""

    def __init__(self, hidden_dim: int, num_layers: int):
        super().__init__()
        config = CriticConfig(
            horizon=HORIZON, head="hl_gauss", hidden_dim=hidden_dim, num_layers=num_layers, future_weight=0.0
        )
        self.critic = DeasCritic(config, 0, STATE, ACTION)
        self.policy = FlowPolicy(STATE, HORIZON, ACTION, hidden_dim, num_layers, flow_steps=10)

    def forward(self, batch: CriticBatch, noise: Tensor, flow_time: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.critic.loss(batch)
        flow_loss = self.policy.loss(batch.state, batch.chunk, noise, flow_time).mean()
        return loss + flow_loss, metrics | {"flow_loss": flow_loss.detach()}


def random_options(generator: torch.Generator) -> OptionTable:
    """Options of random states and actions: what an update costs does not depend on them."""
    rows = torch.arange(ROWS)
    transitions = Transitions(
        observations=torch.randn(ROWS, STATE, generator=generator),
        actions=2 * torch.rand(ROWS, ACTION, generator=generator) - 1,
        rewards=-torch.ones(ROWS),
        success=torch.zeros(ROWS, dtype=torch.bool),
        last=(rows + 1) % EPISODE == 0,
    )
    return OptionTable(
        transitions,
        *transitions.statistics(),
        horizon=HORIZON,
        backup=HORIZON,
        reward_discount=0.9,
        bootstrap_discount=0.99,
    )


def sampler(table: OptionTable, seed: int) -> Callable[[int], tuple[CriticBatch, Tensor, Tensor]]:
    """Step number to the arguments of `CriticAndPolicy`."""

    def batch_at(step: int) -> tuple[CriticBatch, Tensor, Tensor]:
        generator = step_generator(seed, step)
        batch = table.batch(torch.randint(len(table), (BATCH,), generator=generator))
        noise = torch.randn(BATCH, HORIZON * ACTION, generator=generator)
        return critic_batch(batch), noise, torch.rand(BATCH, 1, generator=generator)

    return batch_at


def gflop_per_update(module: nn.Module, batch: tuple) -> float:
    """10⁹ multiplications and additions in the matrix products of an update, counted by PyTorch."""
    with FlopCounterMode(display=False) as counter:
        module(*batch)[0].backward()
    module.zero_grad()
    return counter.get_total_flops() / 1e9


class Meter:
    """Takes the time of a training loop from inside: it stands between the loop and its sampler."""

    def __init__(self, batch_at: Callable[[int], tuple]):
        self.batch_at = batch_at
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self.sampling: list[float] = []
        self.peak: list[float] = []
        self._began: tuple[float, float] | None = None
        self._square = torch.randn(PEAK_SIZE, PEAK_SIZE)

    def __call__(self, step: int) -> tuple:
        if self._began is not None:
            self.cpu.append(time.process_time() - self._began[0])
            self.wall.append(time.perf_counter() - self._began[1])
        # The update after a measurement of the peak finds a cold cache: it is not counted.
        cold = step % PEAK_EVERY == 0
        if cold:
            for _ in range(3):
                began = time.process_time()
                torch.mm(self._square, self._square)
                self.peak.append(2e-9 * PEAK_SIZE**3 / (time.process_time() - began))
        began = time.process_time(), time.perf_counter()
        batch = self.batch_at(step)
        self.sampling.append(time.process_time() - began[0])
        self._began = None if cold else began
        return batch


def run_training(module: CriticAndPolicy, batch_at: Callable[[int], tuple], updates: int, seed: int) -> None:
    """The training loop of the recipes."""
    training = TrainingConfig(steps=updates, batch_size=BATCH, learning_rate=3e-4, checkpoint_every=updates + 1)
    with tempfile.TemporaryDirectory() as folder:
        train(
            Accelerator(cpu=True), module, batch_at, training, Path(folder),
            name="updates", seed=seed, after_step=lambda trained: trained.critic.update_target(),
        )  # fmt: skip


def breakdown(module: CriticAndPolicy, batch_at: Callable[[int], tuple], updates: int, seed: int) -> str:
    """A table of milliseconds per update: by kind of operator, then the operators that take most."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        run_training(module, batch_at, updates, seed)
    averages = profiler.key_averages()
    times = {event.key: event.self_cpu_time_total / 1e3 / updates for event in averages}
    calls = {event.key: event.count / updates for event in averages}
    groups = {name: sum(times.get(key, 0.0) for key in keys) for name, keys in GROUPS.items()}
    groups["other operators, autograd"] = sum(times.values()) - sum(groups.values())
    lines = ["kind of operator                       ms"]
    lines += [f"{name:32s} {value:8.2f}" for name, value in groups.items()]
    lines += ["", "operator                               ms   calls"]
    for key in sorted(times, key=times.__getitem__, reverse=True)[:20]:
        lines.append(f"{key[:32]:32s} {times[key]:8.2f} {calls[key]:7.1f}")
    return "\n".join(lines)


def gpu_rates(hidden_dim: int, num_layers: int, batch_at: Callable[[int], tuple], updates: int) -> dict[str, float]:
    """Updates per second on a GPU, on one batch again and again: the sampler has its own line."""
    batch, noise, flow_time = batch_at(0)
    arguments = (batch.to("cuda"), noise.cuda(), flow_time.cuda())

    def update_of(compiled: bool) -> Callable[[], None]:
        module = CriticAndPolicy(hidden_dim, num_layers).cuda()
        parameters = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=3e-4, fused=True, capturable=True)
        loss_of = torch.compile(module) if compiled else module

        def update() -> None:
            optimizer.zero_grad()
            loss_of(*arguments)[0].backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            module.critic.update_target()

        return update

    def rate(update: Callable[[], None]) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(updates):
            update()
        torch.cuda.synchronize()
        return updates / (time.perf_counter() - began)

    def warm(update: Callable[[], None]) -> Callable[[], None]:
        # A graph is captured after some updates on a stream of their own, as PyTorch asks for.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(5):
                update()
        torch.cuda.current_stream().wait_stream(stream)
        return update

    captured, graph = warm(update_of(compiled=False)), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured()
    return {
        "eager": rate(warm(update_of(compiled=False))),
        "compiled": rate(warm(update_of(compiled=True))),
        "cuda_graph": rate(graph.replay),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("--updates", 100, "updates to run"),
        ("--threads", 1, "CPU threads"),
        ("--hidden-dim", 512, "width of the hidden layers"),
        ("--num-layers", 4, "number of hidden layers"),
        ("--seed", 0, "of weights and data"),
    ):
        parser.add_argument(name, type=int, default=default, help=f"{text} (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile the losses; needs a C++ compiler")
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    if arguments.updates < 2 * PEAK_EVERY:
        parser.error(f"--updates must be at least {2 * PEAK_EVERY}")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    sizes = arguments.hidden_dim, arguments.num_layers
    module = CriticAndPolicy(*sizes)
    table = random_options(torch.Generator().manual_seed(arguments.seed))
    batch_at = sampler(table, arguments.seed)
    gflop = gflop_per_update(module, batch_at(0))
    if arguments.compile:
        module.compile()
        # What is compiled at the first update is not an update's cost.
        module(*batch_at(0))[0].backward()
        module.zero_grad()
    meter = Meter(batch_at)
    run_training(module, meter, arguments.updates, arguments.seed)

    seconds, peak = statistics.median(meter.cpu), statistics.median(meter.peak)
    result = {
        "cpu_ms_per_update": 1e3 * seconds,
        "gflop_per_update": gflop,
        "peak_gflops": peak,
        "fraction_of_peak": gflop / peak / seconds,
        "floor_ms_per_update": 1e3 * gflop / peak,
        "wall_ms_per_update": 1e3 * statistics.median(meter.wall),
        "sampler_share": statistics.median(meter.sampling) / seconds,
    }
    print(
        f"V, 2 Q, targets and flow policy, {sizes[1]} x {sizes[0]}, batch {BATCH}, {arguments.threads} CPU thread(s), "
        f"median of {len(meter.cpu)} updates"
    )
    print(
        f"update          {result['cpu_ms_per_update']:8.1f} ms of CPU, {result['wall_ms_per_update']:.1f} ms of clock"
    )
    print(f"  of that, sampler {100 * result['sampler_share']:6.2f} %")
    print(f"matrix products {gflop:8.2f} GFLOP (counted by torch.utils.flop_counter)")
    print(f"their peak      {peak:8.1f} GFLOP a second of CPU")
    print(
        f"their floor     {result['floor_ms_per_update']:8.1f} ms: {100 * result['fraction_of_peak']:.0f} % of the time"
    )
    if arguments.profile:
        print(breakdown(module, batch_at, arguments.updates, arguments.seed))
    if torch.cuda.is_available():
        result["gpu"] = torch.cuda.get_device_name()
        result["gpu_updates_per_second"] = gpu_rates(*sizes, batch_at, arguments.updates)
        for name, value in result["gpu_updates_per_second"].items():
            print(f"{result['gpu']}, {name}: {value:.0f} updates a second")
    if arguments.json:
        settings = {**vars(arguments), "torch": torch.__version__, "batch": BATCH, "horizon": HORIZON}
        print(json.dumps(result | {"settings": settings}))


if __name__ == "__main__":
    main()
