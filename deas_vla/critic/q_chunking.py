"""Q-chunking's critic (Li, Zhou, Levine, arXiv 2507.07969) on this project's networks: the baseline with an actor.

Its target asks the policy: the value of the state after an option is that of the best of N of the policy's chunks
there. The chunk is chosen by the online networks and valued by the target networks, by their means, as in the
published code. V is learned as in DEAS, for the report; no target looks at it.
"""

import torch
from torch import Tensor

from deas_vla.critic.critic import CriticBatch, DeasCritic
from deas_vla.critic.losses import pessimistic_head, q_loss, td_target, value_loss


class QChunkingCritic(DeasCritic):
    """The networks and files of `DeasCritic` with another target; its batches have ``next_chunks``."""

    def loss(self, batch: CriticBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_V + L_Q of a batch; metrics as in `DeasCritic.loss`, as far as they have a meaning here."""
        observation = self._observation(batch.features, batch.state)
        chunks = self._chunks(batch.chunk.unsqueeze(1))
        with torch.no_grad():
            target = td_target(batch.returns, batch.bootstrap, self._best_of_policy(batch))
            target_logits = self.target_q(observation, chunks).squeeze(2)
            smallest_target = pessimistic_head(self.head, target_logits)[1]
        v_logits = self.v(observation, drop=self.training)[0]
        q_logits = self.q(observation, chunks, drop=self.training).squeeze(2)
        v_losses = value_loss(self.head, v_logits, target_logits, self.config.expectile)
        q_losses = q_loss(self.head, q_logits, target)
        losses = v_losses + q_losses
        loss = (losses if batch.weight is None else losses * batch.weight).mean()
        with torch.no_grad():
            q, value = self.head.mean(q_logits), self.head.mean(v_logits)
            metrics = {
                "loss": loss.detach(),
                "value_loss": v_losses.mean(),
                "q_loss": q_losses.mean(),
                "value": value.mean(),
                "q": q.amin(0).mean(),
                "upward": (smallest_target >= value).float().mean(),
                "clamped": self.head.outside(target).float().mean(),
                "disagreement": (q.amax(0) - q.amin(0)).mean(),
            }
        return loss, metrics

    def _best_of_policy(self, batch: CriticBatch) -> Tensor:
        """(B,) value of the best of the policy's chunks at the observation after the option."""
        observation = self._observation(batch.next_features, batch.next_state)
        chunks = self._chunks(batch.next_chunks)
        best = self.head.mean(self.q(observation, chunks)).mean(0).argmax(1)
        chosen = chunks[torch.arange(len(best), device=best.device), best].unsqueeze(1)
        return self.head.mean(self.target_q(observation, chosen)).mean(0).squeeze(1)
