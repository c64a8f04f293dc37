"""What every agent has in common: it learns from options, proposes chunks and, most of them, scores chunks."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deas_vla.critic.critic import CriticConfig
from deas_vla.errors import UserError
from deas_vla.files import atomic_path
from deas_vla.training.loop import step_generator
from studies.ogbench.agents.behaviour import FlowPolicy
from studies.ogbench.transitions import OptionBatch

WEIGHTS = "agent.safetensors"


def agent_critic(horizon: int, reward_discount: float, backup_horizon: int = 0) -> CriticConfig:
    """The critic of every agent, at the size that fits CPUs.

    Published agents move their targets by 0.005 an update, a million times. In 3,000 updates that is 15 of the targets'
    time constants, and a value travels about as many backups. The paper's head is hl_gauss; with so few updates a
    scalar one is ahead of it on cube-single. Both were chosen as studies/results/ogbench_choices.md tells.
    """
    return CriticConfig(
        horizon=horizon, backup_horizon=backup_horizon, reward_discount=reward_discount, bootstrap_discount=0.99,
        polyak=0.02, future_weight=0.0,
    )  # fmt: skip


@dataclass(frozen=True)
class TaskFacts:
    """What an agent must know of the task and its data.

    Attributes:
        observation_dim: S.
        action_dim: A.
        reward_min: smallest reward of one step; the largest is 0.
        lowest_return: smallest return in the data, in the critic's own options and discounts (for the support `data`);
            0 for agents without a critic.
    """

    observation_dim: int
    action_dim: int
    reward_min: float
    lowest_return: float


class Draws:
    """The random numbers of one training step: the same for the whole batch, however many processes share it.

    Args:
        seed: of the run.
        step: number of the step.
        batch_size: B of all processes together.
        share: this process's rows.
    """

    def __init__(self, seed: int, step: int, batch_size: int, share: slice):
        self._generator, self._batch, self._share = step_generator(seed, step), batch_size, share

    def normal(self, *shape: int) -> Tensor:
        """(b, *shape) standard normal numbers for this process's b rows, on the CPU."""
        return torch.randn((self._batch, *shape), generator=self._generator)[self._share]

    def uniform(self, *shape: int) -> Tensor:
        """(b, *shape) uniform numbers in [0, 1) for this process's b rows, on the CPU."""
        return torch.rand((self._batch, *shape), generator=self._generator)[self._share]


class Agent(nn.Module):
    """An agent for one task.

    Its own weights are its parameters. The behaviour policy is not among them: it is trained before, shared by all
    agents of one chunk length, and kept in its own file.

    Attributes:
        horizon: H, actions in a proposed chunk.
        backup: n, steps of the return before the bootstrap.
        reward_discount: γ₁.
        bootstrap_discount: γ₂.
        scores_parts: whether `q_values` takes only as many actions of a chunk as will be played.
    """

    scores_parts: bool = False
    horizon: int
    backup: int
    reward_discount: float
    bootstrap_discount: float

    def __init__(self, behaviour: FlowPolicy | None = None):
        super().__init__()
        self._behaviour = (behaviour,)

    @property
    def behaviour(self) -> FlowPolicy:
        """The frozen behaviour policy."""
        return self._behaviour[0]

    def forward(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, where distributed wrappers look for it."""
        return self.loss(batch, draws)

    def loss(self, batch: OptionBatch, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of a batch, and metrics as detached 0-d tensors."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every optimiser step: target networks."""

    @torch.no_grad()
    def propose(self, observation: Tensor, noise: Tensor) -> Tensor:
        """(B, S) standardised states and (B, N, H, A) noise to (B, N, H, A) candidate chunks in [-1, 1]."""
        return self.behaviour.sample(observation, noise)

    def q_values(self, observation: Tensor, chunks: Tensor) -> Tensor | None:
        """(B, S) states and (B, N, h, A) chunks to (K, B, N) values, one by each network; None without a critic."""
        return None

    def value(self, observation: Tensor) -> Tensor | None:
        """(B, S) states to (B,) values of what the agent expects; None where it has none."""
        return None

    def save(self, folder: Path, description: dict) -> None:
        """Writes the weights, whole or not at all, with a description that `load` returns."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_path(Path(folder) / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"agent": json.dumps(description)})

    def load(self, folder: Path) -> "Agent":
        """Reads what `save` wrote, into an agent of the same configuration.

        Raises:
            UserError: if the file is missing, cut off, or of another configuration.
        """
        path = Path(folder) / WEIGHTS
        if not path.is_file():
            raise UserError(f"{path} is missing: train this agent first")
        try:
            self.load_state_dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read ({error}): it may be cut off; train it again") from error
        except RuntimeError as error:
            raise UserError(
                f"{path} holds an agent of another configuration; choose another folder or train it again"
            ) from error
        return self.eval()
