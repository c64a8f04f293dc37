"""The critic's image encoder: what it learns from, that it learns it, and that a kill changes nothing."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from data_example import SIZE, example_contract, example_episode

from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.features.cache import ImageCache
from deas_vla.features.features import FeatureConfig, Features, fit_projection
from deas_vla.features.image_encoder import CHUNKS_AHEAD, FrameOutcomes, ImageEncoder, ImageEncoderConfig
from deas_vla.training import image_encoder as training_of
from deas_vla.training.critic import stored_features
from deas_vla.training.image_encoder import train_image_encoder
from deas_vla.training.loop import TrainingConfig

CONTRACT = example_contract()
HORIZON = 4


@pytest.fixture
def episodes():
    """The hand ends where a white square is, if it succeeds; the square alone tells where."""
    rng, found = np.random.default_rng(0), []
    for number in range(40):
        episode = example_episode(rng, 16, number % 2 == 0)
        row, column = rng.integers(0, SIZE - 4, 2)
        for image in episode.images.values():
            image[:] = 30
            image[:, row : row + 4, column : column + 4] = 255
        episode.states[:] = rng.normal(size=3) * (1, 1, 0)
        episode.states[-1, :2] = (row, column)
        found.append(episode)
    return found


def learn(episodes, folder, seen=None, **training):
    frames = FrameTable.of(episodes)
    plan = {"steps": 80, "batch_size": 32, "learning_rate": 3e-3, "checkpoint_every": 10} | training
    return train_image_encoder(
        Accelerator(cpu=True),
        ImageEncoderConfig(dim=8, max_shift=0),
        TrainingConfig(**plan),
        episodes,
        frames,
        CONTRACT,
        torch.ones(len(frames), dtype=torch.bool) if seen is None else seen,
        folder,
        horizon=HORIZON,
        seed=0,
    )


def test_what_came_of_a_frame():
    rng = np.random.default_rng(0)
    episodes = [
        example_episode(rng, 10, True, frames=[0, 7, 10]),
        example_episode(rng, 6, False, frames=[0, 6]),
        example_episode(rng, 9, True, frames=[3], source="demonstration"),
    ]
    outcomes = FrameOutcomes.of(episodes, CONTRACT, HORIZON)
    assert outcomes.success.tolist() == [1, 1, 1, 0, 0, 1]
    assert outcomes.labelled.tolist() == [1, 1, 0, 1, 0, 0]  # neither ends nor demonstrations
    columns = 3 * (len(CHUNKS_AHEAD) + 1)
    assert outcomes.future.shape == (6, columns)
    good = outcomes.future[outcomes.success.bool()]
    assert torch.allclose(good.mean(0), torch.zeros(columns), atol=1e-5)
    # Of the last frame, every later state is the last one; of the first, each is another.
    last = torch.tensor(episodes[0].states[[4, 8, 10, 10]])
    assert torch.equal(outcomes.future[0, 6:9] > 0, outcomes.future[0, 9:] > 0)
    raw = CONTRACT.normalize_state(last).flatten()
    other = CONTRACT.normalize_state(torch.tensor(episodes[0].states[[10, 10, 10, 10]])).flatten()
    slope = (raw - other)[:6] / (outcomes.future[0] - outcomes.future[2])[:6]
    assert (slope > 0).all()  # standardised, not turned round


def test_columns_that_never_differ_are_not_learned(episodes):
    outcomes = FrameOutcomes.of(episodes, CONTRACT, HORIZON)
    assert (outcomes.future.view(len(outcomes.success), -1, 3)[..., 2] == 0).all()


def test_its_output_has_mean_0_and_standard_deviation_1(episodes, tmp_path):
    frames = FrameTable.of(episodes)
    encoder = learn(episodes, tmp_path, torch.ones(len(frames), dtype=torch.bool), steps=5)
    with torch.no_grad():
        seen = encoder([frames.images[camera.name][:] for camera in CONTRACT.cameras])
    spread, mean = torch.std_mean(seen, 0, correction=0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), atol=1e-4, rtol=0)
    torch.testing.assert_close(spread, torch.ones_like(spread), atol=1e-3, rtol=0)


def test_it_learns_where_the_hand_will_be(episodes, tmp_path):
    """On episodes that it never saw: the square's place can be read off the features, off new weights' less so."""
    frames = FrameTable.of(episodes)
    held_out = frames.episode >= 30
    encoder = learn(episodes, tmp_path, ~held_out)
    place = torch.tensor(np.stack([e.states[-1, :2] for e in episodes]))[frames.episode]

    def error(encoder) -> float:
        with torch.no_grad():
            seen = encoder([frames.images[camera.name][:] for camera in CONTRACT.cameras])
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1)
        weights = torch.linalg.lstsq(seen[~held_out], place[~held_out]).solution
        return float((seen[held_out] @ weights - place[held_out]).square().mean().sqrt())

    torch.manual_seed(0)
    untrained = error(ImageEncoder(2, 8).eval())
    assert error(encoder) < 0.7 * untrained and error(encoder) < 2.0


def test_rule_12_a_killed_training_ends_the_same(episodes, tmp_path, monkeypatch):
    whole = learn(episodes, tmp_path / "whole", steps=25)

    step_generator = training_of.step_generator

    def killed(seed, step):
        if step == 17:
            raise KeyboardInterrupt
        return step_generator(seed, step)

    with monkeypatch.context() as patch:
        patch.setattr(training_of, "step_generator", killed)
        with pytest.raises(KeyboardInterrupt):
            learn(episodes, tmp_path / "killed", steps=25)
    resumed = learn(episodes, tmp_path / "killed", steps=25)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name

    # Done is done: nothing is trained again, and other data is not mistaken for this.
    monkeypatch.setattr(training_of, "train", lambda *a, **k: pytest.fail("trained again"))
    again = learn(episodes, tmp_path / "killed", steps=25)
    assert torch.equal(again.norm.weight, whole.norm.weight)
    with pytest.raises(pytest.fail.Exception):
        learn(episodes[:-1], tmp_path / "killed", steps=25)


def test_without_rollouts_there_is_nothing_to_learn(episodes, tmp_path):
    for episode in episodes:
        episode.source = "demonstration"
    with pytest.raises(UserError, match=r"image_encoder\.dim=0"):
        learn(episodes, tmp_path)


def test_stored_images_are_encoded_once_and_as_live_ones(episodes, tmp_path, monkeypatch):
    frames, accelerator = FrameTable.of(episodes), Accelerator(cpu=True)
    pooled = torch.randn(len(frames), 6, generator=torch.Generator().manual_seed(0))
    projection = fit_projection(pooled, 4)

    def features(seed: int) -> Features:
        torch.manual_seed(seed)
        return Features(CONTRACT, FeatureConfig(dim=4), projection, ImageEncoder(2, 8))

    cached = stored_features(accelerator, features(0), pooled, frames, tmp_path)
    torch.testing.assert_close(
        cached,
        features(0).of_pooled(pooled, frames.observation(torch.arange(len(frames))).images),
        rtol=1e-5,
        atol=1e-5,
    )
    other = stored_features(accelerator, features(1), pooled, frames, tmp_path)
    assert not torch.equal(other[:, 4:], cached[:, 4:])

    blocks = type("Blocks", (ImageCache,), {"block": 64})
    halves = [blocks(tmp_path / "two", features(0), frames) for _ in range(2)]
    for process, half in enumerate(halves):
        half.fill(process=process, processes=2)
    torch.testing.assert_close(halves[0].read(), cached[:, 4:], rtol=1e-5, atol=1e-5)

    monkeypatch.setattr(Features, "encode_images", lambda *_: pytest.fail("encoded again"))
    assert torch.equal(stored_features(accelerator, features(0), pooled, frames, tmp_path), cached)


@pytest.mark.parametrize("side", [16, 64, 100])
def test_images_of_any_size(side):
    encoder = ImageEncoder(2, 5).eval()
    images = [torch.randint(0, 256, (3, side, side + 8, 3), dtype=torch.uint8) for _ in range(2)]
    assert encoder(images).shape == (3, 10)
    with pytest.raises(ValueError, match="made for 2"):
        encoder(images[:1])
