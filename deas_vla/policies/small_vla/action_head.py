"""The action head: a diffusion transformer from noise to action chunks, conditioned on the backbone's tokens."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.policies.small_vla.configuration import SmallVLAConfig

# Sines and cosines that represent the flow time, and the longest period in units of 1/1000 of the unit interval.
TIME_FEATURES = 64
TIME_MAX_PERIOD = 10_000.0
# The direct readout sees each camera as a grid of this side, with this many channels a cell.
READOUT_GRID = 4
READOUT_WIDTH = 32
STATE_BOUND, ACTION_BOUND = 64**-0.5, 32**-0.5  # largest first weights of a column of the state and of the action


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


class Block(nn.Module):
    """Attention, to the context or among the tokens themselves, and a feed-forward layer, modulated by flow time.

    Adaptive layer norm with gates that start at zero: at initialisation the block is the identity (DiT, 2023).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: int, context_width: int | None) -> None:
        super().__init__()
        self.heads, self.cross = heads, context_width is not None
        self.query = nn.Linear(width, width if self.cross else 3 * width)
        if self.cross:
            self.key_value = nn.Linear(context_width, 2 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, mlp_ratio * width)
        self.down = nn.Linear(mlp_ratio * width, width)

    def project_context(self, tokens: Tensor) -> Tensor:
        """(B, L, C) context tokens to (B, 2, heads, L, d) keys and values."""
        return self.key_value(tokens).unflatten(-1, (2, self.heads, -1)).permute(0, 2, 3, 1, 4)

    def forward(self, x: Tensor, modulation: list[Tensor], key_value: Tensor | None, mask: Tensor | None) -> Tensor:
        """One layer of tokens of N candidates, (B, N, T, D) to (B, N, T, D).

        `modulation`: six tensors that broadcast against x: shift, scale and gate of attention, then of feed-forward.
        For cross-attention: `key_value` (B, 2, heads, L, d) of the context, `mask` (B, 1, 1, L) True where it is read.
        """
        batch, candidates, length, width = x.shape
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        query = self.query(torch.addcmul(shift, F.layer_norm(x, (width,)), scale))
        if self.cross:
            # All candidates' tokens are one long list of queries: keys and values exist once per context.
            query = query.view(batch, candidates * length, self.heads, -1).transpose(1, 2)
            attended = F.scaled_dot_product_attention(query, *key_value.unbind(1), attn_mask=mask)
        else:
            packed = query.view(batch * candidates, length, 3, self.heads, -1).transpose(1, 3)
            attended = F.scaled_dot_product_attention(*packed.unbind(2))
        attended = self.out(attended.transpose(1, 2).reshape(batch, candidates, length, width))
        x = torch.addcmul(x, gate, attended)
        hidden = self.up(torch.addcmul(shift_mlp, F.layer_norm(x, (width,)), scale_mlp))
        return torch.addcmul(x, gate_mlp, self.down(F.silu(hidden)))


class Conditioning(NamedTuple):
    """What depends on the flow time alone; all broadcast against (B, N, T, D)."""

    action: Tensor  # added to the action encoder's hidden layer
    blocks: list[list[Tensor]]  # six tensors each, see `Block.forward`
    final: list[Tensor]  # shift and scale before the decoder


