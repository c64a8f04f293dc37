"""Trains or fine-tunes the VLA: behaviour cloning, filtered behaviour cloning, advantage-weighted.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_policy.py \\
        --demonstrations=outputs/lift/demonstrations --output=outputs/lift/policy

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_policy.py \\
        --method=advantage_weighted --start_from=outputs/lift/policy --rollouts=outputs/lift/rollouts \\
        --critic=outputs/lift/critic --output=outputs/lift/advantage_weighted

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_policy.py \\
        --demonstrations= --more.folders=my/lerobot/dataset --method=filtered_bc --output=outputs/mine/policy

The last clones recordings of yours: their successes, if the data set says so (docs/data.md). Needs the extras `groot`
and `lerobot`. Images of a data set that take more than 1 GiB stay on disk. In the demo 106 s
(studies/results/demo.json); a backbone of GR00T's size needs a GPU, or LoRA (docs/policies.md).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from deas_vla.config import from_json, incidental
from deas_vla.data.ahead import spare_workers
from deas_vla.data.contract import Contract
from deas_vla.data.episodes import statistics_of
from deas_vla.data.frames import FrameTable
from deas_vla.data.labels import RECORDED
from deas_vla.data.mixture import MixtureConfig, read_mixture
from deas_vla.data.options import Chunks, build_chunks
from deas_vla.errors import UserError, require_ranges
from deas_vla.files import read_json, write_json
from deas_vla.improvement.best_of_n import require_same_encoder
from deas_vla.launch import run_recipe
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.lora import LoraConfig, freeze_unused
from deas_vla.policies.registry import POLICIES
from deas_vla.policies.small_vla.configuration import SmallVLAConfig
from deas_vla.rollouts.collect import DATASET
from deas_vla.rollouts.outputs import Outputs
from deas_vla.rollouts.scenes import record_scenes
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.critic import CandidateCache, encode_frames, filled
from deas_vla.training.data_check import AuditMode, audit_data
from deas_vla.training.estimate import training_needs
from deas_vla.training.imitation import (
    AdvantageWeighting,
    Examples,
    FlowImitation,
    advantage_weights,
    advantages_among,
    advantages_of,
    cloning_weights,
    first_loss,
    imitation_batches,
)
from deas_vla.training.loop import TrainingConfig, make_accelerator, step_generator, train
from deas_vla.training.stages import numbered, run_stage

# Named, because the help of the command line is read from the source and sees no quotes in an annotation.
Method = Literal["bc", "filtered_bc", "advantage_weighted"]


@dataclass
class ImitationConfig(TrainingConfig):
    """How the policy is trained."""

    # Noise samples for each encoded observation: the backbone is expensive, the action head is not.
    flow_samples: int = 2
    # Images are shifted by up to this many pixels of 64 a side, by more of larger ones, anew at every use.
    max_shift: int = 2
    # Activations are computed again for the gradient instead of kept: less memory, more time, the same gradients.
    activation_checkpointing: bool = incidental(False)

    def __post_init__(self):
        super().__post_init__()
        require_ranges(self, "", {"at least 1": "flow_samples", "at least 0": "max_shift"})


@dataclass
class FinetunePolicyConfig:
    """Settings of recipes/finetune_policy.py."""

    output: str = incidental("outputs/lift/policy")  # Folder of this stage.
    # What to imitate: demonstrations (bc), also successful rollouts (filtered_bc), or the critic's favourites.
    method: Method = "bc"
    # Stage folder of the demonstrations; empty for none.
    demonstrations: str = incidental("outputs/lift/demonstrations")
    rollouts: list[str] = incidental([])  # Stage folders of rollouts, separated by commas; not for bc.
    more: MixtureConfig = field(default_factory=MixtureConfig)  # LeRobot data sets besides those of the stages.
    critic: str = incidental("")  # Stage folder of the critic; only for advantage_weighted.
    cache: str = incidental("")  # Folder of the cached features; empty: the critic's own.
    start_from: str = incidental("")  # Stage folder of the policy to start from; empty for a new one.
    # Starting from a policy: train the action head only, so that a critic of the old policy's features stays valid.
    freeze_encoder: bool = True
    # Starting from a policy: train adapters instead of its weights; they are merged at the end.
    lora: LoraConfig = field(default_factory=LoraConfig)
    seed: int = 1  # Chooses the initial weights and the order of the data.
    # What a new policy is: a registered name, MODULE:NAME or FILE.py:NAME; not read when starting from a policy.
    policy_type: str = "small_vla"
    policy: SmallVLAConfig = field(default_factory=SmallVLAConfig)  # The model, for the type small_vla.
    policy_settings: str = ""  # JSON file with the model's settings, for another type; empty: its defaults.
    # What errors in the data do, as `deas-vla audit` finds them: stop, or warn and train on the data as they are.
    audit: AuditMode = incidental("stop")
    training: ImitationConfig = field(default_factory=ImitationConfig)  # The optimisation.
    # How advantages become weights; only for advantage_weighted.
    weighting: AdvantageWeighting = field(default_factory=AdvantageWeighting)
    dry_run: bool = incidental(False)  # Say what the training would take of disk, memory and time, and end.

    def __post_init__(self):
        require_ranges(self, "", {"at least 0": "seed"})


def finetune_policy(accelerator: Accelerator, config: FinetunePolicyConfig, outputs: Outputs | None = None) -> None:
    outputs, rollouts = outputs or Outputs(config.dry_run), numbered("rollouts", config.rollouts)
    others = ("demonstrations", "critic", "start_from")
    paths = {name: getattr(config, name) for name in others} | rollouts
    inputs = {name: Path(path) for name, path in paths.items() if path}
    made = outputs.made(inputs)

    def work(folder: Path) -> dict:
        datasets = {str(made[name] / DATASET): RECORDED for name in ("demonstrations", *rollouts) if name in made}
        datasets |= dict.fromkeys(config.more.folders, config.more.labels)
        checked = audit_data(accelerator, datasets, config.audit)
        policy = outputs.policy(inputs["start_from"]) if "start_from" in inputs else None
        # Columns, cameras and statistics of a policy that is there already are those of its data, too.
        data, contract = {}, policy and policy.contract
        for name in ("demonstrations", *rollouts):
            if name in inputs:
                data[str(inputs[name])], own, _ = outputs.episodes(inputs[name], contract)
                contract = contract or own
        parts, contract = read_mixture(config.more, contract)
        data |= dict(zip(config.more.folders, parts, strict=True))
        if accelerator.is_main_process and not config.dry_run:
            record_scenes(folder, data)
        episodes = [episode for part in data.values() for episode in part]
        if contract.statistics is None:
            contract = contract.with_statistics(statistics_of(episodes))
        torch.manual_seed(config.seed)
        if policy is not None:
            if config.freeze_encoder:
                policy.freeze_encoder()
            if config.lora.on != "nothing":
                policy.add_lora(config.lora)
        else:
            policy = new_policy(config, contract, sorted({episode.instruction for episode in episodes}))
        policy.to(accelerator.device)
        frames = FrameTable.of(episodes)
        recorded = build_chunks(episodes, contract, horizon=policy.horizon)
        workers = spare_workers(accelerator.num_processes) if frames.on_disk else 0

        def batches_of(examples: Examples) -> Callable[[int], tuple]:
            settings = {"flow_samples": config.training.flow_samples, "max_shift": config.training.max_shift}
            return imitation_batches(accelerator, frames, examples, config.training, seed=config.seed, **settings)

        # Whatever is imitated, a step takes the same.
        any_batch = batches_of(Examples.recorded(recorded, torch.ones(len(recorded))))
        if config.lora.on != "nothing":
            freeze_unused(policy, first_loss(policy, any_batch))
        if config.training.activation_checkpointing:
            policy.checkpoint_activations()
        needs = training_needs(
            accelerator, folder.name, FlowImitation(policy), any_batch, config.training, "training",
            workers=workers, otherwise="" if config.lora.on != "nothing" else "--lora.on=both",
        )  # fmt: skip
        if not outputs.announce(accelerator, folder, [needs], policy):
            return None
        examples = what_to_imitate(accelerator, config, inputs, policy, frames, recorded, folder)
        train(
            accelerator, FlowImitation(policy), batches_of(examples), config.training, folder,
            name=folder.name, seed=config.seed, workers=workers,
        )  # fmt: skip
        if accelerator.is_main_process:
            if config.lora.on != "nothing":
                merged = policy.merge_lora()
                write_json(folder / "lora.json", merged._asdict())
                changed = f"{merged.changed} of {merged.layers} layers have changed"
                print(f"adapters merged: {changed}, {merged.lost:.1%} of a change was lost by rounding")
            policy.save(folder / "policy")
        return checked

    run_stage(accelerator, Path(config.output), config, made, work, everyone=True, data=config.more.folders)


def new_policy(config: FinetunePolicyConfig, contract: Contract, instructions: list[str]) -> ChunkPolicy:
    """A policy of the type that is asked for, with new weights."""
    policy_class, settings = POLICIES.get(config.policy_type), config.policy
    if not isinstance(settings, policy_class.Config or ()):
        where = config.policy_settings
        given = read_json(Path(where)) if where else {}
        settings = from_json(policy_class.Config, given, where) if policy_class.Config else None
    return policy_class.create(settings, contract, instructions)


def what_to_imitate(
    accelerator: Accelerator,
    config: FinetunePolicyConfig,
    inputs: dict[str, Path],
    policy: ChunkPolicy,
    frames: FrameTable,
    recorded: Chunks,
    folder: Path,
) -> Examples:
    """The chunks of this method and how much each counts."""
    if config.method != "advantage_weighted":
        return Examples.recorded(recorded, cloning_weights(recorded, filtered=config.method == "filtered_bc"))
    scorer = load_scorer(inputs["critic"] / "critic", policy.contract).to(accelerator.device)
    require_same_encoder(policy, scorer)
    if scorer.horizon != policy.horizon:
        what = f"the critic values chunks of {scorer.horizon} steps, the policy imitates chunks of {policy.horizon}"
        raise UserError(f"{inputs['critic']}: {what}; train the critic with --critic.horizon={policy.horizon}")
    cache = Path(config.cache) if config.cache else inputs["critic"] / "features"
    weighting = config.weighting
    if not weighting.proposals:
        encoded = encode_frames(accelerator, scorer, policy, frames, cache)
        advantages = advantages_of(scorer.to("cpu"), encoded, recorded)
        return Examples.recorded(recorded, advantage_weights(advantages, weighting))

    # Where a recorded chunk of a rollout starts, the policy is asked for others.
    rows = recorded.start_frame[recorded.group != recorded.DEMONSTRATION].unique()
    rows = rows[torch.randperm(len(rows), generator=step_generator(config.seed, 0))[: weighting.frames]]
    rows = rows.sort().values
    asked = frames.subset(rows)
    chunks = CandidateCache(
        folder / "proposals", policy, asked, weighting.proposals, config.seed, weighting.noise_scale
    )
    proposed = filled(accelerator, chunks, "proposals").read()
    encoded = encode_frames(accelerator, scorer, policy, frames, cache, rows)
    advantages = advantages_among(scorer.to("cpu"), encoded, proposed)
    return Examples.proposed(rows, proposed, advantage_weights(advantages, weighting))


def main(config: FinetunePolicyConfig) -> None:
    needs = {"bc": (), "filtered_bc": ("rollouts",), "advantage_weighted": ("rollouts", "critic", "start_from")}
    if config.more.weights:
        raise UserError("--more.weights are of the critic's options; a policy imitates the chunks of all sets alike")
    if not config.demonstrations and not config.more.folders:
        raise UserError("there is nothing to imitate: --demonstrations=FOLDER or --more.folders=FOLDER,…")
    if config.lora.on != "nothing" and not config.start_from:
        raise UserError("--lora.on adapts a trained policy: add --start_from=FOLDER, or set --policy.tune=lora")
    if config.lora.on in ("backbone", "both") and config.freeze_encoder:
        fix = "set --freeze_encoder=false; a critic of its features will not fit the new policy"
        raise UserError(f"--lora.on={config.lora.on} trains the backbone: {fix}")
    for name in needs[config.method]:
        if not getattr(config, name) and not (name == "rollouts" and config.more.folders):
            raise UserError(f"--method={config.method} needs --{name}=FOLDER")
    finetune_policy(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, FinetunePolicyConfig)
