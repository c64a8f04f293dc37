"""Episodes to options: what happened in the H steps after a frame, as contiguous arrays.

An option starts at a stored frame, plays the H actions that follow it (fewer at an episode's end) and ends at
another stored frame. The frames themselves are in a `FrameTable` made from the same list of episodes.
"""

from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import GROUPS, Episode
from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError

__all__ = [
    "FrameTable", "Options", "RewardSpec", "build_options", "chunk_return", "group_probabilities",
    "returns_to_go", "sample_indices", "split_by_episode",
]  # fmt: skip


@dataclass(frozen=True)
class RewardSpec:
    """What one step is worth to the critic: declared, never guessed (design rule 9)."""

    # `success_minus_one`: 0 for the step that succeeds, -1 for every other. `column`: the data set's next.reward.
    kind: str = "success_minus_one"
    # Smallest reward of one step; the support of the values follows from it.
    minimum: float = -1.0
    # Largest reward of one step.
    maximum: float = 0.0

    def __post_init__(self):
        if self.kind not in ("success_minus_one", "column"):
            raise UserError(f"reward kind is {self.kind!r}; choose success_minus_one or column")
        if not self.minimum < self.maximum:
            raise UserError(f"reward minimum {self.minimum} must be below its maximum {self.maximum}")
        if self.kind == "success_minus_one" and (self.minimum, self.maximum) != (-1.0, 0.0):
            raise UserError(
                "the reward success_minus_one lies in [-1, 0]: leave minimum and maximum as they are"
            )

    def of(self, episode: Episode) -> np.ndarray:
        """(T,) float32 reward of each step.

        Raises:
            UserError: if a reward of the column lies outside the declared range.
        """
        if self.kind == "success_minus_one":
            return episode.success.astype(np.float32) - 1
        rewards = episode.rewards
        if rewards.min() < self.minimum or rewards.max() > self.maximum:
            raise UserError(
                f"next.reward of scene {episode.scene} lies in [{rewards.min():g}, {rewards.max():g}], outside the "
                f"declared [{self.minimum:g}, {self.maximum:g}]; set the reward's minimum and maximum"
            )
        return rewards


def chunk_return(rewards: Tensor, valid: Tensor, discount: float) -> Tensor:
    """Discounted reward collected inside an option.

    Args:
        rewards: (B, H) reward of each step, in the units of the task.
        valid: (B, H) True for steps that were played before the episode ended.
        discount: γ₁, in (0, 1].

    Returns:
        (B,) Σ_k γ₁ᵏ r_k over the valid steps (DEAS, eq. 2).

    Raises:
        ValueError: if the discount is outside (0, 1] or the shapes differ.
    """
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be in (0, 1], got {discount}")
    if rewards.shape != valid.shape or rewards.ndim != 2:
        raise ValueError(f"rewards {tuple(rewards.shape)} and valid {tuple(valid.shape)} must both be (B, H)")
    powers = discount ** torch.arange(rewards.shape[1], dtype=torch.float64, device=rewards.device)
    return (torch.where(valid, rewards, 0.0).double() * powers).sum(1).to(rewards.dtype)


@dataclass
class Options:
    """O options of m ≤ H steps.

    Attributes:
        start_frame: (O,) int64 row of the frame table: s_t.
        end_frame: (O,) int64 row of the frame table: s_{t+m}; where terminated (its value is multiplied by 0), or
            where no end was needed, any frame of the episode.
        chunk: (O, H, A) float32 normalised commands that were played. Steps after the episode's end repeat the
            last action: a policy's candidates are always full, and a tail of zeros would tell the critic that the
            episode ends here.
        valid: (O, H) bool, True for the m steps that were played.
        returns: (O,) float32 Σ_{k<m} γ₁ᵏ r_{t+k}.
        bootstrap: (O,) float32 γ₂ᵐ (1 − terminated).
        terminated: (O,) bool, the task was done inside the option.
        length: (O,) int64 m.
        episode: (O,) int64 which episode of the list.
        step: (O,) int64 t.
        group: (O,) int64 `DEMONSTRATION`, `SUCCESS` or `FAILURE`.
        dropped: frames from which no option was made because no frame is stored where it would end.
        chained: share of the options ending within their episode that end where another one starts. The others
            bootstrap from a value that nothing is said about.
    """

    DEMONSTRATION: ClassVar[int] = GROUPS.index("demonstration")
    SUCCESS: ClassVar[int] = GROUPS.index("success")
    FAILURE: ClassVar[int] = GROUPS.index("failure")

    start_frame: Tensor
    end_frame: Tensor
    chunk: Tensor
    valid: Tensor
    returns: Tensor
    bootstrap: Tensor
    terminated: Tensor
    length: Tensor
    episode: Tensor
    step: Tensor
    group: Tensor
    dropped: int = 0
    chained: float = 1.0

    def __len__(self) -> int:
        return len(self.start_frame)

    def batch(self, rows: Tensor) -> "Options":
        """The options at these rows: indices (B,) or a mask (O,)."""
        tensors = [field.name for field in fields(self) if field.name not in ("dropped", "chained")]
        return Options(**{name: getattr(self, name)[rows] for name in tensors})


