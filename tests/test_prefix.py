"""Candidates that are consistent with what is being played."""

import pytest
import torch
from data_example import example_contract
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.data.contract import Statistics
from deas_vla.improvement.best_of_n import Prefix, prefix_consistent

pytestmark = pytest.mark.unit

H = 6
CONTRACT = example_contract(statistics=Statistics((0.0,) * 3, (1.0,) * 3, (0.0, 0.5), (0.5, 0.5)))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@given(count=st.integers(1, 9), length=st.integers(1, 9), held=st.integers(0, 9), seed=st.integers(0, 50))
def test_what_is_played_meanwhile_is_kept_and_the_rest_is_a_candidates(count, length, held, seed):
    candidates, last = drawn(2, count, H, 2, seed=seed), drawn(2, length, 2, seed=seed + 1)
    kept = prefix_consistent(candidates, Prefix(last, held), CONTRACT)
    real = min(held, length, H)
    assert kept.shape == (2, (count + 1) // 2, H, 2)
    assert torch.equal(kept[:, :, :real], last[:, None, :real].expand(-1, kept.shape[1], -1, -1))
    for row in range(2):
        places = [
            [torch.equal(mine[real:], theirs[real:]) for theirs in candidates[row]].index(True) for mine in kept[row]
        ]
        assert places == sorted(set(places)) or real == H
        # Another decision in the batch changes nothing.
        alone = prefix_consistent(candidates[[row]], Prefix(last[[row]], held), CONTRACT)
        assert torch.equal(alone[0], kept[row])


def test_the_nearest_are_kept_and_early_steps_count_most():
    last = torch.zeros(1, 4, 2)
    candidates = torch.zeros(1, 4, H, 2)
    candidates[0, 0, 0] = 1.0  # away where it is held
    candidates[0, 1, 3] = 1.0  # away where the last chunk ends
    candidates[0, 2, 2] = 1.0
    kept = prefix_consistent(candidates, Prefix(last, 2), CONTRACT)
    assert torch.equal(kept[0], candidates[0, [1, 3]])
    # What comes after the last chunk's end counts for nothing.
    candidates[0, 3, 5] = 9.0
    assert torch.equal(prefix_consistent(candidates, Prefix(last, 2), CONTRACT)[0], candidates[0, [1, 3]])


def test_distances_are_in_the_columns_own_units():
    """A column that moves in thousandths counts as much as one that moves in ones."""
    fine = example_contract(statistics=Statistics((0.0,) * 3, (1.0,) * 3, (0.0, 0.5), (0.001, 0.5)))
    candidates = torch.zeros(1, 2, H, 2)
    candidates[0, 0, :, 0] = 0.002
    candidates[0, 1, :, 1] = 0.25
    last = torch.zeros(1, H, 2)
    assert torch.equal(prefix_consistent(candidates, Prefix(last, 0), fine)[0, 0], candidates[0, 1])
    assert torch.equal(prefix_consistent(candidates, Prefix(last, 0), CONTRACT)[0, 0], candidates[0, 0])
