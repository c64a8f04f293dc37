"""DEAS with the one-step policy of its OGBench experiments, and what that policy shares with flow Q-learning.

The one-step policy (FQL: Park, Li, Levine, 2025) maps a state and a noise to a chunk in one pass. It is held to what
the behaviour policy makes of the same noise and pulled towards chunks of a high Q:

    L = α ‖π(s, z) − flow(s, z)‖² − mean_k Q_k(s, clip(π(s, z)))

The square is a mean over the H·A numbers of a chunk, and Q is in units of the return, so α is the published one: 300
for cube and scene, 1000 for puzzle (FQL), 100 for QC-FQL on cube-triple, 300 for DEAS on cube-double. With
`normalize_q`, Q is divided by its mean size and α is of the order of 1.

Here the critic is that of DEAS: its targets never see this actor, and the actor's gradient never reaches it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deas_vla.errors import UserError
from studies.ogbench.agents.agent import Draws, TaskFacts
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.agents.deas import DeasAgent, DeasConfig
from studies.ogbench.transitions import OptionBatch


@dataclass
class ActorConfig:
    """The one-step policy."""

    # α, how closely the policy is held to the behaviour policy
    alpha: float = 300.0
    # whether Q is divided by its mean size over a process's share of the batch; α is then of the order of 1
    normalize_q: bool = False
    # width of the hidden layers
    hidden_dim: int = 256
    # number of hidden layers
    num_layers: int = 3

    def __post_init__(self):
        if self.alpha < 0:
            raise UserError(f"actor.alpha={self.alpha} must not be negative")


@dataclass
class DeasOneStepConfig(DeasConfig):
    """DEAS, acting by a one-step policy."""

    # the one-step policy
    actor: ActorConfig = field(default_factory=ActorConfig)


class OneStepActor(FlowPolicy):
    """A flow of a single step is a one-step policy: the same network, asked once, at t = 0.

    Args:
        config: see `ActorConfig`.
        facts: of the task.
        horizon: H.
    """

    def __init__(self, config: ActorConfig, facts: TaskFacts, horizon: int):
        super().__init__(
            facts.observation_dim, horizon, facts.action_dim, config.hidden_dim, config.num_layers, flow_steps=1
        )
        self.config = config

    def loss(
        self, observation: Tensor, noise: Tensor, behaviour: FlowPolicy, q_values: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Distillation and ascent on Q.

        Args:
            observation: (b, S).
            noise: (b, 1, H, A).
            behaviour: makes the chunk to stay close to from the same noise.
            q_values: (b, S) states and (b, 1, H·A) chunks to (K, b, 1) values, with a gradient to the chunks only.

        Returns:
            (b,) losses and metrics.
        """
        with torch.no_grad():
            imitated = behaviour.sample(observation, noise).flatten(2)
        chunk = self.predict(observation, noise.flatten(2), noise.new_zeros(noise.shape[:2]))
        distance = (chunk - imitated).square().mean(-1).squeeze(1)
        q = q_values(observation, chunk.clamp(-1, 1)).mean(0).squeeze(1)
        scale = 1 / q.detach().abs().mean().clamp_min(1e-6) if self.config.normalize_q else 1.0
        losses = self.config.alpha * distance - scale * q
        return losses, {"distance": distance.detach().mean(), "actor_q": q.detach().mean()}


def frozen(network: nn.Module) -> Callable[..., Tensor]:
    """The network as a function through which gradients reach its inputs, and never its weights."""
    weights = {name: weight.detach() for name, weight in network.named_parameters()}
    return lambda *inputs: functional_call(network, weights, inputs)


class DeasOneStepAgent(DeasAgent):
    """The critic of DEAS and, beside it in the same steps, a one-step policy.

    Args:
        config: see `DeasOneStepConfig`.
        facts: of the task.
        behaviour: the frozen behaviour policy, which the one-step policy is distilled from.
    """

    def __init__(self, config: DeasOneStepConfig, facts: TaskFacts, behaviour: FlowPolicy):
        super().__init__(config, facts, behaviour)
        self.actor = OneStepActor(config.actor, facts, self.horizon)

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        critic_loss, metrics = super().loss(batch, draws)
        q, head = frozen(self.critic.q), self.critic.head
        noise = draws.normal(1, *batch.chunk.shape[1:]).to(batch.chunk.device)
        actor_losses, actor_metrics = self.actor.loss(
            batch.observation, noise, self.behaviour, lambda *inputs: head.mean(q(*inputs))
        )
        loss = critic_loss + actor_losses.mean()
        return loss, metrics | actor_metrics

    @torch.no_grad()
    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        return self.actor.sample(observation, noise)
