"""What the recipes say when they are asked for something that cannot be: one line, exit status 2, nothing made."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_example import example_episode
from policy_example import small_policy
from torch import nn

from deas_vla.config import parse
from deas_vla.critic.critic import CriticConfig
from deas_vla.data.options import returns_to_go
from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.launch import run_recipe
from deas_vla.scorers.scorer import Scorer
from deas_vla.training import critic
from deas_vla.training.presets import PRESETS, preset
from recipes import (
    collect_demos,
    collect_rollouts,
    evaluate,
    finetune_metaworld,
    finetune_policy,
    finetune_robocasa,
    train_critic,
)
from studies.ablations import critic as critic_ablation
from studies.ablations import policy as policy_ablation
from studies.ablations import second_iteration as second_iteration_ablation

pytestmark = pytest.mark.unit
CONFIGS = {
    collect_demos: collect_demos.CollectDemosConfig,
    collect_rollouts: collect_rollouts.CollectRolloutsConfig,
    evaluate: evaluate.EvaluateConfig,
    finetune_metaworld: finetune_metaworld.FinetuneMetaworldConfig,
    finetune_policy: finetune_policy.FinetunePolicyConfig,
    finetune_robocasa: finetune_robocasa.FinetuneRobocasaConfig,
    train_critic: train_critic.TrainCriticConfig,
    critic_ablation: critic_ablation.CriticAblationConfig,
    policy_ablation: policy_ablation.PolicyAblationConfig,
    second_iteration_ablation: second_iteration_ablation.SecondIterationAblationConfig,
}


@pytest.mark.parametrize(
    ("recipe", "arguments", "words"),
    [
        (collect_demos, ["--tasks=lfit"], "unknown robosuite task 'lfit'"),
        (collect_demos, ["--tasks=lfit"], "did you mean 'lift'?"),
        (collect_demos, ["--env=robosuit"], "unknown simulator 'robosuit'"),
        (collect_demos, ["--demos.episodes=1"], "statistics need at least 2"),
        (collect_demos, ["--seed=100"], "seed must be 0 to 99"),
        (collect_demos, ["--demos.epsiodes=3"], "did you mean --demos.episodes?"),
        (collect_rollouts, ["--policy={folder}/none"], "none is not a finished stage"),
        (finetune_policy, ["--demonstrations={folder}/none"], "none is not a finished stage"),
        (evaluate, ["--policy="], "name of a stage's folder is empty"),
        (collect_rollouts, ["--policy="], "name of a stage's folder is empty"),
        (train_critic, ["--policy="], "the critic needs --policy=FOLDER"),
        (finetune_policy, ["--method=filtered_bc"], "--method=filtered_bc needs --rollouts=FOLDER"),
        (finetune_policy, ["--method=awr"], "('bc', 'filtered_bc', 'advantage_weighted')"),
        (finetune_policy, ["--training.steps=0"], "must be at least 1"),
        (train_critic, ["--critic.expectile=1.5"], "critic.expectile=1.5 must be"),
        (train_critic, ["--critic.backup_horizon=32"], "critic.backup_horizon=32: options of recorded episodes"),
        (train_critic, ["--rollouts=", "--demonstrations="], "the critic needs"),
        (train_critic, ["--reward.kind=column", "--reward.minimum=0", "--reward.maximum=1"], "set --critic.reward_min"),
        (evaluate, ["--evaluation.num_candidates=1"], "num_candidates at least 2"),
        (finetune_robocasa, ["--critic.backup_horizon=32"], "options of recorded episodes"),
        (finetune_robocasa, ["--policy.tune=half"], "choose one of frozen, lora, full"),
        (critic_ablation, ["--variants=deafult"], "there is no variant deafult; choose from default"),
        (policy_ablation, ["--variants=deafult"], "there is no variant deafult; choose from default"),
        (policy_ablation, ["--name=own"], "--name and --flags go together"),
        (policy_ablation, ["--num_candidates=1"], "2 candidates"),
        (second_iteration_ablation, ["--runs="], "needs a run and a scene"),
        (second_iteration_ablation, ["--runs={folder}/none"], "rollouts_2 is not a finished stage"),
        (evaluate, ["--critic="], "an evaluation needs --critic=FOLDER"),
        (train_critic, ["--scorer=ensemble"], "--scorer=ensemble joins critics that are trained already"),
        (evaluate, ["--scorers=mine"], "'mine' is not NAME:FOLDER with a name of its own"),
        (evaluate, ["--policies=a:b,a:c"], "'a:c' is not NAME:FOLDER or NAME:FOLDER:CRITIC"),
        (collect_demos, ["--demos.dataset={folder}/none"], "{folder}/none"),
        (train_critic, ["--preset=paper"], "unknown preset 'paper'"),
    ],
)
def test_bad_input_gets_one_line(recipe, arguments, words, tmp_path, capsys):
    argv = [argument.format(folder=tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as caught:
        run_recipe(recipe.main, CONFIGS[recipe], [*argv, f"--output={tmp_path / 'out'}"])
    assert caught.value.code == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and words.format(folder=tmp_path) in error[0]


@pytest.mark.parametrize(
    ("recipe", "flags"),
    [
        (evaluate, ["--policy={folder}/policy"]),
        (
            finetune_policy,
            [
                "--method=advantage_weighted",
                "--start_from={folder}/policy",
                "--demonstrations={folder}/policy",
                "--rollouts={folder}/policy",
            ],
        ),
    ],
)
def test_an_empty_folder_as_critic_gets_one_clear_message(recipe, flags, tmp_path, capsys):
    (tmp_path / "critic").mkdir()
    write_json(tmp_path / "policy" / "stage.json", {"made": "policy", "sources": {}})
    argv = ["--critic={folder}/critic", *flags]
    test_bad_input_gets_one_line(recipe, argv, "{folder}/critic is not a finished stage", tmp_path, capsys)


def test_the_help_of_training_a_critic_names_the_size_of_the_ensemble_and_the_scorer_kinds(capsys):
    with pytest.raises(SystemExit):
        run_recipe(train_critic.main, train_critic.TrainCriticConfig, ["--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--critic.num_q INT K, size of the ensemble of Q networks" in shown
    assert "deas, q_chunking, iql, or your own" in shown and "An ensemble is not trained here" in shown


@pytest.mark.parametrize("arguments", [[], *([f"--preset={name}"] for name in PRESETS)])
def test_the_loop_and_its_stage_alone_train_the_same_critic(arguments):
    loop = parse(finetune_robocasa.FinetuneRobocasaConfig, arguments)
    alone = parse(train_critic.TrainCriticConfig, arguments)
    assert alone.training == loop.critic_training
    for name in ("preset", "critic", "features", "image_encoder", "image_encoder_training", "mix", "reward"):
        assert getattr(loop, name) == getattr(alone, name), name


def test_one_flag_of_the_loop_sets_the_noise_and_the_actions_played_of_every_stage():
    flags = ["--noise_scale=1", "--execute_steps=8", "--rollouts.noise_scale=0.1"]
    loop = parse(finetune_robocasa.FinetuneRobocasaConfig, flags)
    assert {loop.rollouts.noise_scale, loop.weighting.noise_scale, loop.evaluation.noise_scale} == {1.0}
    assert {loop.rollouts.execute_steps, loop.evaluation.execute_steps} == {8}
    usual = parse(finetune_robocasa.FinetuneRobocasaConfig, [])
    assert {usual.rollouts.noise_scale, usual.weighting.noise_scale, usual.evaluation.noise_scale} == {0.5}


def test_a_preset_comes_before_the_flags():
    for chosen in (["--preset=published"], ["--preset", "published"]):
        config = parse(train_critic.TrainCriticConfig, ["--critic.expectile=0.8", *chosen])
        assert config.critic == replace(preset("published").critic, expectile=0.8)
        assert config.training == preset("published").training and config.preset == "published"


def test_validation_runs_in_batches_and_gives_the_mean_over_all(monkeypatch):
    """All training options at once would take 4 GB a layer with a million of them (defect)."""
    sizes = []

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def loss(self, batch):
            sizes.append(len(batch.returns))
            return None, {"return": batch.returns.mean()}

    rows = torch.arange(10)
    options = SimpleNamespace(
        start_frame=rows, end_frame=rows, chunk=rows[:, None, None].float(), returns=rows.float(),
        bootstrap=torch.ones(10), episode=rows.numpy() // 5,
    )  # fmt: skip
    monkeypatch.setattr(critic, "VALIDATION_BATCH", 3)
    frames = torch.zeros(10, 2)
    found = critic.validation(Critic(), frames, frames, options, np.array([False, True]))
    assert max(sizes) == 3 and sum(sizes) == 10
    assert found == {"training": {"return": 2.0, "options": 5}, "held_out": {"return": 7.0, "options": 5}}


def test_a_discount_that_is_too_strong_for_the_episodes_is_told():
    """At 30 steps a second, 0.99 leaves a success 10 s away 4.9 % of the range from a failure (defect: no word)."""
    config, rng = CriticConfig(horizon=4, reward_discount=1.0), np.random.default_rng(0)
    episodes = [example_episode(rng, length, True, frames=[0]) for length in (100, 300, 300, 400)]
    options = {"horizon": 4, "reward_discount": 1.0, "bootstrap_discount": 0.99, "forever": -1.0}
    failing = returns_to_go(-np.ones(300), np.zeros(300, bool), **options)[0]
    success = returns_to_go(episodes[1].success - 1.0, episodes[1].success, **options)[0]
    assert (success - failing) / (0 - failing) == pytest.approx(0.99**300, abs=0.002)
    warning = critic.discount_warning(config, episodes, rate_hz=30)
    assert "300 steps (10 s) or more: at their start critic.bootstrap_discount=0.99 leaves 4.9%" in warning
    assert warning.endswith("--critic.bootstrap_discount=0.9967 leaves 37%")
    assert critic.discount_warning(replace(config, bootstrap_discount=0.9967), episodes, 30) is None
    assert critic.discount_warning(config, episodes[:1] * 3, 30) is None


def test_a_scorer_of_ones_own_and_more_policies_are_methods_by_their_names():
    policy, other = small_policy(), small_policy(seed=1)
    made, mine = (Smooth(policy.contract, policy.horizon) for _ in range(2))
    plan = evaluate.EvaluationConfig(num_candidates=4, candidate_counts=[1, 4])
    methods = evaluate.methods_of(plan, policy, made, {"tuned": (other, made), "plain": (other,)}, {"mine": mine})
    assert set(methods) == {
        "policy", "random_candidate", "zero_noise", "worst_of_n", "best_of_n", "best_of_1",
        "tuned", "tuned + best_of_n", "plain", "mine",
    }  # fmt: skip
    assert methods["mine"].scorer is mine and methods["mine"].policy is policy
    assert methods["tuned + best_of_n"].policy is other and methods["mine"].num_candidates == 4
    for name in ("policy", "oracle"):
        with pytest.raises(UserError, match=f"{name} is the name of another method"):
            evaluate.methods_of(plan, policy, made, {}, {name: mine})


class Smooth(Scorer):
    """Prefers chunks that move little."""

    def q_values(self, encoded, chunks):
        return -chunks.diff(dim=2).norm(dim=-1).sum(-1)[None]


@pytest.mark.parametrize("recipe", CONFIGS, ids=lambda recipe: recipe.__name__)
def test_help_explains_every_recipe(recipe, capsys):
    with pytest.raises(SystemExit) as caught:
        run_recipe(recipe.main, CONFIGS[recipe], ["--help"])
    assert caught.value.code == 0
    assert "--output" in capsys.readouterr().out
    assert "accelerate launch" in recipe.__doc__
    package, _, name = recipe.__name__.partition(".")
    started = f"recipes/{name}.py" if package == "recipes" else f"-m {recipe.__name__}"
    assert started in recipe.__doc__
