"""Branches: candidates played out from one saved state of the simulator, each followed by the policy to the end."""

import numpy as np

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.observation import Observation
from deas_vla.data.options import returns_to_go
from deas_vla.envs.vector import EnvWorkers, frame_after
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey

# Continuations draw their noise from streams of their own (draws -1, -2, …): a return that saw the noise of the
# policy's own next decisions would foresee more than any critic could.
CONTINUATION_SAMPLE = -1


def play_branches(
    workers: EnvWorkers,
    policy: BestOfN,
    state: object,
    candidates: np.ndarray,
    instruction: str,
    samples: list[int],
    *,
    seed: int,
    episode_id: int,
    execute_steps: int,
) -> list[np.ndarray]:
    """Plays each candidate from the same state, and then the policy until the end.

    Args:
        workers: simulators that can be branched; slots 0 to n − 1 are used.
        policy: plays on after the candidate.
        state: of the simulator, from `EnvWorkers.save`.
        candidates: (n, h, A) commands.
        instruction: of the scene.
        samples: n samples of the continuation's noise; equal samples have equal noise.
        seed: of the policy's noise.
        episode_id: names the noise of the episode, see `episode_ids`.
        execute_steps: actions played of each later chunk.

    Returns:
        n arrays: success of each step from the state on, (steps,) bool.
    """
    slots = list(range(len(candidates)))
    workers.restore(slots, [state] * len(slots))
    success: list[list[np.ndarray]] = [[] for _ in slots]
    chunks, decision = candidates, 0
    while slots:
        playing, frames = [], []
        for slot, played in zip(slots, workers.play(slots, chunks), strict=True):
            success[slot].append(played.success)
            if not played.done:
                playing.append(slot)
                frames.append(frame_after(played, instruction))
        slots = playing
        if slots:
            keys = [NoiseKey(seed, episode_id, samples[slot], decision) for slot in slots]
            chunks = policy.choose(Observation.stack(frames), keys).commands[:, :execute_steps].cpu().numpy()
            decision += 1
    return [np.concatenate(parts) for parts in success]


def return_of(success: np.ndarray, config: CriticConfig) -> float:
    """A critic's return of a branch: -1 a step until success, a timeout continued as failing for ever."""
    to_go = returns_to_go(
        success.astype(np.float64) - 1,
        bool(success[-1]),
        horizon=config.horizon,
        reward_discount=config.reward_discount,
        bootstrap_discount=config.bootstrap_discount,
        minimum=-1.0,
    )
    return float(to_go[0])
