"""What the stages of training a critic take: features, the image encoder, the critic itself."""

from dataclasses import replace

import torch
from accelerate import Accelerator

from deas_vla.critic.critic import CriticBatch, CriticConfig
from deas_vla.data.ahead import spare_workers
from deas_vla.data.images import IN_MEMORY
from deas_vla.features.cache import FeatureCache, SmallImageCache
from deas_vla.features.features import FIT_FRAMES, Features, Projection
from deas_vla.features.image_encoder import CHUNKS_AHEAD, SIDE, ImageEncoder, ImageEncoderConfig, ImageEncoderLearning
from deas_vla.scorers.deas import DeasScorer
from deas_vla.training.estimate import Needs, cache_needs, resident, training_needs
from deas_vla.training.loop import TrainingConfig


def critic_needs(
    accelerator: Accelerator,
    cache: FeatureCache,
    image_encoder: ImageEncoderConfig,
    image_training: TrainingConfig,
    scorer_class: type[DeasScorer],
    critic: CriticConfig,
    training: TrainingConfig,
    policy_chunks: int,
) -> tuple[list[Needs], DeasScorer]:
    """Of each stage after the data are read, in order; and a scorer of the sizes of the one that will be trained."""
    held, device, frames, contract = resident(), accelerator.device, cache.frames, cache.policy.contract
    workers = spare_workers(accelerator.num_processes) if frames.on_disk else 0
    count, cameras, state_dim = len(frames), len(contract.cameras), contract.state_dim
    features, each = cache_needs(accelerator, cache, "features", workers, held)
    needs, pooled = [features], each // 4

    with torch.random.fork_rng([]):
        encoder = ImageEncoder(cameras, image_encoder.dim) if image_encoder.dim else None
        projection = Projection(torch.zeros(pooled), torch.zeros(pooled, cache.config.dim))
        reads = Features(contract, cache.config, projection, encoder)
        scorer = scorer_class.untrained(reads, critic, cache.policy.encoder_fingerprint).to(device)
        if encoder is not None:
            table = 0
            small = SmallImageCache(cache.folder.parent, contract, frames)
            if small.needed:
                needs.append(cache_needs(accelerator, small, "small images", workers, held)[0])
                table = min(IN_MEMORY, count * cameras * SIDE * SIDE * 3)
            later = state_dim * (len(CHUNKS_AHEAD) + 1)
            learning = ImageEncoderLearning(encoder.requires_grad_(True), image_encoder, state_dim, later).to(device)

            def images_at(step: int) -> tuple:
                size = image_training.batch_size // accelerator.num_processes
                images = [torch.zeros((size, SIDE, SIDE, 3), dtype=torch.uint8) for _ in range(cameras)]
                ones = torch.ones(size)
                return images, torch.randn(size, state_dim), ones, ones, torch.randn(size, later), ones

            learnt = training_needs(
                accelerator, "image encoder", learning, images_at, image_training, "image_encoder_training",
                held=held, new=True, otherwise="--image_encoder.dim=0",
            )  # fmt: skip
            # It sees all frames once more when it is trained.
            encoded = 4 * count * cameras * image_encoder.dim
            needs.append(replace(learnt.beside(table), disk=learnt.disk + encoded))

        def options_at(step: int) -> tuple:
            size = training.batch_size // accelerator.num_processes
            seen = torch.randn(size, reads.dim), torch.randn(size, state_dim)
            chunk = torch.randn(size, critic.horizon, contract.action_dim)
            asked = chunk[:, None].repeat(1, policy_chunks, 1, 1) if scorer_class.asks_policy else None
            return (CriticBatch(*seen, chunk, torch.randn(size), torch.full((size,), 0.8), *seen, asked),)

        learnt = training_needs(
            accelerator, "critic", scorer.critic, options_at, training, "training", held=held, new=True, moved=True
        )
    # Features of all frames while they are joined; before that, what the components are fitted on.
    table = 4 * count * reads.dim
    fitted, side = min(count, FIT_FRAMES) * pooled, min(count, FIT_FRAMES, pooled)
    made = max(2 * table, 20 * fitted + 32 * side**2 if cache.config.dim else 0)
    asked = 4 * count * policy_chunks * cache.policy.horizon * contract.action_dim if scorer_class.asks_policy else 0
    learnt = learnt.beside(table + asked)
    needs.append(replace(learnt, memory=max(learnt.memory, made), disk=learnt.disk + asked))
    return needs, scorer.eval()
