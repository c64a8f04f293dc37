"""Paired evaluation of a policy, its critic and its fine-tuned versions, and the report.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/evaluate.py \\
        --policy=outputs/lift/policy --critic=outputs/lift/critic --output=outputs/lift/evaluation

Needs the extras `sim`, `groot` and `report`. All methods play the same scenes with the same noise, and processes share
the methods; the scenes are never those of collection. The stage's last line says how long it took; in the demo 117 s
(studies/results/demo.json).
"""

from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from deas_vla.config import incidental
from deas_vla.envs.registry import make_env
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError, require_ranges
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import CANDIDATE_NOISE, EXECUTE_STEPS, RULES, SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.report.report import write_run_report
from deas_vla.report.video import film_methods
from deas_vla.rollouts.estimate import evaluation_needs
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.oracle import Oracle
from deas_vla.rollouts.outputs import Outputs
from deas_vla.rollouts.scenes import require_unseen, scenes_of
from deas_vla.scorers.scorer import Scorer
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import lock, run_stage, try_lock


@dataclass
class EvaluationConfig:
    """What is played."""

    scenes: int = 100  # Scenes that every method plays, for each task.
    samples: int = 2  # Samples of the policy's noise in each scene.
    num_candidates: int = 8  # Candidates of the methods best_of_n, worst_of_n, random_candidate and oracle.
    # Numbers of candidates in the table of success against N; more can hurt.
    candidate_counts: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16, 32])
    # The noise of candidates is multiplied by this; methods of a policy alone play with its own.
    noise_scale: float = CANDIDATE_NOISE
    # Actions played of each chunk before the policy decides again; of shorter chunks, all.
    execute_steps: int = EXECUTE_STEPS
    # Scenes (the first ones) in which the oracle tries every candidate out in a branch of the simulator; 0: none.
    oracle_scenes: int = 20
    video: bool = True  # Film one scene, policy beside best-of-N.

    def __post_init__(self):
        if self.scenes < 1 or self.samples < 1 or self.num_candidates < 2 or min(self.candidate_counts) < 1:
            raise UserError("scenes, samples and candidate_counts must be at least 1 and num_candidates at least 2")
        ranges = {"at least 1": "execute_steps", "at least 0": "noise_scale oracle_scenes"}
        require_ranges(self, "evaluation.", ranges)


@dataclass
class EvaluateConfig(SimulatorConfig):
    """Settings of recipes/evaluate.py."""

    # Folder of this stage; the report goes into the folder above it.
    output: str = incidental("outputs/lift/evaluation")
    policy: str = incidental("outputs/lift/policy")  # Stage folder of the policy.
    # Stage folder of the critic, which chooses in best of N and in its controls.
    critic: str = incidental("outputs/lift/critic")
    # More policies, separated by commas: NAME:FOLDER plays alone, NAME:FOLDER:CRITIC also as best of N by that critic.
    policies: list[str] = incidental([])
    # More critics of any registered scorer, separated by commas: NAME:FOLDER plays as best of N of the policy.
    scorers: list[str] = incidental([])
    seed: int = 1  # Chooses the scenes and the policy's noise, 0 to 99.
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)  # What is played.
    dry_run: bool = incidental(False)  # Say what it would take of disk, memory and time, and end.


def named(texts: list[str], *, critic: bool) -> dict[str, list[Path]]:
    """NAME:FOLDER, or with `critic` also NAME:FOLDER:CRITIC, as often as there is, to name and folders."""
    found: dict[str, list[Path]] = {}
    form = "NAME:FOLDER or NAME:FOLDER:CRITIC" if critic else "NAME:FOLDER"
    for text in texts:
        name, *folders = text.split(":")
        if not name or name in found or not 1 <= len(folders) <= 1 + critic or "" in folders:
            raise UserError(f"--policies and --scorers: '{text}' is not {form} with a name of its own")
        found[name] = [Path(folder) for folder in folders]
    return found


def methods_of(
    plan: EvaluationConfig, policy: ChunkPolicy, scorer: Scorer, policies: dict[str, tuple], scorers: dict[str, Scorer]
) -> dict[str, BestOfN]:
    """What is played, by name: the controls, best of N, and what is given besides; a name that is taken is refused.

    `policies`: name to a policy that plays alone, and perhaps a scorer with which it also plays best of N; `scorers`:
    name to another scorer of the policy's chunks.
    """
    n, noise = plan.num_candidates, SelectionConfig(noise_scale=plan.noise_scale)
    methods = {
        "policy": BestOfN(policy, 1, "first", scorer),
        "random_candidate": BestOfN(policy, n, "random", selection=noise),
        "zero_noise": BestOfN(policy, selection=SelectionConfig(noise_scale=0.0)),
        "worst_of_n": BestOfN(policy, n, "worst", scorer, noise),
        "best_of_n": BestOfN(policy, n, "best", scorer, noise),
    }
    # What is a method above is not played twice: n candidates, and one that has the policy's own noise.
    for count in {1, *plan.candidate_counts} - ({1, n} if plan.noise_scale == 1 else {n}):
        methods[f"best_of_{count}"] = BestOfN(policy, count, "best", scorer, noise)
    taken = sorted((methods.keys() | policies.keys()) & scorers.keys() | methods.keys() & policies.keys())
    if taken or "oracle" in policies | scorers:
        raise UserError(f"--policies and --scorers: {', '.join(taken) or 'oracle'} is the name of another method")
    for name, (other, *its_scorer) in policies.items():
        methods[name] = BestOfN(other)
        if its_scorer:
            methods[f"{name} + best_of_n"] = BestOfN(other, n, "best", its_scorer[0], noise)
    return methods | {name: BestOfN(policy, n, "best", other, noise) for name, other in scorers.items()}


