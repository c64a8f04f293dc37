"""The oracle: every candidate is played in a branch of the simulator, and the best is chosen.

What choosing among the policy's candidates is worth to one who knows how each of them ends if it is followed by one
candidate after another, none chosen (the headroom); its branches are the returns against which a critic's ranking is
scored. It is no upper bound: each candidate is tried once, and a critic that goes on choosing may do better.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from deas_vla.data.observation import Observation
from deas_vla.envs.vector import EnvWorkers
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey
from deas_vla.rollouts.branches import CONTINUATION_SAMPLE, play_branches, return_of
from deas_vla.rollouts.evaluate import MethodResult, evaluate_method
from deas_vla.rollouts.play import Job

RETURNS = (
    "return of playing the candidate and then one of the candidates at each decision, once, with the same noise for all"
)


class Oracle:
    """A `Decider` that plays every candidate out before it chooses one; for one episode at a time, in slot 0.

    Args:
        workers: simulators that can be branched, the source of the episodes too.
        decider: policy, critic and number of candidates; its critic scores every candidate for the record.
        execute_steps: actions played of each chunk.
    """

    def __init__(self, workers: EnvWorkers, decider: BestOfN, execute_steps: int):
        self.workers, self.decider, self.execute_steps = workers, decider, execute_steps
        self.policy = BestOfN(decider.policy, selection=decider.selection)

    def choose(self, observation: Observation, keys: list[NoiseKey]) -> Choice:
        """The candidate whose branch has the largest return; `Choice.returns` has those of all of them."""
        choice = self.decider.choose(observation, keys)
        candidates = choice.candidates[0, :, : self.execute_steps].cpu().numpy()
        state = self.workers.save([0])[0]
        branches = play_branches(
            self.workers,
            self.policy,
            state,
            observation.frame(0),
            candidates,
            [CONTINUATION_SAMPLE] * len(candidates),
            seed=keys[0].seed,
            episode_id=keys[0].scene,
            execute_steps=self.execute_steps,
        )
        self.workers.restore([0], [state])
        returns = np.array([return_of(branch, self.decider.scorer.return_config) for branch in branches])
        best = torch.tensor([int(returns.argmax())], device=choice.index.device)
        return replace(choice, index=best, returns=torch.from_numpy(returns[None]))


def play_oracle(
    workers: EnvWorkers,
    decider: BestOfN,
    scenes: list[int],
    folder: Path,
    *,
    seed: int,
    execute_steps: int,
    line: int = 0,
) -> MethodResult:
    """Plays each scene once, choosing the candidate whose branch ends best; kept scene by scene.

    Args:
        workers, decider, execute_steps: as of `Oracle`.
        scenes: evaluation scenes; the noise is that of sample 0 in the other methods.
        folder: outcomes are kept in ``folder/oracle.json``.
        seed: seed of the policy's noise.
        line: of the progress bar.

    Returns:
        As of `evaluate_method`; each decision also has ``returns``, those of its candidates.
    """
    return evaluate_method(
        "oracle",
        workers,
        Oracle(workers, decider, execute_steps),
        [Job(scene) for scene in scenes],
        folder,
        seed=seed,
        parallel=1,
        execute_steps=execute_steps,
        block=1,
        line=line,
    )
