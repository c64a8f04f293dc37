"""Is an exported reranker what it was? Its files (SHA256SUMS), its parts, and what it decides on golden inputs.

Golden inputs are stored observations and what the reranker made of them. Features and candidates on the way are kept
too: they show which part differs, and a computer that has only the critic can check its scores.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from deas_vla.data.observation import Observation
from deas_vla.errors import UserError, as_user_error
from deas_vla.export.lerobot_files import check_lerobot_files
from deas_vla.export.reranker import MANIFEST, Reranker
from deas_vla.files import atomic_path, sha256_of
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.scorers.scorer import Encoded, Scorer

GOLDEN, SUMS = "golden.safetensors", "SHA256SUMS"
IMAGE = "image."
CARD = "README.md"  # the model card: for people, who edit it on a hub
# Golden inputs that are decided together: more would take more memory than weights allow an export, fewer more time.
TOGETHER = 2
MOST_LISTED = 5  # more files are only counted in a message


# Result to what makes it, and how far a replay may be from it by rounding on another processor: where all is computed
# in float32, and where not. Features have variance 1, candidates are normalised actions, scores and V are shares of the
# scorer's range. That is some 50 times what tokens that are off by one part in a million do to the demo's reranker, and
# 10 times what tokens rounded to bfloat16 do.
PARTS = {
    "features": ("the backbone and the projection of its tokens", 1e-3, 0.2),
    "candidates": ("the policy", 1e-3, 0.1),
    "scores": ("the critic's Q networks", 1e-4, 1e-2),
    "value": ("the critic's V network", 1e-4, 1e-2),
}
RESULTS = (*PARTS, "index")


def allowed(policy: ChunkPolicy) -> dict[str, float]:
    """Part to tolerance, by the floating-point type that a policy computes with, which may be less than its weights."""
    whole = all(p.dtype == torch.float32 for p in policy.parameters()) and not getattr(policy, "autocasts", False)
    return {name: float32 if whole else less for name, (_, float32, less) in PARTS.items()}


@dataclass
class Golden:
    """G observations and the decisions on them."""

    observation: Observation
    contract: str  # fingerprint of that which gives the columns their meaning
    features: Tensor  # (G, F) the critic's
    candidates: Tensor  # (G, N, H, A) the chunks as they would be played
    scores: Tensor  # (G, N)
    value: Tensor  # (G,) V
    index: Tensor  # (G,) which candidate is chosen

    @classmethod
    @torch.inference_mode()
    def record(cls, decider: BestOfN, observation: Observation) -> "Golden":
        """Decides on every observation, with the same calls as at any other time (design rule 1)."""
        parts = []
        for rows in torch.arange(len(observation)).split(TOGETHER):
            keys = [NoiseKey(seed=0, scene=number, sample=0, decision=0) for number in rows.tolist()]
            choice = decider.choose(observation[rows.tolist()], keys, whole=True)
            parts.append((choice.features, choice.candidates, choice.scores, choice.value, choice.index))
        results = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return cls(observation, decider.policy.contract.fingerprint, *results)

    @torch.inference_mode()
    def rescored(self, scorer: Scorer) -> Tensor:
        """(G, N) scores by the scorer alone, from the stored features: needs no policy."""
        encoded = Encoded(self.features, scorer.contract.normalize_state(self.observation.state))
        return scorer.score(encoded, scorer.chunks(self.candidates))

    def distances(self, other: "Golden", decider: BestOfN) -> dict[str, Tensor]:
        """Part to (G,) largest difference of a replay on each input, in the units of `PARTS`; NaN is infinite."""
        (low, high), found = decider.scorer.score_range, {}
        for name in PARTS:
            a, b = getattr(self, name), getattr(other, name)
            if name == "candidates":
                a, b = map(decider.policy.contract.normalize_action, (a, b))
            # The column of zeros is for a scorer without features.
            distance = torch.cat([(b - a).abs()[:, None].flatten(1), torch.zeros(len(a), 1)], 1).amax(1)
            found[name] = (distance / (high - low) if name in ("scores", "value") else distance).nan_to_num(torch.inf)
        return found

    def differences(self, other: "Golden", decider: BestOfN) -> list[str]:
        """What a replay made differently beyond rounding, one line a part."""
        shapes = {name: (tuple(getattr(self, name).shape), tuple(getattr(other, name).shape)) for name in RESULTS}
        if lines := [f"{name}: {b} instead of {a}" for name, (a, b) in shapes.items() if a != b]:
            return lines
        tolerance = allowed(decider.policy)
        return [
            f"{name} ({PARTS[name][0]}): input {int(distance.argmax())} is {float(distance.amax()):.3g} away, "
            f"{tolerance[name]:.3g} is allowed"
            for name, distance in self.distances(other, decider).items()
            if distance.amax() > tolerance[name]
        ]

    def other_choices(self, other: "Golden", close: float) -> list[str]:
        """The inputs on which a replay of as many candidates chose another one, one line each.

        Two candidates whose scores are so close that they change places by rounding: either will do.
        """
        chosen = zip(self.scores, self.index.tolist(), other.index.tolist(), strict=True)
        return [
            f"choice on input {i}: candidate {found} instead of {expected}"
            for i, (scores, expected, found) in enumerate(chosen)
            if expected != found and not (scores[expected] - scores[found]).abs() <= close
        ]

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        tensors = {IMAGE + name: images for name, images in self.observation.images.items()}
        tensors |= {"state": self.observation.state} | {name: getattr(self, name) for name in RESULTS}
        header = {"instruction": self.observation.instruction, "contract": self.contract}
        with atomic_path(path) as temporary:
            tensors = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
            # One entry: safetensors writes several in random order.
            save_file(tensors, temporary, metadata={"golden": json.dumps(header)})

    @classmethod
    def load(cls, path: Path) -> "Golden":
        """Reads what `save` wrote; a UserError if the file is missing, cut off or something else."""
        broken = f"{path}: not the golden inputs of a reranker; export it again"
        with as_user_error(broken, SafetensorError), safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = json.loads(file.metadata()["golden"])
            images = {k.removeprefix(IMAGE): v for k, v in tensors.items() if k.startswith(IMAGE)}
            observation = Observation(images, tensors["state"], header["instruction"])
            counts = {len(observation), *(len(tensor) for tensor in tensors.values())}
            if len(counts) != 1:
                raise ValueError(f"its parts are of {sorted(counts)} observations")
            return cls(observation, header["contract"], *(tensors[name] for name in RESULTS))


def verify(folder: str | Path) -> str:
    """Checks a reranker on the CPU, and says what was checked, in one line; what differs is a UserError.

    From the outside in: that every file is there and unchanged, that the parts are those of the manifest, that the
    golden inputs still give the same scores and choices.
    """
    folder = Path(folder)
    files, reranker, golden = load_checked(folder)
    decider, fingerprint = reranker.decider, reranker.contract.fingerprint
    if golden.contract != fingerprint:
        both = f"({golden.contract[:12]} against {fingerprint[:12]})"
        raise UserError(f"{folder / GOLDEN} was recorded under another contract {both}; export the reranker again")
    golden.observation.require_fits(reranker.contract)
    replay = Golden.record(decider, golden.observation)
    lines = golden.differences(replay, decider)
    if golden.scores.shape == replay.scores.shape:
        low, high = decider.scorer.score_range
        lines += golden.other_choices(replay, allowed(decider.policy)["scores"] * (high - low))
    if lines:
        raise UserError(f"{folder} does not decide as it did when it was exported: {'; '.join(lines)}")
    decided = f"{len(golden.index)} golden inputs decided as before"
    return f"{folder}: {files} files unchanged, parts as in {MANIFEST}, {decided}"


def load_checked(folder: Path) -> tuple[int, Reranker, Golden]:
    """Number of files, reranker and golden inputs of a folder whose files are unchanged and agree with each other."""
    files = check_sums(folder)
    reranker = Reranker.load(folder)
    check_lerobot_files(reranker.manifest, folder)
    return files, reranker, Golden.load(folder / GOLDEN)


def write_sums(folder: Path) -> None:
    """Writes SHA256SUMS: a line for every file but the card and hidden ones, as ``sha256sum --check`` reads it."""
    with atomic_path(folder / SUMS) as temporary:
        temporary.write_text(_sums(folder), encoding="utf-8")


def check_sums(folder: Path) -> int:
    """How many files a folder has; a UserError if some are missing, changed, or not listed in SHA256SUMS."""
    with as_user_error(f"{folder / SUMS} cannot be read; is {folder} a reranker made by deas-vla export?"):
        text = (folder / SUMS).read_bytes().decode("utf-8", "surrogateescape")
    # Earlier exports list the card, too.
    text = "\n".join(line for line in text.split("\n") if line[66:] != CARD)
    sums = _sums(folder)
    if text != sums:
        stated, found = (
            {line[66:]: line[:64] for line in listing.split("\n") if line[64:66] == "  "} for listing in (text, sums)
        )
        problems = [f"{name} is missing" for name in stated.keys() - found.keys()]
        problems += [f"{name} is not listed" for name in found.keys() - stated.keys()]
        problems += [f"{name} was changed" for name in stated.keys() & found.keys() if stated[name] != found[name]]
        problems = [repr(problem)[1:-1] for problem in sorted(problems)] or [f"{SUMS} was changed"]
        if len(problems) > MOST_LISTED:
            problems[MOST_LISTED:] = [f"and {len(problems) - MOST_LISTED} more"]
        raise UserError(f"{folder}, by its {SUMS}: {'; '.join(problems)}; copy or export it again")
    return sums.count("\n")


def _sums(folder: Path) -> str:
    """What SHA256SUMS should say, in order, of every file but itself, the card and what is hidden."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    # Desktops, notebooks, git and download tools add hidden files, and nothing reads them.
    names = sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts))
    names = [name for name in names if name not in (SUMS, CARD)]
    progress = tqdm(names, desc="SHA-256", unit="file", delay=2, leave=False)
    return "".join(f"{sha256_of(folder / name)}  {name}\n" for name in progress)
