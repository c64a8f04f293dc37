"""The networks of the critic: K perceptrons evaluated as one, and the published encoder and V."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EnsembleLinear(nn.Module):
    """K linear layers with separate weights; `fan_in` initialises a layer that is a part of a larger one."""

    def __init__(self, heads: int, inputs: int, outputs: int, bias: bool = True, fan_in: int | None = None):
        super().__init__()
        bound = 1 / math.sqrt(fan_in or inputs)
        self.weight = nn.Parameter(torch.empty(heads, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, 1, outputs).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, inputs), or (B, inputs) shared by all K, to (K, B, outputs)."""
        x = x.expand(len(self.weight), -1, -1)
        return torch.bmm(x, self.weight) if self.bias is None else torch.baddbmm(self.bias, x, self.weight)


class EnsembleLayerNorm(nn.Module):
    """K layer normalisations with separate scales and shifts."""

    def __init__(self, heads: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, 1, width))
        self.bias = nn.Parameter(torch.zeros(heads, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        """(K, B, width) to (K, B, width)."""
        width = x.shape[-1:]
        if len(self.weight) == 1:
            return F.layer_norm(x, width, self.weight.view(-1), self.bias.view(-1))
        # Ones and zeros instead of nothing: PyTorch's CPU kernel without them is two and a half times slower.
        normalised = F.layer_norm(x, width, x.new_ones(width), x.new_zeros(width))
        return torch.addcmul(self.bias, normalised, self.weight)


class EnsembleMLP(nn.Module):
    """K perceptrons over an observation, or over an observation and a flattened chunk of actions: V and Q.

    Each hidden layer is Linear, LayerNorm, GELU, dropout, as in the paper's Q networks. The first one is split into an
    observation part and a chunk part: the observation is projected once and shared by all candidate chunks. With
    chunk_dim 0 the network sees no chunk.
    """

    def __init__(
        self,
        heads: int,
        observation_dim: int,
        chunk_dim: int,
        hidden_dim: int,
        num_layers: int,
        num_logits: int,
        dropout: float,
    ):
        super().__init__()
        self.dropout = dropout
        fan_in = observation_dim + chunk_dim
        self.observation = EnsembleLinear(heads, observation_dim, hidden_dim, fan_in=fan_in)
        self.chunk = None
        if chunk_dim:
            self.chunk = EnsembleLinear(heads, chunk_dim, hidden_dim, bias=False, fan_in=fan_in)
        self.hidden = nn.ModuleList(EnsembleLinear(heads, hidden_dim, hidden_dim) for _ in range(num_layers - 1))
        self.norms = nn.ModuleList(EnsembleLayerNorm(heads, hidden_dim) for _ in range(num_layers))
        self.output = EnsembleLinear(heads, hidden_dim, num_logits)

    def forward(self, observation: Tensor, chunks: Tensor | None = None, drop: bool = False) -> Tensor:
        """(B, observation_dim) and (B, N, chunk_dim) candidates to (K, B, N, M) logits; without chunks (K, B, M).

        Dropout is asked for by `drop` and does not follow `self.training`: targets and scores never drop, also while
        the network trains.
        """
        logits = self.output(self.hidden_units(observation, chunks, drop))
        return logits if chunks is None else logits.unflatten(1, chunks.shape[:2])

    def hidden_units(self, observation: Tensor, chunks: Tensor | None = None, drop: bool = False) -> Tensor:
        """What the last layer sees: (K, B·N, hidden_dim), or (K, B, hidden_dim) without chunks; see `forward`."""
        x = self.observation(observation)
        if chunks is not None:
            candidates = self.chunk(chunks.flatten(0, 1)).unflatten(1, chunks.shape[:2])
            x = (x.unsqueeze(2) + candidates).flatten(1, 2)
        for i, norm in enumerate(self.norms):
            if i > 0:
                x = self.hidden[i - 1](x)
            x = F.dropout(F.gelu(norm(x)), self.dropout, training=drop)
        return x


class ResidualMLP(nn.Module):
    """The published V, after BRO (Nauman et al., 2024): a layer, then blocks of three, with LayerNorm and ReLU."""

    def __init__(self, inputs: int, hidden_dim: int, num_blocks: int, num_logits: int):
        super().__init__()

        def layer(width: int) -> list[nn.Module]:
            return [nn.Linear(width, hidden_dim), nn.LayerNorm(hidden_dim)]

        self.first = nn.Sequential(*layer(inputs), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(*layer(hidden_dim), nn.ReLU(), *layer(hidden_dim), nn.ReLU(), *layer(hidden_dim))
            for _ in range(num_blocks)
        )
        self.output = nn.Linear(hidden_dim, num_logits)

    def forward(self, observation: Tensor, drop: bool = False) -> Tensor:
        """(B, inputs) to (1, B, M) logits, as of an ensemble of one; it has no dropout."""
        x = self.first(observation)
        for block in self.blocks:
            x = x + block(x)
        return self.output(x).unsqueeze(0)


def feature_encoder(inputs: int, widths: list[int]) -> nn.Sequential:
    """The published encoder of the backbone's features, trained with V and Q: linear layers, SiLU, tanh at the end."""
    layers: list[nn.Module] = []
    for before, after in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1], nn.Tanh())
