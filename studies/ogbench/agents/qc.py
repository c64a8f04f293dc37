"""Q-chunking with best-of-N (Li, Zhou, Levine, arXiv 2507.07969): a critic of chunks whose target asks the actor.

There is no V. The value of the state after an option is that of the best of N fresh chunks of the behaviour policy:
every update samples B·N chunks by several network passes each, and scores them, which is what the detached target of
DEAS saves.

Published: N = 32, two networks and their mean, one discount of 0.99 per step, squared error, H = 5, 4 hidden layers of
512, batch 256, 3e-4, Polyak 0.005, flow policy of 10 steps trained along with the critic. The chunk is chosen by the
online networks and valued by the target networks, as in the published code. What differs here: the behaviour policy is
trained beforehand, a target is clamped to the possible returns, and the error is measured in units of half their range
(`Scalar`), which Adam does not notice.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from deas_vla.critic.critic import CriticConfig
from deas_vla.critic.losses import q_loss, td_target
from deas_vla.critic.networks import EnsembleMLP
from deas_vla.errors import UserError
from studies.ogbench.agents.agent import Draws, TaskFacts, agent_critic
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.deas import CriticAgent, DeasConfig
from studies.ogbench.transitions import OptionBatch

# Layers of so many candidates stay in the cache of a core: a quarter faster than all B·N at once.
CANDIDATES_AT_ONCE = 2048

Aggregate = Literal["mean", "min"]


def coupled_critic() -> CriticConfig:
    return agent_critic(horizon=5, reward_discount=0.99)


@dataclass
class QConfig(DeasConfig):
    """Networks Q without a V."""

    # the critic and its losses; there is no V, so expectile does nothing
    critic: CriticConfig = field(default_factory=coupled_critic)
    # what the networks say together of a chunk in the target: mean or min
    aggregate: Aggregate = "mean"


@dataclass
class QcConfig(QConfig):
    """Q-chunking with best-of-N."""

    # N, chunks sampled for every target; more are better maximised, and cost in proportion
    num_samples: int = 32

    def __post_init__(self):
        if self.num_samples < 1:
            raise UserError(f"qc.num_samples={self.num_samples} must be at least 1")


class QAgent(CriticAgent):
    """K networks Q(s, chunk) whose target is the value of the actor's own chunk at the next state.

    Args:
        config: see `QConfig`.
        facts: of the task.
        behaviour: the frozen behaviour policy.
    """

    def __init__(self, config: QConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(config, facts, behaviour)
        critic = self.critic_config
        self.aggregate, self.head = config.aggregate, critic.value_head()
        self._chunk_shape = (critic.horizon, facts.action_dim)
        self.q = EnsembleMLP(
            critic.num_q, facts.observation_dim, critic.horizon * facts.action_dim,
            critic.hidden_dim, critic.num_layers, self.head.num_logits, critic.dropout,
        )  # fmt: skip
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)

    def next_noise(self, draws: Draws) -> Tensor:
        """(b, N, H, A) noise from which `next_value` makes the chunks of the next states."""
        raise NotImplementedError

    def next_value(self, observation: Tensor, noise: Tensor) -> Tensor:
        """(b,) values of the states after the options, (b, S), by the actor's chunks of that noise."""
        raise NotImplementedError

    def critic_loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """(b,) losses of the networks Q, and metrics."""
        noise = self.next_noise(draws).to(batch.returns.device)
        with torch.no_grad():
            # Where the task is done, nothing follows: no chunk is sampled there.
            rows = batch.bootstrap.nonzero().squeeze(1)
            next_value = torch.zeros_like(batch.returns)
            next_value[rows] = self.next_value(batch.next_observation[rows], noise[rows])
            target = td_target(batch.returns, batch.bootstrap, next_value)
        chunks = batch.chunk.flatten(1).unsqueeze(1)
        logits = self.q(batch.observation, chunks, drop=self.training).squeeze(2)
        losses = q_loss(self.head, logits, target)
        with torch.no_grad():
            q = self.head.mean(logits)
            metrics = {
                "q_loss": losses.mean(),
                "q": q.mean(),
                "target": target.mean(),
                "clamped": self.head.outside(target).float().mean(),
                "disagreement": (q.amax(0) - q.amin(0)).mean(),
            }
        return losses, metrics

    def after_step(self) -> None:
        follow(self.target_q.parameters(), self.q.parameters(), self.critic_config.polyak)

    @torch.no_grad()
    def q_values(self, observation: Tensor, chunks: Tensor) -> Tensor:
        return self.head.mean(self.q(observation, chunks.flatten(2)))

    def together(self, network: EnsembleMLP, observation: Tensor, chunks: Tensor) -> Tensor:
        """(b, S) states and (b, N, H, A) chunks to (b, N): what the networks say of a chunk in a target."""
        q = self.head.mean(network(observation, chunks.flatten(2)))
        return q.mean(0) if self.aggregate == "mean" else q.amin(0)


class QcAgent(QAgent):
    """Q-chunking with best-of-N.

    Args:
        config: see `QcConfig`.
        facts: of the task.
        behaviour: proposes chunks, in the target as when it acts.
    """

    def __init__(self, config: QcConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(config, facts, behaviour)
        self.num_samples = config.num_samples

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        losses, metrics = self.critic_loss(batch, draws)
        return losses.mean(), metrics

    def next_noise(self, draws: Draws) -> Tensor:
        return draws.normal(self.num_samples, *self._chunk_shape)

    def next_value(self, observation: Tensor, noise: Tensor) -> Tensor:
        block = max(1, CANDIDATES_AT_ONCE // self.num_samples)
        best = [self._best(*part) for part in zip(observation.split(block), noise.split(block), strict=True)]
        return self.together(self.target_q, observation, torch.cat(best)).squeeze(1)

    def _best(self, observation: Tensor, noise: Tensor) -> Tensor:
        """(b, 1, H, A) the chunks that the online networks prefer among those made of the noise."""
        chunks = self.behaviour.sample(observation, noise)
        best = self.together(self.q, observation, chunks).argmax(1)
        return chunks.gather(1, best[:, None, None, None].expand(-1, 1, *self._chunk_shape))


@torch.no_grad()
def follow(target: Iterable[Tensor], online: Iterable[Tensor], rate: float) -> None:
    """θ̄ ← (1 − β) θ̄ + β θ, in place."""
    torch._foreach_lerp_(list(target), list(online), rate)
