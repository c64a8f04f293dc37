"""The DEAS critic: configuration, networks, training loss, scores of candidate chunks."""

import copy
import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from deas_vla.critic import losses
from deas_vla.critic.heads import HLGauss, Scalar, ValueHead, return_bounds
from deas_vla.critic.networks import EnsembleLinear, EnsembleMLP, ResidualMLP, feature_encoder
from deas_vla.errors import UserError, require_ranges

# Named, because the help of the command line is read from the source and sees no quotes in an annotation.
HeadName = Literal["hl_gauss", "scalar"]


@dataclass(frozen=True)
class CriticConfig:
    """What the critic is and what it learns; the defaults are those of the preset `default`, not the published ones."""

    horizon: int = 16  # H, control steps in a chunk; the policy's chunks must have at least as many
    # n, control steps of the return before it bootstraps, at least H; 0: H, the chunk's own length
    backup_horizon: int = 0
    reward_discount: float = 0.9  # γ₁, discount of the rewards inside a chunk, per control step, in (0, 1]
    bootstrap_discount: float = 0.99  # γ₂, discount of the value after a chunk, per control step, in (0, 1)
    expectile: float = 0.7  # τ, how much V leans towards the better recorded chunks, in (0, 1); 0.5 is their mean
    # what the networks predict: hl_gauss (a distribution over bins) or scalar (plain regression, as in IQL)
    head: HeadName = "scalar"
    num_bins: int = 101  # bins of the distribution (hl_gauss)
    sigma_bins: float = 0.75  # standard deviation of the target Gaussian, in bins (hl_gauss)
    # distance from the extreme returns to the ends of the bins, in standard deviations of the Gaussian (hl_gauss)
    margin_sigmas: float = 4.0
    num_q: int = 2  # K, size of the ensemble of Q networks; scores and targets take the smallest
    # how far the target Q networks move towards the online ones at every optimiser step, in (0, 1]
    polyak: float = 0.005
    hidden_dim: int = 256  # width of the hidden layers of Q and, without v_blocks, of V
    num_layers: int = 3  # number of hidden layers of Q and, without v_blocks, of V
    v_blocks: int = 0  # residual blocks of V, as published; 0: V is a network like Q's
    v_hidden_dim: int = 256  # width of V's residual blocks
    # widths of an encoder of the features that V and Q share and train, as published; empty: none, nothing that is
    # trained is shared, so a target moves by Polyak averaging alone
    encoder: list[int] = field(default_factory=list)
    # weight of the Q networks' error in the observation that the chunk leads to, beside their error in its value; 0:
    # they learn values alone, as published
    future_weight: float = 1.0
    dropout: float = 0.0  # probability of dropping a hidden unit while training; targets and scores never drop
    reward_min: float = -1.0  # smallest reward of one control step, as the critic sees rewards
    reward_max: float = 0.0  # largest reward of one control step, as the critic sees rewards
    # lowest and highest return that the networks can predict; empty: they follow from the discounts and rewards
    support: list[float] = field(default_factory=list)

    def __post_init__(self):
        ranges = {
            "at least 1": "horizon num_q hidden_dim num_layers v_hidden_dim",
            "at least 0": "v_blocks margin_sigmas future_weight",
            "above 0": "sigma_bins",
            "above 0 and at most 1": "reward_discount polyak",
            "above 0 and below 1": "bootstrap_discount expectile",
            "at least 0 and below 1": "dropout",
        }
        require_ranges(self, "critic.", ranges)
        ordered = len(self.support) == 2 and -math.inf < self.support[0] < self.support[1] < math.inf
        rewards = -math.inf < self.reward_min < self.reward_max < math.inf
        others = {
            "backup_horizon": (self.backup >= self.horizon, f"0 or at least critic.horizon={self.horizon}"),
            "encoder": (all(width >= 1 for width in self.encoder), "empty or widths of at least 1"),
            "head": (self.head in get_args(HeadName), "hl_gauss or scalar"),
            "reward_min": (rewards, f"below critic.reward_max={self.reward_max}, both finite"),
            "support": (not self.support or ordered, "empty or two finite numbers, the lower first"),
        }
        for name, (holds, rule) in others.items():
            if not holds:
                raise UserError(f"critic.{name}={getattr(self, name)} must be {rule}")
        try:
            self.value_head()
        except ValueError as error:
            raise UserError(f"critic.num_bins={self.num_bins} does not fit: {error}") from error

    @property
    def backup(self) -> int:
        """n, control steps of the return before it bootstraps."""
        return self.backup_horizon or self.horizon

    @property
    def discounting(self) -> dict[str, float]:
        """H, γ₁ and γ₂ as `build_options` and `returns_to_go` take them."""
        return {name: getattr(self, name) for name in ("horizon", "reward_discount", "bootstrap_discount")}

    def value_head(self) -> ValueHead:
        """The head that the support, or these discounts, n and this reward range, call for (design rule 5)."""
        low, high = self.support or return_bounds(
            self.backup, self.reward_discount, self.bootstrap_discount, self.reward_min, self.reward_max
        )
        if self.head == "scalar":
            return Scalar(low, high)
        return HLGauss(low, high, self.num_bins, self.sigma_bins, self.margin_sigmas)


