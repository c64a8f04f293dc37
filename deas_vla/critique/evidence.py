"""What a critic says of recorded episodes that it was not trained on, frame by frame."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.episodes import Episode
from deas_vla.data.frames import FrameTable
from deas_vla.data.options import RewardSpec, returns_to_go
from deas_vla.errors import UserError
from deas_vla.files import folder_identity, read_json, write_json
from deas_vla.policies.chunk_policy import ChunkPolicy, candidate_noise
from deas_vla.scorers.scorer import Scorer

HELD_OUT = "held_out.json"
BATCH = 16  # frames that are encoded at once


def write_held_out(folder: Path, datasets: dict[str, list[bool]]) -> None:
    """Notes which episodes of its data a critic was not trained on: folder of a data set to one flag an episode."""
    noted = [
        {"dataset": name, "identity": folder_identity(Path(name)), "held_out": np.flatnonzero(flags).tolist()}
        for name, flags in datasets.items()
        if Path(name).is_dir()
    ]
    write_json(folder / HELD_OUT, {"datasets": noted})


def unseen_episodes(critic: Path, dataset: Path, episodes: list[Episode]) -> list[Episode]:
    """Those of a data set's episodes, as they were read, that the critic of a stage was not trained on.

    All of a data set that it never saw, wherever that lies now; the held-out ones of another. Raises UserError if the
    stage does not say, or held none out.
    """
    if not (critic / HELD_OUT).is_file():
        raise UserError(f"{critic} does not say which episodes it was trained on (no {HELD_OUT}); train it anew")
    identity = folder_identity(dataset)
    for noted in read_json(critic / HELD_OUT)["datasets"]:
        if identity == noted["identity"]:
            if not noted["held_out"]:
                fix = "train it with a larger --held_out, or give a data set that it was not trained on"
                raise UserError(f"{dataset}: the critic was trained on all of its episodes; {fix}")
            return [episodes[number] for number in noted["held_out"]]
        if Path(noted["dataset"]).resolve() == dataset.resolve():
            raise UserError(f"{dataset} has changed since the critic was trained on it; train the critic anew")
    return episodes


@dataclass
class Evidence:
    """What a critic says of one episode, at M of its frames before the last action."""

    success: bool
    progress: np.ndarray  # (M,) share of its steps that were played before the frame
    value: np.ndarray  # (M,) V of the frame
    score: np.ndarray  # (M,) of the chunk that was really played
    monte_carlo: np.ndarray  # (M,) what was collected from there on: a lower bound where a timeout ended the episode
    candidates: np.ndarray  # (M, N) scores of the policy's own chunks
    networks: int  # K, of Q: each says of a candidate how far it is above the mean candidate
    variance: np.ndarray  # (M,) square of that, averaged over networks and candidates
    covariance: np.ndarray  # (M,) product of what two networks say, averaged over pairs and candidates; NaN where K = 1
    distance: np.ndarray  # (M,) root mean squared difference of two candidates' normalised commands


@torch.inference_mode()
def collect_evidence(
    policy: ChunkPolicy,
    scorer: Scorer,
    episode: Episode,
    reward: RewardSpec,
    *,
    candidates: int,
    frames: int,
    noise_scale: float,
    seed: int,
    number: int,
) -> Evidence:
    """Asks policy and critic at up to `frames` evenly spaced frames of an episode; `number` seeds its noise.

    `candidates`: N chunks of the policy at each; their noise is multiplied by `noise_scale`, as when they are played.
    """
    contract, horizon = policy.contract, scorer.horizon
    table = FrameTable.of([episode])
    usable = torch.where(table.step < episode.length)[0]
    rows = usable[torch.linspace(0, len(usable) - 1, min(frames, len(usable))).round().long()]
    steps = table.step[rows].numpy()
    played = episode.actions[(steps[:, None] + np.arange(horizon)).clip(max=episode.length - 1)]
    played = contract.normalize_action(torch.from_numpy(played))
    parts: dict[str, list[np.ndarray]] = {}
    for batch, chunk in zip(rows.split(BATCH), played.split(BATCH), strict=True):
        observation = table.observation(batch)
        context = policy.encode(observation)
        device = context.tokens.device
        shape = (candidates, policy.horizon, contract.action_dim)
        noise = torch.stack([candidate_noise(seed, number, 0, int(row), *shape) for row in batch]).to(device)
        chunks = scorer.chunks(contract.to_command(policy.sample_first(context, noise_scale * noise, horizon)))
        encoded = scorer.encode(context, observation)
        q_values = scorer.checked_q_values(encoded, chunks)
        variance, covariance = differences(q_values)
        apart = (chunks[:, :, None] - chunks[:, None]).square().mean((3, 4)).sqrt()
        found = {
            "value": scorer.value(encoded),
            "score": scorer.score(encoded, chunk.to(device)[:, None])[:, 0],
            "candidates": scorer.aggregate(q_values),
            "variance": variance,
            "covariance": covariance,
            "distance": apart.sum((1, 2)) / max(1, candidates * (candidates - 1)),
        }
        for name, tensor in found.items():
            parts.setdefault(name, []).append(tensor.float().cpu().numpy())
    discounting = scorer.return_config.discounting
    returns = returns_to_go(reward.of(episode), episode.success, forever=reward.minimum, **discounting)
    joined = {name: np.concatenate(each) for name, each in parts.items()}
    progress = steps / episode.length
    return Evidence(episode.terminated, progress, monte_carlo=returns[steps], networks=len(q_values), **joined)


def differences(q_values: Tensor) -> tuple[Tensor, Tensor]:
    """(M,) variance and (M,) covariance, as in `Evidence`, of the values (K, M, N) of K networks.

    What a network says of all candidates alike is taken off: it moves none before another.
    """
    networks, relative = len(q_values), q_values - q_values.mean(2, keepdim=True)
    pairs = relative.sum(0).square() - relative.square().sum(0)
    if networks == 1:
        pairs = pairs * torch.nan
    return relative.square().mean((0, 2)), pairs.mean(1) / max(1, networks * (networks - 1))


def to_json(evidence: list[Evidence]) -> list[dict]:
    """Plain values, for critique.json."""
    return [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in vars(each).items()}
        for each in evidence
    ]
