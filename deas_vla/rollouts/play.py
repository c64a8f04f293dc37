"""Plays episodes with a chunk policy: many simulators at once, one batched decision for all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Observation, episode_ids
from deas_vla.envs.protocol import ChunkResult
from deas_vla.envs.vector import EnvWorkers, frame_after
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey


@dataclass(frozen=True)
class Job:
    """One episode to play: a scene and which sample of the policy's noise."""

    scene: int
    sample: int = 0


@dataclass
class Decision:
    """What the critic thought when a chunk was chosen; NaN and empty without a critic."""

    step: int
    index: int
    value: float
    scores: list[float]


@dataclass
class Rollout:
    """One played episode with its decisions."""

    job: Job
    episode: Episode
    decisions: list[Decision] = field(default_factory=list)


def play_episodes(
    workers: EnvWorkers,
    decider: BestOfN,
    jobs: list[Job],
    *,
    seed: int,
    parallel: int,
    execute_steps: int,
    frame_every: int = 0,
    finished: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """Plays every job to its end, in the order given.

    All simulators decide together and play their chunks together; one whose episode has ended takes the next job.
    The schedule depends on nothing but the outcomes, so the same jobs give the same episodes.

    Args:
        workers: the simulators.
        decider: chooses a chunk for each observation.
        jobs: episodes to play.
        seed: seed of the policy's noise; with episode id, sample and decision it names each candidate.
        parallel: episodes under way at once.
        execute_steps: the first n actions of a chunk are played, then the policy decides again.
        frame_every: also store images every so many steps of an episode; 0: only where the policy decides.
        finished: called with each rollout as it ends (progress).

    Returns:
        One rollout a job, in the jobs' order.
    """
    results: dict[int, Rollout] = {}
    waiting = list(range(len(jobs)))[::-1]
    playing: dict[int, _Playing] = {}
    while waiting or playing:
        free = [slot for slot in range(parallel) if slot not in playing][: len(waiting)]
        if free:
            taken = [waiting.pop() for _ in free]
            frames = workers.reset(free, [jobs[number].scene for number in taken])
            for slot, number, frame in zip(free, taken, frames, strict=True):
                playing[slot] = _Playing(number, jobs[number], frame)
        slots = sorted(playing)
        keys = [
            NoiseKey(seed, p.episode_id, p.job.sample, len(p.decisions)) for p in (playing[s] for s in slots)
        ]
        choice = decider.choose(Observation.stack([playing[slot].frame for slot in slots]), keys)
        commands = choice.commands[:, :execute_steps].cpu().numpy()
        values = [float("nan")] * len(slots) if choice.value is None else choice.value.tolist()
        scores = [[]] * len(slots) if choice.scores is None else choice.scores.tolist()
        for row, played in enumerate(workers.play(slots, commands, frame_every)):
            current = playing[slots[row]]
            current.decisions.append(
                Decision(current.steps, int(choice.index[row]), values[row], scores[row])
            )
            current.add(played)
            if played.done:
                rollout = Rollout(current.job, current.episode("rollout"), current.decisions)
                results[current.number] = rollout
                del playing[slots[row]]
                if finished is not None:
                    finished(rollout)
    return [results[number] for number in range(len(jobs))]


class _Playing:
    """An episode under way: what has been played so far."""

    def __init__(self, number: int, job: Job, frame: dict):
        self.number, self.job, self.first, self.frame = number, job, frame, frame
        self.episode_id = episode_ids(Observation.stack([frame]))[0]
        self.parts: list[ChunkResult] = []
        self.decisions: list[Decision] = []
        self.steps = 0

    def add(self, played: ChunkResult) -> None:
        self.parts.append(played)
        self.steps += len(played.actions)
        self.frame = frame_after(played, self.first["instruction"])

    def episode(self, source: str) -> Episode:
        return episode_of(self.first, self.parts, self.job.scene, source)


def episode_of(first: dict, parts: list[ChunkResult], scene: int, source: str) -> Episode:
    """Joins the first frame and what was played into one episode."""
    starts = np.cumsum([0, *(len(part.actions) for part in parts[:-1])])
    steps = [np.zeros(1, np.int64), *(start + part.frames for start, part in zip(starts, parts, strict=True))]
    return Episode(
        instruction=first["instruction"],
        source=source,
        scene=scene,
        states=np.concatenate([first["state"][None], *(part.states for part in parts)]).astype(np.float32),
        actions=np.concatenate([part.actions for part in parts]).astype(np.float32),
        rewards=np.concatenate([part.rewards for part in parts]).astype(np.float32),
        success=np.concatenate([part.success for part in parts]),
        truncated=parts[-1].truncated,
        frame_steps=np.concatenate(steps).astype(np.int64),
        images={
            name: np.concatenate([image[None], *(part.images[name] for part in parts)])
            for name, image in first["images"].items()
        },
    )
