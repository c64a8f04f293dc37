"""Behaviour cloning by flow matching, of all options or of those that led to a good return (filtered)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deas_vla.errors import UserError
from studies.ogbench.agents.agent import Agent, Draws, TaskFacts
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.transitions import OptionBatch


@dataclass
class FlowConfig:
    """The behaviour policy."""

    # width of the hidden layers
    hidden_dim: int = 256
    # number of hidden layers
    num_layers: int = 3
    # Euler steps from noise to a chunk
    flow_steps: int = 5


@dataclass
class FilteredBcConfig:
    """Filtered behaviour cloning: only the best part of the options is imitated."""

    # H, actions in a chunk
    horizon: int = 5
    # share of the options that are imitated: those with the highest discounted return-to-go, in (0, 1]
    share: float = 0.1
    # discount of that return, per step, in (0, 1)
    discount: float = 0.99

    def __post_init__(self):
        if not 0 < self.share <= 1:
            raise UserError(f"filtered_bc.share={self.share} must be above 0 and at most 1")
        if not 0 < self.discount < 1:
            raise UserError(
                f"filtered_bc.discount={self.discount} must be above 0 and below 1: what fails for ever has no sum"
            )


class BehaviourCloning(Agent):
    """Imitates the options it is shown; the choice of options is the caller's.

    Args:
        config: of the flow policy.
        horizon: H.
        facts: of the task.
    """

    def __init__(self, config: FlowConfig, horizon: int, facts: TaskFacts):
        super().__init__()
        self.horizon = self.backup = horizon
        # Of the returns that its evaluation reports; nothing is learnt from them.
        self.reward_discount = self.bootstrap_discount = 0.99
        self.policy = FlowPolicy(
            facts.observation_dim, horizon, facts.action_dim,
            config.hidden_dim, config.num_layers, config.flow_steps,
        )  # fmt: skip

    @property
    def behaviour(self) -> FlowPolicy:
        return self.policy

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        device = batch.observation.device
        noise, time = draws.normal(batch.chunk[0].numel()).to(device), draws.uniform(1).to(device)
        loss = self.policy.loss(batch.observation, batch.chunk, noise, time).mean()
        return loss, {}


def best_options(returns: np.ndarray, share: float) -> Tensor:
    """Indices of the options with the highest returns, ties by position.

    Args:
        returns: (O,) return-to-go of each option's first step.
        share: of the options, in (0, 1].
    """
    count = max(1, round(share * len(returns)))
    return torch.from_numpy(np.sort(np.argsort(-returns, kind="stable")[:count]))
