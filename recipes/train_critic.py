"""Trains the DEAS critic on demonstrations and rollouts, from features that are computed once.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/train_critic.py \\
        --demonstrations=outputs/lift/demonstrations --rollouts=outputs/lift/rollouts \\
        --policy=outputs/lift/policy --output=outputs/lift/critic

Needs the extras `groot` and `lerobot`. In the demo 128 s (studies/results/demo.json). Images of a data set that take
more than 1 GiB stay on disk; a frame's features take (128 + 64 a camera) x 4 bytes of memory. The policy's
backbone stays as it is: the critic belongs to this backbone and is refused by policies with another.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from deas_vla.config import incidental, to_json
from deas_vla.critic.critic import CriticBatch, CriticConfig
from deas_vla.critique.evidence import write_held_out
from deas_vla.data.frames import FrameTable
from deas_vla.data.labels import RECORDED
from deas_vla.data.mixture import MixtureConfig, read_mixture
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.data.sampling import group_probabilities, sample_indices, split_by_episode, split_text
from deas_vla.errors import UserError, require_ranges
from deas_vla.features.cache import FeatureCache
from deas_vla.features.features import FeatureConfig, Features, fit_projection
from deas_vla.features.image_encoder import ImageEncoderConfig
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import require_fitting_horizon
from deas_vla.improvement.selection import CANDIDATE_NOISE
from deas_vla.launch import run_recipe
from deas_vla.rollouts.collect import DATASET
from deas_vla.rollouts.outputs import Outputs
from deas_vla.rollouts.scenes import record_scenes
from deas_vla.scorers.deas import DeasScorer
from deas_vla.scorers.scorer import SCORERS, EnsembleScorer
from deas_vla.training.critic import (
    CandidateCache,
    critic_batch,
    discount_warning,
    filled,
    require_fit,
    require_joined,
    stored_features,
    validation,
)
from deas_vla.training.critic_estimate import critic_needs
from deas_vla.training.data_check import AuditMode, audit_data
from deas_vla.training.image_encoder import train_image_encoder
from deas_vla.training.loop import TrainingConfig, make_accelerator, my_share, train
from deas_vla.training.presets import preset
from deas_vla.training.stages import FEATURES, numbered, run_stage


@dataclass
class MixConfig:
    """Shares of a batch; groups without options leave theirs to the others."""

    demonstrations: float = 0.2  # Options of demonstrations.
    successes: float = 0.4  # Options of rollouts that succeeded.
    failures: float = 0.4  # Options of rollouts that failed.

    def __post_init__(self):
        require_ranges(self, "mix.", {"at least 0": "demonstrations successes failures"})


@dataclass
class CriticRecipeConfig:
    """What every recipe that trains a critic asks."""

    # Values of features, image_encoder, critic and their training to begin with: default or published (the paper's).
    preset: str = "default"
    # What errors in the data do, as `deas-vla audit` finds them: stop, or warn and train on the data as they are.
    audit: AuditMode = incidental("stop")
    reward: RewardSpec = field(default_factory=RewardSpec)  # What a step is worth to the critic.
    features: FeatureConfig = field(default_factory=FeatureConfig)  # From backbone tokens to the critic's features.
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)  # The critic's own image encoder.
    # Its optimisation, before the critic's.
    image_encoder_training: TrainingConfig = field(default_factory=lambda: preset("default").image_encoder_training)
    critic: CriticConfig = field(default_factory=CriticConfig)  # The critic and its losses.
    mix: MixConfig = field(default_factory=MixConfig)  # What a batch of the critic is made of.


@dataclass
class TrainCriticConfig(CriticRecipeConfig):
    """Settings of recipes/train_critic.py."""

    output: str = incidental("outputs/lift/critic")  # Folder of this stage.
    # Stage folder of the demonstrations; empty for none.
    demonstrations: str = incidental("outputs/lift/demonstrations")
    # Stage folders of rollouts, separated by commas; empty for none.
    rollouts: list[str] = incidental(["outputs/lift/rollouts"])
    # LeRobot data sets besides those of the two stages, which have the weight 1.
    more: MixtureConfig = field(default_factory=MixtureConfig)
    policy: str = incidental("outputs/lift/policy")  # Stage folder of the policy whose backbone gives the features.
    # Folder of the cached features, which several critics may share; empty: inside the output.
    cache: str = incidental("")
    held_out: float = 0.1  # Share of the episodes held out, to see whether the critic only remembers.
    seed: int = 1  # Chooses the initial weights, the order of the data and the held-out episodes.
    # What is trained: deas, q_chunking, iql, or your own, FILE.py:NAME; one that needs no training is stored as it is.
    # An ensemble is not trained here: it joins trained critics (docs/critic.md).
    scorer: str = "deas"
    policy_chunks: int = 32  # q_chunking: how many of the policy's own chunks its target chooses from.
    # The noise that these are made of is multiplied by this: as in the evaluation, where they are chosen from.
    policy_noise_scale: float = CANDIDATE_NOISE
    training: TrainingConfig = field(default_factory=lambda: preset("default").training)  # The optimisation.
    dry_run: bool = incidental(False)  # Say what each part would take of disk, memory and time, and end.

    def __post_init__(self):
        ranges = {"at least 1": "policy_chunks", "at least 0": "seed policy_noise_scale"}
        require_ranges(self, "", ranges | {"at least 0 and below 1": "held_out"})
        require_fit(self.critic, self.reward)

    @staticmethod
    def preset_values(name: str) -> dict:
        """What ``--preset=NAME`` sets."""
        return to_json(preset(name))


def train_critic(accelerator: Accelerator, config: TrainCriticConfig, outputs: Outputs | None = None) -> None:
    outputs, rollouts = outputs or Outputs(config.dry_run), numbered("rollouts", config.rollouts)
    paths = {"demonstrations": config.demonstrations, **rollouts, "policy": config.policy}
    inputs = {name: Path(path) for name, path in paths.items() if path}
    made = outputs.made(inputs)
    scorer_class = SCORERS.get(config.scorer)
    if issubclass(scorer_class, EnsembleScorer):
        raise UserError("--scorer=ensemble joins critics that are trained already: train each, then see docs/critic.md")

    def work(folder: Path) -> dict:
        datasets = {str(made[name] / DATASET): RECORDED for name in ("demonstrations", *rollouts) if name in made}
        datasets |= dict.fromkeys(config.more.folders, config.more.labels)
        checked = audit_data(accelerator, datasets, config.audit)
        policy = outputs.policy(inputs["policy"]).to(accelerator.device)
        if not issubclass(scorer_class, DeasScorer):
            if config.dry_run:
                accelerator.print(f"{folder.name}: nothing to train")
            elif accelerator.is_main_process:
                scorer = scorer_class(policy.contract, policy.horizon, policy.encoder_fingerprint)
                scorer.save(folder / "critic")
                record_scenes(folder, {})
            return checked
        critic_config = scorer_class.adapted(config.critic)
        require_fitting_horizon(policy, critic_config.horizon)
        stages = [name for name in ("demonstrations", *rollouts) if name in inputs]
        parts = [outputs.episodes(inputs[name], policy.contract)[0] for name in stages]
        weights = [1.0] * len(parts) + (config.more.weights or [1.0] * len(config.more.folders))
        parts += read_mixture(config.more, policy.contract)[0]
        if accelerator.is_main_process and not config.dry_run:
            names = [*(str(inputs[name]) for name in stages), *config.more.folders]
            record_scenes(folder, dict(zip(names, parts, strict=True)))
        episodes = [episode for part in parts for episode in part]
        dataset = torch.repeat_interleave(torch.tensor([len(part) for part in parts]))
        frames = FrameTable.of(episodes)
        options = build_options(episodes, policy.contract, reward=config.reward, **critic_config.discounting)
        require_joined(options)
        if warning := discount_warning(critic_config, episodes, policy.contract.rate_hz):
            accelerator.print(warning)
        held_out = split_by_episode(episodes, config.held_out, config.seed)
        accelerator.print(split_text(episodes, held_out))

        cache_folder = Path(config.cache) if config.cache else folder / FEATURES
        cache = FeatureCache(cache_folder, policy, frames, config.features)
        needs = critic_needs(
            accelerator, cache, config.image_encoder, config.image_encoder_training, scorer_class, critic_config,
            config.training, config.policy_chunks,
        )  # fmt: skip
        if not outputs.announce(accelerator, folder, *needs):
            return None
        del needs  # the critic that was tried
        # The backbone runs here, once for each stored frame, and never again.
        pooled = filled(accelerator, cache, "features")
        seen = torch.from_numpy(~held_out)[frames.episode]
        projection = fit_projection(pooled, config.features.dim, among=torch.where(seen)[0])
        image_encoder = train_image_encoder(
            accelerator, config.image_encoder, config.image_encoder_training, episodes, frames, policy.contract, seen,
            cache_folder, horizon=policy.horizon, seed=config.seed,
        )  # fmt: skip
        reads = Features(policy.contract, config.features, projection, image_encoder).to(accelerator.device)
        features = stored_features(accelerator, reads, pooled, frames, cache_folder)
        state = policy.contract.normalize_state(frames.state)
        del pooled

        torch.manual_seed(config.seed)
        scorer = scorer_class.untrained(reads, critic_config, policy.encoder_fingerprint)
        critic = scorer.to(accelerator.device).critic
        candidates = None
        if scorer_class.asks_policy:
            chunks = CandidateCache(
                folder / "candidates", policy, frames, config.policy_chunks, config.seed, config.policy_noise_scale
            )
            # A critic of shorter chunks scores how they begin.
            candidates = filled(accelerator, chunks, "candidates").read()[:, :, : critic_config.horizon]
        probabilities = group_probabilities(
            options.group,
            {
                "demonstration": config.mix.demonstrations,
                "success": config.mix.successes,
                "failure": config.mix.failures,
            },
            dataset[options.episode],
            weights,
        )
        probabilities = np.where(held_out[options.episode], 0.0, probabilities)
        share = my_share(accelerator, config.training.batch_size)

        def batch_at(step: int) -> tuple[CriticBatch]:
            rows = sample_indices(config.seed, step, config.training.batch_size, probabilities)[share]
            return (critic_batch(features, state, options, torch.from_numpy(rows), candidates),)

        train(
            accelerator, critic, batch_at, config.training, folder,
            name=folder.name, seed=config.seed, after_step=type(critic).update_target,
        )  # fmt: skip
        if accelerator.is_main_process:
            facts = {
                "options": len(options),
                "images_without_option": options.dropped,
                "images_before_a_timeout": options.cut,
                "chained": options.chained,
            }
            validated = validation(critic, features, state, options, held_out, candidates)
            write_json(folder / "validation.json", validated | {"data": facts})
            roots = [*(str(inputs[name] / DATASET) for name in stages), *config.more.folders]
            flags = np.split(held_out, np.cumsum([len(part) for part in parts])[:-1])
            write_held_out(folder, dict(zip(roots, flags, strict=True)))
            scorer.save(folder / "critic")
        return checked

    run_stage(accelerator, Path(config.output), config, made, work, everyone=True, data=config.more.folders)


def main(config: TrainCriticConfig) -> None:
    if not config.rollouts and not config.demonstrations and not config.more.folders:
        raise UserError("the critic needs --demonstrations=FOLDER, --rollouts=FOLDER or --more.folders=FOLDER,…")
    if not config.policy:
        raise UserError("the critic needs --policy=FOLDER, the stage of the policy whose backbone it reads")
    train_critic(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, TrainCriticConfig)
