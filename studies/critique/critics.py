"""Critics of very different worth for one policy, and what each of them gains: what correlation.py compares.

    python -m studies.critique.critics --output=outputs/critique/lift
    python -m studies.critique.critics --output=outputs/critique/door --task=door
    python -m studies.critique.correlation --runs=outputs/critique/lift,outputs/critique/door

A policy is cloned and rolled out as by recipes/finetune_robocasa.py; critics are trained as there, and with less of
something that a good critic needs (`VARIANTS`, written down before any gain was known); all play the same scenes as
best of 8. Rollouts in scenes of their own, `fresh`, are for `deas-vla critique`. Stages that are done are skipped.
Needs the extras `sim`, `lerobot`, `groot` and `report`.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from deas_vla.config import parse
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import require_ranges
from deas_vla.launch import run_recipe
from deas_vla.rollouts.outputs import Outputs
from deas_vla.training.loop import make_accelerator
from recipes.collect_demos import CollectDemosConfig, collect_demos
from recipes.collect_rollouts import CollectRolloutsConfig, collect_rollouts
from recipes.evaluate import EvaluateConfig, evaluate
from recipes.finetune_policy import FinetunePolicyConfig, finetune_policy
from recipes.finetune_robocasa import FEATURES, FinetuneRobocasaConfig
from recipes.train_critic import TrainCriticConfig, train_critic
from studies.critique.correlation import FRESH

# Rollouts of which the critic `few` learns.
FEW = 50


def shorter(plan: TrainCriticConfig, steps: int, image_steps: int) -> TrainCriticConfig:
    images = replace(plan.image_encoder_training, steps=image_steps)
    return replace(plan, training=replace(plan.training, steps=steps), image_encoder_training=images)


# What is changed of the loop's own critic.
VARIANTS: dict[str, Callable[[TrainCriticConfig], TrainCriticConfig]] = {
    "critic": lambda plan: plan,
    "other_seed": lambda plan: replace(plan, seed=77),
    "short": lambda plan: shorter(plan, 250, 60),
    "untrained": lambda plan: shorter(plan, 1, 1),
    "blind": lambda plan: replace(
        plan, image_encoder=replace(plan.image_encoder, dim=0), features=replace(plan.features, grid=0)
    ),
    "few": lambda plan: replace(plan, rollouts=[str(Path(plan.output).parent / "few")]),
    "no_failures": lambda plan: replace(plan, mix=replace(plan.mix, failures=0.0)),
}


@dataclass
class CriticsConfig:
    """Settings of studies/critique/critics.py."""

    # Folder of the run, one folder a stage.
    output: str = "outputs/critique/lift"
    # Task of robosuite.
    task: str = "lift"
    # Chooses scenes, noise, initial weights and the order of the data.
    seed: int = 21
    # Rollouts that the critics learn from, and those that none of them sees.
    episodes: int = 600
    fresh: int = 120
    # Further flags of recipes/finetune_robocasa.py, separated by spaces.
    flags: str = ""

    def __post_init__(self):
        require_ranges(self, "", {"at least 1": "fresh episodes"})


def main(config: CriticsConfig) -> None:
    accelerator, run, outputs = make_accelerator(), Path(config.output), Outputs(kept=3)
    flags = [f"--tasks={config.task}", f"--seed={config.seed}", f"--output={run}", *config.flags.split()]
    loop = parse(FinetuneRobocasaConfig, flags, prog="finetune_robocasa")
    simulator = {f.name: getattr(loop, f.name) for f in fields(SimulatorConfig)}
    demonstrations, policy = str(run / "demonstrations"), str(run / "policy")
    collect_demos(accelerator, CollectDemosConfig(**simulator, output=demonstrations, seed=loop.seed, demos=loop.demos))
    cloning = {"demonstrations": demonstrations, "seed": loop.seed, "policy": loop.policy, "training": loop.bc}
    finetune_policy(accelerator, FinetunePolicyConfig(output=policy, **cloning), outputs)
    parts = {"rollouts": (0, config.episodes), "few": (0, FEW), FRESH: (config.episodes, config.fresh)}
    for name, (skip, episodes) in parts.items():
        rollouts = replace(loop.rollouts, episodes=episodes)
        collecting = {"policy": policy, "seed": loop.seed, "skip": skip, "rollouts": rollouts}
        collect_rollouts(accelerator, CollectRolloutsConfig(**simulator, output=str(run / name), **collecting))
    own = TrainCriticConfig(
        demonstrations=demonstrations,
        rollouts=[str(run / "rollouts")],
        policy=policy,
        cache=str(run / FEATURES),
        seed=loop.seed,
        image_encoder_training=loop.image_encoder_training,
        policy_noise_scale=loop.evaluation.noise_scale,
        training=loop.critic_training,
    )
    critics = {name: change(replace(own, output=str(run / name))) for name, change in VARIANTS.items()}
    for plan in critics.values():
        train_critic(accelerator, plan, outputs)
    evaluation = replace(loop.evaluation, candidate_counts=[1], oracle_scenes=0, video=False)
    evaluate(
        accelerator,
        EvaluateConfig(
            **simulator,
            output=str(run / "evaluation"),
            policy=policy,
            critic=critics["critic"].output,
            scorers=[f"{name}:{plan.output}" for name, plan in critics.items() if name != "critic"],
            seed=loop.seed,
            evaluation=evaluation,
        ),
    )


if __name__ == "__main__":
    run_recipe(main, CriticsConfig)
