"""Q-chunking's critic (Li, Zhou, Levine, arXiv 2507.07969) on this project's networks: the baseline with an actor.

Its target asks the policy: the value of the state after an option is that of the best of N of the policy's chunks
there. The chunk is chosen by the online networks and valued by the target networks, by their means, as in the
published code. V is learned as in DEAS, for the report; no target looks at it.
"""

import torch
from torch import Tensor

from deas_vla.critic.critic import CriticBatch, DeasCritic


class QChunkingCritic(DeasCritic):
    """The networks and files of `DeasCritic` with another target; its batches have ``next_chunks``."""

    def next_value(self, batch: CriticBatch) -> Tensor:
        """(B,) value of the best of the policy's chunks at the observation after the option."""
        observation = self._observation(batch.next_features, batch.next_state)
        chunks = self._chunks(batch.next_chunks)
        best = self.head.mean(self.q(observation, chunks)).mean(0).argmax(1)
        chosen = chunks[torch.arange(len(best), device=best.device), best].unsqueeze(1)
        return self.head.mean(self.target_q(observation, chosen)).mean(0).squeeze(1)
