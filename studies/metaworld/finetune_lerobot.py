"""A policy that stock `lerobot-train` makes, its critic, and the reranker in stock `lerobot-eval`, on Meta-World.

    python -m studies.metaworld.finetune_lerobot --kind=diffusion --output=outputs/lerobot-diffusion
    python -m studies.metaworld.finetune_lerobot --kind=smolvla --output=outputs/lerobot-smolvla

Needs the extras `metaworld`, `lerobot`, `groot`, `train` and `report`, and the plug-ins in `plugins/`; half an hour on
two CPU cores, an estimate. Nothing of LeRobot is changed and nothing is downloaded. LeRobot trains on demonstrations
of Meta-World's experts; the policy is adopted, rolled out, given a critic, evaluated by recipes/evaluate.py and
exported; then LeRobot's own tool plays the policy that it trained, and the export, on the same scenes.
`studies/metaworld/results.py --lerobot=…` writes what came out. Each stage is skipped when it is there.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from deas_vla.config import to_json
from deas_vla.critic.critic import CriticConfig
from deas_vla.envs.metaworld.tasks import RATE_HZ, TASKS
from deas_vla.envs.rendering import choose_gl
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError
from deas_vla.export.export import ExportConfig, export_run
from deas_vla.features.features import FeatureConfig
from deas_vla.features.image_encoder import ImageEncoderConfig
from deas_vla.files import write_json
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.rollouts.collect import DATASET
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.training.loop import TrainingConfig, make_accelerator
from deas_vla.training.presets import preset
from deas_vla.training.stages import run_stage
from recipes.adopt_policy import AdoptPolicyConfig, adopt_policy
from recipes.collect_demos import CollectDemosConfig, DemosConfig, collect_demos
from recipes.collect_rollouts import CollectRolloutsConfig, RolloutsConfig, collect_rollouts
from recipes.evaluate import EvaluateConfig, EvaluationConfig, evaluate
from recipes.train_critic import TrainCriticConfig, train_critic
from studies.metaworld.lerobot_section import OURS, RESULTS, STAGE, STOCK, lerobot_table, read_lerobot_run, with_summary
from studies.metaworld.small_smolvlm import write_small_smolvlm

CHUNK = 16
RERANKER = "reranker"
# Where lerobot-train leaves the newest policy.
LAST = Path("checkpoints", "last", "pretrained_model")

# Named, because the help of the command line is read from the source and sees no quotes in an annotation.
Kind = Literal["diffusion", "smolvla"]


@dataclass
class LeRobotTrainingConfig:
    """What `lerobot-train` is told."""

    # Updates.
    steps: int = 600
    # Frames in a batch.
    batch_size: int = 32
    # Largest learning rate.
    learning_rate: float = 1e-3
    # Further flags of lerobot-train, separated by spaces.
    flags: str = ""


@dataclass
class FinetuneLerobotConfig(SimulatorConfig):
    """Settings of studies/metaworld/finetune_lerobot.py."""

    # Folder of the run: one folder a stage; the exported reranker is lerobot/reranker.
    output: str = "outputs/lerobot-diffusion"
    # The policy that LeRobot trains, small and from new weights.
    kind: Kind = "diffusion"
    # Chooses scenes, noise, initial weights and the order of the data, 0 to 99.
    seed: int = 1
    # The simulator.
    env: str = "metaworld"
    # Tasks, separated by commas; diffusion reads no instruction.
    tasks: list[str] = field(default_factory=lambda: ["push-v3", "drawer-open-v3"])
    # Demonstrations of the scripted experts.
    demos: DemosConfig = field(default_factory=lambda: DemosConfig(episodes=50))
    # LeRobot's training.
    lerobot: LeRobotTrainingConfig = field(default_factory=LeRobotTrainingConfig)
    # Rollouts of the policy.
    rollouts: RolloutsConfig = field(default_factory=lambda: RolloutsConfig(episodes=100))
    # From the policy's tokens to the critic's features.
    features: FeatureConfig = field(default_factory=lambda: FeatureConfig(dim=128))
    # The critic's own image encoder.
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    # Its optimisation, before the critic's.
    image_encoder_training: TrainingConfig = field(default_factory=lambda: preset("default").image_encoder_training)
    # The critic and its losses.
    critic: CriticConfig = field(default_factory=CriticConfig)
    # The critic's optimisation.
    critic_training: TrainingConfig = field(default_factory=lambda: preset("default").training)
    # The paired evaluation. LeRobot plays each scene with one sample of noise, and so does it.
    evaluation: EvaluationConfig = field(
        default_factory=lambda: EvaluationConfig(
            scenes=50, samples=1, candidate_counts=[8], oracle_scenes=0, video=False
        )
    )
    # Episodes of the reranker on LeRobot's own Meta-World, for each task. It shows one camera at 480 pixels, so this
    # needs --simulator.cameras=corner2 --simulator.camera_size=480.
    own_episodes: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.evaluation.samples != 1:
            raise UserError("--evaluation.samples must be 1: lerobot-eval plays each scene once")
        if self.own_episodes and (self.simulator.cameras, self.simulator.camera_size) != (["corner2"], 480):
            raise UserError(
                "--own_episodes needs what LeRobot's own Meta-World shows: "
                "--simulator.cameras=corner2 --simulator.camera_size=480"
            )


# ---- what LeRobot is told -----------------------------------------------------------------------------------------


def policy_flags(config: FinetuneLerobotConfig, folder: Path) -> list[str]:
    """The policy's own flags: sizes for a CPU. Images are seen at 64 pixels at most."""
    size, rate = min(config.simulator.camera_size, 64), config.lerobot.learning_rate
    if config.kind == "diffusion":
        return [
            # A critic sees one observation.
            "--policy.n_obs_steps=1",
            f"--policy.horizon={CHUNK}",
            f"--policy.resize_shape=[{size},{size}]",
            "--policy.pretrained_backbone_weights=null",
            "--policy.spatial_softmax_num_keypoints=16",
            "--policy.down_dims=[64,128]",
            "--policy.diffusion_step_embed_dim=32",
            "--policy.noise_scheduler_type=DDIM",
            "--policy.num_train_timesteps=50",
            "--policy.num_inference_steps=5",
            # As the project's own policies: the chunk, not the noise.
            "--policy.prediction_type=sample",
            f"--policy.optimizer_lr={rate}",
            "--policy.scheduler_warmup_steps=50",
        ]
    instructions = [TASKS[task].instruction for task in config.tasks]
    backbone = write_small_smolvlm(folder / "smolvlm", instructions, size, width=64, layers=4)
    return [
        f"--policy.vlm_model_name={backbone}",
        f"--policy.chunk_size={CHUNK}",
        "--policy.num_vlm_layers=4",
        f"--policy.resize_imgs_with_padding=[{size},{size}]",
        "--policy.num_steps=5",
        "--policy.max_state_dim=8",
        "--policy.max_action_dim=8",
        "--policy.tokenizer_max_length=24",
        # Its weights are new: all of them must learn.
        "--policy.freeze_vision_encoder=false",
        "--policy.train_expert_only=false",
        f"--policy.optimizer_lr={rate}",
        "--policy.scheduler_warmup_steps=50",
        f"--policy.scheduler_decay_steps={config.lerobot.steps}",
    ]