def build_options(
    episodes: list[Episode],
    contract: Contract,
    *,
    horizon: int,
    reward_discount: float,
    bootstrap_discount: float,
    reward: RewardSpec,
    need_end: bool = True,
) -> Options:
    """One option from each stored frame of each episode.

    An option is terminal only if the task was done inside it. One that ends at a timeout bootstraps from the last
    observation like any other; one that ends where no frame is stored is dropped and counted (design rules 2, 3).

    Args:
        episodes: in the order of the frame table.
        contract: with statistics: chunks are stored normalised.
        horizon: H.
        reward_discount: γ₁, inside an option.
        bootstrap_discount: γ₂, per step, between options.
        reward: what a step is worth.
        need_end: False keeps options that end where no frame is stored, for who reads their chunks alone.

    Raises:
        UserError: if no option can be made.
    """
    parts, first_frame, dropped, inside, joined = [], 0, 0, 0, 0
    for number, episode in enumerate(episodes):
        part = _episode_options(episode, horizon)
        kept = part.pop("kept") | (not need_end)
        dropped += int((~kept).sum())
        within = kept & (part["step"] + part["length"] < episode.length)
        inside += int(within.sum())
        joined += int(np.isin(part["end"][within], part["start"][kept]).sum())
        rewards = reward.of(episode)[part["rows"]]
        parts.append(
            {
                "start_frame": first_frame + part["start"][kept],
                "end_frame": first_frame + part["end"][kept],
                "command": episode.actions[part["rows"][kept]],
                "valid": part["valid"][kept],
                "reward": rewards[kept],
                "terminated": part["terminated"][kept],
                "length": part["length"][kept],
                "episode": np.full(kept.sum(), number),
                "step": part["step"][kept],
                "group": np.full(kept.sum(), GROUPS.index(episode.group)),
            }
        )
        first_frame += len(episode.frame_steps)
    if not any(len(part["step"]) for part in parts):
        raise UserError(
            f"no option of {horizon} steps starts and ends at a stored frame in {len(episodes)} episodes "
            f"({dropped} dropped); store more frames, or choose a horizon that is a multiple of their distance"
        )
    columns = {key: torch.from_numpy(np.concatenate([part[key] for part in parts])) for key in parts[0]}
    returns = chunk_return(columns.pop("reward"), columns["valid"], reward_discount)
    bootstrap = (bootstrap_discount ** columns["length"].double()) * ~columns["terminated"]
    chunk = contract.normalize_action(columns.pop("command"))
    chained = joined / inside if inside else 1.0
    return Options(
        chunk=chunk, returns=returns, bootstrap=bootstrap.float(), dropped=dropped, chained=chained, **columns
    )


def _episode_options(episode: Episode, horizon: int) -> dict[str, np.ndarray]:
    """Where the options of one episode start and end; frames are counted from the episode's first."""
    frames, steps = episode.frame_steps, episode.length
    start = np.flatnonzero(frames < steps)
    step = frames[start]
    length = np.minimum(horizon, steps - step)
    terminated = (step + length == steps) & episode.terminated
    end = np.searchsorted(frames, step + length)
    stored = np.isin(step + length, frames)
    offsets = step[:, None] + np.arange(horizon)
    return {
        "start": start,
        "end": np.where(stored, end, start),
        "step": step,
        "length": length,
        "terminated": terminated,
        "kept": stored | terminated,
        "valid": offsets < steps,
        "rows": offsets.clip(max=steps - 1),
    }


