"""Scorers that are a critic on `Features`: DEAS, and the two baselines that share its networks and data."""

from dataclasses import asdict, replace
from typing import Self

from torch import Tensor

from deas_vla.critic.critic import CriticConfig, DeasCritic, QChunkingCritic
from deas_vla.critic.losses import Aggregation
from deas_vla.data.contract import Contract
from deas_vla.data.observation import Context, Observation
from deas_vla.features.features import Features
from deas_vla.scorers.scorer import Encoded, Scorer, register_scorer


@register_scorer("deas")
class DeasScorer(Scorer):
    """DEAS (arXiv 2510.07730): the smallest of K Q networks on features of the tokens of one policy."""

    # What a subclass changes: how the critic learns, and what of its networks is the score.
    critic_class: type[DeasCritic] = DeasCritic
    default_aggregation: Aggregation = "min"
    # Whether the batches of its training need the policy's own chunks.
    asks_policy: bool = False

    def __init__(
        self, features: Features, critic: DeasCritic, encoder_fingerprint: str, aggregation: Aggregation | None = None
    ):
        aggregation = aggregation or self.default_aggregation
        super().__init__(features.contract, critic.config.horizon, encoder_fingerprint, aggregation)
        self.features, self.critic = features, critic

    @classmethod
    def adapted(cls, config: CriticConfig) -> CriticConfig:
        """The configuration as this kind of critic needs it."""
        return config

    @classmethod
    def untrained(
        cls, features: Features, config: CriticConfig, encoder_fingerprint: str, aggregation: Aggregation | None = None
    ) -> Self:
        """With a critic of new weights, drawn from PyTorch's default generator."""
        contract = features.contract
        critic = cls.critic_class(cls.adapted(config), features.dim, contract.state_dim, contract.action_dim)
        return cls(features, critic, encoder_fingerprint, aggregation)

    def encode(self, context: Context, observation: Observation) -> Encoded:
        return Encoded(*self.features(context, observation))

    def q_values(self, encoded: Encoded, chunks: Tensor) -> Tensor:
        return self.critic.q_values(*encoded, chunks)

    def value(self, encoded: Encoded) -> Tensor:
        return self.critic.value(*encoded)

    @property
    def feature_dim(self) -> int:
        return self.features.dim

    @property
    def return_config(self) -> CriticConfig:
        return self.critic.config

    @property
    def score_range(self) -> tuple[float, float]:
        return self.critic.head.low, self.critic.head.high

    def description(self) -> dict:
        own = {"features": self.features.description(), "critic": asdict(self.critic.config)}
        return super().description() | own

    @classmethod
    def from_description(cls, description: dict) -> Self:
        features = Features.from_description(description["features"], Contract.from_json(description["contract"]))
        config = CriticConfig(**description["critic"])
        return cls.untrained(features, config, description["encoder_fingerprint"], description["aggregation"])


@register_scorer("q_chunking")
class QChunkingScorer(DeasScorer):
    """Q-chunking (arXiv 2507.07969): the mean of K networks whose target asks the policy."""

    critic_class = QChunkingCritic
    default_aggregation = "mean"
    asks_policy = True


@register_scorer("iql")
class IqlScorer(DeasScorer):
    """IQL (arXiv 2110.06169): the same losses for single actions, so the first action of a chunk is scored."""

    @classmethod
    def adapted(cls, config: CriticConfig) -> CriticConfig:
        return replace(config, horizon=1)
