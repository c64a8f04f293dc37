"""One episode: decide, play the first actions of the chunk at the robot's rate, look again."""

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Observation
from deas_vla.export.reranker import Reranker
from deas_vla.improvement.best_of_n import NoiseKey
from robots.arm import Arm
from robots.outcome import Judge, Verdict
from robots.pace import Pace, told
from robots.record import Recording


@dataclass
class Played:
    """One episode that was played.

    Attributes:
        episode: what happened; without meaning unless the verdict is ``success`` or ``failure``.
        verdict: how it went.
        facts: steps, seconds, how many actions were limited, and the account of the clock; JSON.
    """

    episode: Episode
    verdict: Verdict
    facts: dict

    def told(self) -> str:
        """The facts in one line."""
        limited = f"; {self.facts['limited']} actions limited" if self.facts["limited"] else ""
        return (
            f"{self.verdict}, {self.facts['ticks']} steps in {self.facts['seconds']:.1f} s; "
            f"{told([self.facts])}{limited}"
        )


@dataclass
class Decider:
    """The reranker, one observation at a time.

    Attributes:
        reranker: decides.
        seed: of the noise.
        instruction: what the robot is told.
    """

    reranker: Reranker
    seed: int
    instruction: str

    def decide(self, frame: dict, scene: int, sample: int, decision: int) -> np.ndarray:
        """(n, A) the first n actions of the chosen chunk: those that are played before the next decision."""
        key = NoiseKey(self.seed, scene, sample, decision)
        choice = self.reranker.choose(Observation.stack([frame]), [key])
        return choice.commands[0, : self.reranker.execute_steps].cpu().numpy()


def play(
    arm: Arm, decider: Decider, judge: Judge, limit: int, scene: int, sample: int, frame_every: int
) -> Played:
    """Plays an episode from where the arm is, until it can be said how it went or its time is over.

    Args:
        arm: at its start.
        decider: gives the chunks.
        judge: says how it went.
        limit: steps that are played at most.
        scene: number of the initial state.
        sample: how many times it was played before.
        frame_every: pictures are also taken every so many steps; 0: only where the policy decides, and at the end.
    """
    frame = arm.frame(decider.instruction)
    recording, queue, verdict = Recording(frame, scene), deque(), None
    pace = Pace(arm.contract.rate_hz)
    pace.start()
    began = time.perf_counter()
    while verdict is None and recording.steps < limit:
        if not queue:
            thinking = time.perf_counter()
            queue.extend(decider.decide(frame, scene, sample, len(pace.decisions_s)))
            pace.decisions_s.append(time.perf_counter() - thinking)
        sent = arm.send(queue.popleft())
        pace.wait()
        verdict = judge.now()
        step = recording.steps + 1
        if verdict or step == limit or not queue or (frame_every and step % frame_every == 0):
            frame = arm.frame(decider.instruction)
            recording.add(sent, frame["state"], frame["images"])
        else:
            recording.add(sent, arm.state(), None)
    seconds = time.perf_counter() - began
    limited = arm.limiter.changed
    verdict = verdict or judge.at_the_end()
    facts = {"outcome": verdict, "seconds": round(seconds, 2), "limited": limited, **pace.facts()}
    return Played(recording.episode(verdict == "success"), verdict, facts)