def returns_to_go(
    rewards: np.ndarray,
    terminated: bool,
    *,
    horizon: int,
    reward_discount: float,
    bootstrap_discount: float,
    minimum: float,
) -> np.ndarray:
    """The Monte-Carlo return from each step of an episode on, against which values are calibrated.

    G_t = R_t + γ₂ᵐ G_{t+m}: options of H steps one after the other, the last one shorter. After a success G is 0.
    After a timeout nothing is known; G goes on as if every later step had the smallest reward, r_min S_H / (1 − γ₂ᴴ)
    with S_H = Σ_{k<H} γ₁ᵏ. That is what failing for ever is worth, and a lower bound.

    Args:
        rewards: (T,) reward of each step.
        terminated: the episode ended in success.
        horizon: H.
        reward_discount: γ₁.
        bootstrap_discount: γ₂.
        minimum: smallest reward of one step.

    Returns:
        (T + 1,) float32; entry T belongs to the last observation.

    Raises:
        ValueError: if γ₂ is not in (0, 1).
    """
    if not 0 < bootstrap_discount < 1:
        raise ValueError(f"bootstrap_discount must be in (0, 1), got {bootstrap_discount}")
    powers = reward_discount ** np.arange(horizon)
    steps = len(rewards)
    returns = np.empty(steps + 1)
    returns[steps] = 0.0 if terminated else minimum * powers.sum() / (1 - bootstrap_discount**horizon)
    for t in range(steps - 1, -1, -1):
        m = min(horizon, steps - t)
        returns[t] = rewards[t : t + m] @ powers[:m] + bootstrap_discount**m * returns[t + m]
    return returns.astype(np.float32)


def group_probabilities(
    group: Tensor,
    weights: dict[str, float],
    dataset: Tensor | None = None,
    dataset_weights: list[float] | None = None,
) -> np.ndarray:
    """Chances that balance demonstrations, successes and failures, and data sets, whatever their number.

    Args:
        group: (O,) codes as in `Options.group`.
        weights: share of each group by name, at least 0; groups without options leave theirs to the others.
        dataset: (O,) int64 which data set an option comes from; None: all from one.
        dataset_weights: how a group's share is divided among the data sets that have options of that group.

    Returns:
        (O,) float64, sum 1; options of one group and data set are equally likely.

    Raises:
        UserError: if a name is unknown, a weight negative, or nothing is left to draw from.
    """
    if set(weights) != set(GROUPS) or min(weights.values()) < 0:
        raise UserError(f"group weights are {weights}; give one of at least 0 to each of {', '.join(GROUPS)}")
    codes = group.numpy()
    datasets = np.zeros_like(codes) if dataset is None else dataset.numpy()
    shares = np.array([weights[name] for name in GROUPS])
    parts = np.ones(1) if dataset_weights is None else np.array(dataset_weights, np.float64)
    if (len(datasets) and datasets.max() >= len(parts)) or (parts < 0).any():
        raise UserError(f"data set weights are {dataset_weights}; give one of at least 0 to each data set")
    counts = np.zeros((len(GROUPS), len(parts)), np.int64)
    np.add.at(counts, (codes, datasets), 1)
    present = np.where(counts > 0, parts, 0.0)
    total = present.sum(1, keepdims=True)
    divided = shares[:, None] * np.divide(present, total, out=np.zeros_like(present), where=total > 0)
    each = np.divide(divided, counts, out=np.zeros_like(divided), where=counts > 0)[codes, datasets]
    if not each.sum() > 0:
        there = dict(zip(GROUPS, counts.sum(1).tolist(), strict=True))
        raise UserError(f"group weights {weights} leave nothing to draw: the data has {there} options")
    return each / each.sum()


def sample_indices(seed: int, step: int, batch_size: int, probabilities: np.ndarray) -> np.ndarray:
    """Draws a batch with replacement, as a pure function of (seed, step).

    A run that was killed and resumed at any step sees the same batches as one that was not.

    Args:
        seed: names the sequence of batches.
        step: number of the optimiser step.
        batch_size: B.
        probabilities: (O,) chances, sum 1.

    Returns:
        (B,) int64 indices.
    """
    stream = np.random.Generator(np.random.Philox(key=[seed, step]))
    cumulative = np.cumsum(probabilities)
    # Rounding leaves the last entry a little off 1; scaled by it, no draw falls past the end.
    return np.searchsorted(cumulative, stream.random(batch_size) * cumulative[-1], side="right")


def split_by_episode(episodes: list[Episode], held_out: float, seed: int) -> np.ndarray:
    """Chooses episodes for validation, the same share of each group.

    Frames of one episode are alike: a split by frame would validate on what was trained on.

    Args:
        episodes: demonstrations and rollouts.
        held_out: share to hold out, in [0, 1).
        seed: the same seed chooses the same episodes.

    Returns:
        (E,) bool, True for episodes that are held out.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"the share of held-out episodes is {held_out}; choose one in [0, 1)")
    codes = np.array([GROUPS.index(episode.group) for episode in episodes])
    mask = np.zeros(len(episodes), bool)
    for code in range(len(GROUPS)):
        members = np.flatnonzero(codes == code)
        stream = np.random.Generator(np.random.Philox(key=[seed, code]))
        mask[stream.permutation(members)[: round(held_out * len(members))]] = True
    return mask