def train_policy(accelerator: Accelerator, config: FinetuneLerobotConfig, folder: Path, data: Path) -> None:
    """`lerobot-train`, a stage; it goes on from its last checkpoint."""
    plan = config.lerobot

    def work(folder: Path) -> None:
        trained = folder.resolve() / "train"
        if (trained / LAST).is_dir():
            run_lerobot("lerobot-train", [f"--config_path={trained / LAST}/train_config.json", "--resume=true"])
            return
        shutil.rmtree(trained, ignore_errors=True)
        flags = [
            "--dataset.repo_id=local/demonstrations",
            f"--dataset.root={(data / DATASET).resolve()}",
            f"--policy.type={config.kind}",
            f"--policy.n_action_steps={CHUNK}",
            f"--policy.device={accelerator.device.type}",
            "--policy.push_to_hub=false",
            *policy_flags(config, folder.resolve()),
            f"--output_dir={trained}",
            f"--steps={plan.steps}",
            f"--batch_size={plan.batch_size}",
            f"--save_freq={max(plan.steps // 4, 1)}",
            f"--log_freq={max(plan.steps // 20, 1)}",
            f"--seed={config.seed}",
            "--env_eval_freq=0",
            # Two small images a frame need no processes of their own.
            "--num_workers=0",
        ]
        run_lerobot("lerobot-train", flags + plan.flags.split())

    settings = {"kind": config.kind, "lerobot": to_json(plan), "seed": config.seed}
    run_stage(accelerator, folder, settings, {"demonstrations": data}, work)


