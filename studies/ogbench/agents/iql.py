"""Implicit Q-learning (Kostrikov et al., 2021) on single actions, with one-step or n-step returns.

The critic of DEAS with chunks of one action, one discount and plain regression is IQL: the same expectile loss towards
the smaller target Q, the same detached target. So the code is the same and only the configuration differs. Actions are
chosen by best-of-N over the behaviour policy of single actions, as for every other agent here.
"""

from dataclasses import dataclass, field

from deas_vla.critic.critic import CriticConfig
from studies.ogbench.agents.agent import agent_critic
from studies.ogbench.agents.deas import DeasAgent, DeasConfig


def one_step_critic() -> CriticConfig:
    return agent_critic(horizon=1, reward_discount=0.99)


def n_step_critic() -> CriticConfig:
    return agent_critic(horizon=1, reward_discount=0.99, backup_horizon=5)


@dataclass
class IqlConfig(DeasConfig):
    """IQL: one action, one step."""

    # the critic and its losses
    critic: CriticConfig = field(default_factory=one_step_critic)


@dataclass
class NStepIqlConfig(DeasConfig):
    """IQL with n-step returns: biased towards what the data did, but rewards travel n steps at once."""

    # the critic and its losses; backup_horizon is n
    critic: CriticConfig = field(default_factory=n_step_critic)


class IqlAgent(DeasAgent):
    """IQL; with `NStepIqlConfig`, n-step IQL."""
