"""Flow Q-learning (Park, Li, Levine, 2025) and QC-FQL, the same on chunks (arXiv 2507.07969).

A one-step policy is trained along with the networks Q, in one loss, and its chunk at the next state is what the target
bootstraps from: actor and critic are coupled, as published. FQL has H = 1, QC-FQL H = 5.

Published: two networks and their mean, discount 0.99, 4 hidden layers of 512, batch 256, 3e-4, Polyak 0.005, flow of 10
steps trained in the same loss; α see `studies.ogbench.agents.one_step`. What differs here: the behaviour policy is
trained beforehand, and the critic's error is that of `studies.ogbench.agents.qc`.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from deas_vla.critic.critic import CriticConfig
from studies.ogbench.agents.agent import Draws, TaskFacts, agent_critic
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.one_step import ActorConfig, OneStepActor, frozen
from studies.ogbench.agents.qc import QAgent, QConfig
from studies.ogbench.transitions import OptionBatch


def action_critic() -> CriticConfig:
    return agent_critic(horizon=1, reward_discount=0.99)


@dataclass
class QcFqlConfig(QConfig):
    """Q-chunking with the one-step policy."""

    # the one-step policy
    actor: ActorConfig = field(default_factory=ActorConfig)


@dataclass
class FqlConfig(QcFqlConfig):
    """Flow Q-learning."""

    # the critic and its losses; there is no V, so expectile does nothing
    critic: CriticConfig = field(default_factory=action_critic)


class FqlAgent(QAgent):
    """QC-FQL; with `FqlConfig`, FQL.

    Args:
        config: see `QcFqlConfig`.
        facts: of the task.
        behaviour: the frozen behaviour policy, which the one-step policy is distilled from.
    """

    def __init__(self, config: QcFqlConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(config, facts, behaviour)
        self.actor = OneStepActor(config.actor, facts, self.horizon)

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        critic_losses, metrics = self.critic_loss(batch, draws)
        q = frozen(self.q)
        noise = draws.normal(1, *self._chunk_shape).to(batch.chunk.device)
        actor_losses, actor_metrics = self.actor.loss(
            batch.observation, noise, self.behaviour, lambda *inputs: self.head.mean(q(*inputs))
        )
        return (critic_losses + actor_losses).mean(), metrics | actor_metrics

    def next_noise(self, draws: Draws) -> Tensor:
        return draws.normal(1, *self._chunk_shape)

    def next_value(self, observation: Tensor, noise: Tensor) -> Tensor:
        chunk = self.actor.sample(observation, noise)
        return self.together(self.target_q, observation, chunk).squeeze(1)

    @torch.no_grad()
    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.actor.sample(observation, noise)
