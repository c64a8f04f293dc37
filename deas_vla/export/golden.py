"""Golden inputs: stored observations and what the reranker made of them, to be replayed anywhere.

Features and candidates on the way are kept too: they show which part differs, and a computer that has only the critic
can check its scores.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation
from deas_vla.errors import as_user_error
from deas_vla.files import atomic_path
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.scorers.scorer import Encoded, Scorer

GOLDEN = "golden.safetensors"
IMAGE = "image."
RESULTS = ("features", "candidates", "scores", "value", "index")
# Which part of a reranker makes what.
MADE_BY = {
    "features": "the backbone and the projection of its tokens",
    "candidates": "the policy",
    "scores": "the critic's Q networks",
    "value": "the critic's V network",
}


class Tolerance(NamedTuple):
    """How far a replay may be from what is stored: rounding on another processor, and nothing else.

    Features have variance 1, candidates are normalised actions, scores and V are shares of the scorer's range.
    """

    features: float
    candidates: float
    scores: float
    value: float

    @classmethod
    def of(cls, policy: ChunkPolicy) -> "Tolerance":
        """What is allowed for the floating-point type that a policy computes with, which may be less than its weights.

        Some 50 times what tokens that are off by one part in a million do to the demo's reranker, and 10 times what
        tokens rounded to bfloat16 do.
        """
        whole = all(p.dtype == torch.float32 for p in policy.parameters())
        whole = whole and not getattr(policy, "autocasts", False)
        return cls(1e-3, 1e-3, 1e-4, 1e-4) if whole else cls(0.2, 0.1, 1e-2, 1e-2)


@dataclass
class Golden:
    """G observations and the decisions on them.

    Attributes:
        observation: G observations, in raw units.
        keys: G names of the decisions.
        features: (G, F) the critic's features.
        candidates: (G, N, H, A) the chunks as they would be played.
        scores: (G, N) the critic's scores.
        value: (G,) the critic's V.
        index: (G,) which candidate is chosen.
        contract: fingerprint of the contract that gives the columns their meaning.
    """

    observation: Observation
    keys: list[NoiseKey]
    features: Tensor
    candidates: Tensor
    scores: Tensor
    value: Tensor
    index: Tensor
    contract: str

    @classmethod
    @torch.inference_mode()
    def record(cls, decider: BestOfN, observation: Observation, keys: list[NoiseKey]) -> "Golden":
        """Decides on every observation, with the same calls as at any other time (design rule 1)."""
        choice = decider.choose(observation, keys)
        encoded = decider.scorer.encode(decider.policy.encode(observation), observation)
        results = (encoded.features, choice.candidates, choice.scores, choice.value, choice.index)
        return cls(observation, keys, *(each.cpu() for each in results), decider.policy.contract.fingerprint)

    @torch.inference_mode()
    def rescored(self, scorer: Scorer) -> Tensor:
        """(G, N) scores by the scorer alone, from the stored features: needs no policy."""
        encoded = Encoded(self.features, scorer.contract.normalize_state(self.observation.state))
        return scorer.score(encoded, scorer.chunks(self.candidates))

    def distances(self, other: "Golden", contract: Contract, support: tuple[float, float]) -> dict[str, Tensor]:
        """Part to (G,) largest difference of a replay on each input, in the units of `Tolerance`; NaN is infinite.

        Args:
            other: the replay, of as many candidates.
            contract: whose normalisation gives the actions one unit.
            support: lowest and highest score.
        """
        width, found = support[1] - support[0], {}
        for name in Tolerance._fields:
            a, b = getattr(self, name), getattr(other, name)
            if name == "candidates":
                a, b = contract.normalize_action(a), contract.normalize_action(b)
            # The column of zeros is for a scorer without features.
            distance = torch.cat([(b - a).abs()[:, None].flatten(1), torch.zeros(len(a), 1)], 1).amax(1)
            found[name] = (distance / width if name in ("scores", "value") else distance).nan_to_num(torch.inf)
        return found

    def differences(
        self, other: "Golden", contract: Contract, support: tuple[float, float], tolerance: Tolerance
    ) -> list[str]:
        """What a replay made differently beyond rounding, one line a part; the arguments are those of `distances`."""
        shapes = {name: (getattr(self, name).shape, getattr(other, name).shape) for name in RESULTS}
        lines = [f"{name}: {tuple(b)} instead of {tuple(a)}" for name, (a, b) in shapes.items() if a != b]
        if lines:
            return lines
        for name, distance in self.distances(other, contract, support).items():
            allowed = getattr(tolerance, name)
            if distance.amax() > allowed:
                lines.append(
                    f"{name} ({MADE_BY[name]}): input {int(distance.argmax())} is {float(distance.amax()):.3g} away, "
                    f"{allowed:.3g} is allowed"
                )
        return lines

    def other_choices(self, other: "Golden", support: tuple[float, float], tolerance: Tolerance) -> list[str]:
        """The inputs on which a replay chose another candidate, one line each.

        Two candidates whose scores are closer than a score may be off change places by rounding: either will do.
        """
        if self.scores.shape != other.scores.shape:
            return []  # of other candidates, which `differences` shows
        chosen = zip(self.scores, self.index.tolist(), other.index.tolist(), strict=True)
        close = tolerance.scores * (support[1] - support[0])
        return [
            f"choice on input {i}: candidate {found} instead of {expected}"
            for i, (scores, expected, found) in enumerate(chosen)
            if expected != found and not (scores[expected] - scores[found]).abs() <= close
        ]

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {IMAGE + name: images for name, images in self.observation.images.items()}
        tensors["state"] = self.observation.state
        tensors["keys"] = torch.tensor([[k.seed, k.scene, k.sample, k.decision] for k in self.keys])
        tensors |= {name: getattr(self, name) for name in RESULTS}
        header = {"instruction": self.observation.instruction, "contract": self.contract}
        with atomic_path(path) as temporary:
            tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
            # One entry: safetensors writes several in random order.
            save_file(tensors, temporary, metadata={"golden": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> "Golden":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, cut off or something else.
        """
        broken = f"{path}: not the golden inputs of a reranker; export it again"
        with as_user_error(broken, SafetensorError), safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(file.metadata()["golden"])
            images = {k.removeprefix(IMAGE): v for k, v in tensors.items() if k.startswith(IMAGE)}
            observation = Observation(images, tensors["state"], header["instruction"])
            keys = [NoiseKey(*key) for key in tensors["keys"].tolist()]
            counts = {len(observation), *(len(tensor) for tensor in tensors.values())}
            if len(counts) != 1:
                raise ValueError(f"its parts are of {sorted(counts)} observations")
            return cls(observation, keys, *(tensors[name] for name in RESULTS), header["contract"])
