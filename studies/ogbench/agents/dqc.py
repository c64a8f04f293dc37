"""Decoupled Q-chunking (Li, Park, Levine, arXiv 2512.10926) on the critic of DEAS.

A critic of long chunks learns fast but binds the actor to play them whole. A second critic is distilled from it that
sees only the first h actions. It leans towards the best of the recorded continuations, since an actor that decides
again after h actions can take that one. How many actions are played is then a choice at run time.

Taken from the paper: the chunk critic bootstraps from V; each partial network is distilled from its own chunk network,
online and without gradient, on recorded chunks only, with weight κ_d where the chunk's value is above; V follows the
target copy of the *partial* critic, so what it expects is what an actor of that length can do; only the partial critic
has a target copy. All of it stays detached from any actor.

What differs: rewards are those of one task and not of goals, so values are HL-Gauss distributions (or scalars) and not
logits of a success probability; V leans upwards by the expectile of DEAS and not by a quantile; the discount inside a
chunk may differ; one partial critic knows several lengths (the paper trains one), by a mask of the steps it sees.
Because the loss of a head is a cross-entropy to the teacher's distribution, the mean of what is learnt is exactly the
κ_d-expectile of the continuations' values.

Published: chunks of 25 actions of which 1 or 5 are played, κ_d 0.5 or 0.8, κ_b 0.5 to 0.93 (quantile), N = 32, two
networks, 4 hidden layers of 1024, batch 4096, 3e-4, discount 0.999.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deas_vla.critic.heads import ValueHead
from deas_vla.critic.losses import q_loss, td_target, value_loss
from deas_vla.critic.networks import EnsembleMLP
from deas_vla.errors import UserError
from studies.ogbench.agents.agent import Draws, TaskFacts
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.deas import CriticAgent, DeasConfig
from studies.ogbench.agents.qc import follow
from studies.ogbench.transitions import OptionBatch


@dataclass
class DqcConfig(DeasConfig):
    """Decoupled Q-chunking."""

    # numbers of actions below H that the partial critic can score; null: 1 and H/2. H itself can always be scored
    lengths: list[int] | None = None
    # the length whose critic V follows, one of these or H (then V is that of DEAS)
    value_length: int = 1
    # κ_d, how much the partial critic leans towards the best continuation, in (0, 1); 0.5 is their mean
    optimism: float = 0.8

    def __post_init__(self):
        horizon = self.critic.horizon
        if horizon < 2:
            raise UserError(f"dqc.critic.horizon={horizon} must be at least 2: a single action has no parts")
        if not 0 < self.optimism < 1:
            raise UserError(f"dqc.optimism={self.optimism} must be in (0, 1)")
        if self.critic.dropout:
            raise UserError("dqc.critic.dropout must be 0: the chunk critic's training output is also a target")
        if not self.partial_lengths or not all(1 <= h < horizon for h in self.partial_lengths):
            raise UserError(f"dqc.lengths={self.lengths} must be numbers from 1 to {horizon - 1}")
        if self.value_length not in (*self.partial_lengths, horizon):
            raise UserError(f"dqc.value_length={self.value_length} must be one of {self.partial_lengths} or {horizon}")

    @property
    def partial_lengths(self) -> list[int]:
        """The lengths below H, ascending."""
        return sorted({1, self.critic.horizon // 2} if self.lengths is None else set(self.lengths))


class DqcAgent(CriticAgent):
    """V, K networks Q(s, chunk) and K networks Q(s, first h actions).

    Args:
        config: see `DqcConfig`.
        facts: of the task.
        behaviour: proposes chunks of the critic's horizon.
    """

    scores_parts = True

    def __init__(self, config: DqcConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(config, facts, behaviour)
        critic = self.critic_config
        self.lengths, self.optimism = config.partial_lengths, config.optimism
        self.value_length, self.head = config.value_length, critic.value_head()

        def network(heads: int, chunk_dim: int) -> EnsembleMLP:
            return EnsembleMLP(
                heads, facts.observation_dim, chunk_dim,
                critic.hidden_dim, critic.num_layers, self.head.num_logits, critic.dropout,
            )  # fmt: skip

        self.v = network(1, 0)
        self.q = network(critic.num_q, critic.horizon * facts.action_dim)
        self.partial = network(critic.num_q, critic.horizon * (facts.action_dim + 1))
        self.target = copy.deepcopy(self._followed).requires_grad_(False)

    @property
    def _followed(self) -> EnsembleMLP:
        """The networks that V follows, through their target copy."""
        return self.q if self.value_length == self.horizon else self.partial

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        observation, chunks = batch.observation, batch.chunk.unsqueeze(1)
        followed = self._whole_or_part(chunks[:, :, : self.value_length])
        parts = torch.cat([self._whole_or_part(chunks[:, :, :h]) for h in self.lengths], 1)
        with torch.no_grad():
            next_value = self.head.mean(self.v(batch.next_observation)[0])
            target = td_target(batch.returns, batch.bootstrap, next_value)
            target_logits = self.target(observation, followed).squeeze(2)
        v_logits = self.v(observation)[0]
        q_logits = self.q(observation, self._whole_or_part(chunks))
        partial_logits = self.partial(observation, parts)

        v_losses = value_loss(self.head, v_logits, target_logits, self.critic_config.expectile)
        q_losses = q_loss(self.head, q_logits.squeeze(2), target)
        partial_losses = distillation_loss(self.head, partial_logits, q_logits, self.optimism).mean((0, 2))
        loss = (v_losses + q_losses + partial_losses).mean()
        with torch.no_grad():
            value, q, partial = (self.head.mean(x) for x in (v_logits, q_logits, partial_logits))
            metrics = {
                "value_loss": v_losses.mean(),
                "q_loss": q_losses.mean(),
                "partial_loss": partial_losses.mean(),
                "value": value.mean(),
                "q": q.amin(0).mean(),
                # By how much the best continuations are better than the recorded ones.
                "optimism": (partial - q).mean(),
                "advantage": (q.amin(0).squeeze(1) - value).mean(),
                "clamped": self.head.outside(target).float().mean(),
                "disagreement": (q.amax(0) - q.amin(0)).mean(),
            }
        return loss, metrics

    def after_step(self) -> None:
        follow(self.target.parameters(), self._followed.parameters(), self.critic_config.polyak)

    @torch.no_grad()
    def q_values(self, observation: Tensor, chunks: Tensor) -> Tensor:
        """(B, S) states and (B, N, h, A) first actions to (K, B, N) values; h is H or a trained length.

        Raises:
            UserError: for any other h.
        """
        length = chunks.shape[2]
        if length not in (*self.lengths, self.horizon):
            raise UserError(
                f"this agent can play {', '.join(map(str, [*self.lengths, self.horizon]))} actions of a chunk, not "
                f"{length}: train it with {length} among dqc.lengths"
            )
        network = self.q if length == self.horizon else self.partial
        return self.head.mean(network(observation, self._whole_or_part(chunks)))

    @torch.no_grad()
    def value(self, observation: Tensor) -> Tensor:
        return self.head.mean(self.v(observation)[0])

    def _whole_or_part(self, chunks: Tensor) -> Tensor:
        """(B, N, h, A) first actions to what the networks take: (B, N, H·A), for h < H followed by a mask (H)."""
        missing = self.horizon - chunks.shape[2]
        if not missing:
            return chunks.flatten(2)
        mask = torch.ones_like(chunks[..., 0])
        padded = F.pad(chunks.flatten(2), (0, missing * chunks.shape[3]))
        return torch.cat([padded, F.pad(mask, (0, missing))], -1)


def distillation_loss(head: ValueHead, logits: Tensor, teacher_logits: Tensor, optimism: float) -> Tensor:
    """Moves the value of a beginning towards those of the whole chunks it was recorded in, more strongly upwards.

    Args:
        head: what the logits mean.
        logits: (K, B, L, M) of L beginnings, with gradient.
        teacher_logits: (K, B, 1, M) of the whole chunk; no gradient flows.
        optimism: κ_d, in (0, 1).

    Returns:
        (K, B, L) losses.
    """
    teacher = teacher_logits.detach()
    above = head.mean(teacher) >= head.mean(logits.detach())
    return torch.where(above, optimism, 1 - optimism) * head.loss(logits, head.prediction(teacher))
