"""The scripted experts: sure without noise, human with it."""

import numpy as np
import pytest

from deas_vla.envs.registry import env_config, make_env
from deas_vla.envs.robosuite.tasks import TASKS

pytestmark = pytest.mark.sim


def outcomes(task, noise, bias, scenes):
    env = make_env(env_config("robosuite", task, expert_noise=noise, expert_grasp_bias=bias))
    env.images = dict  # nothing to look at
    lengths = []
    for scene in scenes:
        env.reset(scene)
        played = env.play_expert(env.horizon, np.random.default_rng(scene))
        lengths.append(len(played.actions) if played.success[-1] else None)
    return lengths


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_without_noise_succeeds_in_time(task):
    lengths = outcomes(task, 0.0, 0.0, range(1000, 1020))
    assert sum(length is not None for length in lengths) >= 19, lengths


def test_an_imperfect_expert_fails_sometimes_takes_longer_and_recovers():
    sure = outcomes("lift", 0.0, 0.0, range(30))
    trembling = outcomes("lift", 0.3, 0.012, range(30))
    won = [length for length in trembling if length is not None]
    assert 0.6 <= len(won) / len(trembling) < 1
    assert np.median(won) > np.median(sure)
    assert max(won) > 60  # more than one attempt
