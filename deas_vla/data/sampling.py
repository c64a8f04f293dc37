"""Which options make a batch, and which episodes are held out."""

import numpy as np
from torch import Tensor

from deas_vla.data.episodes import GROUPS, Episode
from deas_vla.errors import UserError

FEWEST_SPLIT = 3  # a smaller group has no episode to spare for validation


def group_probabilities(
    group: Tensor, weights: dict[str, float], dataset: Tensor | None = None, dataset_weights: list[float] | None = None
) -> np.ndarray:
    """(O,) probabilities that balance demonstrations, successes and failures, and data sets, whatever their number.

    `group`: (O,) codes as in `Options.group`; `weights`: share of each by name, at least 0 (groups without options
    leave theirs to the others); `dataset`: (O,) which data set an option comes from; `dataset_weights`: how a group's
    share is divided among the data sets that have options of it.
    """
    if set(weights) != set(GROUPS) or min(weights.values()) < 0:
        raise UserError(f"group weights are {weights}; give one of at least 0 to each of {', '.join(GROUPS)}")
    codes = group.numpy()
    datasets = np.zeros_like(codes) if dataset is None else dataset.numpy()
    shares = np.array([[weights[name]] for name in GROUPS])
    parts = np.ones(1) if dataset_weights is None else np.array(dataset_weights, np.float64)
    if (len(datasets) and datasets.max() >= len(parts)) or (parts < 0).any():
        raise UserError(f"data set weights are {dataset_weights}; give one of at least 0 to each data set")
    counts = np.zeros((len(GROUPS), len(parts)), np.int64)
    np.add.at(counts, (codes, datasets), 1)
    present = np.where(counts > 0, parts, 0.0)
    # Parts of what is not there are 0, whatever they are divided by.
    total = present.sum(1, keepdims=True)
    divided = shares * (present / np.where(total > 0, total, 1))
    each = (divided / counts.clip(min=1))[codes, datasets]
    if not each.sum() > 0:
        there = dict(zip(GROUPS, counts.sum(1).tolist(), strict=True))
        raise UserError(f"group weights {weights} leave nothing to sample: the data has {there} options")
    return each / each.sum()


def sample_indices(seed: int, step: int, batch_size: int, probabilities: np.ndarray) -> np.ndarray:
    """(B,) indices of a batch, sampled with replacement: a pure function of `seed` and the optimiser's `step`.

    A run that was killed and resumed at any step sees the same batches as one that was not.
    """
    stream = np.random.Generator(np.random.Philox(key=[seed, step]))
    cumulative = np.cumsum(probabilities)
    # Rounding leaves the last entry a little off 1; scaled by it, no sample falls past the end.
    return np.searchsorted(cumulative, stream.random(batch_size) * cumulative[-1], side="right")


def split_by_episode(episodes: list[Episode], held_out: float, seed: int) -> np.ndarray:
    """(E,) bool, True for the episodes held out for validation: the same share, in [0, 1), of each group.

    Frames of one episode are alike: a split by frame would validate on what was trained on. Of `FEWEST_SPLIT` episodes
    of a group at least one is held out, unless the share is 0.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"the share of held-out episodes is {held_out}; choose one in [0, 1)")
    codes = np.array([GROUPS.index(episode.group) for episode in episodes])
    mask = np.zeros(len(episodes), bool)
    for code in range(len(GROUPS)):
        members = np.flatnonzero(codes == code)
        stream = np.random.Generator(np.random.Philox(key=[seed, code]))
        least = 1 if held_out and len(members) >= FEWEST_SPLIT else 0
        mask[stream.permutation(members)[: max(least, round(held_out * len(members)))]] = True
    return mask


def split_text(episodes: list[Episode], held_out: np.ndarray) -> str:
    """How many episodes of each group are held out, for people: (E,) bool as `split_by_episode` gives it."""
    groups = np.array([episode.group for episode in episodes])
    parts = [f"{held_out[groups == g].sum()} of {(groups == g).sum()} ({g})" for g in GROUPS if (groups == g).any()]
    return f"episodes held out: {', '.join(parts)}"
