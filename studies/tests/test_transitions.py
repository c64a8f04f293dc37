"""Rows of trajectories to options: against a loop that follows the rules step by step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.errors import UserError
from studies.ogbench.agents.deas import chunk_critic
from studies.ogbench.env import OGBenchTask
from studies.ogbench.train import task_facts
from studies.ogbench.transitions import OptionTable, Transitions

pytestmark = pytest.mark.unit

G1, G2 = 0.9, 0.97


def transitions(lengths, success_rate=0.1, seed=0):
    """Trajectories of these numbers of rows; observations and actions name their row."""
    rows, generator = sum(lengths), np.random.default_rng(seed)
    last = torch.zeros(rows, dtype=torch.bool)
    last[torch.tensor(lengths).cumsum(0) - 1] = True
    names = torch.arange(rows, dtype=torch.float32)
    return Transitions(
        observations=torch.stack([names, -names], 1),
        actions=torch.stack([names, names / 2, names / 4], 1),
        rewards=torch.from_numpy(-generator.random(rows).astype(np.float32)),
        success=torch.from_numpy(generator.random(rows) < success_rate),
        last=last,
    )


def table(data, horizon, backup):
    zero, one = torch.zeros(2), torch.ones(2)
    return OptionTable(data, zero, one, horizon=horizon, backup=backup, reward_discount=G1, bootstrap_discount=G2)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    horizon=st.integers(1, 4),
    more=st.integers(0, 3),
    success_rate=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 100),
)
def test_rule_03_options_as_a_loop_has_them(lengths, horizon, more, success_rate, seed):
    data, n = transitions(lengths, success_rate, seed), horizon + more
    expected, first = [], 0
    for length in lengths:
        # The last row's action led nowhere: n steps need n + 1 rows.
        for start in range(first, first + length - n):
            collected, done = 0.0, False
            for k in range(n):
                done = done or bool(data.success[start + k])
                collected += 0.0 if done else G1**k * float(data.rewards[start + k])
            expected.append((start, collected, 0.0 if done else G2**n))
        first += length
    if not expected:
        with pytest.raises(UserError, match=f"no trajectory has the {n} steps"):
            table(data, horizon, n)
        return
    options = table(data, horizon, n)
    assert len(options) == len(expected)
    order = torch.randperm(len(options), generator=torch.Generator().manual_seed(seed))
    batch = options.batch(order)
    start, returns, bootstrap = (torch.tensor(column)[order] for column in zip(*expected, strict=True))
    torch.testing.assert_close(batch.returns, returns)
    torch.testing.assert_close(batch.bootstrap, bootstrap)
    torch.testing.assert_close(batch.observation, data.observations[start])
    torch.testing.assert_close(batch.next_observation, data.observations[start + n])
    assert batch.chunk.shape == (len(order), horizon, 3)
    torch.testing.assert_close(batch.chunk[:, :, 0], (start[:, None] + torch.arange(horizon)).float())


def test_rule_02_the_end_of_a_trajectory_is_no_success():
    """Six rows that never succeed: the last option bootstraps from the last row, as a timeout does."""
    data = transitions([6], success_rate=0.0)
    batch = table(data, 2, 2).batch(torch.arange(4))
    torch.testing.assert_close(batch.bootstrap, torch.full((4,), G2**2))
    assert batch.next_observation[-1, 0] == 5


def test_rule_03_nothing_counts_after_the_first_success():
    data = transitions([8], success_rate=0.0)
    data.success[3] = True
    data.rewards[3:] = -1e6
    batch = table(data, 3, 3).batch(torch.arange(5))
    assert (batch.returns[:4] > -3).all()
    # Options from rows 1, 2 and 3 meet the success; row 0 ends on it; row 4 begins after it.
    data.rewards[3:] = -1.0
    torch.testing.assert_close(table(data, 3, 3).bootstrap > 0, torch.tensor([True, False, False, False, True]))
    # The chunk itself is shown whole: it is what was played.
    torch.testing.assert_close(batch.chunk[2, :, 0], torch.tensor([2.0, 3.0, 4.0]))


def test_observations_are_standardised_and_still_columns_are_not_blown_up():
    data = transitions([50, 30])
    data.observations[:, 1] = 7.0
    mean, scale = data.statistics()
    options = OptionTable(data, mean, scale, horizon=1, backup=1, reward_discount=1.0, bootstrap_discount=0.9)
    torch.testing.assert_close(options.observations.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(options.observations[:, 0].std(), torch.tensor(1.0))
    assert options.observations.abs().max() < 10


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    success_rate=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 100),
)
def test_returns_to_go_as_a_loop_has_them(lengths, success_rate, seed):
    data, expected, first = transitions(lengths, success_rate, seed), [], 0
    for length in lengths:
        for start in range(first, first + length):
            total = 0.0
            for row in range(start, first + length):
                if data.success[row]:
                    break
                total += G1 ** (row - start) * float(data.rewards[row])
            else:
                total += G1 ** (first + length - start) * float(data.rewards.min()) / (1 - G1)
            expected.append(total)
        first += length
    returns = data.returns_to_go(horizon=1, reward_discount=1.0, bootstrap_discount=G1)
    np.testing.assert_allclose(returns, expected, rtol=1e-12, atol=1e-12)


def test_rule_02_the_end_of_a_recording_is_no_success():
    """Filtered cloning keeps what returns most: the last rows before a cut must not be among it."""
    data = transitions([40, 40], 0.0)
    data.rewards[:], data.success[:] = -1, False
    data.rewards[20], data.success[20] = 0, True
    returns = data.returns_to_go(horizon=1, reward_discount=1.0, bootstrap_discount=0.9)
    best = np.argsort(-returns, kind="stable")[:21]
    assert sorted(best) == list(range(21))


def test_the_lowest_return_is_that_of_the_agents_own_options():
    """The support "data" of a critic with two discounts: −100 is the return of another critic, of one discount."""
    data = transitions([60, 40], 0.0)
    data.rewards[:] = -1
    task = OGBenchTask.parse("cube-single-play-singletask-task1-v0")
    facts = task_facts(task, data, chunk_critic())
    assert facts.lowest_return == pytest.approx(-(1 - 0.9**5) / (0.1 * (1 - 0.99**5)), rel=1e-6)
    assert facts.lowest_return == pytest.approx(-83.6, abs=0.05)
    one_step = replace(chunk_critic(), horizon=1)
    assert task_facts(task, data, one_step).lowest_return == pytest.approx(-100, rel=1e-6)
    data.success[[20, 80]] = True
    data.rewards[[20, 80]] = 0
    assert task_facts(task, data, chunk_critic()).lowest_return == pytest.approx(-83.6, abs=0.05)


def test_rows_that_do_not_fit_together_are_refused():
    data = transitions([4])
    with pytest.raises(ValueError, match="rewards has 3 rows"):
        Transitions(data.observations, data.actions, data.rewards[:3], data.success, data.last)
    with pytest.raises(ValueError, match="must end a trajectory"):
        Transitions(data.observations, data.actions, data.rewards, data.success, torch.zeros(4, dtype=torch.bool))


def test_an_option_longer_than_every_trajectory_is_one_clear_line():
    with pytest.raises(UserError, match=r"no trajectory has the 9 steps of an option; the longest has 8: choose a"):
        table(transitions([4, 9, 6]), 9, 9)
