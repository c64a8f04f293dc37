"""Many tasks, one policy, one critic: the loop of finetune_robocasa.py on ten tasks of Meta-World.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_metaworld.py

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_metaworld.py \\
        --tasks=door-open-v3,door-close-v3 --output=outputs/doors

Needs the extras `metaworld`, `lerobot`, `groot`, `train` and `report`. Each stage's last line says how long it
took. The demonstrations of all tasks are one data set and so are the rollouts; which task it is, policy and critic read
in the instruction. `studies/metaworld/results.py` writes the results task by task.
"""

from dataclasses import dataclass, field

from deas_vla.critic.critic import CriticConfig
from deas_vla.envs.metaworld.tasks import MT10
from deas_vla.features.features import FeatureConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.training.loop import TrainingConfig
from recipes.collect_demos import DemosConfig
from recipes.collect_rollouts import RolloutsConfig
from recipes.evaluate import EvaluationConfig
from recipes.finetune_policy import ImitationConfig
from recipes.finetune_robocasa import FinetuneRobocasaConfig, main


def wider_policy() -> SmallVLAConfig:
    return SmallVLAConfig(width=96, layers=4)


@dataclass
class FinetuneMetaworldConfig(FinetuneRobocasaConfig):
    """Settings of recipes/finetune_metaworld.py."""

    output: str = "outputs/metaworld"  # Folder of the run: one folder a stage, report.html and report.json.
    seed: int = 1  # Chooses scenes, noise, initial weights and the order of the data, 0 to 99.
    env: str = "metaworld"  # The simulator.
    # Tasks, separated by commas: any of Meta-World's 50; the ten of its MT10.
    tasks: list[str] = field(default_factory=lambda: list(MT10))
    # Demonstrations of the scripted experts.
    demos: DemosConfig = field(default_factory=lambda: DemosConfig(episodes=50, frame_every=4))
    policy: SmallVLAConfig = field(default_factory=wider_policy)  # The model.
    # Behaviour cloning of the demonstrations.
    bc: ImitationConfig = field(default_factory=lambda: ImitationConfig(steps=3500, batch_size=64, learning_rate=1e-3))
    # Rollouts of the cloned policy: all tasks share one critic, but few chunks of one teach it about another.
    rollouts: RolloutsConfig = field(default_factory=lambda: RolloutsConfig(episodes=200))
    # From backbone tokens to the critic's features.
    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(dim=192, text_weight=20.0))
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(hidden_dim=384))  # The critic and its losses.
    # The critic's optimisation.
    critic_training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            steps=3000, batch_size=256, learning_rate=1e-3, weight_decay=1e-4, log_every=100
        )
    )
    # Fine-tuning after the critic: the same for filtered and for advantage-weighted behaviour cloning.
    improvement: ImitationConfig = field(
        default_factory=lambda: ImitationConfig(steps=1000, batch_size=64, learning_rate=5e-4)
    )
    # The paired evaluation.
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(
            scenes=50, samples=2, candidate_counts=[1, 8], oracle_scenes=3, video=True
        )
    )


if __name__ == "__main__":
    run_recipe(main, FinetuneMetaworldConfig)
