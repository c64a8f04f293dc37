"""Candidates played out from one saved state of the simulator, and the oracle, which plays the one that ends best.

The oracle shows what choosing among the policy's candidates is worth to one who knows how each of them ends if it is
followed by one candidate after another, none chosen (the headroom); a critic's ranking is scored against the same
returns. It is no upper bound: each candidate is tried once, and a critic that goes on choosing may do better.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.observation import Observation
from deas_vla.data.options import returns_to_go
from deas_vla.envs.protocol import ChunkResult
from deas_vla.envs.vector import EnvWorkers
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey
from deas_vla.rollouts.play import Job, play_episodes

RETURNS = (
    "return of playing the candidate and then one of the candidates at each decision, once, with the same noise for all"
)
# Continuations take their noise from streams of their own (samples -1, -2, …): a return that saw the noise of the
# policy's own next decisions would foresee more than any critic could.
CONTINUATION_SAMPLE = -1


class Oracle:
    """A `Decider` that plays every candidate out before it chooses one; for one episode at a time, in slot 0.

    The workers are those of the episodes, too; the decider's critic scores every candidate for the record.
    """

    def __init__(self, workers: EnvWorkers, decider: BestOfN, execute_steps: int):
        self.workers, self.decider, self.execute_steps = workers, decider, execute_steps
        self.policy = BestOfN(decider.policy, selection=decider.selection)

    def choose(self, observation: Observation, keys: list[NoiseKey]) -> Choice:
        """The candidate whose branch has the largest return; `Choice.returns` has those of all of them."""
        choice = self.decider.choose(observation, keys, whole=True)
        candidates = choice.candidates[0, :, : self.execute_steps].cpu().numpy()
        state = self.workers.save([0])[0]
        samples = [CONTINUATION_SAMPLE] * len(candidates)
        branches = play_branches(
            self.workers, self.policy, state, observation.frame(0), candidates, samples,
            seed=keys[0].seed, episode_id=keys[0].scene, execute_steps=self.execute_steps,
        )  # fmt: skip
        self.workers.restore([0], [state])
        returns = np.array([returns_of(branch, self.decider.scorer.return_config)[0] for branch in branches])
        best = torch.tensor([int(returns.argmax())], device=choice.index.device)
        return replace(choice, index=best, returns=torch.from_numpy(returns[None]))


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
    """Plays each candidate from the same state, in slots 0 to n − 1, and then the policy until the end.

    Args:
        state, frame: of the simulator, from `EnvWorkers.save`, and what the policy saw there.
        candidates: (n, h, A) commands, one a branch; h is at most `execute_steps`, which are played of later chunks.
        samples: n samples of the continuation's noise; equal samples have equal noise.
        seed, episode_id: of the policy's noise and of the episode that is branched: they name the continuations' noise.

    Returns:
        n arrays: success of each step from the state on, (steps,) bool.
    """
    branches = _Branches(workers, policy, state, frame, candidates, episode_id)
    jobs = [Job(number, sample) for number, sample in enumerate(samples)]
    rollouts = play_episodes(branches, branches, jobs, seed=seed, parallel=len(samples), execute_steps=execute_steps)
    return [rollout.episode.success for rollout in rollouts]


def returns_of(success: np.ndarray, config: CriticConfig) -> np.ndarray:
    """`returns_to_go` as a critic has them: -1 a step until success, a timeout continued as failing for ever."""
    return returns_to_go(success - 1.0, success, forever=-1.0, **config.discounting)


@dataclass
class _Branches:
    """A `Source` whose every episode begins at one saved state; a `Decider` whose first chunks are the candidates."""

    workers: EnvWorkers
    policy: BestOfN
    state: object
    frame: dict
    candidates: np.ndarray
    episode_id: int

    def reset(self, slots: Sequence[int], scenes: Sequence[int]) -> list[dict]:
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
