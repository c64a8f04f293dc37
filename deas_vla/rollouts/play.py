"""The one play loop: a source of observations, a decider, and what became of it; for simulators, films and robots."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Observation, episode_ids
from deas_vla.envs.protocol import ChunkResult
from deas_vla.improvement.best_of_n import Choice, NoiseKey


class Source(Protocol):
    """Where observations come from and where commands go; each of its slots has one running episode.

    `EnvWorkers` (simulators in processes), branches (one saved state, several continuations), a simulator whose every
    step is rendered for a film, or one robot (robots/play.py, whose `step` waits for the next tick).
    """

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
        """Starts a scene in each slot; returns the first frames: ``images``, ``state``, ``instruction``."""

    def play(self, slots: Sequence[int], chunks: Sequence[np.ndarray], frame_every: int = 0) -> list[ChunkResult]:
        """Plays (n, A) commands in each slot, stopping where an episode is over; see `Simulator.play`."""


class Decider(Protocol):
    """Chooses a chunk for each observation: `BestOfN`, the exported `Reranker`, the oracle of `oracle.py`."""

    def choose(self, observation: Observation, keys: list[NoiseKey]) -> Choice: ...


@dataclass(frozen=True)
class Job:
    """One episode to play: a scene and which sample of the policy's noise."""

    scene: int
    sample: int = 0


@dataclass
class Decision:
    """What the critic said when a chunk was chosen, after `step` control steps."""

    step: int
    index: int  # of the candidate that was played
    value: float = float("nan")  # V of the observation; NaN without a critic
    scores: list[float] = field(default_factory=list)  # (N,) of the candidates; empty without a critic
    returns: list[float] = field(default_factory=list)  # (N,) Monte-Carlo, where the decider played them out


@dataclass
class Rollout:
    """One played episode with its decisions."""

    job: Job
    episode: Episode
    decisions: list[Decision] = field(default_factory=list)


def play_episodes(
    source: Source,
    decider: Decider,
    jobs: list[Job],
    *,
    seed: int,
    parallel: int,
    execute_steps: int,
    frame_every: int = 0,
    finished: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """Plays every job to its end, in the order given.

    All slots decide in one batch and play their chunks together; a slot whose episode has ended takes the next job. The
    schedule depends on nothing but the outcomes, so the same jobs give the same episodes.

    Args:
        seed: of the policy's noise; with episode id, sample and decision it names each candidate.
        parallel: episodes under way at once, in slots from 0 on.
        execute_steps: the first n actions of a chunk are played, then the policy decides again.
        frame_every: also store images every so many steps of an episode; 0: only where the policy decides.
        finished: called with each rollout as it ends.

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
            frames = source.reset(free, [jobs[number].scene for number in taken])
            playing |= {slot: _Playing(*started) for slot, *started in zip(free, taken, frames, strict=True)}
        slots = sorted(playing)
        under_way = [playing[slot] for slot in slots]
        keys = [NoiseKey(seed, e.episode_id, jobs[e.number].sample, len(e.decisions)) for e in under_way]
        choice = decider.choose(Observation.stack([e.frame for e in under_way]), keys)
        chunks = choice.commands[:, :execute_steps].cpu().numpy()
        values = [float("nan")] * len(slots) if choice.value is None else choice.value.tolist()
        scores, returns = (
            [[] for _ in slots] if each is None else each.tolist() for each in (choice.scores, choice.returns)
        )
        for row, (current, result) in enumerate(zip(under_way, source.play(slots, chunks, frame_every), strict=True)):
            steps = sum(len(part.actions) for part in current.parts)
            current.decisions.append(Decision(steps, int(choice.index[row]), values[row], scores[row], returns[row]))
            current.parts.append(result)
            current.frame = result.last_frame(current.first["instruction"])
            if result.done:
                del playing[slots[row]]
                job = jobs[current.number]
                episode = episode_of(current.first, current.parts, job.scene, "rollout")
                results[current.number] = Rollout(job, episode, current.decisions)
                if finished is not None:
                    finished(results[current.number])
    return [results[number] for number in range(len(jobs))]


class _Playing:
    """An episode under way: its job's number, its first and latest frame, and what was played and decided so far."""

    def __init__(self, number: int, first: dict):
        self.number, self.first, self.frame = number, first, first
        self.episode_id = episode_ids(Observation.stack([first]))[0]
        self.parts: list[ChunkResult] = []
        self.decisions: list[Decision] = []


def episode_of(first: dict, parts: list[ChunkResult], scene: int, source: str) -> Episode:
    """Joins the first frame and what was played into one episode."""
    images = {name: [image[None], *(part.images[name] for part in parts)] for name, image in first["images"].items()}
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
        images={name: np.concatenate(rendered) for name, rendered in images.items()},
    )
