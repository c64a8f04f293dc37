"""Paired evaluation of a policy, its critic and its fine-tuned versions, and the report.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/evaluate.py \\
        --policy=outputs/lift/policy --critic=outputs/lift/critic --output=outputs/lift/evaluation

Needs the extras `sim`, `groot` and `report`. All methods play the same scenes with the same noise, and processes share
the methods; the scenes are never those of collection. About 0.05 s an episode on two cores for Lift, the oracle about
1 s a scene.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from deas_vla.config import incidental
from deas_vla.envs.registry import make_env
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.registry import load_policy
from deas_vla.report.film import film_methods
from deas_vla.report.run import write_run_report
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.oracle import play_oracle
from deas_vla.rollouts.scenes import overlap_of, scenes_of
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import lock, run_stage, try_lock


@dataclass
class EvaluationConfig:
    """What is played."""

    # Scenes that every method plays, for each task.
    scenes: int = 100
    # Draws of the policy's noise in each scene.
    samples: int = 2
    # Candidates of the methods best_of_n, worst_of_n, random_candidate and oracle.
    num_candidates: int = 8
    # Numbers of candidates in the table of success against N; more can hurt.
    candidate_counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    # The noise of candidates is multiplied by this; methods of a policy alone play with its own.
    noise_scale: float = 0.5
    # Actions played of each chunk before the policy decides again.
    execute_steps: int = 16
    # Scenes (the first ones) in which the oracle tries every candidate out in a branch of the simulator; 0: none.
    oracle_scenes: int = 20
    # Film one scene, policy beside best-of-N.
    video: bool = True

    def __post_init__(self):
        if self.scenes < 1 or self.samples < 1 or self.num_candidates < 2 or min(self.candidate_counts) < 1:
            raise UserError(
                "scenes, samples and candidate_counts must be at least 1 and num_candidates at least 2"
            )


@dataclass
class EvaluateConfig(SimulatorConfig):
    """Settings of recipes/evaluate.py."""

    # Folder of this stage; the report goes into the folder above it.
    output: str = incidental("outputs/lift/evaluation")
    # Stage folder of the policy.
    policy: str = incidental("outputs/lift/policy")
    # Stage folder of the critic.
    critic: str = incidental("outputs/lift/critic")
    # Stage folder of the policy after filtered behaviour cloning; empty to leave this method out.
    filtered_bc: str = incidental("")
    # Stage folder of the policy after advantage-weighted fine-tuning; empty to leave these methods out.
    advantage_weighted: str = incidental("")
    # Stage folder of the critic of a second iteration; empty to leave its methods out.
    second_critic: str = incidental("")
    # Stage folder of the policy of a second iteration; empty to leave its methods out.
    second_iteration: str = incidental("")
    # Stage folder of a one-step critic (IQL), for a method that chooses by it; empty to leave it out.
    iql_critic: str = incidental("")
    # Stage folder of a critic whose target asks the policy (Q-chunking), for a method that chooses by it; empty too.
    qc_critic: str = incidental("")
    # Chooses the scenes and the policy's noise, 0 to 99.
    seed: int = 1
    # What is played.
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def evaluate(accelerator: Accelerator, config: EvaluateConfig) -> None:
    policies_of = ("policy", "filtered_bc", "advantage_weighted", "second_iteration")
    critics_of = ("critic", "second_critic", "iql_critic", "qc_critic")
    paths = policies_of + critics_of
    inputs = {name: Path(getattr(config, name)) for name in paths if getattr(config, name)}
    plan = config.evaluation

    scenes = scenes_of("evaluation", plan.scenes, config.seed)

    def work(folder: Path) -> None:
        overlap_of(inputs.values(), scenes).require_none()
        policies = {
            name: load_policy(inputs[name] / "policy").to(accelerator.device)
            for name in policies_of
            if name in inputs
        }
        policy = policies["policy"]
        scorers = {
            name: load_scorer(inputs[name] / "critic", policy.contract).to(accelerator.device)
            for name in critics_of
            if name in inputs
        }
        scorer = scorers["critic"]

        n, noise = plan.num_candidates, SelectionConfig(noise_scale=plan.noise_scale)
        methods = {
            "policy": BestOfN(policy, 1, "first", scorer),
            "random_candidate": BestOfN(policy, n, "random", selection=noise),
            "zero_noise": BestOfN(policy, selection=SelectionConfig(noise_scale=0.0)),
            "worst_of_n": BestOfN(policy, n, "worst", scorer, noise),
            "best_of_n": BestOfN(policy, n, "best", scorer, noise),
        }
        if "filtered_bc" in policies:
            methods["filtered_bc"] = BestOfN(policies["filtered_bc"])
        if "advantage_weighted" in policies:
            methods["advantage_weighted"] = BestOfN(policies["advantage_weighted"])
            methods["advantage_weighted + best_of_n"] = BestOfN(
                policies["advantage_weighted"], n, "best", scorer, noise
            )
        if "second_iteration" in policies:
            methods["second_iteration"] = BestOfN(policies["second_iteration"])
            methods["second_iteration + best_of_n"] = BestOfN(
                policies["second_iteration"], n, "best", scorers["second_critic"], noise
            )
        if "iql_critic" in scorers:
            methods["iql"] = BestOfN(policy, n, "best", scorers["iql_critic"], noise)
        if "qc_critic" in scorers:
            methods["qc"] = BestOfN(policy, n, "best", scorers["qc_critic"], noise)
        # What is a method above is not played twice: n candidates, and one that has the policy's own noise.
        for count in {1, *plan.candidate_counts} - ({1, n} if plan.noise_scale == 1 else {n}):
            methods[f"best_of_{count}"] = BestOfN(policy, count, "best", scorer, noise)

        playing = {
            "seed": config.seed,
            "execute_steps": plan.execute_steps,
            "line": accelerator.local_process_index,
        }
        for task in config.tasks:
            place = folder / "methods" / task
            with config.open_workers(task, accelerator.num_processes) as workers:
                workers.contract.require_same(policy.contract, f"task {task}", f"policy {config.policy}")
                # The longest first: processes share the methods, and should end together.
                if plan.oracle_scenes:
                    with try_lock(place / "oracle.json") as mine:
                        if mine:
                            decider = BestOfN(policy, n, "best", scorer, noise)
                            play_oracle(workers, decider, scenes[: plan.oracle_scenes], place, **playing)
                for name, decider in sorted(methods.items(), key=lambda method: -method[1].num_candidates):
                    # Without noise every sample is the same episode.
                    jobs = paired_jobs(scenes, plan.samples if decider.selection.noise_scale else 1)
                    with try_lock(place / f"{name}.json") as mine:
                        if mine:
                            parallel = config.parallel_episodes
                            evaluate_method(name, workers, decider, jobs, place, parallel=parallel, **playing)
        accelerator.wait_for_everyone()
        if plan.video and accelerator.is_main_process:
            film_methods(
                make_env(config.env_config(config.tasks[0])),
                {"policy": methods["policy"], f"best of {n}": methods["best_of_n"]},
                [
                    folder / "methods" / config.tasks[0] / f"{method}.json"
                    for method in ("policy", "best_of_n")
                ],
                folder / "rollout.mp4",
                seed=config.seed,
                execute_steps=plan.execute_steps,
            )

    run_stage(accelerator, Path(config.output), config, inputs, work, everyone=True)
    if accelerator.is_main_process:
        with lock(Path(config.output).parent / "report"):
            report = write_run_report(Path(config.output), ["accelerate", "launch", *sys.argv])
        headline, page = report["headline"], Path(config.output).parent / "report.html"
        print(f"\n{headline['text']}\n{headline['detail']}\nAll of it: {page}", flush=True)


def main(config: EvaluateConfig) -> None:
    evaluate(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, EvaluateConfig)
