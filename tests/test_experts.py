"""The scripted experts: sure without noise, human with it."""

import numpy as np
import pytest

from deas_vla.envs.config import EnvConfig
from deas_vla.envs.robosuite.env import RobosuiteEnv
from deas_vla.envs.robosuite.tasks import TASKS

pytestmark = pytest.mark.sim


def outcomes(config, scenes):
    env = RobosuiteEnv(config)
    env.images = dict  # nothing to look at
    lengths = []
    for scene in scenes:
        env.reset(scene)
        played = env.play_expert(env.horizon, np.random.default_rng(scene))
        lengths.append(len(played.actions) if played.success[-1] else None)
    return lengths


@pytest.mark.parametrize("task", TASKS)
def test_an_expert_without_noise_succeeds_in_time(task):
    lengths = outcomes(EnvConfig(task=task), range(1000, 1020))
    assert sum(length is not None for length in lengths) >= 19, lengths


def test_an_imperfect_expert_fails_sometimes_takes_longer_and_recovers():
    sure = outcomes(EnvConfig(), range(30))
    trembling = outcomes(EnvConfig(expert_noise=0.3, expert_grasp_bias=0.012), range(30))
    won = [length for length in trembling if length is not None]
    assert 0.6 <= len(won) / len(trembling) < 1
    assert np.median(won) > np.median(sure)
    assert max(won) > 60  # more than one attempt
