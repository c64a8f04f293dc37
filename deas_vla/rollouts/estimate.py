"""What stages that play episodes take: a few of the first task are played, and scaled to all episodes of all tasks.

Every episode is taken to last until its time limit. Successes end earlier: these are upper bounds.
"""

import io
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from accelerate import Accelerator
from PIL import Image

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode, statistics_of
from deas_vla.data.images import IN_MEMORY, StoredImages
from deas_vla.data.lerobot.writer import png, write_dataset
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import require
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.rollouts.collect import BLOCKS, DATASET
from deas_vla.rollouts.evaluate import BLOCK, record
from deas_vla.rollouts.play import Job, play_episodes
from deas_vla.training import estimate
from deas_vla.training.estimate import ELSEWHERE, Needs, bytes_in, free_at

Collecting = tuple[list[Needs], tuple[list[Episode], Contract, dict]]  # and what would be made
FEWER = (("--parallel_episodes=1", 0.0, 0.0),)


def try_playing(
    accelerator: Accelerator, config: SimulatorConfig, play: Callable[[int], list], most: int
) -> tuple[list, float, float, float]:
    """What `play` gives of a few episodes, or of `most` if that is fast; seconds, bytes of memory and of each GPU."""
    found, held, device, few = [], estimate.resident(), accelerator.device, min(most, max(1, config.workers))

    def trial() -> None:
        play(few)  # simulators are made
        for count in dict.fromkeys((few, most)):
            began = time.perf_counter()
            found[:] = play(count), time.perf_counter() - began
            if found[1] * most > estimate.LONG_S * count:
                break

    on_cpu = device.type == "cpu"
    used = estimate.grown(trial, held, 0, device) if on_cpu else estimate.peak_bytes(trial, device)
    simulators = sum(child.memory_info().rss for child in psutil.Process().children(recursive=True))
    return *found, *estimate.on_machine(accelerator, used, simulators)


def collecting_needs(
    accelerator: Accelerator, folder: Path, config: SimulatorConfig, workers: EnvWorkers, scenes: list[int],
    collect: Callable, played: Contract | None = None,
) -> Collecting:  # fmt: skip
    """Of an episode in each scene of each task: blocks of them lie there until all are in memory and written.

    `collect` is as of `collect_in_blocks`; `played` is the contract of the policy that is rolled out (None: an expert).
    """
    contract, flag, at_once, processes = workers.contract, "demos", max(1, config.workers), 1
    if played is not None:
        contract, flag, at_once, processes = played, "rollouts", config.parallel_episodes, accelerator.num_processes
    at_once = min(at_once, len(scenes))
    some, seconds, memory, device = try_playing(
        accelerator, config, lambda n: collect(scenes[:n], lambda episode: None), at_once
    )
    raw = sum(array.nbytes for each in some for array in (each.states, each.actions, *each.images.values()))
    names = [camera.name for camera in contract.cameras]
    some = [replace(each, images={name: each.images[name] for name in names}) for each in some]
    written, writing_s = _written(some, contract)
    tasks, there = len(config.tasks), bytes_in(folder / BLOCKS)
    scale = tasks * workers.horizon / sum(each.length for each in some)
    disk, raw, count = (raw + written) * scale, raw * scale, len(scenes)
    fitting = int((free_at(folder).disk + there) / disk)
    needs = Needs(
        folder.name, _at_most(count * tasks, workers.horizon, config), max(0, disk * count - there),
        memory + raw * count, device, count * scale * (seconds / processes + writing_s),
        tuple((f"--{flag}.episodes={count // part}", memory + raw * count / part, device) for part in (2, 4, 8)),
        f"set --{flag}.episodes={fitting}, {ELSEWHERE}" if fitting > 1 else ELSEWHERE,
    )  # fmt: skip
    expected = expected_episodes(some, round(count * scale * len(some)))
    return [needs], (expected, contract.with_statistics(contract.statistics or statistics_of(expected)), {})


