"""Scorer: what scores chunks. Features and critic as one module, under a name that its file remembers.

docs/critic.md shows how to add one: a subclass of `Scorer` (or of `DeasScorer`, to train another critic on the same
features) that is registered by name. Shapes: B observations, N candidate chunks, H steps, A action columns, F features,
S state columns, K networks.
"""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple, Self

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deas_vla.critic.critic import CriticConfig
from deas_vla.critic.losses import Aggregation, score
from deas_vla.data.contract import Contract
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import atomic_path, write_json
from deas_vla.registry import Registry

WEIGHTS_FILE = "scorer.safetensors"

SCORERS: Registry[type["Scorer"]] = Registry(
    "scorer", "deas_vla.scorers", dict.fromkeys(("deas", "q_chunking", "iql"), "deas_vla.scorers.deas")
)
register_scorer = SCORERS.register


class Encoded(NamedTuple):
    """What a scorer reads of B observations: (B, F) features and (B, S) normalised states."""

    features: Tensor
    state: Tensor

    def rows(self, rows: slice | Tensor) -> "Encoded":
        """Of the observations at (n,) rows, or where a mask (B,) is True."""
        return Encoded(self.features[rows], self.state[rows])


class Scorer(nn.Module, ABC):
    """Scores candidate chunks, or their first H = `horizon` steps, for an observation; `aggregation`: of the K values.

    `encoder_fingerprint` is that of the policy whose tokens it reads, others are refused; empty: it reads none.
    """

    def __init__(
        self, contract: Contract, horizon: int, encoder_fingerprint: str = "", aggregation: Aggregation = "min"
    ):
        super().__init__()
        if aggregation not in ("min", "mean"):
            raise UserError(f"aggregation={aggregation!r} must be min or mean")
        if horizon < 1:
            raise UserError(f"horizon={horizon} must be at least 1")
        self.contract, self.horizon = contract, horizon
        self.encoder_fingerprint, self.aggregation = encoder_fingerprint, aggregation

    @abstractmethod
    def q_values(self, encoded: Encoded, chunks: Tensor) -> Tensor:
        """(B, N, H, A) normalised chunks to (K, B, N) values; K may be 1."""

    def encode(self, context: Context, observation: Observation) -> Encoded:
        """What is read of B observations in raw units and of their encoding by the policy; here the state alone."""
        state = self.contract.normalize_state(observation.state.to(context.tokens.device))
        return Encoded(state.new_empty(len(state), 0), state)

    def value(self, encoded: Encoded) -> Tensor:
        """(B,) V of the observations; 0 of a scorer that has none."""
        return encoded.state.new_zeros(len(encoded.state))

    def chunks(self, commands: Tensor) -> Tensor:
        """(..., H' ≥ H, A) commands, as played or about to be played, to the (..., H, A) chunks that are scored."""
        return self.contract.normalize_action(commands[..., : self.horizon, :])

    def aggregate(self, q_values: Tensor) -> Tensor:
        """(K, B, N) values to (B, N) scores."""
        return score(q_values, self.aggregation)

    def checked_q_values(self, encoded: Encoded, chunks: Tensor) -> Tensor:
        """(K, B, N) `q_values`; a UserError that names the scorer if they have another shape."""
        values, (count, candidates) = self.q_values(encoded, chunks), chunks.shape[:2]
        if values.ndim != 3 or values.shape[1:] != (count, candidates):
            found, fix = tuple(values.shape), "for K = 1 add a first dimension: [None]"
            raise UserError(f"{type(self).__name__}.q_values gave {found}, expected (K, {count}, {candidates}); {fix}")
        return values

    def score(self, encoded: Encoded, chunks: Tensor) -> Tensor:
        """(B, N, H, A) normalised chunks to (B, N) scores: higher is better."""
        return self.aggregate(self.checked_q_values(encoded, chunks))

    def advantage(self, encoded: Encoded, chunk: Tensor) -> Tensor:
        """(B, H, A) one normalised chunk for each observation to (B,) score − V."""
        return self.score(encoded, chunk.unsqueeze(1)).squeeze(1) - self.value(encoded)

    @property
    def return_config(self) -> CriticConfig:
        """Discounts and option length of the returns that an oracle compares the scores with."""
        return CriticConfig(horizon=self.horizon)

    @property
    def feature_dim(self) -> int:
        """F, features of an encoded observation."""
        return 0

    @property
    def score_range(self) -> tuple[float, float]:
        """Lowest and highest score that is possible: the unit of differences of scores."""
        return 0.0, 1.0

    def bound_to(self, encoder_fingerprint: str) -> Self:
        """The same scorer (it shares the weights) for a policy that makes the same tokens under another fingerprint."""
        bound = copy.copy(self)
        bound.encoder_fingerprint = encoder_fingerprint
        return bound

    def description(self) -> dict:
        """All that `from_description` needs, as JSON can hold it; a subclass adds to it."""
        return {
            "type": SCORERS.name_of(type(self)),
            "horizon": self.horizon,
            "aggregation": self.aggregation,
            "encoder_fingerprint": self.encoder_fingerprint,
            "contract": self.contract.to_json(),
        }

    @classmethod
    def from_description(cls, description: dict) -> Self:
        """The module without its weights; KeyError, TypeError, ValueError or UserError if it makes no sense."""
        contract = Contract.from_json(description["contract"])
        return cls(contract, description["horizon"], description["encoder_fingerprint"], description["aggregation"])

    def fingerprint(self) -> str:
        """SHA-256 over the description and all weights; equal scorers have equal fingerprints."""
        return _fingerprint(self.description(), self.state_dict())

    def save(self, folder: str | Path) -> None:
        """Writes ``scorer.safetensors``, complete in itself, whole or not at all, and ``scorer.json`` for people."""
        description = self.description()
        if description["type"] is None:
            raise UserError(f"{type(self).__name__} is not registered: decorate it, @register_scorer(NAME)")
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        header = json.dumps(description | {"fingerprint": _fingerprint(description, tensors)})
        with atomic_path(Path(folder) / WEIGHTS_FILE) as temporary:
            # One entry: safetensors writes several in random order, and equal scorers would be unequal files.
            safetensors.torch.save_file(tensors, temporary, metadata={"scorer": header})
        write_json(Path(folder) / "scorer.json", description)


