"""Flow matching, the noise of candidates, and image augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from policy_example import normal, observations

from deas_vla.data.observation import Observation
from deas_vla.policies.augment import random_shift, shift_observation
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.policies.flow import TIME_BETA, TIME_CUTOFF, flow_loss, hold_last, integrate, interpolate, sample_time

pytestmark = pytest.mark.unit


def test_time_follows_its_distribution():
    time = sample_time((200_000,), torch.Generator().manual_seed(0))
    assert time.min() >= 0 and time.max() <= 1
    for t in (0.1, 0.25, 0.5, 0.9):
        # t below a bound means b = s (1 - t) above it, and P(b < x) = x^1.5.
        expected = 1 - (TIME_CUTOFF * (1 - t)) ** TIME_BETA
        assert abs((time < t).float().mean().item() - expected) < 0.005


def test_a_line_starts_at_the_noise_and_ends_at_the_chunk():
    chunks, noise = normal(2, 1, 4, 3), normal(2, 5, 4, 3, seed=2)
    assert torch.equal(interpolate(chunks, noise, torch.zeros(2, 5)), noise)
    assert torch.equal(interpolate(chunks, noise, torch.ones(2, 5)), chunks.expand(2, 5, 4, 3))


@given(steps=st.integers(1, 9))
def test_integration_of_a_perfect_prediction_ends_at_the_chunk(steps):
    chunk, noise = normal(2, 3, 4, 3), normal(2, 3, 4, 3, seed=2)
    seen = []

    def predict(x, step):
        seen.append(x)
        return chunk

    assert torch.allclose(integrate(predict, noise, steps), chunk, atol=1e-6)
    for step, x in enumerate(seen):
        time = torch.full((2, 3), step / steps)
        assert torch.allclose(x, interpolate(chunk, noise, time), atol=1e-5)


def test_integration_is_eulers():
    noise = normal(2, 3, 4, 3)

    def predict(x, step):
        return torch.sin(x) + step

    x = noise
    for step in range(4):
        x = x + 0.25 * (predict(x, step) - x) / (1 - step / 4)
    assert torch.allclose(integrate(predict, noise, 4), x, atol=1e-6)


def test_loss_of_a_sample_is_its_own_mean_over_played_steps():
    predicted, chunks = normal(3, 2, 4, 5), normal(3, 4, 5, seed=2)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    expected = [(predicted[0] - chunks[0]).square().mean(), (predicted[1, :, :2] - chunks[1, :2]).square().mean(), 0.0]
    assert torch.allclose(flow_loss(predicted, chunks, valid), torch.tensor(expected))
    assert torch.allclose(flow_loss(predicted, chunks, None)[0], expected[0])


def test_unplayed_steps_hold_the_last_action():
    chunks = torch.arange(8.0).view(2, 4, 1)
    valid = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]).bool()
    assert hold_last(chunks, valid)[..., 0].tolist() == [[0, 1, 1, 1], [4, 5, 6, 7]]


@given(n=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 2**31), scene=st.integers(0, 10**6))
def test_rule_08_candidates_are_nested(n, more, seed, scene):
    few, many = (candidate_noise(seed, scene, 1, 2, count, 4, 3) for count in (n, n + more))
    assert few.shape == (n, 4, 3) and few.dtype == torch.float32
    assert torch.equal(few, many[:n])


def test_candidate_noise_is_normal_and_differs_between_decisions():
    key = {"seed": 1, "scene": 2, "sample": 3, "decision": 4}
    one = candidate_noise(**key, n=500, horizon=16, action_dim=12)
    assert abs(one.mean()) < 0.02 and abs(one.std() - 1) < 0.02
    for name in key:
        other = candidate_noise(**{**key, name: 9}, n=500, horizon=16, action_dim=12)
        assert abs(np.corrcoef(one.flatten(), other.flatten())[0, 1]) < 0.02


def test_shift_moves_pixels_and_repeats_the_border():
    image = torch.arange(5 * 5 * 3, dtype=torch.uint8).view(1, 5, 5, 3).expand(64, -1, -1, -1)
    moved = random_shift(image, 2, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0].permute(2, 0, 1).float()[None], (2, 2, 2, 2), mode="replicate")
    padded = padded[0].permute(1, 2, 0).to(torch.uint8)
    found = set()
    for one in moved:
        places = [(i, j) for i in range(5) for j in range(5) if torch.equal(one, padded[i : i + 5, j : j + 5])]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 20
    assert torch.equal(random_shift(image, 0), image)


def test_a_share_is_moved_as_in_the_whole_batch():
    images = torch.randint(0, 256, (7, 6, 9, 3), dtype=torch.uint8)
    whole = random_shift(images, 3, torch.Generator().manual_seed(1))
    parts = [random_shift(images, 3, torch.Generator().manual_seed(1), part) for part in (slice(0, 3), slice(3, 7))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(random_shift(images, 0, share=slice(2, 5)), images[2:5])


def test_shift_is_reproducible_and_leaves_state_and_words():
    observation = observations(6)
    one, two = (shift_observation(observation, 3, torch.Generator().manual_seed(5)) for _ in range(2))
    for name, image in one.images.items():
        assert torch.equal(image, two.images[name])
        assert not torch.equal(image, observation.images[name])
    assert torch.equal(one.state, observation.state) and one.instruction == observation.instruction


def test_a_shift_is_the_same_part_of_images_of_any_size():
    """Two pixels of 640 are a fifth of one of those that a policy sees (defect)."""
    for side, largest in ((32, 2), (64, 2), (192, 6)):
        columns = torch.arange(side, dtype=torch.uint8)[None, None, :, None].expand(100, side, side, 3)
        seen = Observation({"left": columns}, torch.zeros(100, 1), [""] * 100)
        moved = shift_observation(seen, 2, torch.Generator().manual_seed(0)).images["left"]
        assert (moved[:, 0, side // 2, 0].int() - side // 2).abs().max() == largest
