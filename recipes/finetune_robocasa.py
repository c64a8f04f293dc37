"""The whole loop: demonstrations → policy → rollouts → critic → improved policies → paired evaluation → report.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_robocasa.py

    accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/finetune_robocasa.py \\
        --env=robocasa --tasks=PickPlaceCounterToCabinet --demos.dataset=LEROBOT_FOLDER --output=outputs/kitchen

By default it plays Lift in robosuite with RoboCasa's robot, columns and camera names: no download, no GPU; 10 minutes
on two idle CPU cores, at most 10 GB. Each stage has a folder in `output`, is skipped when it is there and matches its
settings, and goes on where it was interrupted: run the same command again.
"""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from accelerate import Accelerator

from deas_vla.config import incidental
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.rollouts.outputs import Outputs
from deas_vla.training.critic import require_fit
from deas_vla.training.imitation import AdvantageWeighting
from deas_vla.training.loop import TrainingConfig, make_accelerator
from deas_vla.training.presets import preset
from recipes.collect_demos import CollectDemosConfig, DemosConfig, collect_demos
from recipes.collect_rollouts import CollectRolloutsConfig, RolloutsConfig, collect_rollouts
from recipes.evaluate import EvaluateConfig, EvaluationConfig, evaluate
from recipes.finetune_policy import FinetunePolicyConfig, ImitationConfig, finetune_policy
from recipes.train_critic import CriticRecipeConfig, TrainCriticConfig, train_critic

# Folder of a run in which all its critics keep what was computed of frames.
FEATURES = "features"


def cloning_defaults() -> ImitationConfig:
    return ImitationConfig(steps=1000, batch_size=64, learning_rate=1e-3)


def improvement_defaults() -> ImitationConfig:
    return ImitationConfig(steps=600, batch_size=64, learning_rate=5e-4)


@dataclass
class FinetuneRobocasaConfig(SimulatorConfig, CriticRecipeConfig):
    """Settings of recipes/finetune_robocasa.py."""

    output: str = "outputs/lift"  # Folder of the run: one folder a stage, report.html and report.json.
    # Chooses scenes, noise, initial weights and the order of the data, 0 to 99; the defaults were chosen on seed 0.
    seed: int = 1
    # The policy's noise wherever candidates are made is multiplied by this; null: by what each stage says.
    noise_scale: float | None = None
    # Actions of a chunk that are played wherever one plays; null: what each stage says.
    execute_steps: int | None = None
    demos: DemosConfig = field(default_factory=DemosConfig)  # Demonstrations of the scripted expert.
    policy: SmallVLAConfig = field(default_factory=SmallVLAConfig)  # The model.
    bc: ImitationConfig = field(default_factory=cloning_defaults)  # Behaviour cloning of the demonstrations.
    rollouts: RolloutsConfig = field(default_factory=RolloutsConfig)  # Rollouts of the cloned policy.
    # The critic's optimisation.
    critic_training: TrainingConfig = field(default_factory=lambda: preset("default").training)
    weighting: AdvantageWeighting = field(default_factory=AdvantageWeighting)  # How advantages become weights.
    # Fine-tuning after the critic: the same for filtered and for advantage-weighted behaviour cloning.
    improvement: ImitationConfig = field(default_factory=improvement_defaults)
    # Roll the improved policy out, train a critic on all rollouts and improve again; all are evaluated together.
    second_iteration: bool = False
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # The paired evaluation.
    dry_run: bool = incidental(False)  # Say what every stage would take of disk, memory and time, and end.

    def __post_init__(self):
        super().__post_init__()
        # Hours before the critic's stage would.
        require_fit(self.critic, self.reward)
        if self.noise_scale is not None:
            self.rollouts = replace(self.rollouts, noise_scale=self.noise_scale)
            self.weighting = replace(self.weighting, noise_scale=self.noise_scale)
            self.evaluation = replace(self.evaluation, noise_scale=self.noise_scale)
        if self.execute_steps is not None:
            self.rollouts = replace(self.rollouts, execute_steps=self.execute_steps)
            self.evaluation = replace(self.evaluation, execute_steps=self.execute_steps)

    @staticmethod
    def preset_values(name: str) -> dict:
        """What ``--preset=NAME`` sets."""
        values = TrainCriticConfig.preset_values(name)
        return values | {"critic_training": values.pop("training")}


