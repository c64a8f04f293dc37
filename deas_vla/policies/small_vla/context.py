"""From the backbone's tokens to the tokens that action head and critic see."""

import torch.nn.functional as F
from torch import Tensor, nn

from deas_vla.policies.small_vla.configuration import SmallVLAConfig


class ContextLayer(nn.Module):
    """Pre-norm self-attention over the real tokens, and a feed-forward layer."""

    def __init__(self, width: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        packed = self.query_key_value(self.norm(x)).view(batch, length, 3, self.heads, -1).transpose(1, 3)
        attended = F.scaled_dot_product_attention(*packed.unbind(2), attn_mask=mask)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.silu(self.up(self.norm_mlp(x))))


class ContextEncoder(nn.Module):
    """Layer norm and a few self-attention layers (GR00T N1.5's vlln and vl_self_attention)."""

    def __init__(self, config: SmallVLAConfig, width: int) -> None:
        super().__init__()
        heads = max(1, width // config.head_width)
        while width % heads:
            heads -= 1
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            ContextLayer(width, heads, config.mlp_ratio) for _ in range(config.context_layers)
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, L, C) backbone tokens and their (B, L) mask to (B, L, C) context tokens; padding becomes zero."""
        x = self.norm(tokens)
        for layer in self.layers:
            x = layer(x, mask[:, None, None])
        return x * mask[..., None]
