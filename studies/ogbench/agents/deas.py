"""DEAS (arXiv 2510.07730): a critic of chunks learnt detached from any actor; best-of-N over the behaviour policy."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from deas_vla.critic.critic import CriticBatch, CriticConfig, DeasCritic
from studies.ogbench.agents.agent import Agent, Draws, TaskFacts, agent_critic
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.transitions import OptionBatch

SupportRule = Literal["possible", "published", "data"]


def chunk_critic() -> CriticConfig:
    return agent_critic(horizon=5, reward_discount=0.9)


@dataclass
class DeasConfig:
    """DEAS."""

    # the critic and its losses; its horizon is the chunk length of the agent
    critic: CriticConfig = field(default_factory=chunk_critic)
    # range of the values: possible (what discounts, horizon and rewards allow), published (reward_min / (1 − γ₂) to 0)
    # or data (the returns seen in the data)
    support: SupportRule = "possible"


class CriticAgent(Agent):
    """An agent that is configured by a `DeasConfig`, or a configuration made from it.

    Attributes:
        critic_config: the critic's, with the rewards and the support of the task filled in.
    """

    def __init__(self, config: DeasConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(behaviour)
        critic = replace(config.critic, reward_min=facts.reward_min, reward_max=0.0)
        match config.support:
            case "published":
                critic = replace(critic, support=[facts.reward_min / (1 - critic.bootstrap_discount), 0.0])
            case "data":
                critic = replace(critic, support=[facts.lowest_return, 0.0])
        self.horizon, self.backup = critic.horizon, critic.backup
        self.reward_discount, self.bootstrap_discount = critic.reward_discount, critic.bootstrap_discount
        self.critic_config = critic


class DeasAgent(CriticAgent):
    """V and K networks Q over the critic code of the robot policies; the state is all there is to see.

    Args:
        config: see `DeasConfig`.
        facts: of the task.
        behaviour: proposes chunks of the critic's horizon.
    """

    def __init__(self, config: DeasConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(config, facts, behaviour)
        self.critic = DeasCritic(self.critic_config, 0, facts.observation_dim, facts.action_dim)

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return self.critic.loss(critic_batch(batch))

    def after_step(self) -> None:
        self.critic.update_target()

    def q_values(self, observation: Tensor, chunks: Tensor) -> Tensor:
        return self.critic.q_values(no_features(observation), observation, chunks)

    def value(self, observation: Tensor) -> Tensor:
        return self.critic.value(no_features(observation), observation)


def critic_batch(batch: OptionBatch) -> CriticBatch:
    """The batch as the critic takes it: no image features, the whole state."""
    return CriticBatch(
        features=no_features(batch.observation),
        state=batch.observation,
        chunk=batch.chunk,
        returns=batch.returns,
        bootstrap=batch.bootstrap,
        next_features=no_features(batch.next_observation),
        next_state=batch.next_observation,
    )


def no_features(observation: Tensor) -> Tensor:
    """(B, S) to (B, 0)."""
    return torch.empty(len(observation), 0, device=observation.device)
