"""Episodes to options: what happened in the H steps after a stored frame, as contiguous arrays.

Frames are rows of a `FrameTable` of the same list of episodes. Fewer than H steps follow a frame for two reasons:

- The task was done. The option is terminal: its m < H steps say all there is.
- The episode was cut off (a timeout). The option is dropped: no option starts at the last observation, so the value
  that it would bootstrap from is learnt from nothing, drifts to the lower end of the support and takes the frames
  before it along. Whole options that end at the last observation stay and bootstrap from it: that is how a failure
  differs from a success (design rule 2).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import GROUPS, Episode
from deas_vla.errors import UserError


@dataclass(frozen=True)
class RewardSpec:
    """What one step is worth to the critic: declared, never guessed (design rule 9)."""

    # `success_minus_one`: 0 for the step that succeeds, -1 for every other. `column`: the data set's next.reward.
    kind: str = "success_minus_one"
    minimum: float = -1.0  # Smallest reward of one step; the support of the values follows from it.
    maximum: float = 0.0  # Largest reward of one step.

    def __post_init__(self):
        if self.kind not in ("success_minus_one", "column"):
            raise UserError(f"reward kind is {self.kind!r}; choose success_minus_one or column")
        if not self.minimum < self.maximum:
            raise UserError(f"reward minimum {self.minimum} must be below its maximum {self.maximum}")
        if self.kind == "success_minus_one" and (self.minimum, self.maximum) != (-1.0, 0.0):
            raise UserError("the reward success_minus_one lies in [-1, 0]: leave minimum and maximum")

    def of(self, episode: Episode) -> np.ndarray:
        """(T,) float32 reward of each step; a column outside the declared range is a UserError."""
        if self.kind == "success_minus_one":
            return episode.success.astype(np.float32) - 1
        rewards = episode.rewards
        if rewards.min() < self.minimum or rewards.max() > self.maximum:
            what = f"next.reward of scene {episode.scene} lies in [{rewards.min():g}, {rewards.max():g}]"
            declared = f"outside the declared [{self.minimum:g}, {self.maximum:g}]"
            raise UserError(f"{what}, {declared}; set the reward's minimum and maximum")
        return rewards


def chunk_return(rewards: Tensor, valid: Tensor, discount: float) -> Tensor:
    """Discounted reward collected inside an option: (B,) Σ_k γ₁ᵏ r_k over the valid steps (DEAS, eq. 2).

    `rewards`: (B, H) of each step, in the units of the task; `valid`: (B, H) True for steps that were played before the
    episode ended. Raises ValueError if the discount γ₁ is outside (0, 1] or the shapes differ.
    """
    if not 0 < discount <= 1:
        raise ValueError(f"discount must be in (0, 1], got {discount}")
    if rewards.shape != valid.shape or rewards.ndim != 2:
        raise ValueError(f"rewards {tuple(rewards.shape)} and valid {tuple(valid.shape)} must both be (B, H)")
    powers = discount ** torch.arange(rewards.shape[1], dtype=torch.float64, device=rewards.device)
    return (torch.where(valid, rewards, 0.0).double() * powers).sum(1).to(rewards.dtype)


@dataclass
class Chunks:
    """O recorded chunks of H actions and the frames at which they start."""

    DEMONSTRATION, SUCCESS, FAILURE = range(len(GROUPS))

    start_frame: Tensor  # (O,) int64 row of the frame table: s_t
    # (O, H, A) float32 normalised commands. Steps after the episode's end repeat the last action: a policy's candidates
    # are always full, and a tail of zeros would show the critic that the episode ends here.
    chunk: Tensor
    valid: Tensor  # (O, H) bool, True for the m steps that were played
    episode: Tensor  # (O,) int64 which episode of the list
    step: Tensor  # (O,) int64 t
    group: Tensor  # (O,) int64 `DEMONSTRATION`, `SUCCESS` or `FAILURE`

    def __len__(self) -> int:
        return len(self.start_frame)

    def batch(self, rows: Tensor) -> Self:
        """Those at these rows: indices (B,) or a mask (O,)."""
        return replace(self, **{name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)})


@dataclass
class Options(Chunks):
    """O options of m ≤ H steps, (O, H, A), of which m < H only where the task was done; see `OptionTargets`."""

    returns: Tensor
    bootstrap: Tensor
    terminated: Tensor
    length: Tensor
    end_frame: Tensor  # (O,) int64 row of the frame table: s_{t+m}; where terminated, any frame of the episode
    dropped: int = 0  # frames without an option because no frame is stored where it would end
    cut: int = 0  # or because their episode was cut off
    # Share of the options ending within their episode that end where another one starts, or would but for the cut. The
    # others bootstrap from a value that nothing is said about.
    chained: float = 1.0


def build_chunks(episodes: list[Episode], contract: Contract, *, horizon: int) -> Chunks:
    """One chunk of H = horizon actions from each stored frame that an action follows; without any, a UserError."""
    lengths = np.array([episode.length for episode in episodes])
    counts = np.array([len(episode.frame_steps) for episode in episodes])
    number = np.repeat(np.arange(len(episodes)), counts)
    step = np.concatenate([episode.frame_steps for episode in episodes])
    frame = np.flatnonzero(step < lengths[number])
    if not len(frame):
        raise UserError(f"none of the {len(step)} stored frames is followed by an action; record them anew")
    number, step = number[frame], step[frame]
    # Actions of all episodes, one after the other; `first` is where those of each begin.
    first, actions = np.cumsum(lengths) - lengths, np.concatenate([episode.actions for episode in episodes])
    offsets = step[:, None] + np.arange(horizon)
    played = first[number][:, None] + offsets.clip(max=lengths[number][:, None] - 1)
    groups = np.array([GROUPS.index(episode.group) for episode in episodes])
    return Chunks(
        start_frame=torch.from_numpy(frame),
        chunk=contract.normalize_action(torch.from_numpy(actions[played])),
        valid=torch.from_numpy(offsets < lengths[number][:, None]),
        episode=torch.from_numpy(number),
        step=torch.from_numpy(step),
        group=torch.from_numpy(groups[number]),
    )


def build_options(
    episodes: list[Episode],
    contract: Contract,
    *,
    horizon: int,
    reward_discount: float,
    bootstrap_discount: float,
    reward: RewardSpec,
) -> Options:
    """One option of at most H = horizon steps from each stored frame of each episode, in the order of the frame table.

    It is terminal only if the task was done inside it. One that is shorter than H for another reason, or ends where no
    frame is stored, is dropped and counted (design rules 2, 3; the module's docstring says why). The contract has
    statistics: chunks are stored normalised. γ₁ discounts inside an option, γ₂ per step between options. Raises
    UserError if no option can be made.
    """
    chunks = build_chunks(episodes, contract, horizon=horizon)
    lengths = np.array([episode.length for episode in episodes])
    first = np.cumsum(lengths) - lengths
    number, step, start_frame = chunks.episode.numpy(), chunks.step.numpy(), chunks.start_frame.numpy()
    rewards = np.concatenate([reward.of(episode) for episode in episodes])
    done = np.concatenate([episode.success for episode in episodes])
    discounts = {"reward_discount": reward_discount, "bootstrap_discount": bootstrap_discount}
    targets = option_targets(rewards, done, first[number] + step, (first + lengths)[number], steps=horizon, **discounts)
    terminated, length = targets.terminated.numpy(), targets.length.numpy()
    # Each frame by its episode and step as one number, in the order of the table.
    stride = lengths.max() + 1
    table = np.concatenate([i * stride + episode.frame_steps for i, episode in enumerate(episodes)])
    end = number * stride + step + length
    end_frame = np.searchsorted(table, end).clip(max=len(table) - 1)
    stored = table[end_frame] == end
    cut = ~terminated & (length < horizon)
    kept = terminated | (stored & ~cut)
    if not kept.any():
        raise UserError(
            f"no option of {horizon} steps starts and ends at a stored frame in {len(episodes)} episodes "
            f"({len(kept)} dropped, {int(cut.sum())} of them because their episode was cut off before the last step); "
            "store more frames, or choose a horizon that is a multiple of their distance"
        )
    starts = kept | (cut & stored)
    inside = starts & (step + length < lengths[number])
    whole = Options(
        **vars(chunks),
        **targets._asdict(),
        end_frame=torch.from_numpy(np.where(stored, end_frame, start_frame)),
        dropped=int((~kept & ~cut).sum()),
        cut=int(cut.sum()),
        chained=float(np.isin(end_frame[inside], start_frame[starts]).mean()) if inside.any() else 1.0,
    )
    return whole.batch(torch.from_numpy(kept))


class OptionTargets(NamedTuple):
    """What is known of the targets y = returns + bootstrap · V(s_{t+m}) of O options."""

    returns: Tensor  # (O,) Σ_{k<m} γ₁ᵏ r_{t+k}, in the rewards' type
    bootstrap: Tensor  # (O,) float32 γ₂ᵐ (1 − terminated)
    terminated: Tensor  # (O,) bool, the task was done inside the option
    length: Tensor  # (O,) int64 m


def option_targets(
    rewards: np.ndarray,
    done: np.ndarray,
    start: np.ndarray,
    stop: np.ndarray,
    *,
    steps: int,
    reward_discount: float,
    bootstrap_discount: float,
) -> OptionTargets:
    """Follows each option through the steps of many episodes, which lie one after the other.

    `rewards`: (T,) of each step; `done`: (T,) bool, the task was done by this step: its reward is the last that counts;
    `start`: (O,) first step of the option; `stop`: (O,) first step after its episode; `steps`: the most of an option;
    H, or more for n-step returns.
    """
    offsets = start[:, None] + np.arange(steps)
    inside = offsets < stop[:, None]
    offsets = offsets.clip(max=len(rewards) - 1)
    ended = done[offsets] & inside
    # Nothing counts after the step in which the task was done.
    valid = inside & (np.cumsum(ended, 1) - ended == 0)
    terminated, length = ended.any(1), valid.sum(1)
    bootstrap = np.where(terminated, 0.0, bootstrap_discount**length).astype(np.float32)
    returns = chunk_return(torch.from_numpy(rewards[offsets]), torch.from_numpy(valid), reward_discount)
    return OptionTargets(returns, *map(torch.from_numpy, (bootstrap, terminated, length)))


def returns_to_go(
    rewards: np.ndarray,
    done: np.ndarray,
    *,
    horizon: int,
    reward_discount: float,
    bootstrap_discount: float,
    forever: float,
) -> np.ndarray:
    """(T + 1,) float64 Monte-Carlo return of each step of an episode and of its last observation.

    G_t = R_t + γ₂ᴴ G_{t+H}: options of H steps one after the other, 0 after the task was done. After a timeout G goes
    on as if every later step were worth r, so G_T = r S_H / (1 − γ₂ᴴ) with S_H = Σ_{k<H} γ₁ᵏ: with the smallest reward
    a lower bound, failing for ever. With H = 1 it is the usual return of discount γ₂, in (0, 1), else ValueError.
    `rewards`: (T,); `done`: (T,) bool, the task was done by this step; `forever`: r, where the last step is not done.
    """
    if not 0 < bootstrap_discount < 1:
        raise ValueError(f"bootstrap_discount must be in (0, 1), got {bootstrap_discount}")
    steps, carried = len(rewards), bootstrap_discount**horizon
    limit = forever * (reward_discount ** np.arange(horizon)).sum() / (1 - carried)
    later = np.append(rewards.astype(np.float64), np.full(horizon, float(forever)))
    ends = np.append(done, np.zeros(horizon, bool))
    discounts = {"reward_discount": reward_discount, "bootstrap_discount": bootstrap_discount}
    starts, stops = np.arange(steps), np.full(steps, steps + horizon)
    targets = option_targets(later, ends, starts, stops, steps=horizon, **discounts)
    collected, carried = targets.returns.numpy(), np.where(targets.terminated, 0.0, carried)
    returns = np.full(steps + horizon, 0.0 if done[-1] else limit)
    for t in reversed(range(steps)):
        returns[t] = collected[t] + carried[t] * returns[t + horizon]
    return returns[: steps + 1]
