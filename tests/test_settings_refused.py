"""Settings that no training or evaluation can do with are refused at once, by their flags; files cut off by name."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from policy_example import small_policy
from reranker_example import observations

from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.training.loop import TrainingConfig
from deas_vla.training.stages import run_stage, stage_report
from recipes.collect_demos import DemosConfig
from recipes.collect_rollouts import CollectRolloutsConfig, RolloutsConfig
from recipes.evaluate import EvaluationConfig
from recipes.finetune_policy import FinetunePolicyConfig, ImitationConfig
from recipes.train_critic import MixConfig, TrainCriticConfig

pytestmark = pytest.mark.unit
NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("config_class", "field", "values"),
    [
        (TrainingConfig, "gradient_clip", (-1.0, NAN)),
        (TrainingConfig, "warmup", (5.0, -0.1, NAN)),
        (TrainingConfig, "log_every", (0,)),
        (TrainingConfig, "checkpoint_every", (0,)),
        (TrainingConfig, "learning_rate", (NAN, INFINITE, -1e-3, 0.0)),
        (TrainingConfig, "weight_decay", (-1.0, NAN)),
        (RolloutsConfig, "execute_steps", (-1, 0)),
        (RolloutsConfig, "episodes", (0,)),
        (RolloutsConfig, "frame_every", (-1,)),
        (CollectRolloutsConfig, "parallel_episodes", (0,)),
        (CollectRolloutsConfig, "workers", (-1,)),
        (CollectRolloutsConfig, "skip", (-1,)),
        (DemosConfig, "frame_every", (0,)),
        (EvaluationConfig, "execute_steps", (-1, 0)),
        (EvaluationConfig, "noise_scale", (-1.0, NAN)),
        (EvaluationConfig, "oracle_scenes", (-1,)),
        (FinetunePolicyConfig, "seed", (-1,)),
        (ImitationConfig, "flow_samples", (0,)),
        (ImitationConfig, "max_shift", (-1,)),
        (MixConfig, "successes", (-1.0, INFINITE)),
        (TrainCriticConfig, "policy_chunks", (-2, 0)),
        (TrainCriticConfig, "policy_noise_scale", (-1.0,)),
        (TrainCriticConfig, "held_out", (1.0, -0.1)),
        (TrainCriticConfig, "seed", (-1,)),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_flag(config_class, field, values):
    for value in values:
        with pytest.raises(UserError, match=f"{field}={value} must be"):
            config_class(**{field: value})
    dataclasses.replace(config_class())  # and the defaults are none of these


@pytest.mark.parametrize("file", ["stage.json", "settings.json"])
def test_a_stage_whose_file_was_cut_off_is_named(tmp_path, file):
    folder = tmp_path / "policy"
    folder.mkdir()
    (folder / file).write_text('{"settings": {"st')
    with pytest.raises(UserError, match=f"policy/{file}: missing, cut off or damaged"):
        run_stage(Accelerator(cpu=True), folder, {"steps": 1}, {}, lambda _: None)
    if file == "stage.json":
        with pytest.raises(UserError, match="cut off"):
            stage_report(folder)


def test_nothing_is_decided_from_numbers_that_are_none():
    """An arm must never be sent NaN; a network makes NaN of NaN (defect)."""
    policy = small_policy()
    decider, keys = BestOfN(policy, 4), [NoiseKey(seed=0, scene=0, sample=0, decision=0)]
    for number in (np.nan, np.inf):
        seen = observations(1)
        seen.state[0, 1] = number
        name = policy.contract.state[1].name
        with pytest.raises(UserError, match=rf"state hold NaN or infinite numbers \({name}\)"):
            decider.choose(seen, keys)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.fill_(np.nan)
    with pytest.raises(UserError, match="the policy's commands hold NaN"):
        decider.choose(observations(1), keys)
