"""The behaviour policy of the OGBench agents: a small flow-matching network over chunks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.policies.flow import integrate


class FlowPolicy(nn.Module):
    """p(chunk | state) by flow matching (FQL and Q-chunking: a perceptron with GELU and no normalisation).

    The network sees the state, a point x_t between noise and chunk, and t; it predicts the clean chunk. Times are
    uniform.

    Args:
        observation_dim: S.
        horizon: H, actions of a chunk.
        action_dim: A.
        hidden_dim: width of the hidden layers.
        num_layers: number of hidden layers.
        flow_steps: Euler steps from noise to chunk.
    """

    def __init__(
        self, observation_dim: int, horizon: int, action_dim: int, hidden_dim: int, num_layers: int, flow_steps: int
    ):
        super().__init__()
        self.horizon, self.action_dim, self.flow_steps = horizon, action_dim, flow_steps
        chunk_dim = horizon * action_dim
        # The first layer is kept in two parts: N chunks of one state share what the state contributes.
        self.observation = nn.Linear(observation_dim, hidden_dim)
        self.point = nn.Linear(chunk_dim + 1, hidden_dim, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(hidden_dim, hidden_dim) for _ in range(num_layers - 1))
        self.output = nn.Linear(hidden_dim, chunk_dim)

    def predict(self, observation: Tensor, points: Tensor, time: Tensor) -> Tensor:
        """The clean chunks that points on the lines belong to.

        Args:
            observation: (B, S).
            points: (B, N, H·A) x_t.
            time: (B, N) t.

        Returns:
            (B, N, H·A).
        """
        x = self.observation(observation).unsqueeze(1) + self.point(torch.cat([points, time.unsqueeze(-1)], -1))
        for layer in self.hidden:
            x = layer(F.gelu(x, approximate="tanh"))
        return self.output(F.gelu(x, approximate="tanh"))

    def loss(self, observation: Tensor, chunks: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Squared errors of the predicted chunks.

        Args:
            observation: (B, S).
            chunks: (B, H, A) chunks to imitate.
            noise: (B, H·A) standard normal.
            time: (B, 1) flow times in [0, 1).

        Returns:
            (B,) losses.
        """
        target = chunks.flatten(1)
        points = torch.lerp(noise, target, time)
        predicted = self.predict(observation, points.unsqueeze(1), time).squeeze(1)
        return (predicted - target).square().mean(1)

    def sample(self, observation: Tensor, noise: Tensor) -> Tensor:
        """(B, S) states and (B, N, H, A) noise to (B, N, H, A) chunks in [-1, 1]."""
        times = torch.arange(self.flow_steps, device=noise.device) / self.flow_steps

        def predict(points: Tensor, step: int) -> Tensor:
            return self.predict(observation, points, times[step].expand(points.shape[:2]))

        chunks = integrate(predict, noise.flatten(2), self.flow_steps)
        return chunks.clamp(-1, 1).view_as(noise)
