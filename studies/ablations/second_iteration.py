"""After two iterations of improvement: which policy should propose, and which critic choose?

    accelerate launch --config_file accelerate_configs/cpu.yaml -m studies.ablations.second_iteration \\
        --runs=outputs/robosuite/lift-11,outputs/robosuite/stack-11 --output=outputs/second_iteration_ablation/robosuite

Needs the extras `sim`, `groot` and `lerobot`, and runs of recipes/finetune_robocasa.py with `--second_iteration=true`;
those of studies/robosuite/suite.py are. Every pairing of a policy with a critic plays the same scenes, which no
evaluation uses; tables compare all of them scene by scene, over tasks and training seeds. About a minute a pairing
and run on one core, which processes share; what is done is skipped.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from accelerate import Accelerator
from tqdm import tqdm

from deas_vla.config import from_json
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.scorers.scorer import EnsembleScorer, load_scorer
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage, stage_report, try_lock
from studies.ablations.second_iteration_table import judge, second_iteration_tables


class Pairing(NamedTuple):
    """A policy that proposes, and who chooses."""

    # Stages of a run.
    policy: str
    critics: tuple[str, ...]
    num_candidates: int = 8
    # The noise that candidates are made of is multiplied by this.
    noise_scale: float = 0.5


POLICIES, CRITICS = ("advantage_weighted", "advantage_weighted_2"), ("critic", "critic_2")
FIRST, SECOND = Pairing(POLICIES[0], CRITICS[:1]), Pairing(POLICIES[1], CRITICS[1:])
PAIRINGS = {
    "first iteration": FIRST,
    "second iteration": SECOND,
    "second policy, first critic": Pairing(POLICIES[1], CRITICS[:1]),
    "first policy, second critic": Pairing(POLICIES[0], CRITICS[1:]),
    "second policy, mean of both critics": Pairing(POLICIES[1], CRITICS),
    "first iteration, noise ×1": FIRST._replace(noise_scale=1.0),
    "second iteration, noise ×1": SECOND._replace(noise_scale=1.0),
    "first iteration, 32 candidates": FIRST._replace(num_candidates=32),
    "second iteration, 32 candidates": SECOND._replace(num_candidates=32),
}
# What each is compared with, where it is not the first: what is alike but for the iteration.
AGAINST = {
    "second iteration, noise ×1": "first iteration, noise ×1",
    "second iteration, 32 candidates": "first iteration, 32 candidates",
}


@dataclass
class SecondIterationAblationConfig:
    """Settings of studies/ablations/second_iteration.py."""

    # Folders of runs of finetune_robocasa with a second iteration: tasks and training seeds are theirs.
    runs: list[str] = field(default_factory=lambda: ["outputs/lift"])
    # Folder of the ablation.
    output: str = "outputs/second_iteration_ablation/lift"
    # Scenes that every pairing plays once, for each run and task.
    scenes: int = 200
    # Simulator processes; 0 plays in the recipe's own.
    workers: int = 2
    # Episodes under way at once.
    parallel_episodes: int = 16

    def __post_init__(self):
        if self.scenes < 1 or not self.runs:
            raise UserError("the ablation needs a run and a scene")


def main(config: SecondIterationAblationConfig) -> None:
    accelerator = make_accelerator()
    for run in map(Path, config.runs):
        play_run(accelerator, config, run)
    if accelerator.is_main_process:
        results = {"scenes": config.scenes, "runs": [Path(run).name for run in config.runs]}
        results |= judge([Path(config.output) / Path(run).name for run in config.runs], against_of(list(PAIRINGS)))
        path = Path(config.output) / "ablation.json"
        write_json(path, results)
        print(f"\n{second_iteration_tables(results)}\n\nIn {path}.")


def against_of(names: list[str]) -> dict[str, str | None]:
    """Every pairing to the one that it is compared with; the first has none."""
    return {name: AGAINST.get(name, names[0]) if name != names[0] else None for name in names}


def play_run(accelerator: Accelerator, config: SecondIterationAblationConfig, run: Path) -> None:
    """Plays every pairing of one run."""
    inputs = {name: run / name for name in (*POLICIES, *CRITICS)}
    collected = stage_report(run / "rollouts_2")["settings"]
    simulator = from_json(
        SimulatorConfig,
        {name: collected[name] for name in ("env", "tasks", "simulator")}
        | {"workers": config.workers, "parallel_episodes": config.parallel_episodes},
        run / "rollouts_2",
    )
    seed, execute_steps = collected["seed"], collected["rollouts"]["execute_steps"]
    jobs = paired_jobs(scenes_of("ablation", config.scenes, seed), 1)

    def work(folder: Path) -> None:
        policies = {name: load_policy(inputs[name] / "policy").to(accelerator.device) for name in POLICIES}
        for task in simulator.tasks:
            place = folder / "methods" / task
            with simulator.open_workers(task, accelerator.num_processes) as workers:
                # The longest first: processes share the pairings, and should end together.
                ordered = sorted(PAIRINGS.items(), key=lambda named: -named[1].num_candidates)
                for name, pairing in tqdm(ordered, desc=folder.name, unit="pairing", dynamic_ncols=True):
                    policy = policies[pairing.policy]
                    workers.contract.require_same(policy.contract, f"task {task}", f"policy {pairing.policy}")
                    with try_lock(place / f"{name}.json") as mine:
                        if mine:
                            evaluate_method(
                                name,
                                workers,
                                decider(policy, pairing, [inputs[critic] for critic in pairing.critics]),
                                jobs,
                                place,
                                seed=seed,
                                parallel=config.parallel_episodes,
                                execute_steps=execute_steps,
                                line=accelerator.local_process_index + 1,
                            )
        accelerator.wait_for_everyone()

    settings = {name: collected[name] for name in ("env", "tasks", "simulator", "seed")}
    settings |= {"scenes": config.scenes, "execute_steps": execute_steps}
    settings |= {"pairings": {name: pairing._asdict() for name, pairing in PAIRINGS.items()}}
    run_stage(accelerator, Path(config.output) / run.name, settings, inputs, work, everyone=True)


def decider(policy: ChunkPolicy, pairing: Pairing, folders: list[Path]) -> BestOfN:
    """Best of N by the smallest value of a critic's networks; of several critics, by the mean of these."""
    device = next(policy.parameters()).device
    scorer = EnsembleScorer([load_scorer(folder / "critic", policy.contract) for folder in folders]).to(device)
    selection = SelectionConfig(noise_scale=pairing.noise_scale)
    return BestOfN(policy, pairing.num_candidates, "best", scorer, selection)


if __name__ == "__main__":
    run_recipe(main, SecondIterationAblationConfig)
