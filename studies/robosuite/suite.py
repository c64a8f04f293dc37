"""The whole loop on four tasks and three seeds, with two more critics as baselines: the runs behind a results page.

    accelerate launch --config_file accelerate_configs/cpu.yaml -m studies.robosuite.suite

    accelerate launch --config_file accelerate_configs/cpu.yaml -m studies.robosuite.suite --tasks=door --seeds=2

Each task and seed is a run of recipes/finetune_robocasa.py with two iterations, in a folder of its own; beside its
critic, one of single steps (IQL) and one whose target asks the policy (Q-chunking) learn from the same data, features
and images; IQL's has some rollouts besides. Every policy is played without its noise as well. Needs the extras `sim`,
`lerobot`, `groot`, `train` and `report`. Stages that are done are skipped: run it again to go on. Suites that are
started beside each other share the runs: two of one process each (`python -m studies.robosuite.suite`) get through more
of them on two cores than one of two processes. `studies/robosuite/results.py` writes the page.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from deas_vla.config import parse, to_json
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage, try_lock
from recipes.collect_rollouts import CollectRolloutsConfig, collect_rollouts
from recipes.evaluate import EvaluateConfig, evaluate, named
from recipes.finetune_robocasa import FEATURES, FinetuneRobocasaConfig, improve
from recipes.train_critic import TrainCriticConfig, train_critic
from studies.runs import WITHOUT_NOISE

# Each task with its own flags of recipes/finetune_robocasa.py: where an object must be grasped and put somewhere, 150
# demonstrations make a policy that succeeds in one try of ten, which leaves a critic little to learn from.
MORE = ("--demos.episodes=400", "--demos.frame_every=2", "--bc.steps=2500")
TASKS = {"lift": (), "stack": MORE, "pick_place_can": MORE, "door": ()}
# One discount and a plain regression, as published; data, hidden layers, training and auxiliary loss are those of the
# loop.
ONE_DISCOUNT = {"reward_discount": 0.99, "bootstrap_discount": 0.99, "head": "scalar"}

# What plays without noise too.
POLICIES = ("policy", "filtered_bc", "advantage_weighted", "second_iteration")


class Baseline(NamedTuple):
    """A critic to compare with."""

    # What is changed of the critic of the loop.
    critic: dict
    # Chunks of the policy that its target compares.
    scorer: str = "deas"
    # Rollouts that it has besides, with an image of every step, as a share of the others: where images are eight steps
    # apart, single steps do not join, and no value gets from one to the next.
    dense_share: float = 0.0


BASELINES = {
    "iql_critic": Baseline({"horizon": 1, **ONE_DISCOUNT}, "iql", dense_share=0.2),
    "qc_critic": Baseline(ONE_DISCOUNT, "q_chunking"),
}


@dataclass
class RobosuiteSuiteConfig:
    """Settings of studies/robosuite/suite.py."""

    # Folder of the runs, one folder a task and seed.
    output: str = "outputs/robosuite"
    # Tasks: lift, stack, pick_place_can, door.
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    # Training seeds. On seed 0 the settings were chosen; earlier versions have played the scenes of 1 to 4, 7 and 10.
    seeds: list[int] = field(default_factory=lambda: [11, 12, 13])
    # Further flags of recipes/finetune_robocasa.py, separated by spaces.
    flags: str = ""

    def __post_init__(self):
        unknown = sorted(set(self.tasks) - set(TASKS))
        if unknown:
            raise UserError(f"there is no task {', '.join(unknown)}; choose from {', '.join(TASKS)}")


def main(config: RobosuiteSuiteConfig) -> None:
    accelerator = make_accelerator()
    for seed in config.seeds:
        for task in config.tasks:
            run = Path(config.output) / f"{task}-{seed}"
            accelerator.print(f"\n== {run} ==")
            with lock_for_all(accelerator, run) as ours:
                if ours:
                    play_run(accelerator, config, task, seed, run)
                else:
                    accelerator.print("another suite is at it")


@contextmanager
def lock_for_all(accelerator: Accelerator, run: Path) -> Iterator[bool]:
    """Whether the processes of this suite may make this run now: see `try_lock`."""
    with try_lock(run) if accelerator.is_main_process else nullcontext() as mine:
        yield broadcast_object_list([mine])[0]


def play_run(accelerator: Accelerator, config: RobosuiteSuiteConfig, task: str, seed: int, run: Path) -> None:
    """One task and seed, from the demonstrations to the report."""
    flags = [f"--tasks={task}", f"--seed={seed}", f"--output={run}", "--second_iteration=true"]
    flags += [
        "--evaluation.scenes=200",
        "--evaluation.samples=1",
        "--evaluation.video=false",
        *TASKS[task],
        *config.flags.split(),
    ]
    loop = parse(FinetuneRobocasaConfig, flags, prog="finetune_robocasa")
    plan = improve(accelerator, loop)
    scorers = [f"{name.removesuffix('_critic')}:{train_baseline(accelerator, loop, plan, name)}" for name in BASELINES]
    play_without_noise(accelerator, plan, run / WITHOUT_NOISE)
    evaluate(accelerator, replace(plan, scorers=scorers))


def play_without_noise(accelerator: Accelerator, plan: EvaluateConfig, output: Path) -> None:
    """Plays every policy of a run without its noise, in scenes that no evaluation uses.

    Fine-tuning on chosen chunks also makes a policy less noisy. What it teaches besides is seen here.
    """
    folders = {"policy": [Path(plan.policy)]} | named(plan.policies, critic=True)
    inputs = {name: folders[name][0] for name in POLICIES}
    scenes = scenes_of("ablation", plan.evaluation.scenes, plan.seed)

    def play(workers: EnvWorkers, task: str, name: str, place: Path) -> None:
        policy = load_policy(inputs[name] / "policy").to(accelerator.device)
        workers.contract.require_same(policy.contract, f"task {task}", f"policy {inputs[name]}")
        evaluate_method(
            name,
            workers,
            BestOfN(policy, selection=SelectionConfig(noise_scale=0.0)),
            paired_jobs(scenes, 1),
            place,
            seed=plan.seed,
            parallel=plan.parallel_episodes,
            execute_steps=plan.evaluation.execute_steps,
            line=accelerator.local_process_index,
        )

    def work(folder: Path) -> None:
        for task in plan.tasks:
            place = folder / "methods" / task
            with plan.open_workers(task, accelerator.num_processes) as workers:
                for name in inputs:
                    with try_lock(place / f"{name}.json") as mine:
                        if mine:
                            play(workers, task, name, place)
        accelerator.wait_for_everyone()

    names = ("env", "tasks", "simulator", "seed")
    settings = {name: value for name, value in to_json(plan).items() if name in names}
    settings |= {"scenes": len(scenes), "execute_steps": plan.evaluation.execute_steps}
    run_stage(accelerator, output, settings, inputs, work, everyone=True)


def train_baseline(accelerator: Accelerator, loop: FinetuneRobocasaConfig, plan: EvaluateConfig, name: str) -> str:
    """A critic of another kind from the data of the first iteration and its own; returns its folder."""
    run, baseline = Path(loop.output), BASELINES[name]
    rollouts = [run / "rollouts"]
    if baseline.dense_share:
        episodes = round(baseline.dense_share * loop.rollouts.episodes)
        rollouts.append(collect_dense_rollouts(accelerator, loop, plan, episodes))
    train_critic(
        accelerator,
        TrainCriticConfig(
            output=str(run / name),
            demonstrations=str(run / "demonstrations"),
            rollouts=[str(folder) for folder in rollouts],
            policy=plan.policy,
            cache=str(run / FEATURES),
            seed=loop.seed,
            reward=loop.reward,
            features=loop.features,
            image_encoder=loop.image_encoder,
            image_encoder_training=loop.image_encoder_training,
            critic=replace(loop.critic, **baseline.critic),
            scorer=baseline.scorer,
            policy_chunks=8,
            mix=loop.mix,
            training=loop.critic_training,
        ),
    )
    return str(run / name)


def collect_dense_rollouts(
    accelerator: Accelerator, loop: FinetuneRobocasaConfig, plan: EvaluateConfig, episodes: int
) -> Path:
    """Rollouts of the cloned policy in scenes of their own, with an image of every step; returns their folder."""
    folder = Path(loop.output) / "dense_rollouts"
    simulator = {f.name: getattr(loop, f.name) for f in fields(SimulatorConfig)}
    collect_rollouts(
        accelerator,
        CollectRolloutsConfig(
            **simulator,
            output=str(folder),
            policy=plan.policy,
            seed=loop.seed,
            # After those of both iterations.
            skip=2 * loop.rollouts.episodes,
            rollouts=replace(loop.rollouts, episodes=episodes, frame_every=1),
        ),
    )
    return folder


if __name__ == "__main__":
    run_recipe(main, RobosuiteSuiteConfig)
