"""Noise that is derived from given noise: as good as fresh, and a function of one candidate's noise alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.errors import UserError
from deas_vla.policies.lerobot.noise import GivenNoise, MoreNoise, seed_of, widen

pytestmark = pytest.mark.unit


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(rows=st.integers(1, 6), row=st.integers(0, 5), width=st.integers(2, 9), seed=st.integers(0, 99))
def test_rule_10_a_candidate_alone_gets_what_it_gets_among_others(rows, row, width, seed):
    noise = normal(rows, 3, 2, seed=seed)
    row %= rows
    wide = widen(noise, 5, width)
    assert wide.shape == (rows, 5, width)
    assert torch.equal(wide[:, :3, :2], noise)
    assert torch.equal(widen(noise[row : row + 1], 5, width)[0], wide[row])
    # Enough as it is.
    assert torch.equal(widen(noise, 3, 2), noise)


def test_derived_noise_is_normal_and_independent():
    noise = normal(20_000, 2, 3)
    more = MoreNoise(noise)
    samples = torch.cat([noise.flatten(1), *(more(2) for _ in range(3))], 1)
    assert samples.mean(0).abs().max() < 0.03
    assert (samples.var(0) - 1).abs().max() < 0.05
    assert ((samples**4).mean(0) - 3).abs().max() < 0.3
    correlation = torch.corrcoef(samples.T) - torch.eye(samples.shape[1])
    assert correlation.abs().max() < 0.03
    # Within one candidate's long sample as well.
    long = MoreNoise(noise[:1])(20_000)[0]
    assert abs(long.mean()) < 0.03 and abs(torch.corrcoef(torch.stack([long[1:], long[:-1]]))[0, 1]) < 0.03
    assert long.isfinite().all()


def test_every_bit_of_the_noise_counts():
    noise = normal(1, 4, 2)
    first = {MoreNoise(noise)(1).item()}
    seeds = {seed_of(noise)}
    for place in range(8):
        other = noise.clone().view(-1)
        other[place] = torch.nextafter(other[place], torch.tensor(9.0))
        first.add(MoreNoise(other.view(1, 4, 2))(1).item())
        seeds.add(seed_of(other))
    first.add(MoreNoise(noise.flip(1))(1).item())
    assert len(first) == 10 and len(seeds) == 9


def test_no_noise_stays_no_noise():
    noise = normal(3, 4, 2)
    noise[1] = 0
    wide = widen(noise, 6, 3)
    assert (wide[1] == 0).all() and (wide[[0, 2]].abs().amin((1, 2)) > 0).all()
    with GivenNoise(noise, first=False):
        drawn = torch.randn(3, 4, 2)
    assert (drawn[1] == 0).all() and (drawn[0] != 0).all()


def test_a_sampler_gets_the_noise_it_was_given():
    noise = normal(5, 4, 2)
    for seed in (0, 1):
        torch.manual_seed(seed)
        with GivenNoise(noise, first=True) as given_noise:
            drawn = [torch.randn(5, 4, 2), torch.randn_like(noise), torch.normal(0.0, 1.0, (5, 3))]
        assert given_noise.draws == 3
        assert torch.equal(drawn[0], noise)
        assert not torch.equal(drawn[1], noise)
        if seed == 0:
            first = drawn
    assert all(torch.equal(a, b) for a, b in zip(first, drawn, strict=True))
    with GivenNoise(noise, first=True):
        assert torch.equal(torch.randn(5, 6, 3), widen(noise, 6, 3))
    with GivenNoise(noise[2:3], first=False):
        alone = torch.randn(1, 4, 2)
    with GivenNoise(noise, first=False):
        assert torch.equal(torch.randn(5, 4, 2)[2], alone[0])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: torch.randn(5, 3, 2),
        lambda: torch.randn(1, 4, 2),
        lambda: torch.randn(5, 8),
        lambda: torch.rand(5),
        lambda: torch.randperm(5),
    ],
)
def test_what_cannot_be_given_is_refused(draw):
    with pytest.raises(UserError), GivenNoise(normal(5, 4, 2), first=True):
        draw()
