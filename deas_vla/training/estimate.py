"""What a stage takes, said before it starts: disk, memory at its peak, and time.

Weights, moments, tables and files follow from their sizes. What a batch takes, in bytes and seconds, no table of
machines says: a part of a real batch is tried on this one, and scaled. What cannot fit is refused, with the flag that
makes it fit.
"""

import dataclasses
import itertools
import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn

from deas_vla.errors import UserError
from deas_vla.features.cache import BATCH, FrameCache
from deas_vla.files import write_json
from deas_vla.training.loop import TrainingConfig, rows_of
from deas_vla.training.stages import ESTIMATE

GIB = 1 << 30
ACCURACY = 0.2  # estimates are off by up to this share: refused is what does not fit even so
LONG_S = 1.0  # growing parts of a batch are tried until one takes so long
SOME_S, MOST_RUNS = 0.2, 20  # shorter runs are repeated for so long, and so often at most
STEPS, LOOK_S = 3, 0.001  # steps in which memory has grown as far as it does, seconds between two looks at it
AHEAD = 2  # batches that each worker process makes ahead (torch's prefetch_factor)
ELSEWHERE = "free space, or name a folder on another disk (--output)"


class Free(NamedTuple):
    """Bytes that a stage may take: on the disk of its folder, of memory, of the GPU (None: there is none)."""

    disk: float
    memory: float
    device: float | None = None


@dataclass(frozen=True)
class Needs:
    """What a stage takes here: bytes of disk, and at most of memory and each GPU beside what is held before; seconds.

    `changes` take less: a setting as typed, memory and GPU memory with it, the mildest first; `disk_fix`: of the disk.
    """

    stage: str
    work: str
    disk: float = 0.0
    memory: float = 0.0
    device: float = 0.0
    seconds: float = 0.0
    changes: tuple[tuple[str, float, float], ...] = ()
    disk_fix: str = "free space, or name folders on another disk (--output, --cache)"

    def beside(self, memory: float) -> "Needs":
        """While other bytes of memory are held."""
        changes = tuple((flag, size + memory, device) for flag, size, device in self.changes)
        return replace(self, memory=self.memory + memory, changes=changes)


