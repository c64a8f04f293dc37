"""Many ways to fine-tune one policy, each played in scenes of their own: which ingredient matters?

    accelerate launch --config_file accelerate_configs/cpu.yaml -m studies.ablations.policy \\
        --run=outputs/lift --output=outputs/policy_ablation/lift --seeds=0,1

    python -m studies.ablations.policy --run=outputs/lift --output=outputs/policy_ablation/lift \\
        --name=soft --flags=--weighting.temperature=3

Needs the extras `sim`, `groot` and `lerobot`, and a run of recipes/finetune_robocasa.py up to its critic. Each variant
and seed fine-tunes the run's policy and plays it, alone, without its noise and with best of N by the run's critic, in
scenes that no evaluation uses; a table compares all of them scene by scene. A variant is flags of
recipes/finetune_policy.py, with `--name` and `--flags` also one that is not in the list here. Everything that is done
is skipped.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm

from deas_vla.config import parse, to_json
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import CANDIDATE_NOISE, EXECUTE_STEPS, SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage, stage_report, try_lock
from recipes.finetune_policy import FinetunePolicyConfig, ImitationConfig, Method, finetune_policy
from recipes.finetune_robocasa import FEATURES, improvement_defaults
from studies.ablations.critic import DEFAULT, choose_variants
from studies.ablations.policy_table import ALONE, CHOSEN, METHODS, ZERO_NOISE, judge, policy_ablation_table

# What is changed of the advantage-weighted fine-tuning of finetune_robocasa. One line, one change.
VARIANTS: dict[str, list[str]] = {
    DEFAULT: [],
    "filtered_bc": ["--method=filtered_bc"],
    "recorded chunks": ["--weighting.proposals=0"],
    "proposals=2": ["--weighting.proposals=2"],
    "proposals=16": ["--weighting.proposals=16"],
    "frames=1500": ["--weighting.frames=1500"],
    "noise_scale=1": ["--weighting.noise_scale=1"],
    "temperature=0.1": ["--weighting.temperature=0.1"],
    "temperature=0.25": ["--weighting.temperature=0.25"],
    "temperature=1": ["--weighting.temperature=1"],
    "maximum=3": ["--weighting.maximum=3"],
    # So hot that all count alike: a control, what proposals of less noise teach before any critic chooses among them.
    "all proposals alike": ["--weighting.temperature=1000"],
    # So cold that a chunk below the mean counts for nothing, and so clipped that all others count alike.
    "the better half alike": ["--weighting.temperature=0.01", "--weighting.maximum=1"],
    "steps=300": ["--training.steps=300"],
    "steps=1500": ["--training.steps=1500"],
    "learning_rate=2e-4": ["--training.learning_rate=2e-4"],
    "encoder too": ["--freeze_encoder=false"],
}


@dataclass
class VariantConfig(FinetunePolicyConfig):
    """Settings of one fine-tuning: recipes/finetune_policy.py with the values of recipes/finetune_robocasa.py."""

    # What to imitate.
    method: Method = "advantage_weighted"
    # The optimisation.
    training: ImitationConfig = field(default_factory=improvement_defaults)


@dataclass
class PolicyAblationConfig(SimulatorConfig):
    """Settings of studies/ablations/policy.py."""

    # A run of finetune_robocasa: its policy, demonstrations, rollouts and critic are used.
    run: str = "outputs/lift"
    # Folder of the ablation.
    output: str = "outputs/policy_ablation/lift"
    # Names of the variants; empty: all.
    variants: list[str] = field(default_factory=list)
    # Adds one variant of this name, made of --flags.
    name: str = ""
    # Flags of finetune_policy, separated by spaces, for the variant that --name names.
    flags: str = ""
    # Training seeds of the fine-tuning.
    seeds: list[int] = field(default_factory=lambda: [0])
    # Chooses the scenes and the noise in them, 0 to 99.
    seed: int = 0
    # Scenes that everything plays once, for each task.
    scenes: int = 200
    # Candidates of best of N.
    num_candidates: int = 8
    # The noise that they are made of is multiplied by this; a policy alone plays with its own.
    noise_scale: float = CANDIDATE_NOISE
    # Actions played of each chunk before the policy decides again.
    execute_steps: int = EXECUTE_STEPS

    def __post_init__(self):
        super().__post_init__()
        if self.scenes < 1 or self.num_candidates < 2:
            raise UserError("the ablation needs a scene and 2 candidates")


def main(config: PolicyAblationConfig) -> None:
    chosen = choose_variants(VARIANTS, config.variants, config.name, config.flags)
    # Always there, because all are compared with it.
    variants = {DEFAULT: VARIANTS[DEFAULT]} | chosen
    accelerator = make_accelerator()
    output, run = Path(config.output), Path(config.run)
    tuned = {name: [output / "policies" / f"{name}-seed{seed}" for seed in config.seeds] for name in variants}
    watched = {"dynamic_ncols": True, "disable": not accelerator.is_main_process}
    for name, folders in tqdm(tuned.items(), desc="fine-tuning", unit="variant", **watched):
        for seed, folder in zip(config.seeds, folders, strict=True):
            finetune_policy(accelerator, settings_of(config, variants[name], folder, seed))
    policies = [run / "policy", *(folder for folders in tuned.values() for folder in folders)]
    for task in config.tasks:
        with config.open_workers(task, accelerator.num_processes) as workers:
            for policy in tqdm(policies, desc=f"playing {task}", unit="policy", **watched):
                play(accelerator, config, workers, task, policy)
    if accelerator.is_main_process:
        outcomes = {
            name: [{task: outcomes_of(config, task, folder) for task in config.tasks} for folder in folders]
            for name, folders in {"policy": [run / "policy"], **tuned}.items()
        }
        results = {"scenes": config.scenes, "tasks": config.tasks, "candidates": config.num_candidates}
        results |= judge(outcomes, base="policy", default=DEFAULT)
        for name, folders in tuned.items():
            results["variants"][name] |= {
                "flags": variants[name],
                "seconds": min(stage_report(folder)["seconds"] for folder in folders),
            }
        path = output / "ablation.json"
        before = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.is_file() else {}
        results["variants"] = before | results["variants"]
        write_json(path, results)
        print(f"\n{run}\n\n{policy_ablation_table(results)}\n\nIn {path}.")


def settings_of(config: PolicyAblationConfig, flags: list[str], folder: Path, seed: int) -> FinetunePolicyConfig:
    run = Path(config.run)
    inputs = [f"--{part}={run / part}" for part in ("demonstrations", "rollouts", "critic")]
    places = [f"--start_from={run / 'policy'}", f"--cache={run / FEATURES}", f"--output={folder}"]
    settings = parse(VariantConfig, [*inputs, *places, f"--seed={seed}", *flags], prog="finetune_policy")
    return settings if settings.method == "advantage_weighted" else replace(settings, critic="")


def play(accelerator: Accelerator, config: PolicyAblationConfig, workers: EnvWorkers, task: str, source: Path) -> None:
    """Plays one policy in all scenes: alone, without noise and, where the critic knows its features, best of N."""
    inputs = {"policy": source, "critic": Path(config.run) / "critic"}
    scenes = scenes_of("ablation", config.scenes, config.seed)

    def work(folder: Path) -> None:
        policy = load_policy(inputs["policy"] / "policy").to(accelerator.device)
        workers.contract.require_same(policy.contract, f"task {task}", f"policy {source}")
        scorer = load_scorer(inputs["critic"] / "critic", policy.contract).to(accelerator.device)
        methods = {ALONE: BestOfN(policy), ZERO_NOISE: BestOfN(policy, selection=SelectionConfig(noise_scale=0.0))}
        if scorer.encoder_fingerprint == policy.encoder_fingerprint:
            noise = SelectionConfig(noise_scale=config.noise_scale)
            methods[CHOSEN] = BestOfN(policy, config.num_candidates, "best", scorer, noise)
        for name, decider in methods.items():
            with try_lock(folder / f"{name}.json") as mine:
                if mine:
                    evaluate_method(
                        name,
                        workers,
                        decider,
                        paired_jobs(scenes, 1),
                        folder,
                        seed=config.seed,
                        parallel=config.parallel_episodes,
                        execute_steps=config.execute_steps,
                        line=accelerator.local_process_index,
                    )
        accelerator.wait_for_everyone()

    names = ("env", "simulator", "seed", "scenes", "num_candidates", "noise_scale", "execute_steps")
    settings = {name: value for name, value in to_json(config).items() if name in names}
    settings |= {"task": task, "methods": list(METHODS)}
    run_stage(accelerator, played(config, task, source), settings, inputs, work, everyone=True)


def played(config: PolicyAblationConfig, task: str, source: Path) -> Path:
    """Folder of what a policy did on a task."""
    return Path(config.output) / "played" / task / source.name


def outcomes_of(config: PolicyAblationConfig, task: str, source: Path) -> dict[str, list[dict]]:
    """Method to its episodes."""
    folder = played(config, task, source)
    paths = {method: folder / f"{method}.json" for method in METHODS}
    return {method: json.loads(path.read_text(encoding="utf-8")) for method, path in paths.items() if path.is_file()}


if __name__ == "__main__":
    run_recipe(main, PolicyAblationConfig)
