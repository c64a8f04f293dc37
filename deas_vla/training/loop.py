"""One training loop for everything that trains: through Accelerate, counter-based, resumable to the same weights.

Every random choice of step k is drawn from a generator that is seeded with (seed, k), never from a stream: a run
that was killed and resumed sees the same batches, noise and dropout as one that was not. A step's global batch is
drawn whole and each process takes its share, so two processes compute what one would; only dropout, where there is any,
differs between the processes.
"""

import functools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, InitProcessGroupKwargs, send_to_device
from torch import Tensor, nn
from tqdm import tqdm

from deas_vla.config import incidental
from deas_vla.data.ahead import ahead
from deas_vla.errors import UserError, require_ranges
from deas_vla.training.checkpoint import Checkpoint, gather, is_split, to_train, whole


@dataclass
class TrainingConfig:
    """How long, how fast and how often: the same fields for the policy, its fine-tuning and the critic."""

    steps: int = 1000  # Optimiser steps.
    batch_size: int = 64  # Samples a step, over all processes together; a multiple of the number of processes.
    learning_rate: float = 1e-3  # Peak learning rate of AdamW.
    warmup: float = 0.05  # Share of the steps over which the learning rate rises linearly from zero.
    cosine: bool = True  # True: the learning rate falls to zero along a cosine; False: it stays at its peak.
    weight_decay: float = 1e-5  # AdamW's decoupled weight decay.
    gradient_clip: float = 1.0  # Largest norm of the gradient; longer ones are scaled down. 0: they stay as they are.
    # Equal parts of a step's batch that are worked through one after another (gradient accumulation): the same step,
    # but for dropout, with the memory of one part. A multiple of it and of the number of processes is the batch size.
    micro_batches: int = incidental(1)
    log_every: int = incidental(50)  # Steps between two lines of metrics.
    checkpoint_every: int = incidental(250)  # Steps between two checkpoints; a killed run goes on from the last one.

    def __post_init__(self):
        counts = "steps batch_size micro_batches log_every checkpoint_every"
        ranges = {"at least 1": counts, "above 0": "learning_rate", "from 0 to 1": "warmup"}
        require_ranges(self, "", ranges | {"at least 0": "weight_decay gradient_clip"})
        if self.batch_size % self.micro_batches:
            raise UserError(f"batch_size={self.batch_size} is not a multiple of micro_batches={self.micro_batches}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero or a constant."""
        warmup = max(1, round(self.warmup * self.steps))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        if not self.cosine:
            return self.learning_rate
        progress = (step - warmup) / max(1, self.steps - warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def make_accelerator() -> Accelerator:
    """Accelerate's handle on devices and processes.

    Without a GPU Accelerate heeds the launcher's processes only if it is set to use the CPU, and DeepSpeed, which
    must not be set so, needs the name of a backend that runs there. A process that waits while the main one
    collects or evaluates must not run into the default time limit.
    """
    on_cpu = not torch.cuda.is_available()
    deepspeed, fsdp = (os.environ.get(f"ACCELERATE_USE_{name}", "false") == "true" for name in ("DEEPSPEED", "FSDP"))
    backend = "gloo" if on_cpu and deepspeed else None
    group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(days=7))
    accelerator = Accelerator(cpu=on_cpu and not deepspeed, kwargs_handlers=[group])
    if deepspeed:
        from transformers.integrations import unset_hf_deepspeed_config

        # Under ZeRO-3 transformers would split its models when they are made; here that is done when they are trained.
        unset_hf_deepspeed_config()
    if on_cpu and fsdp and accelerator.num_processes > 1:
        # FSDP runs on CPUs, but Accelerate, set to use them, passes over it.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        PartialState().distributed_type = accelerator.state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("fsdp_version: 1 of the launch configuration; take 2, as in accelerate_configs/fsdp2.yaml")
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError("gradient_accumulation_steps of the launch configuration must be 1: set micro_batches instead")
    return accelerator


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one step; different streams of one step are independent."""
    state = np.random.SeedSequence((seed, step, stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & 0x7FFF_FFFF_FFFF_FFFF)


def my_share(accelerator: Accelerator, batch_size: int) -> slice:
    """The rows of a global batch that this process works on; refuses one that cannot be divided evenly."""
    share, left = divmod(batch_size, accelerator.num_processes)
    if left:
        count = accelerator.num_processes
        fix = f"take {batch_size - left or count}"
        raise UserError(f"batch_size {batch_size} is not a multiple of the {count} processes; {fix}")
    return slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)


def train(
    accelerator: Accelerator,
    module: nn.Module,
    batch_at: Callable[[int], tuple],
    config: TrainingConfig,
    folder: Path,
    *,
    name: str,
    seed: int,
    workers: int = 0,
    after_step: Callable[[nn.Module], object] | None = None,
    milestone: Callable[[int], object] | None = None,
) -> None:
    """Trains a module in place, under any engine: at the end every process has all of the weights.

    Args:
        module: its forward takes what `batch_at` returns and gives (scalar loss, dict of 0-d tensors).
        batch_at: step number to the arguments of this process's share of the batch, on the CPU; where there are
            micro-batches, tensors and others with a first dimension that can be sliced, or lists of them.
        folder: where ``checkpoint.safetensors`` and ``metrics.jsonl`` are kept while training runs.
        seed: seeds dropout, anew at every step and on every process.
        workers: processes that make the next batches meanwhile; the batches are the same.
        after_step: called with what is trained, the module or the engine's copy, after every optimiser step; changes
            weights without a gradient (target networks), which are fixed if there is none.
        milestone: called after that with the number of steps done; must not draw random numbers; not where the engine
            splits the weights.
    """
    count, parts, size = accelerator.num_processes, config.micro_batches, config.batch_size
    if size % (count * parts):
        raise UserError(f"batch_size={size} is not a multiple of {count} processes x {parts} micro_batches")
    if milestone is not None and is_split(accelerator):
        raise UserError("this training looks at its weights on the way, which are split here; take multi_gpu.yaml")
    checkpoint = Checkpoint(accelerator, folder, module, moved=after_step is not None)
    trained = to_train(accelerator, module)
    # Fused: one pass over the weights and their moments, where the default takes a dozen.
    settings = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": True}
    optimizer = torch.optim.AdamW([p for p in trained.parameters() if p.requires_grad], **settings)
    share = size // (count * parts)
    accelerator.gradient_accumulation_steps = parts
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        # DeepSpeed asks for the micro-batch where it would otherwise read it off a data loader.
        sizes = {"train_micro_batch_size_per_gpu": share, "gradient_accumulation_steps": parts}
        accelerator.state.deepspeed_plugin.deepspeed_config |= sizes
    wrapped, optimizer = accelerator.prepare(trained, optimizer)
    parameters = [p for p in trained.parameters() if p.requires_grad]
    start = checkpoint.load(trained, optimizer)
    log = MetricLog(folder, start) if accelerator.is_main_process else None
    window, began = [], time.perf_counter()

    # To seed the generators of all kinds of devices takes 0.1 ms, as much as drawing a small batch.
    on_cpu = accelerator.device.type == "cpu"
    seed_dropout = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
    wrapped.train()
    bar = progress_bar(accelerator, config.steps, name, unit="step", initial=start, mininterval=1)
    steps = range(start, config.steps)
    for step, batch in zip(steps, ahead(batch_at, steps, workers), strict=True):
        seed_dropout(step_generator(seed, step, 1 + accelerator.process_index).initial_seed())
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(step)
        results = []
        for part in range(parts):
            mine = batch if parts == 1 else rows_of(batch, slice(part * share, (part + 1) * share))
            with accelerator.accumulate(wrapped):
                loss, metrics = wrapped(*send_to_device(mine, accelerator.device))
                accelerator.backward(loss)
            results.append({"loss": loss.detach(), **metrics})
        norm = accelerator.clip_grad_norm_(parameters, config.gradient_clip or math.inf)
        optimizer.step()
        optimizer.zero_grad()
        if after_step is not None:
            with whole(accelerator, trained):
                after_step(trained)
        if milestone is not None:
            milestone(step + 1)

        last = step + 1 == config.steps
        # A number under DeepSpeed, which also clips by itself (gradient_clipping in its configuration).
        norm = torch.as_tensor(norm, device=loss.device).detach()
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        window.append({key: torch.stack([r[key] for r in results]).mean() for key in results[0]})
        window[-1]["gradient_norm"] = norm
        if (step + 1) % config.log_every == 0 or last:
            line = _means(accelerator, window) | {"learning_rate": config.learning_rate_at(step)}
            line["steps_per_second"] = len(window) / (time.perf_counter() - began)
            window, began = [], time.perf_counter()
            if log is not None:
                log.write(step + 1, line)
            if not math.isfinite(line["loss"]):
                fix = "lower the learning rate or look for NaN in the data"
                raise UserError(f"the loss is not finite at step {step + 1}; {fix}")
            bar.set_postfix(loss=f"{line['loss']:.4g}", refresh=False)
        if (step + 1) % config.checkpoint_every == 0 and not last:
            checkpoint.save(trained, optimizer, step + 1)
        bar.update()
    bar.close()
    if log is not None:
        log.close()
    if trained is not module:
        gather(accelerator, wrapped, module)
    module.eval()
    # Another module may be trained by the same accelerator next.
    accelerator.free_memory()


def progress_bar(accelerator: Accelerator, total: int, name: str, **settings) -> tqdm:
    """A bar that one process of each machine shows."""
    hidden = not accelerator.is_local_main_process
    return tqdm(total=total, desc=name, dynamic_ncols=True, disable=hidden, **settings)


def rows_of(batch: Any, rows: slice) -> Any:
    """The same rows of everything in a batch."""
    return [rows_of(item, rows) for item in batch] if isinstance(batch, tuple | list) else batch[rows]


def _means(accelerator: Accelerator, window: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over some steps and all processes: the only time that metrics leave the device."""
    keys = sorted(window[0])
    means = torch.stack([torch.stack([metrics[key].float() for metrics in window]).mean() for key in keys])
    return dict(zip(keys, accelerator.reduce(means, "mean").tolist(), strict=True))


class MetricLog:
    """``metrics.jsonl`` and TensorBoard's files, without what was written after step `start`: it is written again."""

    def __init__(self, folder: Path, start: int):
        self.path = folder / "metrics.jsonl"
        lines = [line for line in read_metrics(self.path) if line["step"] <= start]
        folder.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        writer = _tensorboard()
        self.board = None if writer is None else writer(str(folder / "tensorboard"), purge_step=start + 1)

    def write(self, step: int, line: dict[str, float]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        if self.board is not None:
            for key, value in line.items():
                self.board.add_scalar(key, value, step)

    def close(self) -> None:
        if self.board is not None:
            self.board.close()


def read_metrics(path: Path) -> list[dict]:
    """The lines of a ``metrics.jsonl``; a last line that was cut off by a kill is left out, another is refused."""
    lines = []
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number == len(texts) and not text.endswith("\n"):
                break
            raise UserError(f"{path}, line {number} is not JSON; delete the line and run again") from error
    return lines


@functools.cache
def _tensorboard():
    """The class of its writers; None, said once, where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        tqdm.write("TensorBoard is not installed: curves are in metrics.jsonl; EXTRAS=train tools/install.sh")
        return None
    return SummaryWriter