def play_in_lerobot(accelerator: Accelerator, config: FinetuneLerobotConfig, run: Path) -> None:
    """The export, and `lerobot-eval` of it and of the policy that LeRobot trained, a stage."""
    plan = config.evaluation
    first_scene = scenes_of("evaluation", plan.scenes, config.seed)[0]
    base = [f"--policy.path={(run / 'training' / 'train' / LAST).resolve()}"]
    ours = [
        "--env.type=metaworld_small",
        f"--env.task={','.join(config.tasks)}",
        f"--env.cameras=[{','.join(config.simulator.cameras)}]",
        f"--env.camera_size={config.simulator.camera_size}",
        f"--env.episode_length={config.simulator.horizon}",
    ]
    stock = [
        "--env.type=metaworld",
        f"--env.task={','.join(config.tasks)}",
        '--rename_map={"observation.image": "observation.images.corner2"}',
    ]

    def work(folder: Path) -> None:
        exported = folder.resolve() / RERANKER
        reranker = [f"--policy.path={exported}", f"--policy.seed={config.seed}", f"--policy.rate_hz={RATE_HZ:g}"]
        if not exported.exists():
            # The rule of the evaluation's method best_of_n.
            export_run(
                ExportConfig(
                    run=str(run),
                    output=str(exported),
                    candidates=plan.num_candidates,
                    selection=SelectionConfig(rule="best", noise_scale=plan.noise_scale),
                )
            )

        def played(name: str, policy: list[str], env: list[str], episodes: int) -> dict[str, list[bool]]:
            info = folder.resolve() / name / "eval_info.json"
            if not info.is_file():
                flags = [
                    *policy,
                    *env,
                    f"--policy.device={accelerator.device.type}",
                    f"--seed={first_scene}",
                    f"--eval.n_episodes={episodes}",
                    f"--eval.batch_size={min(episodes, 10)}",
                    "--eval.use_async_envs=false",
                    f"--output_dir={info.parent}",
                ]
                run_lerobot("lerobot-eval", flags)
            tasks = json.loads(info.read_text(encoding="utf-8"))["per_task"]
            return {task["task_group"]: task["metrics"]["successes"] for task in tasks}

        results = {
            "kind": config.kind,
            "seed": config.seed,
            "candidates": plan.num_candidates,
            STOCK: {
                "policy": played("policy", base, ours, plan.scenes),
                "best_of_n": played("best_of_n", reranker, ours, plan.scenes),
            },
            OURS: {
                "best_of_n": {
                    task: [
                        record["success"]
                        for record in json.loads(
                            (run / "evaluation/methods" / task / "best_of_n.json").read_text(encoding="utf-8")
                        )
                    ]
                    for task in config.tasks
                }
            },
        }
        if config.own_episodes:
            choose_gl()  # LeRobot leaves it to MuJoCo, which chooses a window
            results["own_environment"] = played("own_environment", reranker, stock, config.own_episodes)
        write_json(folder / RESULTS, results)

    settings = {"scenes": plan.scenes, "own_episodes": config.own_episodes}
    inputs = {"training": run / "training", "evaluation": run / "evaluation"}
    run_stage(accelerator, run / STAGE, settings, inputs, work)
    if accelerator.is_main_process:
        print(lerobot_table([with_summary(read_lerobot_run(run))]))


def run_lerobot(tool: str, flags: list[str]) -> None:
    """Runs a command of LeRobot's, without a hub.

    Raises:
        UserError: if it fails; what it said stands above.
    """
    command = [str(Path(sys.executable).with_name(tool)), *flags]
    print(f"$ {' '.join(command)}", flush=True)
    done = subprocess.run(command, env=environment_alone() | {"HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode:
        raise UserError(f"{tool} ended with status {done.returncode}; its own message is above")


def environment_alone() -> dict[str, str]:
    """The environment without what a launcher tells its processes: a child would wait for the others of the group."""
    told = ("ACCELERATE_", "TORCHELASTIC_", "TORCH_NCCL_", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "RANK", "WORLD_SIZE")
    return {name: value for name, value in os.environ.items() if not name.startswith(told)}


# ---- the loop -----------------------------------------------------------------------------------------------------


def main(config: FinetuneLerobotConfig) -> None:
    accelerator = make_accelerator()
    run, seed = Path(config.output), config.seed
    simulator = {f.name: getattr(config, f.name) for f in fields(SimulatorConfig)}
    demonstrations, policy, rollouts, critic = (
        str(run / name) for name in ("demonstrations", "policy", "rollouts", "critic")
    )

    collect_demos(accelerator, CollectDemosConfig(**simulator, output=demonstrations, seed=seed, demos=config.demos))
    train_policy(accelerator, config, run / "training", Path(demonstrations))
    adopt_policy(
        accelerator,
        AdoptPolicyConfig(
            checkpoint=str(run / "training" / "train" / LAST), dataset=str(Path(demonstrations, DATASET)), output=policy
        ),
    )
    collect_rollouts(
        accelerator,
        CollectRolloutsConfig(**simulator, output=rollouts, policy=policy, seed=seed, rollouts=config.rollouts),
    )
    train_critic(
        accelerator,
        TrainCriticConfig(
            output=critic,
            demonstrations=demonstrations,
            rollouts=[rollouts],
            policy=policy,
            seed=seed,
            features=config.features,
            image_encoder=config.image_encoder,
            image_encoder_training=config.image_encoder_training,
            critic=config.critic,
            training=config.critic_training,
        ),
    )
    evaluate(
        accelerator,
        EvaluateConfig(
            **simulator,
            output=str(run / "evaluation"),
            policy=policy,
            critic=critic,
            seed=seed,
            evaluation=config.evaluation,
        ),
    )
    play_in_lerobot(accelerator, config, run)


if __name__ == "__main__":
    run_recipe(main, FinetuneLerobotConfig)