def copying_needs(folder: Path, episodes: list[Episode], contract: Contract) -> Collecting:
    """Of demonstrations that are in another data set."""
    episodes = [episode for episode in episodes if episode.terminated] or episodes
    written, seconds = _written(episodes[:1], contract)
    count = sum(episode.length + 1 for episode in episodes) / (episodes[0].length + 1)
    needs = Needs(folder.name, f"{len(episodes)} episodes", written * count, seconds=seconds * count)
    return [needs], (episodes, contract.with_statistics(statistics_of(episodes)), {})


def evaluation_needs(
    accelerator: Accelerator, folder: Path, config: SimulatorConfig, workers: EnvWorkers,
    methods: list[tuple[BestOfN, int]], oracle: tuple[int, int], execute_steps: int,
) -> list[Needs]:  # fmt: skip
    """Of methods with their episodes of each task, and of the oracle's candidates and episodes."""
    deciders = sorted((decider for decider, _ in methods), key=lambda decider: decider.num_candidates)
    played = [(decider.num_candidates, episodes) for decider, episodes in methods]
    each, most = {}, (0.0, 0.0)
    for decider in (deciders[0], deciders[-1]):

        def play(n: int, decider: BestOfN = decider) -> list:
            jobs = [Job(scene) for scene in range(n)]
            return play_episodes(workers, decider, jobs, seed=0, parallel=n, execute_steps=execute_steps)

        at_once = min(config.parallel_episodes, max(episodes for _, episodes in played))
        rollouts, seconds, memory, device = try_playing(accelerator, config, play, at_once)
        scale = workers.horizon / sum(rollout.episode.length for rollout in rollouts)
        images = sum(image.nbytes for rollout in rollouts for image in rollout.episode.images.values())
        size = len(json.dumps([*map(record, rollouts)], indent=1))
        each[decider.num_candidates] = seconds * scale, size * scale
        most = max(most[0], memory + BLOCK * images * scale), max(most[1], device)
    # The oracle plays every candidate of every decision to the end, and notes a return beside each score.
    branches = oracle[0] * oracle[1] * (workers.horizon // execute_steps + 2) / 2

    def total(column: int, *counted: tuple[int, float]) -> float:
        known = [values[column] for values in each.values()]
        return len(config.tasks) * sum(n * np.interp(c, list(each), known) for c, n in [*played, oracle, *counted])

    work = _at_most(len(config.tasks) * (sum(n for _, n in played) + oracle[1]), workers.horizon, config)
    seconds = total(0, (1, branches)) / accelerator.num_processes
    return [Needs(folder.name, work, total(1, oracle), *most, seconds, FEWER, ELSEWHERE)]


def expected_episodes(some: list[Episode], count: int) -> list[Episode]:
    """So many like these; their images take no memory: zeros, or on disk where those of so many would be."""
    episodes = list(itertools.islice(itertools.cycle(some), count))
    frames, parts = [len(episode.frame_steps) for episode in episodes], {}
    on_disk = sum(frames) * sum(images[0].nbytes for images in some[0].images.values()) > IN_MEMORY
    for name, images in some[0].images.items():

        def decode(rows: np.ndarray, encoded: bytes = png(images[0])) -> np.ndarray:
            return np.stack([np.asarray(Image.open(io.BytesIO(encoded))) for _ in rows])

        if on_disk:
            size, file = images.shape[1:3], Path(__file__)
            parts[name] = [StoredImages(decode, np.arange(number), size, file, name) for number in frames]
        else:
            zeros = np.zeros((sum(frames), *images.shape[1:]), np.uint8)
            parts[name] = np.split(zeros, np.cumsum(frames)[:-1])
    return [replace(each, images={name: part[i] for name, part in parts.items()}) for i, each in enumerate(episodes)]


def _at_most(episodes: int, steps: int, config: SimulatorConfig) -> str:
    return f"at most {episodes} episodes of {steps} steps, as in {config.tasks[0]}"


def _written(episodes: list[Episode], contract: Contract) -> tuple[int, float]:
    """Bytes and seconds of episodes in a LeRobot data set."""
    require("lerobot.datasets.lerobot_dataset", "lerobot")  # takes seconds
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        write_dataset(Path(place, DATASET), episodes, contract, "local/some")
        return bytes_in(Path(place, DATASET, "data")), time.perf_counter() - began
