"""Many critics of one run, judged against the Monte-Carlo returns of candidates: which ingredient matters?

    accelerate launch --config_file accelerate_configs/cpu.yaml -m studies.ablations.critic \\
        --run=outputs/lift --output=outputs/ablation/lift --seeds=0,1

    python -m studies.ablations.critic --run=outputs/lift --output=outputs/ablation/lift \\
        --name=wide --flags=--features.dim=256

Needs the extras `sim`, `groot` and `lerobot`, and a run of recipes/finetune_robocasa.py up to its rollouts. First, once
a run: decisions of the policy in scenes of their own, every candidate played out several times. Then a critic for each
variant and seed, from features that all share, and a table: what choosing by this critic gains in one decision. A
variant is flags of recipes/train_critic.py, with `--name` and `--flags` also one that is not in the list here.
Everything that is done is skipped.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from deas_vla.config import parse, to_json
from deas_vla.critic.critic import CriticConfig
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import CANDIDATE_NOISE, EXECUTE_STEPS, SelectionConfig
from deas_vla.launch import run_recipe
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.registry import load_policy
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import run_stage, stage_report
from recipes.train_critic import TrainCriticConfig, train_critic
from studies.ablations.critic_table import ablation_table, gain_over, possible_gain, score
from studies.ablations.monte_carlo import MonteCarloReturns, collect_monte_carlo

# What is changed of the critic of finetune_robocasa. One line, one change.
DEFAULT = "default"
VARIANTS: dict[str, list[str]] = {
    DEFAULT: [],
    "hl_gauss": ["--critic.head=hl_gauss"],
    "hl_gauss and future_weight=5": ["--critic.head=hl_gauss", "--critic.future_weight=5"],
    "future_weight=0": ["--critic.future_weight=0"],
    "future_weight=5": ["--critic.future_weight=5"],
    "no_image_encoder": ["--image_encoder.dim=0"],
    "encoder_future=0": ["--image_encoder.future_weight=0"],
    "mean_pooled": ["--features.grid=1"],
    "grid=2": ["--features.grid=2"],
    "features=32": ["--features.dim=32"],
    "features=512": ["--features.dim=512"],
    "expectile=0.5": ["--critic.expectile=0.5"],
    "expectile=0.9": ["--critic.expectile=0.9"],
    "gamma1=0.99": ["--critic.reward_discount=0.99"],
    "gamma2=0.999": ["--critic.bootstrap_discount=0.999"],
    "steps=800": ["--training.steps=800"],
    "steps=7500": ["--training.steps=7500"],
    "learning_rate=3e-4": ["--training.learning_rate=3e-4"],
    "dropout=0.1": ["--critic.dropout=0.1"],
    "dropout=0.3": ["--critic.dropout=0.3"],
    "weight_decay=0.1": ["--training.weight_decay=0.1"],
    "num_q=1": ["--critic.num_q=1"],
    "num_q=10": ["--critic.num_q=10"],
    "polyak=0.02": ["--critic.polyak=0.02"],
    "width=512": ["--critic.hidden_dim=512", "--critic.num_layers=4"],
    "no_demonstrations": ["--mix.demonstrations=0"],
    "failures=0.7": ["--mix.failures=0.7", "--mix.successes=0.2", "--mix.demonstrations=0.1"],
}


@dataclass
class VariantConfig(TrainCriticConfig):
    """Settings of one critic: those of recipes/train_critic.py, with the critic of recipes/finetune_robocasa.py."""

    # The critic and its losses.
    critic: CriticConfig = field(default_factory=CriticConfig)


@dataclass
class MonteCarloConfig:
    """How the Monte-Carlo returns of candidates are collected."""

    # Scenes, none of which is used elsewhere.
    scenes: int = 150
    # Chance of a decision to be probed.
    share: float = 0.4
    # Candidates of a decision.
    num_candidates: int = 8
    # The noise that they are made of is multiplied by this; what follows is the policy as it was trained.
    noise_scale: float = CANDIDATE_NOISE
    # How often each candidate is played out; at least 2.
    continuations: int = 4
    # Actions played of each chunk before the policy decides again.
    execute_steps: int = EXECUTE_STEPS

    def __post_init__(self):
        if min(self.scenes, self.num_candidates - 1, self.continuations - 1) < 1 or not 0 < self.share <= 1:
            raise UserError("the Monte-Carlo returns need a scene, 2 candidates, 2 continuations and a share in (0, 1]")


@dataclass
class CriticAblationConfig(SimulatorConfig):
    """Settings of studies/ablations/critic.py."""

    # A run of finetune_robocasa: its policy, demonstrations and rollouts are used.
    run: str = "outputs/lift"
    # Folder of the ablation.
    output: str = "outputs/ablation/lift"
    # Names of the variants; empty: all.
    variants: list[str] = field(default_factory=list)
    # Adds one variant of this name, made of --flags.
    name: str = ""
    # Flags of train_critic, separated by spaces, for the variant that --name names.
    flags: str = ""
    # Training seeds of the critics; the score is their mean.
    seeds: list[int] = field(default_factory=lambda: [0])
    # Chooses scenes and noise of these episodes, 0 to 99.
    seed: int = 0
    # The Monte-Carlo returns of candidates.
    monte_carlo: MonteCarloConfig = field(default_factory=MonteCarloConfig)


def main(config: CriticAblationConfig) -> None:
    chosen = choose_variants(VARIANTS, config.variants, config.name, config.flags)
    # Always there, because all are compared with it.
    variants = {DEFAULT: VARIANTS[DEFAULT]} | chosen
    accelerator = make_accelerator()
    output, run = Path(config.output), Path(config.run)
    policy = load_policy(run / "policy" / "policy").to(accelerator.device).eval()
    monte_carlo, first = _monte_carlo(accelerator, config, policy), accelerator.is_main_process
    scores_of = {}
    watched = {"dynamic_ncols": True, "disable": not first}
    for name, flags in tqdm(variants.items(), desc="ablation", unit="variant", **watched):
        folders = [output / "critics" / f"{name}-seed{seed}" for seed in config.seeds]
        for seed, folder in zip(config.seeds, folders, strict=True):
            inputs = [f"--{part}={run / part}" for part in ("demonstrations", "rollouts", "policy")]
            places = [f"--output={folder}", f"--cache={output / 'features'}", f"--seed={seed}"]
            settings = parse(VariantConfig, [*inputs, *places, *flags], prog="train_critic")
            train_critic(accelerator, settings)
        scores_of[name] = folders
    if not first:
        return
    results = _judge(policy, monte_carlo, scores_of, variants)
    path = output / "ablation.json"
    before = json.loads(path.read_text(encoding="utf-8"))["variants"] if path.is_file() else {}
    results["variants"] = before | results["variants"]
    write_json(path, results)
    print(f"\n{run}: {_about(results, config.monte_carlo)}\n\n{ablation_table(results)}\n\nIn {path}.")


def _about(results: dict, plan: MonteCarloConfig) -> str:
    possible = results["possible"]
    return (
        f"{results['decisions']} decisions in {results['scenes']} scenes, {plan.num_candidates} candidates played out "
        f"{plan.continuations} times each. A random candidate succeeds in {100 * possible['success']:.0f} %; choosing "
        f"by half of the continuations gains {100 * possible['gain']:.1f} points in one decision."
    )


def choose_variants(known: dict[str, list[str]], names: list[str], name: str, flags: str) -> dict[str, list[str]]:
    """Name to flags: those of an ablation that are asked for, all if none is, and one of the user's own.

    Args:
        known: the ablation's own.
        names: those that are wanted; empty for all, or for none where there is a name.
        name: of the user's own; empty for none.
        flags: of that one, separated by spaces.

    Raises:
        UserError: if a name is not known, or the user's own is.
    """
    unknown = set(names) - set(known)
    if unknown:
        raise UserError(
            f"there is no variant {', '.join(sorted(unknown))}; choose from {', '.join(known)}, or name one of "
            "your own with --name and --flags"
        )
    if bool(name) != bool(flags) or name in known:
        raise UserError("--name and --flags go together, and the name must be new")
    if name:
        return {each: known[each] for each in names} | {name: flags.split()}
    return {each: known[each] for each in names or known}


def _monte_carlo(accelerator: Accelerator, config: CriticAblationConfig, policy: ChunkPolicy) -> MonteCarloReturns:
    plan, folder, tasks = config.monte_carlo, Path(config.output) / "monte_carlo", config.tasks
    noise = SelectionConfig(noise_scale=plan.noise_scale)

    def work(folder: Path) -> None:
        parts = []
        for task in tasks:
            with config.open_workers(task) as workers:
                workers.contract.require_same(policy.contract, f"task {task}", f"the policy of {config.run}")
                parts.append(
                    collect_monte_carlo(
                        workers,
                        BestOfN(policy, plan.num_candidates, selection=noise),
                        scenes_of("ablation", plan.scenes, config.seed),
                        folder / task,
                        seed=config.seed,
                        continuations=plan.continuations,
                        share=plan.share,
                        execute_steps=plan.execute_steps,
                    )
                )
        MonteCarloReturns.concatenate(parts).save(folder / "monte_carlo.safetensors")

    settings = to_json(config)
    settings = {key: settings[key] for key in ("env", "tasks", "simulator", "parallel_episodes", "seed", "monte_carlo")}
    run_stage(accelerator, folder, settings, {"policy": Path(config.run) / "policy"}, work)
    return MonteCarloReturns.load(folder / "monte_carlo.safetensors")


@torch.inference_mode()
def _judge(
    policy: ChunkPolicy, monte_carlo: MonteCarloReturns, folders: dict[str, list[Path]], variants: dict[str, list[str]]
) -> dict:
    returns = monte_carlo.returns(CriticConfig(horizon=policy.horizon))
    seen = monte_carlo.observation(slice(None))
    context = policy.encode(seen)
    results = {
        "decisions": len(monte_carlo),
        "scenes": len(np.unique(monte_carlo.scene)),
        "possible": possible_gain(returns, monte_carlo.success, monte_carlo.scene),
        "variants": {},
    }
    for name, critics in folders.items():
        scores = []
        for folder in critics:
            scorer = load_scorer(folder / "critic", policy.contract).to(context.tokens.device)
            chunks = scorer.chunks(torch.from_numpy(monte_carlo.candidates).to(context.tokens.device))
            scores.append(scorer.score(scorer.encode(context, seen), chunks).cpu().numpy())
        mine = np.stack(scores)
        if name == DEFAULT:  # it comes first
            default = mine
        results["variants"][name] = {
            "flags": variants[name],
            "critics": len(critics),
            "seconds": float(np.median([stage_report(folder)["seconds"] for folder in critics])),
            "score": asdict(score(mine, returns, monte_carlo.success, monte_carlo.scene)),
            "over_default": (
                gain_over(mine, default, monte_carlo.success, monte_carlo.scene) if name != DEFAULT else None
            ),
        }
    return results


if __name__ == "__main__":
    run_recipe(main, CriticAblationConfig)
