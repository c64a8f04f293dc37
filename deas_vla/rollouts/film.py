"""Plays an episode for people to look at: a full-quality image of every step, and what the critic said."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from deas_vla.envs.protocol import ChunkEnv, ChunkResult
from deas_vla.rollouts.play import Decider, Job, Rollout, play_episodes


@dataclass
class _Filmed:
    """A `Source` of one simulator that renders after each step; the simulator itself plays as ever."""

    env: ChunkEnv
    side: int
    frames: list[np.ndarray] = field(default_factory=list)

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
        first = self.env.reset(scenes[0])
        self.frames = [self.env.render(self.side, self.side)]
        return [first]

    def play(self, slots: Sequence[int], chunks: Sequence[np.ndarray], frame_every: int = 0) -> list[ChunkResult]:
        steps = []
        for command in chunks[0]:
            steps.append(self.env.play(command[None]))
            self.frames.append(self.env.render(self.side, self.side))
            if steps[-1].done:
                break
        columns = ("states", "actions", "rewards", "success")
        joined = {name: np.concatenate([getattr(step, name) for step in steps]) for name in columns}
        # Images that the policy sees are kept where it decides; the others were drawn for nothing, one a step.
        return [replace(steps[-1], **joined, frames=np.array([len(steps)]))]


def film(
    env: ChunkEnv, decider: Decider, job: Job, *, seed: int, execute_steps: int, side: int = 288
) -> tuple[list[np.ndarray], Rollout]:
    """Plays one episode.

    Returns:
        (side, side, 3) uint8 images, the start first and one more a step; and the episode with its decisions.
    """
    source = _Filmed(env, side)
    rollout = play_episodes(source, decider, [job], seed=seed, parallel=1, execute_steps=execute_steps)[0]
    return source.frames, rollout