@dataclass
class CriticBatch:
    """B recorded options: (B, F) features, (B, S) states, (B, H, A) chunks, normalised as at inference."""

    features: Tensor  # of the observation before the option
    state: Tensor
    chunk: Tensor  # commands that were really played
    returns: Tensor  # (B,) Σ_{k<m} γ₁ᵏ r_{t+k} over the m ≤ n steps that were played
    bootstrap: Tensor  # (B,) γ₂ᵐ (1 − terminated)
    next_features: Tensor  # of the observation after the option; any finite numbers where terminated
    next_state: Tensor
    next_chunks: Tensor | None = None  # (B, N, H, A) the policy's own chunks there, if the target asks it

    def __getitem__(self, rows: slice) -> "CriticBatch":
        """The options at these rows."""
        return CriticBatch(**{k: v[rows] for k, v in vars(self).items() if v is not None})

    def to(self, device: torch.device | str) -> "CriticBatch":
        """The batch on another device; the copy does not wait where the memory is pinned."""
        return CriticBatch(**{k: v.to(device, non_blocking=True) for k, v in vars(self).items() if v is not None})


class DeasCritic(nn.Module):
    """V(s) and K networks Q(s, chunk), learnt detached from any actor (DEAS, arXiv 2510.07730).

    The equations are in `deas_vla.critic.losses`. The target copies of Q have no gradient, which keeps them out of the
    gradient exchange of distributed training, and are the same on all ranks because the online weights are.

    Weights stay float32 (autocast is fine): a Polyak step of 0.005 is lost in half-precision weights. F features,
    S columns of the state and A of the action are the dimensions that it is made for.
    """

    def __init__(self, config: CriticConfig, feature_dim: int, state_dim: int, action_dim: int):
        super().__init__()
        self.config, self.head = config, config.value_head()
        self.feature_dim, self.state_dim, self.action_dim = feature_dim, state_dim, action_dim
        self.encoder = feature_encoder(feature_dim, config.encoder) if config.encoder else nn.Identity()
        width = (config.encoder[-1] if config.encoder else feature_dim) + state_dim

        def network(heads: int, chunk_dim: int) -> EnsembleMLP:
            sizes = (config.hidden_dim, config.num_layers, self.head.num_logits)
            return EnsembleMLP(heads, width, chunk_dim, *sizes, config.dropout)

        if config.v_blocks:
            self.v = ResidualMLP(width, config.v_hidden_dim, config.v_blocks, self.head.num_logits)
        else:
            self.v = network(1, 0)
        self.q = network(config.num_q, config.horizon * action_dim)
        self.target_q = copy.deepcopy(self.q).requires_grad_(False)
        self.future = None
        if config.future_weight:
            self.future = EnsembleLinear(config.num_q, config.hidden_dim, feature_dim + state_dim)

    def forward(self, batch: CriticBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """`loss`, a scalar, where distributed wrappers look for it."""
        return self.loss(batch)

    def loss(self, batch: CriticBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """L = L_V + L_Q of a batch, and with a `future_weight` that many times `future_loss`: a scalar, and metrics.

        Metrics are detached 0-d tensors on the device: the losses, ``value`` (mean V), ``q`` (mean of the smallest Q),
        ``advantage`` (their difference), ``upward`` (share of options whose target is above V), ``clamped`` (share of
        targets outside the possible returns), ``disagreement`` (mean distance between the largest and smallest Q).
        """
        observation = self._observation(batch.features, batch.state)
        chunks = self._chunks(batch.chunk.unsqueeze(1))
        with torch.no_grad():
            target = losses.td_target(batch.returns, batch.bootstrap, self.next_value(batch))
            target_q_logits = self.target_q(observation, chunks).squeeze(2)
        v_logits = self.v(observation, drop=self.training)[0]
        hidden = self.q.hidden_units(observation, chunks, drop=self.training)
        q_logits = self.q.output(hidden)

        value_loss = losses.value_loss(self.head, v_logits, target_q_logits, self.config.expectile)
        q_loss = losses.q_loss(self.head, q_logits, target)
        loss, metrics = value_loss + q_loss, {}
        if self.future is not None:
            change = torch.cat([batch.next_features - batch.features, batch.next_state - batch.state], -1)
            future_loss = losses.future_loss(self.future(hidden), change, batch.bootstrap > 0)
            loss = loss + self.config.future_weight * future_loss
            metrics["future_loss"] = future_loss.detach().mean()
        loss = loss.mean()

        with torch.no_grad():
            q, value = self.head.mean(q_logits), self.head.mean(v_logits)
            smallest = q.amin(0)
            metrics |= {
                "loss": loss.detach(),
                "value_loss": value_loss.mean(),
                "q_loss": q_loss.mean(),
                "value": value.mean(),
                "q": smallest.mean(),
                "advantage": (smallest - value).mean(),
                "upward": (self.head.mean(target_q_logits).amin(0) >= value).float().mean(),
                "clamped": self.head.outside(target).float().mean(),
                "disagreement": (q.amax(0) - smallest).mean(),
            }
        return loss, metrics

    def next_value(self, batch: CriticBatch) -> Tensor:
        """(B,) what a target takes for the value of the observation after the option: V (design rule 4)."""
        return self.value(batch.next_features, batch.next_state)

    def update_target(self) -> None:
        """`polyak_update` of the target Q networks; call it after every optimiser step."""
        dtype = next(self.target_q.parameters()).dtype
        if dtype != torch.float32:
            raise UserError(f"the critic trains in float32 weights, not {dtype}: set mixed_precision to 'no'")
        losses.polyak_update(self.target_q.parameters(), self.q.parameters(), self.config.polyak)

    @torch.no_grad()
    def value(self, features: Tensor, state: Tensor) -> Tensor:
        """(B, F) features and (B, S) states to (B,) values V(s)."""
        return self.head.mean(self.v(self._observation(features, state))[0])

    @torch.no_grad()
    def q_values(self, features: Tensor, state: Tensor, chunks: Tensor) -> Tensor:
        """(B, F) features, (B, S) states and (B, N, H, A) chunks to (K, B, N) values by every online Q network."""
        return self.head.mean(self.q(self._observation(features, state), self._chunks(chunks)))

    def score(self, features: Tensor, state: Tensor, chunks: Tensor) -> Tensor:
        """(B, N) scores of the candidates: the smallest of the K `q_values`, whose arguments these are."""
        return losses.score(self.q_values(features, state, chunks))

    def _observation(self, features: Tensor, state: Tensor) -> Tensor:
        """(B, E + S) encoded features and state: what V and Q read."""
        if features.shape[1:] != (self.feature_dim,) or state.shape[1:] != (self.state_dim,):
            raise ValueError(
                f"features {tuple(features.shape)} and state {tuple(state.shape)}: this critic takes "
                f"(B, {self.feature_dim}) and (B, {self.state_dim})"
            )
        return torch.cat([self.encoder(features), state], dim=-1)

    def _chunks(self, chunks: Tensor) -> Tensor:
        """(B, N, H, A) to (B, N, H·A)."""
        if chunks.ndim != 4 or chunks.shape[2:] != (self.config.horizon, self.action_dim):
            raise ValueError(
                f"chunks {tuple(chunks.shape)}: this critic takes (B, N, {self.config.horizon}, {self.action_dim})"
            )
        return chunks.flatten(2)


class QChunkingCritic(DeasCritic):
    """Q-chunking (Li, Zhou, Levine, arXiv 2507.07969) on the networks of `DeasCritic`: the baseline with an actor.

    Its target asks the policy (the batches have ``next_chunks``): the value of the state after an option is that of the
    best of N of the policy's chunks there, chosen by the online networks and valued by the target networks, by their
    means, as in the published code. V is learned as in DEAS, for the report; no target looks at it.
    """

    def next_value(self, batch: CriticBatch) -> Tensor:
        """(B,) value of the best of the policy's chunks at the observation after the option."""
        observation = self._observation(batch.next_features, batch.next_state)
        chunks = self._chunks(batch.next_chunks)
        best = self.head.mean(self.q(observation, chunks)).mean(0).argmax(1)
        chosen = chunks[torch.arange(len(best), device=best.device), best].unsqueeze(1)
        return self.head.mean(self.target_q(observation, chosen)).mean(0).squeeze(1)