def free_memory(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that may still be taken: what the system has, and what this process's control groups leave.

    `groups` and `mount` are where Linux lists the groups and keeps their files, of version 1 or 2.
    """
    return max(0, min(psutil.virtual_memory().available, *_rooms(groups, mount)))


def _rooms(groups: Path, mount: Path) -> Iterator[int]:
    """What each group leaves; what it keeps of files that are not in use does not count as used."""
    yield 1 << 62
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, name = line.split(":", 2)
        old, own = controllers == "memory", mount / controllers / name.strip("/")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
        for folder in (own, *own.parents) if old or not controllers else ():
            if folder.is_relative_to(mount) and all((folder / file).is_file() for file in names):
                limit, used, notes = (
                    (folder / file).read_text(encoding="utf-8").split() for file in (*names, "memory.stat")
                )
                kept = notes[notes.index("total_inactive_file" if old else "inactive_file") + 1]
                if limit != ["max"]:
                    yield int(limit[0]) - int(used[0]) + int(kept)


# ---- trials ------------------------------------------------------------------------------------------------------


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors on the device that `work` holds at once, beside those that were there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    # Without a GPU the profiler's library writes that it found none.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        work()
    events = (event for event in profiler.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in events), default=0)


def resident() -> int:
    """Bytes of memory that this process holds."""
    return psutil.Process().memory_info().rss


def grown(work: Callable[[], object], held: float, size: float, device: torch.device) -> float:
    """Bytes of memory that a process takes beside `size` of its tensors: the C library keeps gaps between them."""
    if device.type == "cuda":
        return 0.0
    seen, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(LOOK_S):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(0.0, *(each - held - size for each in (*seen, resident())))


def try_out(run: Callable[[int], object], most: int, device: torch.device) -> list[tuple[int, float, float]]:
    """Tries `run(2)`, `run(8)`, … of at most `most` samples, until one takes `LONG_S`: samples, bytes and seconds."""
    count, tried = min(2, most), []  # batch normalisation does not take one
    run(count)  # what is made at the first call is made
    while True:
        began = time.perf_counter()
        size = peak_bytes(lambda count=count: run(count), device)
        took = time.perf_counter() - began
        if took < 10 * LONG_S:  # the profiler's own time would count
            took = _seconds(lambda count=count: run(count), device)
        tried.append((count, size, took))
        count = min(most, count * (4 if tried[-1][2] < LONG_S else 2))
        large = device.type == "cpu" and 2 * scaled(tried, count)[0] > free_memory()
        if tried[-1][0] >= most or (tried[-1][2] >= LONG_S and len(tried) > 1) or large:
            return tried


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Median of several runs, of which a single one may be far off."""
    times: list[float] = []
    while len(times) < STEPS or (sum(times) < SOME_S and len(times) < MOST_RUNS):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
        if times[0] > SOME_S:
            break
    return statistics.median(times)


def scaled(tried: list[tuple[int, float, float]], count: int) -> tuple[float, float]:
    """Bytes and seconds of so many samples, on straight lines through the two largest parts that were tried."""
    (less, *low), (more, *high) = tried[-2:] if len(tried) > 1 else ((0, 0.0, 0.0), tried[0])
    size, seconds = (b + (count - more) * max(0.0, (b - a) / (more - less)) for a, b in zip(low, high, strict=True))
    return size, seconds


# ---- stages ------------------------------------------------------------------------------------------------------


def cache_needs(
    accelerator: Accelerator, cache: FrameCache, stage: str, workers: int = 0, held: int = 0
) -> tuple[Needs, int]:
    """What filling a cache takes, and the bytes of a frame in it.

    `workers` decode ahead; `held` is what the process held before the first stage was tried, 0: what it holds now.
    """
    held, rows, device = held or resident(), cache.missing, accelerator.device
    if not len(rows):
        return Needs(stage, "there already"), cache[torch.arange(1)].nbytes
    some, made, began = rows[:BATCH], [], time.perf_counter()
    loaded = cache.load(some)
    loading_s = time.perf_counter() - began

    def run(count: int) -> None:
        with torch.no_grad():
            made.append(cache.compute(some[:count], _first(loaded, count)))

    tried = try_out(run, len(some), device)
    each = made[0].nbytes // len(made[0])
    size, seconds = scaled(tried, len(some))
    size += grown(lambda: [run(tried[-1][0]) for _ in range(STEPS)], held, tried[-1][1], device)
    # A block is there in parts, and joined.
    host = 2 * each * min(cache.block, len(rows)) + (3 + AHEAD * workers) * nbytes(loaded)
    seconds = max(seconds, loading_s / workers) if workers else seconds + loading_s
    seconds *= len(rows) / len(some) / accelerator.num_processes
    return Needs(stage, f"{len(rows)} frames", each * len(rows), *on_machine(accelerator, size, host), seconds), each


def training_needs(
    accelerator: Accelerator,
    stage: str,
    module: nn.Module,
    batch_at: Callable[[int], tuple],
    config: TrainingConfig,
    flag: str,
    *,
    workers: int = 0,
    held: int = 0,
    new: bool = False,
    moved: bool = False,
    otherwise: str = "",
) -> Needs:
    """What `train` takes with a module, whose weights and buffers stay as they are.

    `flag` is what `config` is called on the command line; `held` is as of `cache_needs`; `new`: the weights are not
    among it; `moved`: those without a gradient change, too; `otherwise` is what takes less where no part of a batch is
    small enough.
    """
    held, device, began = held or resident(), accelerator.device, time.perf_counter()
    batch = batch_at(0)
    loading_s = time.perf_counter() - began
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    gradients, weights = nbytes(trained), nbytes(list(module.state_dict().values()))
    processes, parts = accelerator.num_processes, config.micro_batches
    share = config.batch_size // processes
    kept = weights * new + 2 * gradients  # AdamW's moments
    copied = (weights + 2 * gradients) * (config.steps > config.checkpoint_every)
    frozen = 0 if moved else nbytes([p for p in module.parameters() if not p.requires_grad])
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    updates: list[float] = []

    def run(count: int) -> None:
        with accelerator.autocast():
            loss, _ = module(*send_to_device(_first(batch, count), device))
        loss.backward()

    def steps(count: int) -> None:
        optimizer = torch.optim.AdamW(trained, lr=0.0, fused=True)
        for _ in range(STEPS):
            run(count)
            began = time.perf_counter()
            if torch.isfinite(nn.utils.clip_grad_norm_(trained, 1.0)):
                optimizer.step()
            optimizer.zero_grad()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            updates.append(time.perf_counter() - began)

    training = module.training
    module.train()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Its first run leaves gradients, which do not count in the others.
        tried = try_out(run, share // parts, device)
        module.zero_grad()
        gaps = grown(lambda: steps(tried[-1][0]), held + kept, tried[-1][1], device)
    module.train(training)
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])

    def peak(count: int) -> tuple[float, float]:
        # Activations go while gradients come: the two do not peak together. Processes exchange a copy of gradients.
        working = kept + max(gaps + scaled(tried, count)[0], gradients, copied) + gradients * (processes > 1)
        return on_machine(accelerator, working, (3 + AHEAD * workers) * nbytes(batch))

    # The first update makes the moments.
    seconds = parts * scaled(tried, share // parts)[1] + statistics.median(updates[1:])
    seconds = config.steps * (max(seconds, loading_s / workers) if workers else seconds + loading_s)
    smaller = [m for m in range(parts + 1, share + 1) if share % m == 0]
    changes = [(f"--{flag}.micro_batches={m}", *peak(share // m)) for m in smaller]
    changes += [(otherwise, 0.0, 0.0)] if otherwise else []
    # A checkpoint lies there while the next one is written, and beside the weights at the end.
    written = max(0, copied - frozen)
    work, disk = f"{config.steps} steps of {config.batch_size}", written + max(weights, written)
    return Needs(stage, work, disk, *peak(share // parts), seconds, tuple(changes))


def on_machine(accelerator: Accelerator, working: float, host: float) -> tuple[float, float]:
    """Bytes of memory, of all processes here, and of each GPU: `working` is where the networks are."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    return (here * host, working) if accelerator.device.type == "cuda" else (here * (host + working), 0.0)


def nbytes(value: Any) -> int:
    """Bytes of all tensors in a batch."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = vars(value) if dataclasses.is_dataclass(value) else value
    parts = list(parts.values()) if isinstance(parts, dict) else parts
    return sum(map(nbytes, parts)) if isinstance(parts, list | tuple) else 0


def _first(value: Any, count: int) -> Any:
    """The first samples of everything in a batch."""
    if isinstance(value, dict):
        return {name: item[:count] for name, item in value.items()}
    return rows_of(value, slice(count))


# ---- what is said of it ------------------------------------------------------------------------------------------


def announce(accelerator: Accelerator, folder: Path, needs: list[Needs], said: list[Needs] | None = None) -> bool:
    """Prints what the stages of a folder take; whether to begin, which a dry run does not.

    A dry run gives `said`, what it has said of other stages, to which these are added. Otherwise a UserError, with what
    to change, if the disk, the memory or the GPU is too small for one of them.
    """
    free = free_at(folder, accelerator.device)
    head = ("needs about", "disk", "memory", "GPU", "time", "")
    lines = [] if said else [head, ("there is", *map(_size, free), "", "")]
    for need in needs:
        sizes = map(_size, (need.disk, need.memory, need.device))
        lines.append((need.stage, *sizes, f"{need.seconds / 60:.1f} min", need.work))
    for line in lines:
        accelerator.print("{:18s} {:>9s} {:>9s} {:>9s} {:>10s}  {}".format(*line).rstrip())
    if said is not None:
        said += needs
        return False
    for need in needs:
        require_room(need, free)
    if accelerator.is_main_process:
        largest = max(needs, key=lambda need: max(need.memory, need.device))
        write_json(folder / ESTIMATE, {"stages": [dataclasses.asdict(n) for n in needs], "fix": fix_of(largest, free)})
    return True


def free_at(folder: Path, device: torch.device | None = None) -> Free:
    """What a stage in a folder, which need not be there yet, may take."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    gpu = torch.cuda.mem_get_info(device)[0] if device and device.type == "cuda" else None
    return Free(shutil.disk_usage(there).free, free_memory(), gpu)


def bytes_in(folder: Path, pattern: str = "*") -> int:
    """Bytes of the files in a folder and its folders, which need not be there."""
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def require_room_for_weights(what: str, source: Path, target: Path, copies: float) -> None:
    """Refuses to read and write the weights in a folder if memory is too small for `copies`, or the disk for one."""
    weights = bytes_in(source, "*.safetensors")
    require_room(Needs(what, "", weights, copies * weights, disk_fix=ELSEWHERE), free_at(target))


def require_room(need: Needs, free: Free) -> None:
    """Refuses a stage that would not fit even if it took a fifth less than estimated."""
    for what, size, there in (("memory", need.memory, free.memory), ("GPU memory", need.device, free.device)):
        if there is not None and size * (1 - ACCURACY) > there:
            fix = fix_of(need, free) or f"take a machine with {_size(size)}"
            raise UserError(f"{need.stage} needs about {_size(size)} of {what}, {_size(there)} is free: {fix}")
    if need.disk > free.disk:
        raise UserError(f"{need.stage} needs {_size(need.disk)} of disk, {_size(free.disk)} is free: {need.disk_fix}")


def fix_of(need: Needs, free: Free) -> str:
    """The mildest change with which a stage fits, or the next one where it fits without, as it is typed; "": none."""
    for flag, memory, device in need.changes:
        if memory <= free.memory and device <= (free.device or device):
            return f"set {flag}" + (f" ({_size(device or memory)})" if memory or device else "")
    return ""


def _size(number: float | None) -> str:
    return "" if not number else f"{number / GIB:.1f} GiB" if number >= GIB / 10 else f"{number / 2**20:.0f} MiB"
