"""Several data sets as one: shares by group and data set, and contracts that must agree."""

import dataclasses

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from hypothesis import given
from hypothesis import strategies as st
from v2_example import v2_contract, write_v2

from deas_vla.data.contract import Column, Statistics
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.data.mixture import MixtureConfig, read_mixture
from deas_vla.data.sampling import group_probabilities, sample_indices
from deas_vla.errors import ContractMismatch, UserError

EQUAL = {"demonstration": 1.0, "success": 1.0, "failure": 1.0}


def write(root, contract, seed, source="rollout", episodes=3):
    rng = np.random.default_rng(seed)
    made = [example_episode(rng, 8 + i, i % 2 == 0, source=source, scene=i) for i in range(episodes)]
    write_dataset(root, made, contract, "local/toy")
    return str(root)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=40),
    st.lists(st.floats(0.1, 5), min_size=3, max_size=3),
    st.lists(st.floats(0.1, 5), min_size=4, max_size=4),
)
def test_a_groups_share_is_divided_by_the_weights(options, shares, parts):
    group, dataset = torch.tensor(options).T
    weights = dict(zip(EQUAL, shares, strict=True))
    probabilities = group_probabilities(group, weights, dataset, parts)
    assert probabilities.sum() == pytest.approx(1)
    # Balance of the groups is what it is for one data set.
    alone = group_probabilities(group, weights)
    for code in range(3):
        mine = group.numpy() == code
        assert probabilities[mine].sum() == pytest.approx(alone[mine].sum())
        there = sorted(set(dataset.numpy()[mine]))
        total = sum(parts[i] for i in there)
        for i in there:
            share = probabilities[mine & (dataset.numpy() == i)]
            assert share.sum() == pytest.approx(alone[mine].sum() * parts[i] / total)
            assert np.ptp(share) < 1e-12


def test_one_data_set_is_sampled_as_ever():
    group = torch.tensor([0, 0, 1, 2, 2, 2])
    weights = {"demonstration": 0.2, "success": 0.4, "failure": 0.4}
    alone = group_probabilities(group, weights)
    assert np.array_equal(alone, group_probabilities(group, weights, torch.zeros(6, dtype=torch.long), [1.0]))
    assert alone.tolist() == pytest.approx([0.1, 0.1, 0.4, 0.4 / 3, 0.4 / 3, 0.4 / 3])


def test_sampled_in_proportion():
    group, dataset = torch.ones(1000, dtype=torch.long), (torch.arange(1000) >= 900).long()
    probabilities = group_probabilities(group, EQUAL, dataset, [1.0, 3.0])
    rows = np.concatenate([sample_indices(0, step, 256, probabilities) for step in range(400)])
    # Four standard deviations of a mean of 102,400 samples.
    assert (rows >= 900).mean() == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / len(rows)) ** 0.5)


def test_a_weight_of_zero_leaves_a_data_set_out():
    group, dataset = torch.tensor([1, 1, 2]), torch.tensor([0, 1, 1])
    assert group_probabilities(group, EQUAL, dataset, [1.0, 0.0]).tolist() == [1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="leave nothing to sample"):
        group_probabilities(group, EQUAL, dataset, [0.0, 0.0])
    with pytest.raises(UserError, match="one of at least 0 to each data set"):
        group_probabilities(group, EQUAL, dataset, [1.0])


def test_data_sets_of_one_contract_are_read_together(tmp_path):
    """Statistics of each are its own; those of the policy are what counts."""
    folders = [write(tmp_path / "a", example_contract(), 0), write(tmp_path / "b", example_contract(), 1, episodes=2)]
    other = example_contract(statistics=Statistics((0.0,) * 3, (1.0,) * 3, (0.0,) * 2, (1.0,) * 2))
    folders.append(write(tmp_path / "c", other, 2, source="demonstration"))
    parts, contract = read_mixture(MixtureConfig(folders))
    assert [len(part) for part in parts] == [3, 2, 3] and contract == example_contract(statistics=None)
    assert {episode.group for episode in parts[2]} == {"demonstration"}
    assert read_mixture(MixtureConfig(folders), other)[1] == other


def test_rule_07_other_contracts_are_refused_with_both_names(tmp_path):
    first = write(tmp_path / "a", example_contract(), 0)
    turned = dataclasses.replace(example_contract().state[0], unit="cm")
    changes = [
        ({"rate_hz": 10.0}, "rate: 20 Hz against 10 Hz"),
        ({"state": (turned, *example_contract().state[1:])}, "unit 'm' against 'cm'"),
        ({"action": (Column("move.y", "command"), example_contract().action[1])}, r"name 'move\.x' against 'move\.y'"),
    ]
    for number, (change, message) in enumerate(changes):
        other = write(tmp_path / f"{number}", example_contract(**change), 1)
        with pytest.raises(ContractMismatch, match=rf"{number} cannot be mixed with .*a: .*{message}"):
            read_mixture(MixtureConfig([first, other]))
    with pytest.raises(ContractMismatch, match=r"a cannot be mixed with what is expected: .*rate"):
        read_mixture(MixtureConfig([first]), example_contract(rate_hz=30.0))


def test_versions_can_be_mixed(tmp_path):
    v2 = write_v2(tmp_path / "v2")
    declare_dataset(v2, v2_contract(), source="rollout")
    episodes = read_mixture(MixtureConfig([str(v2)]))[0][0]
    write_dataset(tmp_path / "v3", episodes, v2_contract(), "local/arm")
    parts, contract = read_mixture(MixtureConfig([str(v2), str(tmp_path / "v3")], [1.0, 2.0]))
    assert contract == v2_contract()
    for a, b in zip(*parts, strict=True):
        assert np.array_equal(a.actions, b.actions) and np.array_equal(a.images["front"], b.images["front"])


def test_settings_that_make_no_sense_are_refused():
    for settings, message in (
        ({"folders": ["a"], "weights": [1.0, 2.0]}, "1 folders and 2 weights"),
        ({"folders": ["a"], "weights": [-1.0]}, "at least 0"),
        ({"folders": ["a"], "weights": [float("nan")]}, "at least 0"),
        ({"folders": ["a"], "image_every": 0}, "image_every is 0"),
    ):
        with pytest.raises(UserError, match=message):
            MixtureConfig(**settings)
