"""One episode on a robot: the play loop of `deas_vla.rollouts.play`, at the robot's rate on the real clock."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Observation
from deas_vla.envs.protocol import ChunkResult, play_steps
from deas_vla.export.reranker import Reranker
from deas_vla.improvement.best_of_n import Choice, NoiseKey
from deas_vla.rollouts.play import Job, play_episodes
from robots.arm import Arm
from robots.outcome import Judge, Verdict
from robots.timing import Timing, summary


@dataclass
class EpisodeResult:
    """One episode that was played.

    Attributes:
        episode: what happened; without meaning unless the verdict is ``success`` or ``failure``.
        verdict: how it went.
        facts: steps, seconds, how many actions were limited, and the account of the clock; JSON.
    """

    episode: Episode
    verdict: Verdict
    facts: dict

    def summary(self) -> str:
        """The facts in one line."""
        limited = f"; {self.facts['limited']} actions limited" if self.facts["limited"] else ""
        return (
            f"{self.verdict}, {self.facts['ticks']} steps in {self.facts['seconds']:.1f} s; "
            f"{summary([self.facts])}{limited}"
        )


class RobotSource:
    """An arm as the play loop's only slot. A step waits for the end of its tick.

    Args:
        arm: where the episode begins.
        judge: says how the episode went.
        instruction: what the robot is to do.
        limit: steps that are played at most.
    """

    def __init__(self, arm: Arm, judge: Judge, instruction: str, limit: int):
        self.arm, self.judge, self.instruction, self.limit = arm, judge, instruction, limit
        self.timing = Timing(arm.contract.rate_hz)
        self.verdict: Verdict | None = None
        self.steps = 0

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
        frame = self.arm.frame(self.instruction)
        self.timing.start()
        return [frame]

    def play(self, slots: Sequence[int], chunks: Sequence[np.ndarray], frame_every: int = 0) -> list[ChunkResult]:
        commands = iter(chunks[0])
        # What is recorded is what was sent, after the limits.
        return [play_steps(self, lambda: self.arm.send(next(commands)), len(chunks[0]), frame_every)]

    @property
    def over(self) -> bool:
        return self.steps == self.limit or self.verdict is not None

    def step(self, command: np.ndarray) -> bool:
        self.timing.wait()
        self.steps, self.verdict = self.steps + 1, self.judge.now()
        return self.verdict == "success"

    def state(self) -> np.ndarray:
        return self.arm.state()

    def images(self) -> dict[str, np.ndarray]:
        return self.arm.images()


@dataclass
class TimedDecider:
    """The reranker, with an account of how long its decisions took."""

    reranker: Reranker
    timing: Timing

    def choose(self, observation: Observation, keys: list[NoiseKey]) -> Choice:
        began = time.perf_counter()
        choice = self.reranker.choose(observation, keys)
        choice.commands.cpu()  # an accelerator is done only now
        self.timing.decisions_s.append(time.perf_counter() - began)
        return choice


def play(
    arm: Arm, reranker: Reranker, judge: Judge, job: Job, *, instruction: str, limit: int, seed: int, frame_every: int
) -> EpisodeResult:
    """Plays an episode from where the arm is, until it can be said how it went or its time is over.

    Args:
        arm: at its start.
        reranker: decides.
        judge: says how it went.
        job: number of the scene, and how many times it was played before.
        instruction: what the robot is to do.
        limit: steps that are played at most.
        seed: of the policy's noise.
        frame_every: images are also taken every so many steps; 0: only where the policy decides, and at the end.
    """
    source = RobotSource(arm, judge, instruction, limit)
    began = time.perf_counter()
    (rollout,) = play_episodes(
        source,
        TimedDecider(reranker, source.timing),
        [job],
        seed=seed,
        parallel=1,
        execute_steps=reranker.execute_steps,
        frame_every=frame_every,
    )
    seconds, limited = time.perf_counter() - began, arm.limiter.changed
    verdict, episode = source.verdict or judge.at_the_end(), rollout.episode
    if verdict == "success":  # of its last step, which earns the reward 1
        episode = replace(episode, truncated=False)
        episode.success[-1], episode.rewards[-1] = True, 1.0
    facts = {"outcome": verdict, "seconds": round(seconds, 2), "limited": limited, **source.timing.facts()}
    return EpisodeResult(episode, verdict, facts)
