"""Complete configurations of a critic by name: what it reads, what it is, how it is optimised.

`preset("default")` is what this project recommends, `preset("published")` the paper's setting for VLA policies. Every
recipe takes its defaults from here (``--preset=published``), so that a stage run alone trains what the loop trains.
"""

from dataclasses import dataclass

from deas_vla.critic.critic import CriticConfig
from deas_vla.errors import UserError, unknown
from deas_vla.features.features import FeatureConfig
from deas_vla.features.image_encoder import ImageEncoderConfig
from deas_vla.training.loop import TrainingConfig


@dataclass
class Preset:
    """One complete configuration: networks and losses, what they read, and how the critic and its encoder train."""

    critic: CriticConfig
    features: FeatureConfig
    image_encoder: ImageEncoderConfig
    training: TrainingConfig
    image_encoder_training: TrainingConfig


def default() -> Preset:
    """What we recommend: the best of studies/results/robosuite_choices.md with some hundred rollouts of a task.

    A scalar head, 256 x 3 networks that also predict the observation that a chunk leads to (`future_weight` 1), a grid
    of backbone tokens for each camera projected to 128 whitened features, and an image encoder of the critic's own.
    With little data, chunks are distinguished by what they lead to long before they are by returns; a backbone that was
    trained to imitate drops what a critic needs to see; and with 2,500 steps a scalar head learns faster than a
    distribution of 101 bins. None of these is in the paper.
    """
    return Preset(
        critic=CriticConfig(),
        features=FeatureConfig(),
        image_encoder=ImageEncoderConfig(),
        training=TrainingConfig(steps=2500, batch_size=256, learning_rate=1e-3, weight_decay=1e-4, log_every=100),
        image_encoder_training=TrainingConfig(steps=600, batch_size=96, learning_rate=1.5e-3, weight_decay=1e-2),
    )


def published() -> Preset:
    """The critic of the authors' GR00T N1.5 release for RoboCasa (arXiv 2510.07730; csmile-1006/DEAS-Isaac-GR00T).

    One average over all of the backbone's tokens, a trained encoder 1024-1024-1024-64 of it (SiLU, tanh) that V and Q
    share, V a residual network of 4 blocks of 256, Q two networks of 512 x 4; HL-Gauss of 101 bins on
    [-1 / (1 − γ₂), 0] without a margin; Adam at 1e-4, constant, without decay or clipping, batches of 32, 30,000 steps.

    Its own choices are kept with their faults: the target Q reads through the online encoder, and without a margin
    the value 0 cannot be represented (the highest bin's centre is -0.495). What is not copied are errors of the
    released code, by the numbers of a review of it: states that are zero in training (W1), next states that are not
    normalised (W2), features that Q sees processed twice (W3), an option that ends only if all its steps do (W4), a
    reward of -1 for steps after the end (W5), padded tokens in the average (W16), targets beyond the support that
    become NaN (here they are clamped and counted). Nor are images augmented while the critic learns: the backbone
    runs once for each frame. The shares of a batch are the recipe's (``--mix``), not those of the frames.
    """
    return Preset(
        critic=CriticConfig(
            horizon=16, reward_discount=0.9, bootstrap_discount=0.99, expectile=0.7,
            head="hl_gauss", num_bins=101, sigma_bins=0.75, margin_sigmas=0.0, support=[-100.0, 0.0],
            num_q=2, hidden_dim=512, num_layers=4, v_blocks=4, v_hidden_dim=256, encoder=[1024, 1024, 1024, 64],
            polyak=0.005, future_weight=0.0, dropout=0.0,
        ),
        features=FeatureConfig(grid=0, dim=0),
        image_encoder=ImageEncoderConfig(dim=0),
        training=TrainingConfig(
            steps=30_000, batch_size=32, learning_rate=1e-4, warmup=0.0, cosine=False, weight_decay=0.0,
            gradient_clip=0.0, log_every=100,
        ),
        image_encoder_training=default().image_encoder_training,
    )  # fmt: skip


PRESETS = {"default": default, "published": published}


def preset(name: str) -> Preset:
    """A new copy of a preset; UserError if there is none of this name."""
    if name not in PRESETS:
        raise UserError(unknown("preset", name, PRESETS))
    return PRESETS[name]()
