"""DEAS on one screen (Kim et al., 2025, arXiv 2510.07730): what `DeasCritic` trains and scores by, line for line.

An option is a chunk of H steps played from a state (m ≤ H at an episode's end). V and Q are learnt from recorded
options alone: no actor and no sampled action appears in a target (design rule 4), which is why every function here
takes values of recorded states and chunks, and nothing that could sample.

Shapes: B options, K networks, N candidate chunks, M logits of a value head (`deas_vla.critic.heads`). Losses are per
option; the caller weights and averages them.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from deas_vla.critic.heads import ValueHead

Aggregation = Literal["min", "mean"]


def td_target(returns_B: Tensor, bootstrap_B: Tensor, next_value_B: Tensor) -> Tensor:
    """(B,) y = Σ_{k<m} γ₁ᵏ r_{t+k} + γ₂ᵐ (1 − terminated) V(s_{t+m}), detached: what Q is regressed on (design rule 3).

    The three terms are its arguments; γ₂ᵐ (1 − terminated) is zero if the episode succeeded inside the option, not if
    it timed out. Raises ValueError if the shapes differ; (B,) against (B, 1) would mix up the options in silence.
    """
    shapes = [tuple(tensor.shape) for tensor in (returns_B, bootstrap_B, next_value_B)]
    if len(set(shapes)) != 1:
        raise ValueError("returns {}, bootstrap {} and next_value {} must have one shape".format(*shapes))
    return (returns_B + bootstrap_B * next_value_B).detach()


def smallest_head(head: ValueHead, q_logits_KBM: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M) prediction of the network with the smaller mean, chosen for each option, and (B,) that mean; detached.

    For HL-Gauss it is the categorical distribution itself, not a re-projection of its mean.
    """
    logits_KBM = q_logits_KBM.detach()
    mean_B, chosen_B = head.mean(logits_KBM).min(dim=0)
    # Whole rows are taken: a gather, number by number, is several times slower.
    rows_B = chosen_B * len(mean_B) + torch.arange(len(mean_B), device=mean_B.device)
    return head.prediction(logits_KBM.flatten(0, 1).index_select(0, rows_B)), mean_B


def value_loss(head: ValueHead, v_logits_BM: Tensor, target_q_logits_KBM: Tensor, expectile: float) -> Tensor:
    """(B,) L_V = |τ − 1(q̄ < E[V])| · loss(q̂, V): V moves towards the smaller target Q, more strongly upwards.

    A cross-entropy towards the categorical distribution q̂ for HL-Gauss, the squared error of IQL for a scalar. No
    gradient flows to the target networks' logits for the recorded chunk. `expectile` is τ, in (0, 1).
    """
    target_BM, target_mean_B = smallest_head(head, target_q_logits_KBM)
    upward_B = target_mean_B >= head.mean(v_logits_BM.detach())
    return torch.where(upward_B, expectile, 1 - expectile) * head.loss(v_logits_BM, target_BM)


def q_loss(head: ValueHead, q_logits_KBM: Tensor, target_B: Tensor) -> Tensor:
    """(B,) L_Q = 1/K Σ_k loss(target(y), Q_k): the K online networks are regressed on the same y of `td_target`.

    A cross-entropy towards the HL-Gauss projection of y (clamped to the support), or a squared error.
    """
    return head.loss(q_logits_KBM, head.target(target_B.detach())).mean(0)


@torch.no_grad()
def polyak_update(target: Iterable[Tensor], online: Iterable[Tensor], step: float) -> None:
    """θ̄ ← (1 − β) θ̄ + β θ, after every optimiser step; V has no target copy."""
    torch._foreach_lerp_(list(target), list(online), step)


def score(q_values_KBN: Tensor, aggregation: Aggregation = "min") -> Tensor:
    """(B, N) scores of candidate chunks, min_k E[Q_k(s, a)]: best-of-N plays the candidate with the highest."""
    return q_values_KBN.amin(0) if aggregation == "min" else q_values_KBN.mean(0)


def future_loss(predicted_KBO: Tensor, change_BO: Tensor, has_next_B: Tensor) -> Tensor:
    """Teaches what Q computes from a chunk where the chunk leads: not part of DEAS, and no value takes part in it.

    A return is one number about a chunk, and most of it is luck that comes later. The observation after the chunk says
    much more, so features that predict it are found with less data.

    Args:
        predicted_KBO: change of the observation, by each of the K networks.
        change_BO: the observation after the option less that before it, of about unit standard deviation.
        has_next_B: bool; (B,) errors, averaged over networks and columns, are 0 where there is no such observation.
    """
    return torch.where(has_next_B, (predicted_KBO - change_BO).square().mean((0, 2)), 0.0)
