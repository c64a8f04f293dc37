"""Columns have names; what disagrees is refused with the difference shown (design rule 7)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.data.contract import Camera, Column, Contract, Statistics
from deas_vla.errors import ContractMismatch, UserError

pytestmark = pytest.mark.unit

STATE = (Column("base_position.x", "m"), Column("gripper_qpos.0", "m"))
ACTION = (
    Column("end_effector_position.x", "command", low=-1.0, high=1.0),
    Column("gripper_close", "flag", "binary", 0.0, 1.0),
)


def contract(**changes) -> Contract:
    statistics = Statistics((0.5, 0.0), (2.0, 1.0), (0.25, 0.7), (0.5, 0.4))
    return replace(Contract("panda_omron", 20.0, STATE, ACTION, (Camera("left", 64, 64),), statistics), **changes)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"embodiment": "so101"}, "embodiment: panda_omron against so101"),
        ({"rate_hz": 10.0}, "rate: 20 Hz against 10 Hz"),
        ({"state": STATE[::-1]}, r"state\[0\]: name 'base_position.x' against 'gripper_qpos.0'"),
        ({"action": ACTION[:1]}, "action: 2 entries against 1"),
        ({"action": (replace(ACTION[0], unit="m"), ACTION[1])}, r"action\[0\]: unit 'command' against 'm'"),
        ({"action": (replace(ACTION[0], low=-2.0), ACTION[1])}, "low -1.0 against -2.0"),
        ({"cameras": (Camera("left", 96, 64),)}, r"cameras\[0\]: height 64 against 96"),
        (
            {"statistics": Statistics((0.5, 0.1), (2.0, 1.0), (0.25, 0.7), (0.5, 0.4))},
            r"state_mean differs in columns \[1\]",
        ),
    ],
)
def test_rule_07_columns_have_names(changed, words):
    other = contract(**changed)
    with pytest.raises(ContractMismatch, match=words) as caught:
        contract().require_same(other, "policy a", "data set b")
    assert "policy a and data set b" in str(caught.value)
    assert other.fingerprint != contract().fingerprint


def test_equal_contracts_agree_and_survive_json():
    again = Contract.from_json(contract().to_json())
    contract().require_same(again, "a", "b")
    assert again == contract() and again.fingerprint == contract().fingerprint


def test_a_contract_without_statistics_fits_one_with():
    contract().require_same(contract(statistics=None), "a", "b")


@pytest.mark.parametrize("broken", [{}, {"embodiment": "x"}, {**contract().to_json(), "state": [{"nome": "x"}]}])
def test_a_broken_contract_file_is_named(broken):
    with pytest.raises(UserError, match=r"policy/contract\.json: not a valid contract"):
        Contract.from_json(broken, "policy/contract.json")


numbers = st.floats(-3, 3, width=32)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5))
def test_a_command_that_was_played_is_scored_as_recorded(rows):
    """Candidate → command → critic input must give what recording and reading the command gives, bit for bit."""
    k = contract()
    command = k.to_command(torch.tensor(rows))
    assert (command[:, 0].abs() <= 1).all() and set(command[:, 1].tolist()) <= {0.0, 1.0}
    seen = k.normalize_action(command)
    recorded = torch.from_numpy(command.numpy().copy())
    assert torch.equal(seen, k.normalize_action(recorded))
    torch.testing.assert_close(k.to_command(seen), command, atol=1e-6, rtol=0)
    assert torch.equal(k.to_command(seen)[:, 1], command[:, 1])


def test_statistics_clamp_the_spread_of_columns_that_hardly_move():
    states = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    stats = Statistics.of(states, torch.zeros(2, 2))
    assert stats.state_mean == (2.0, 5.0)
    assert stats.state_std == pytest.approx((2**0.5, 0.01)) and stats.action_std == pytest.approx((0.05, 0.05))


@pytest.mark.parametrize("states", [torch.zeros(1, 2), torch.tensor([[0.0, float("nan")], [0.0, 0.0]])])
def test_statistics_refuse_too_little_and_nan(states):
    with pytest.raises(UserError):
        Statistics.of(states, torch.zeros(2, 2))


def test_normalising_needs_statistics():
    with pytest.raises(UserError, match="no normalisation statistics"):
        contract(statistics=None).normalize_state(torch.zeros(2))
