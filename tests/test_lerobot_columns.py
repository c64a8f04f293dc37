"""Which column is which: by its own name where the data set has one, by its place in a group otherwise."""

import dataclasses

import numpy as np
import pytest
from v2_example import numbers, v2_contract, write_v2

from deas_vla.data.audit.audit import audit
from deas_vla.data.contract import Column
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import ContractMismatch


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2") / "dataset")


def with_arm(*names: str):
    """The example's contract with other names for the arm's action columns, in this order."""
    whole = v2_contract()
    return dataclasses.replace(whole, action=(whole.action[0], *(Column(f"arm.{name}", "rad") for name in names)))


def test_rule_07_the_data_sets_own_names_are_picked_by_name(v2):
    """The same names in another order are other columns, whatever place they have in their group."""
    for order in ((2, 1, 0), (1, 2, 0)):
        episodes, _, _ = read_dataset(v2, with_arm(*map(str, order)))
        for number, episode in enumerate(episodes):
            wanted = numbers(number)[1][: episode.length, [3, *order]]
            assert np.array_equal(episode.actions, wanted.astype(np.float32))


def test_rule_07_a_mixture_of_names_is_refused(v2, tmp_path):
    with pytest.raises(ContractMismatch, match=r"action: group arm mixes names of the data set \(arm\.0, arm\.1"):
        read_dataset(v2, with_arm("0", "elbow", "2"))
    root = write_v2(tmp_path / "dataset")
    declare_dataset(root, with_arm("0", "elbow", "2"))
    assert not audit([root]).fit