def main(config: FinetuneRobocasaConfig) -> None:
    accelerator, outputs = make_accelerator(), Outputs(config.dry_run, kept=3)
    evaluate(accelerator, improve(accelerator, config, outputs), outputs)
    outputs.announce_all(accelerator, Path(config.output))


def improve(accelerator: Accelerator, config: FinetuneRobocasaConfig, outputs: Outputs | None = None) -> EvaluateConfig:
    """Every stage before the evaluation; returns what is to be evaluated."""
    run, seed = Path(config.output), config.seed
    playing = {f.name: getattr(config, f.name) for f in fields(SimulatorConfig)} | {"dry_run": config.dry_run}
    demonstrations, policy = str(run / "demonstrations"), str(run / "policy")
    outputs = outputs or Outputs(config.dry_run, kept=3)

    demos = CollectDemosConfig(**playing, output=demonstrations, seed=seed, demos=config.demos)
    collect_demos(accelerator, demos, outputs)
    finetune_policy(
        accelerator,
        FinetunePolicyConfig(
            output=policy,
            demonstrations=demonstrations,
            seed=seed,
            policy=config.policy,
            training=config.bc,
            audit=config.audit,
            dry_run=config.dry_run,
        ),
        outputs,
    )
    first = improvement_iteration(accelerator, config, demonstrations, policy, policy, [], outputs)
    policies = [
        f"filtered_bc:{first['filtered_bc']}",
        f"advantage_weighted:{first['advantage_weighted']}:{first['critic']}",
    ]
    if config.second_iteration:
        improved, rollouts = first["advantage_weighted"], [first["rollouts"]]
        second = improvement_iteration(accelerator, config, demonstrations, policy, improved, rollouts, outputs)
        policies.append(f"second_iteration:{second['advantage_weighted']}:{second['critic']}")
    return EvaluateConfig(
        **playing,
        output=str(run / "evaluation"),
        policy=policy,
        critic=first["critic"],
        policies=policies,
        seed=seed,
        evaluation=config.evaluation,
    )


def improvement_iteration(
    accelerator: Accelerator,
    config: FinetuneRobocasaConfig,
    demonstrations: str,
    policy: str,
    improved: str,
    before: list[str],
    outputs: Outputs,
) -> dict[str, str]:
    """Rollouts → critic → improved policies; returns stage name to folder.

    Stage folders: `policy` of the cloned one, whose backbone all policies share; `improved` of the one that is rolled
    out and improved; `before` of the rollouts of earlier iterations. `outputs`: what the stages before made.
    """
    run, seed = Path(config.output), config.seed
    playing = {f.name: getattr(config, f.name) for f in fields(SimulatorConfig)} | {"dry_run": config.dry_run}
    number = len(before) + 1
    names = ("rollouts", "critic", "filtered_bc", "advantage_weighted")
    folder = {name: str(run / (name if number == 1 else f"{name}_{number}")) for name in names}
    rollouts = [*before, folder["rollouts"]]
    collect_rollouts(
        accelerator,
        CollectRolloutsConfig(
            **playing,
            output=folder["rollouts"],
            policy=improved,
            seed=seed,
            skip=len(before) * config.rollouts.episodes,
            rollouts=config.rollouts,
        ),
        outputs,
    )
    train_critic(
        accelerator,
        TrainCriticConfig(
            **{f.name: getattr(config, f.name) for f in fields(CriticRecipeConfig)},
            output=folder["critic"],
            demonstrations=demonstrations,
            rollouts=rollouts,
            policy=policy,
            cache=str(run / FEATURES),
            seed=seed,
            policy_noise_scale=config.evaluation.noise_scale,
            training=config.critic_training,
            dry_run=config.dry_run,
        ),
        outputs,
    )
    # Filtered behaviour cloning is the baseline of the first iteration only.
    for method in ("filtered_bc", "advantage_weighted")[number > 1 :]:
        finetune_policy(
            accelerator,
            FinetunePolicyConfig(
                output=folder[method],
                method=method,
                demonstrations=demonstrations,
                rollouts=rollouts,
                critic=folder["critic"] if method == "advantage_weighted" else "",
                cache=str(run / FEATURES),
                start_from=improved,
                seed=seed,
                training=config.improvement,
                audit=config.audit,
                weighting=config.weighting,
                dry_run=config.dry_run,
            ),
            outputs,
        )
    return folder


if __name__ == "__main__":
    run_recipe(main, FinetuneRobocasaConfig)
