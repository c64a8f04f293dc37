"""Branches: candidates played out from one saved state of the simulator, each followed by the policy to the end."""

from collections.abc import Sequence

import numpy as np
import torch

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.observation import Observation
from deas_vla.data.options import returns_to_go
from deas_vla.envs.protocol import ChunkResult
from deas_vla.envs.vector import EnvWorkers
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey
from deas_vla.rollouts.play import Job, play_episodes

# Continuations take their noise from streams of their own (samples -1, -2, …): a return that saw the noise of the
# policy's own next decisions would foresee more than any critic could.
CONTINUATION_SAMPLE = -1


class Branches:
    """A `Source` whose every episode begins at one saved state; a `Decider` whose first chunks are the candidates.

    Args:
        workers: simulators that can be branched; slots 0 to n − 1 are used.
        policy: decides after the candidate.
        state: of the simulator, from `EnvWorkers.save`.
        frame: what the policy saw there.
        candidates: (n, h, A) commands, one a branch.
        episode_id: of the episode that is branched; it names the continuations' noise.
    """

    def __init__(
        self, workers: EnvWorkers, policy: BestOfN, state: object, frame: dict, candidates: np.ndarray, episode_id: int
    ):
        self.workers, self.policy, self.state, self.frame = workers, policy, state, frame
        self.candidates, self.episode_id = candidates, episode_id

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
        """Puts every slot into the saved state."""
        self.workers.restore(slots, [self.state] * len(slots))
        return [self.frame] * len(slots)

    def play(self, slots: Sequence[int], chunks: Sequence[np.ndarray], frame_every: int = 0) -> list[ChunkResult]:
        return self.workers.play(slots, chunks, frame_every)

    def choose(self, observation: Observation, keys: list[NoiseKey]) -> Choice:
        """The candidates first, all at once; then the policy, whose decisions are counted from there."""
        if keys[0].decision == 0:
            return Choice(torch.from_numpy(self.candidates)[:, None], torch.zeros(len(keys), dtype=int), None, None)
        keys = [NoiseKey(key.seed, self.episode_id, key.sample, key.decision - 1) for key in keys]
        return self.policy.choose(observation, keys)


def play_branches(
    workers: EnvWorkers,
    policy: BestOfN,
    state: object,
    frame: dict,
    candidates: np.ndarray,
    samples: list[int],
    *,
    seed: int,
    episode_id: int,
    execute_steps: int,
) -> list[np.ndarray]:
    """Plays each candidate from the same state, and then the policy until the end.

    Args:
        workers, policy, state, frame, candidates, episode_id: as of `Branches`; candidates of at most `execute_steps`.
        samples: n samples of the continuation's noise; equal samples have equal noise.
        seed: of the policy's noise.
        execute_steps: actions played of each later chunk.

    Returns:
        n arrays: success of each step from the state on, (steps,) bool.
    """
    branches = Branches(workers, policy, state, frame, candidates, episode_id)
    rollouts = play_episodes(
        branches,
        branches,
        [Job(scene=number, sample=sample) for number, sample in enumerate(samples)],
        seed=seed,
        parallel=len(samples),
        execute_steps=execute_steps,
    )
    return [rollout.episode.success for rollout in rollouts]


def return_of(success: np.ndarray, config: CriticConfig) -> float:
    """A critic's return of a branch: -1 a step until success, a timeout continued as failing for ever."""
    to_go = returns_to_go(
        success.astype(np.float64) - 1,
        success,
        horizon=config.horizon,
        reward_discount=config.reward_discount,
        bootstrap_discount=config.bootstrap_discount,
        forever=-1.0,
    )
    return float(to_go[0])