@register_scorer("ensemble")
class EnsembleScorer(Scorer):
    """The mean of the scores of members of one contract, policy and chunk length, each with its own features."""

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
        return cls([SCORERS.stored(each["type"]).from_description(each) for each in description["members"]])


def load_scorer(folder: str | Path, contract: Contract | None = None) -> Scorer:
    """Reads what `Scorer.save` wrote: its class in evaluation mode, on the CPU. No random number is drawn.

    Raises UserError if the file is missing, damaged, not a scorer, of another version or of an unknown class, and
    ContractMismatch if it was made for another contract than this one, if one is given.
    """
    path = Path(folder) / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing: train a critic first, or name the folder of one")
    with as_user_error(f"{path} cannot be read: it may be cut off; train it again", SafetensorError):
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
    if "scorer" not in header:
        raise UserError(f"{path} is not a scorer of this project: its header does not describe one")
    broken = f"{path} has a header that does not fit this version; train the critic again"
    # Built without memory or random numbers: loading does not change what is sampled afterwards.
    with as_user_error(broken, AttributeError), torch.device("meta"):
        description = json.loads(header["scorer"])
        expected = description.pop("fingerprint")
        try:
            scorer = SCORERS.stored(description["type"]).from_description(description)
        except UserError as error:
            # Its class is not known here, or takes other settings: training again would not help.
            raise UserError(f"{path} has a header that does not fit: {error}") from error
    _require_fit(scorer.state_dict(), tensors, path)
    if _fingerprint(description, tensors) != expected:
        raise UserError(f"{path}: its content does not match its fingerprint; train the critic again")
    # Copies, because tensors in a mapped file are not aligned as the processor likes them. Assigned, because giving
    # memory to a module without any (`to_empty`) makes PyTorch import its symbolic algebra: a second.
    scorer.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    if contract is not None:
        scorer.contract.require_same(contract, f"the critic in {folder}", "what is expected")
    return scorer.eval()


def _fingerprint(description: dict, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _require_fit(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Refuses tensors that are not exactly those of the described scorer."""
    problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
    problems += [f"{name} is unknown" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        there, wanted = (f"{tensors[name].dtype} {tuple(tensors[name].shape)}" for tensors in (found, expected))
        if there != wanted:
            problems.append(f"{name} is {there}, not {wanted}")
        elif not torch.isfinite(found[name]).all():
            problems.append(f"{name} holds NaN or infinite weights")
    if problems:
        listed = "; ".join(sorted(problems)[:3])
        raise UserError(f"{path} does not fit its own description ({listed}): train it again")