def unscored(methods: dict[str, BestOfN], execute_steps: int) -> list[str]:
    """A line for each number of actions that are played of a chunk although the critic that chose it never saw them."""
    found: dict[tuple[int, int], list[str]] = {}
    for name, method in methods.items():
        played = min(execute_steps, method.policy.horizon)
        if RULES[method.rule].needs_scorer and method.scorer.horizon < played:
            found.setdefault((method.scorer.horizon, played), []).append(name)
    return [
        f"warning: {', '.join(names)}: the critic scores the first {scored} of the {played} actions that are played of "
        f"a chunk; --evaluation.execute_steps={scored} plays only what it scores"
        for (scored, played), names in found.items()
    ]


def evaluate(accelerator: Accelerator, config: EvaluateConfig, outputs: Outputs | None = None) -> None:
    policies, scorers = named(config.policies, critic=True), named(config.scorers, critic=False)
    plan, outputs = config.evaluation, outputs or Outputs(config.dry_run)
    inputs = {"policy": Path(config.policy), "critic": Path(config.critic)}
    for name, folders in (policies | scorers).items():
        inputs |= {name: folders[0]} | ({f"{name} critic": folders[1]} if folders[1:] else {})

    made, scenes = outputs.made(inputs), scenes_of("evaluation", plan.scenes, config.seed)

    def work(folder: Path) -> dict | None:
        require_unseen(scenes, made.values())
        policy = outputs.policy(inputs["policy"]).to(accelerator.device)

        def scorer_in(stage: Path) -> Scorer:
            return outputs.scorer(stage, policy.contract).to(accelerator.device)

        methods = methods_of(
            plan,
            policy,
            scorer_in(inputs["critic"]),
            {
                name: (outputs.policy(stage).to(accelerator.device), *map(scorer_in, critic))
                for name, (stage, *critic) in policies.items()
            },
            {name: scorer_in(stage) for name, (stage,) in scorers.items()},
        )

        for line in unscored(methods, plan.execute_steps):
            accelerator.print(line)
        # Without noise every sample is the same episode.
        samples = {name: plan.samples if method.selection.noise_scale else 1 for name, method in methods.items()}
        playing = {"seed": config.seed, "execute_steps": plan.execute_steps, "line": accelerator.local_process_index}
        for task in config.tasks:
            results = folder / "methods" / task
            with config.open_workers(task, accelerator.num_processes) as workers:
                seen = workers.contract.with_cameras_of(policy.contract)
                seen.require_same(policy.contract, f"task {task}", f"policy {config.policy}")
                if task == config.tasks[0]:
                    played = [(method, len(scenes) * samples[name]) for name, method in methods.items()]
                    oracle = (plan.num_candidates, plan.oracle_scenes)
                    needs = evaluation_needs(accelerator, folder, config, workers, played, oracle, plan.execute_steps)
                    if not outputs.announce(accelerator, folder, needs):
                        return None
                # The longest first: processes share the methods, and should end together.
                if plan.oracle_scenes:
                    with try_lock(results / "oracle.json") as mine:
                        if mine:
                            oracle = Oracle(workers, methods["best_of_n"], plan.execute_steps)
                            jobs = paired_jobs(scenes[: plan.oracle_scenes], samples=1)
                            evaluate_method("oracle", workers, oracle, jobs, results, parallel=1, block=1, **playing)
                for name, decider in sorted(methods.items(), key=lambda method: -method[1].num_candidates):
                    jobs = paired_jobs(scenes, samples[name])
                    with try_lock(results / f"{name}.json") as mine:
                        if mine:
                            parallel = config.parallel_episodes
                            evaluate_method(name, workers, decider, jobs, results, parallel=parallel, **playing)
        accelerator.wait_for_everyone()
        if plan.video and accelerator.is_main_process:
            film_methods(
                make_env(config.env_config(config.tasks[0])),
                {"policy": methods["policy"], f"best of {plan.num_candidates}": methods["best_of_n"]},
                [folder / "methods" / config.tasks[0] / f"{method}.json" for method in ("policy", "best_of_n")],
                folder / "rollout.mp4",
                seed=config.seed,
                execute_steps=plan.execute_steps,
            )
        return {"execute_steps": min(plan.execute_steps, policy.horizon)}

    run_stage(accelerator, Path(config.output), config, made, work, everyone=True)
    if accelerator.is_main_process and not config.dry_run:
        with lock(Path(config.output).parent / "report"):
            report = write_run_report(Path(config.output))
        headline, file = report["headline"], Path(config.output).parent / "report.html"
        print(f"\n{headline['text']}\n{headline['detail']}\nThe report: {file}", flush=True)


def main(config: EvaluateConfig) -> None:
    if not config.critic:
        what = "what recipes/train_critic.py made: best of N is one of its methods"
        raise UserError(f"an evaluation needs --critic=FOLDER, {what}")
    evaluate(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, EvaluateConfig)