class DirectReadout(nn.Module):
    """One vector from all context tokens: each cell of each camera read by its own weights, the text by its mean.

    Attention learns where to look only after it has seen many images; a linear map of a fixed grid of tokens knows
    where they are from the first step. It is what lets a small policy learn to find an object in minutes.
    """

    def __init__(self, cameras: int, context_width: int, width: int) -> None:
        super().__init__()
        self.cameras = cameras
        self.narrow = nn.Linear(context_width, READOUT_WIDTH)
        self.cells = nn.Linear(cameras * READOUT_GRID**2 * READOUT_WIDTH, width)
        self.text = nn.Linear(context_width, width)
        nn.init.zeros_(self.text.weight)

    def forward(self, tokens: Tensor, mask: Tensor, camera: Tensor) -> Tensor:
        """A context, as in `ActionHead.read_context`, to (B, D)."""
        images = tokens[:, camera >= 0]
        batch, side = len(tokens), math.isqrt(images.shape[1] // self.cameras)
        grids = self.narrow(images).view(batch * self.cameras, side, side, -1)
        if side != READOUT_GRID:
            grids = F.adaptive_avg_pool2d(grids.permute(0, 3, 1, 2), READOUT_GRID).permute(0, 2, 3, 1)
        is_text = (mask & (camera < 0))[..., None].float()
        text = (tokens * is_text).sum(1) / is_text.sum(1).clamp_min(1)
        return self.cells(grids.reshape(batch, -1)) + self.text(text)


class ActionHead(nn.Module):
    """The clean chunk behind noisy ones: a state token and H action tokens attend to the context and each other."""

    def __init__(
        self, config: SmallVLAConfig, context_width: int, cameras: int, state_dim: int, action_dim: int
    ) -> None:
        super().__init__()
        width = config.width
        self.state_encoder = mlp(state_dim, width, width)
        self.action_in, self.action_out = nn.Linear(action_dim, width), nn.Linear(width, width)
        self.action_time = nn.Linear(TIME_FEATURES, width)
        self.decoder = mlp(width, width, action_dim)
        for layer in (*self.state_encoder, self.action_in, self.action_out, self.action_time, *self.decoder):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        # State and noise come in small, whatever their number of columns: the recipes' defaults were chosen so.
        nn.init.uniform_(self.state_encoder[0].weight, -STATE_BOUND, STATE_BOUND)
        nn.init.uniform_(self.action_in.weight, -ACTION_BOUND, ACTION_BOUND)
        self.readout = DirectReadout(cameras, context_width, width)
        self.positions = nn.Parameter(0.02 * torch.randn(config.horizon, width))
        self.time_mlp = nn.Sequential(*mlp(TIME_FEATURES, width, width), nn.SiLU())
        self.modulation = nn.Linear(width, (6 * config.layers + 2) * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.zeros_(self.decoder[-1].weight)
        self.blocks = nn.ModuleList(
            Block(width, width // config.head_width, config.mlp_ratio, context_width if i % 2 == 0 else None)
            for i in range(config.layers)
        )
        half = TIME_FEATURES // 2
        frequency = 1000.0 * torch.exp(-math.log(TIME_MAX_PERIOD) * torch.arange(half) / half)
        self.register_buffer("frequency", frequency, persistent=False)

    def read_context(self, tokens: Tensor, mask: Tensor, camera: Tensor) -> dict[str, Tensor]:
        """What all candidates and all flow steps share, computed once a context.

        Of (B, L, C) tokens (those of a camera in row-major order of a square grid), their (B, L) mask, and (L,) which
        camera each comes from (-1: text): ``key_values`` (B, layers, 2, heads, L, d) of all cross-attention layers, and
        ``readout`` (B, D).
        """
        key_values = torch.stack([block.project_context(tokens) for block in self.blocks if block.cross], 1)
        return {"key_values": key_values, "readout": self.readout(tokens, mask, camera)}

    def condition(self, time: Tensor) -> Conditioning:
        """What depends on the (B, N) flow times alone."""
        angle = time[..., None] * self.frequency
        features = torch.cat([angle.sin(), angle.cos()], -1)[:, :, None]
        parts = self.modulation(self.time_mlp(features)).split(self.positions.shape[1], -1)
        # Shift, scale, gate in turn; a scale is 1 + what comes out, so that zero weights mean a plain layer norm.
        parts = [1 + part if i % 3 == 1 else part for i, part in enumerate(parts)]
        blocks = [parts[i : i + 6] for i in range(0, len(parts) - 2, 6)]
        return Conditioning(self.action_time(features), blocks, parts[-2:])

    def embed_state(self, state: Tensor) -> Tensor:
        """(B, S) normalised states to (B, 1, 1, D), one token each."""
        return self.state_encoder(state)[:, None, None]

    def forward(
        self, noisy: Tensor, conditioning: Conditioning, state: Tensor, memory: dict[str, Tensor], mask: Tensor
    ) -> Tensor:
        """(B, N, H, A) points between noise and chunk, what the other methods make, and the mask, to clean chunks."""
        actions = self.action_out(F.silu(self.action_in(noisy) + conditioning.action)) + self.positions
        actions = actions + memory["readout"][:, None, None]
        x = torch.cat([state.expand(-1, noisy.shape[1], -1, -1), actions], 2)
        mask = mask[:, None, None]
        for i, block in enumerate(self.blocks):
            key_value = memory["key_values"][:, i // 2] if block.cross else None
            x = block(x, conditioning.blocks[i], key_value, mask)
        shift, scale = conditioning.final
        return self.decoder(torch.addcmul(shift, F.layer_norm(x[:, :, 1:], x.shape[-1:]), scale))
