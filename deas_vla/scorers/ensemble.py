"""Several scorers that choose together."""

from typing import Self

import torch
from torch import Tensor, nn

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError
from deas_vla.scorers.scorer import Encoded, Scorer, register_scorer, registered


@register_scorer("ensemble")
class EnsembleScorer(Scorer):
    """The mean of the members' scores; each reads the observation with its own features.

    Args:
        members: at least one; of one contract, one policy's tokens and one chunk length.

    Raises:
        UserError: if they do not belong together.
    """

    def __init__(self, members: list[Scorer]):
        if not members:
            raise UserError("an ensemble needs at least one scorer")
        first = members[0]
        for number, other in enumerate(members[1:], start=2):
            other.contract.require_same(first.contract, f"scorer {number}", "scorer 1 of the ensemble")
            if (other.encoder_fingerprint, other.horizon) != (first.encoder_fingerprint, first.horizon):
                raise UserError(f"scorer {number} of the ensemble reads other tokens or chunks than scorer 1")
        super().__init__(first.contract, first.horizon, first.encoder_fingerprint, "mean")
        self.members = nn.ModuleList(members)

    def encode(self, context: Context, observation: Observation) -> Encoded:
        encoded = [member.encode(context, observation) for member in self.members]
        return Encoded(torch.cat([each.features for each in encoded], 1), encoded[0].state)

    def q_values(self, encoded: Encoded, chunks: Tensor) -> Tensor:
        """(members, B, N): one value of each, its score."""
        return torch.stack([member.score(own, chunks) for member, own in self._own(encoded)])

    def value(self, encoded: Encoded) -> Tensor:
        return torch.stack([member.value(own) for member, own in self._own(encoded)]).mean(0)

    def _own(self, encoded: Encoded) -> list[tuple[Scorer, Encoded]]:
        parts = encoded.features.split([member.feature_dim for member in self.members], 1)
        own = (Encoded(part, encoded.state) for part in parts)
        return list(zip(self.members, own, strict=True))

    @property
    def feature_dim(self) -> int:
        return sum(member.feature_dim for member in self.members)

    @property
    def return_config(self) -> CriticConfig:
        return self.members[0].return_config

    @property
    def score_range(self) -> tuple[float, float]:
        lows, highs = zip(*(member.score_range for member in self.members), strict=True)
        return min(lows), max(highs)

    def bound_to(self, encoder_fingerprint: str) -> Self:
        return type(self)([member.bound_to(encoder_fingerprint) for member in self.members])

    def description(self) -> dict:
        return super().description() | {"members": [member.description() for member in self.members]}

    @classmethod
    def from_description(cls, description: dict) -> Self:
        return cls([registered(each["type"]).from_description(each) for each in description["members"]])
