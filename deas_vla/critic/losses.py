"""Detached value learning: the equations of DEAS (Kim et al., 2025, arXiv 2510.07730), and one loss beside them.

An option is a chunk of H steps played from a state (m ≤ H at an episode's end). V and Q are learnt from
recorded options only: no actor and no sampled action appears in a target (design rule 4), which is why every
function here takes numbers of recorded states and chunks, and nothing that could sample.

Per-sample losses are returned; the caller weights and averages them.
"""

import torch
from torch import Tensor

from deas_vla.critic.heads import ValueHead


def td_target(returns: Tensor, bootstrap: Tensor, next_value: Tensor) -> Tensor:
    """What Q is regressed on: y = Σ_{k<m} γ₁ᵏ r_{t+k} + γ₂ᵐ (1 − terminated) V(s_{t+m}) (design rule 3).

    Args:
        returns: (B,) reward collected inside the option, Σ_{k<m} γ₁ᵏ r_{t+k}.
        bootstrap: (B,) γ₂ᵐ (1 − terminated): zero if the episode succeeded inside the option, not if it timed
            out.
        next_value: (B,) V of the observation after the option.

    Returns:
        (B,) y, detached.

    Raises:
        ValueError: if the shapes differ; broadcasting (B,) against (B, 1) would mix up the options in
        silence.
    """
    if not returns.shape == bootstrap.shape == next_value.shape:
        raise ValueError(
            f"returns {tuple(returns.shape)}, bootstrap {tuple(bootstrap.shape)} and next_value "
            f"{tuple(next_value.shape)} must have one shape"
        )
    return (returns + bootstrap * next_value).detach()


def pessimistic_head(head: ValueHead, q_logits: Tensor) -> tuple[Tensor, Tensor]:
    """The whole prediction of the Q head with the smaller mean, chosen for each sample.

    Args:
        head: what the logits mean.
        q_logits: (K, B, M) logits of the K target Q networks.

    Returns:
        (B, M) its prediction (for HL-Gauss the categorical distribution itself, not a re-projection of its
        mean), and (B,) its mean; both detached.
    """
    predictions = head.prediction(q_logits.detach())
    means, chosen = head.expected(predictions).min(dim=0)
    # Whole rows are taken: a gather, number by number, is several times slower.
    rows = chosen * len(means) + torch.arange(len(means), device=means.device)
    return predictions.flatten(0, 1).index_select(0, rows), means


def value_loss(head: ValueHead, v_logits: Tensor, target_q_logits: Tensor, expectile: float) -> Tensor:
    """Moves V(s) towards the pessimistic target Q(s, chunk), more strongly upwards.

    L_V = |τ − 1(q̄ < E[V])| · loss(q̂, V): a cross-entropy for HL-Gauss, the squared error of IQL for a
    scalar.

    Args:
        head: what the logits mean.
        v_logits: (B, M) logits of V, with gradient.
        target_q_logits: (K, B, M) logits of the target Q networks for the recorded chunk; no gradient flows.
        expectile: τ, in (0, 1); above 0.5 V leans towards the better recorded chunks.

    Returns:
        (B,) losses.
    """
    target, q_mean = pessimistic_head(head, target_q_logits)
    return expectile_loss(head, v_logits, target, q_mean >= head.mean(v_logits.detach()), expectile)


def expectile_loss(
    head: ValueHead, v_logits: Tensor, target: Tensor, upward: Tensor, expectile: float
) -> Tensor:
    """`value_loss` where the chosen prediction and its place are known.

    Args:
        head: what the logits mean.
        v_logits: (B, M) logits of V, with gradient.
        target: (B, M) prediction that V moves towards.
        upward: (B,) bool, the target's mean is not below V.
        expectile: τ.

    Returns:
        (B,) losses.
    """
    return torch.where(upward, expectile, 1 - expectile) * head.loss(v_logits, target)


def q_loss(head: ValueHead, q_logits: Tensor, target: Tensor) -> Tensor:
    """Regresses every Q network on the same target y.

    L_Q = 1/K Σ_k loss(target(y), Q_k): a cross-entropy to the HL-Gauss projection of y, or a squared error.

    Args:
        head: what the logits mean.
        q_logits: (K, B, M) logits of the K online Q networks, with gradient.
        target: (B,) y from `td_target`.

    Returns:
        (B,) losses, averaged over the networks.
    """
    return head.loss(q_logits, head.target(target.detach())).mean(0)


def future_loss(predicted: Tensor, change: Tensor, followed: Tensor) -> Tensor:
    """Teaches what Q computes from a chunk where the chunk leads: not part of DEAS, and no value takes part in it.

    A return says one number about a chunk, and most of that number is luck that comes later. The observation after
    the chunk says much more, so features that predict it are found with less data.

    Args:
        predicted: (K, B, O) change of the observation by each of the K networks.
        change: (B, O) the observation after the option less that before it, of about unit spread.
        followed: (B,) bool, whether there is an observation after it.

    Returns:
        (B,) squared errors, averaged over networks and columns; 0 where nothing followed.
    """
    errors = (predicted - change).square().mean((0, 2))
    return torch.where(followed, errors, 0.0)
