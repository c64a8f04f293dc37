"""What a critic reads: one path; padding is invisible; caches survive a kill."""

import dataclasses
import os
import weakref

import numpy as np
import pytest
import torch
from data_example import ExampleEncoder, example_contract, example_episode

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.contract import Statistics
from deas_vla.data.frames import FrameTable
from deas_vla.data.observation import OTHER, TEXT, Context
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.features.cache import FeatureCache
from deas_vla.features.features import FeatureConfig, Features, Projection, fit_projection, pool_tokens
from deas_vla.features.image_encoder import ImageEncoder
from deas_vla.scorers.deas import DeasScorer
from deas_vla.scorers.scorer import load_scorer

pytestmark = pytest.mark.unit
CONTRACT = example_contract()
CONFIG = FeatureConfig(grid=2, dim=5)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(FeatureCache, "block", 8)


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    words = ("lift the cube", "open the door", "stack")
    return [example_episode(rng, 20, i % 2 == 0, instruction=words[i % 3]) for i in range(7)]


@pytest.fixture
def frames(episodes):
    return FrameTable.of(episodes)


@pytest.fixture
def encoder():
    return ExampleEncoder(CONTRACT)


def trained(encoder, frames, folder) -> tuple[Features, torch.Tensor]:
    """Features as critic training makes them, and the features of all frames from the cache."""
    cache = FeatureCache(folder, encoder, frames, CONFIG)
    cache.fill()
    pooled = cache.read()
    torch.manual_seed(0)
    features = Features(CONTRACT, CONFIG, fit_projection(pooled, CONFIG.dim), ImageEncoder(2, 3))
    return features, features.of_pooled(pooled, frames.observation(torch.arange(len(frames))).images)


def scorer_of(features, encoder) -> DeasScorer:
    config = CriticConfig(horizon=4, hidden_dim=16, num_layers=2)
    return DeasScorer.untrained(features, config, encoder.encoder_fingerprint).eval()


def close(one, other) -> bool:
    """Of features computed in batches of different sizes, within the tolerance of rule 1."""
    return torch.allclose(one, other, rtol=1e-5, atol=1e-5)


def test_rule_01_one_path_for_critic_inputs(encoder, frames, episodes, tmp_path):
    """The same frame as s, as s' and at inference: the same features."""
    made, cached = trained(encoder, frames, tmp_path)
    scorer = scorer_of(made, encoder)
    settings = {"horizon": 8, "reward_discount": 0.9, "bootstrap_discount": 0.99, "reward": RewardSpec()}
    options = build_options(episodes, CONTRACT, **settings)
    state = CONTRACT.normalize_state(frames.state)
    as_start = {int(f): cached[f] for f in options.start_frame}
    both = [int(f) for f in options.end_frame if int(f) in as_start]
    assert both
    for frame in both:
        assert torch.equal(cached[options.end_frame][options.end_frame == frame][0], as_start[frame])
    for count in (1, 2, 7, len(frames)):
        for first in (0, 3, len(frames) - count):
            rows = torch.arange(first, min(first + count, len(frames)))
            seen = frames.observation(rows)
            features, live_state = scorer.encode(encoder.encode(seen), seen)
            assert close(features, cached[rows]) and close(live_state, state[rows])


def test_rule_01_recorded_and_proposed_chunks_look_alike(episodes):
    """What was played is scored as what is about to be played: same columns, clipped and thresholded."""
    scorer = scorer_of(
        Features(CONTRACT, CONFIG, Projection(torch.zeros(1), torch.zeros(1, 5))), ExampleEncoder(CONTRACT)
    )
    settings = {"horizon": 4, "reward_discount": 0.9, "bootstrap_discount": 0.99, "reward": RewardSpec()}
    options = build_options(episodes, CONTRACT, **settings)
    played = torch.from_numpy(np.stack([episodes[0].actions[:4]]))
    assert torch.equal(options.chunk[:1], scorer.chunks(played))
    # A proposal that the environment would turn into the same commands gets the same inputs.
    proposal = scorer.chunks(played).clone()
    proposal[..., 1] *= 0.3
    assert torch.allclose(scorer.chunks(CONTRACT.to_command(proposal)), options.chunk[:1], atol=1e-6)


def test_rule_01_a_saved_scorer_reads_and_scores_the_same(encoder, frames, tmp_path):
    made, cached = trained(encoder, frames, tmp_path / "cache")
    scorer = scorer_of(made, encoder)
    scorer.save(tmp_path / "critic")
    loaded = load_scorer(tmp_path / "critic", CONTRACT)
    assert loaded.fingerprint() == scorer.fingerprint()
    assert (loaded.contract, loaded.features.config) == (CONTRACT, CONFIG)
    assert loaded.encoder_fingerprint == encoder.encoder_fingerprint
    seen, chunks = frames.observation(torch.tensor([4])), torch.randn(1, 3, 4, 2)
    encoded = loaded.encode(encoder.encode(seen), seen)
    assert close(encoded.features, cached[[4]])
    assert torch.equal(loaded.score(encoded, chunks), scorer.score(encoded, chunks))


def context_of(tokens, mask, camera) -> Context:
    return Context(tokens, mask, camera, torch.zeros(len(tokens), 3))


def test_pooling_keeps_where_things_are(encoder, frames):
    context = encoder.encode(frames.observation(torch.arange(3)))
    pooled = pool_tokens(context, CONFIG, 2)
    assert pooled.shape == (3, 2 * 4 * 6 + 6)
    grid = context.tokens[:, 16:32].view(3, 4, 4, 6)  # the second camera
    lower_left = grid[:, 2:, :2].mean((1, 2))
    assert torch.allclose(pooled[:, 24 + 12 : 24 + 18], lower_left, atol=1e-6)
    text = context.mask[:, 32:, None]
    mean = (context.tokens[:, 32:] * text).sum(1) / text.sum(1)
    assert torch.allclose(pooled[:, -6:], mean, atol=1e-6)
    flat = pool_tokens(context, FeatureConfig(grid=1), 2)
    assert torch.allclose(flat[:, :6], context.tokens[:, :16].mean(1), atol=1e-6)


def test_rule_06_padding_is_invisible(encoder, frames):
    """Padded tokens, wherever they stand and whatever they hold, and other items of the batch change nothing."""
    context = encoder.encode(frames.observation(torch.arange(5)))
    plain = pool_tokens(context, CONFIG, 2)
    generator = torch.Generator().manual_seed(1)
    for left, right in ((0, 7), (3, 0), (4, 9)):

        def padded(tensor, value, left=left, right=right):
            shape = (tensor.shape[0], left, *tensor.shape[2:]), (tensor.shape[0], right, *tensor.shape[2:])
            return torch.cat([tensor.new_full(shape[0], value), tensor, tensor.new_full(shape[1], value)], 1)

        tokens, mask = padded(context.tokens, 0.0), padded(context.mask, False)
        noise = 1e3 * torch.randn(tokens.shape, generator=generator)
        for fill in (tokens, torch.where(mask[..., None], tokens, noise)):
            for camera in (-1, 0, 1):
                longer = context_of(fill, mask, padded(context.camera, camera))
                assert torch.allclose(pool_tokens(longer, CONFIG, 2), plain, atol=1e-6)
    for row in range(5):
        alone = context_of(context.tokens[[row]], context.mask[[row]], context.camera[[row]])
        assert close(pool_tokens(alone, CONFIG, 2), plain[[row]])


def test_tokens_that_are_no_grid_are_refused(encoder, frames):
    context = encoder.encode(frames.observation(torch.arange(2)))
    with pytest.raises(UserError, match="camera 2 has 0 tokens"):
        pool_tokens(context, CONFIG, 3)
    context.mask[:, 3] = False
    with pytest.raises(UserError, match="camera 0 has 15 tokens, which are not a square grid"):
        pool_tokens(context, CONFIG, 2)
    context.mask[1, 3] = True
    with pytest.raises(UserError, match=r"camera 0 has \[15, 16\] tokens in different observations"):
        pool_tokens(context, CONFIG, 2)


@pytest.mark.parametrize("shape", [(400, 12), (30, 50)], ids=["tall", "wide"])
def test_projection_whitens_its_frames(shape):
    generator = torch.Generator().manual_seed(0)
    pooled = torch.randn(shape, generator=generator) * torch.logspace(1, -2, shape[1]) + 3
    projection = fit_projection(pooled, 8)
    features = (pooled - projection.mean) @ projection.components
    assert torch.allclose(features.T.cov(), torch.eye(8), atol=1e-3)
    # Whitened principal components: the directions of an ordinary PCA, up to sign.
    _, _, directions = torch.linalg.svd(pooled - pooled.mean(0), full_matrices=False)
    unit = projection.components / projection.components.norm(dim=0)
    assert torch.allclose((directions[:8] @ unit).abs(), torch.eye(8), atol=1e-3)


def test_projection_has_the_asked_size_when_frames_are_few():
    pooled = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    projection = fit_projection(pooled, 16)
    features = (pooled - projection.mean) @ projection.components
    assert projection.components.shape == (20, 16) and torch.isfinite(features).all()
    # Six frames span five directions; the rest is zero, not amplified noise.
    assert (features[:, 5:] == 0).all() and torch.allclose(features[:, :5].var(0), torch.ones(5), atol=1e-3)


def test_projection_of_equal_frames_is_zero():
    features = fit_projection(torch.full((4, 7), 2.5), 3)
    assert (features.components == 0).all()


def test_projection_refuses_what_it_cannot_fit():
    with pytest.raises(UserError, match="two training frames"):
        fit_projection(torch.zeros(1, 4), 2)
    with pytest.raises(UserError, match="NaN"):
        fit_projection(torch.tensor([[0.0, torch.nan], [1.0, 2.0]]), 2)


def test_configuration_is_checked():
    with pytest.raises(UserError, match=r"features\.grid=-1"):
        FeatureConfig(grid=-1)
    with pytest.raises(UserError, match=r"features\.text_weight=0"):
        FeatureConfig(text_weight=0)


def test_one_average_of_all_tokens_and_no_projection(encoder, frames):
    """What the preset `published` reads: every token counts alike, padding does not."""
    seen = frames.observation(torch.arange(3))
    context, config = encoder.encode(seen), FeatureConfig(grid=0, dim=0)
    pooled = pool_tokens(context, config, 2)
    mask = context.mask[..., None]
    torch.testing.assert_close(pooled, (context.tokens * mask).sum(1) / mask.sum(1))
    features = Features(CONTRACT, config, fit_projection(pooled, 0))
    assert features.dim == pooled.shape[1] and torch.equal(features(context, seen)[0], pooled)


def test_only_text_is_averaged_as_text(encoder, frames):
    """Summaries of an image, marks around it and views that the robot lacks once were."""
    context = encoder.encode(frames.observation(torch.arange(3)))
    plain = pool_tokens(context, CONFIG, 2)
    more = [torch.cat([part, new], 1) for part, new in (
        (context.tokens, torch.full((3, 4, context.tokens.shape[2]), 50.0)),
        (context.mask, torch.ones(3, 4, dtype=torch.bool)),
        (context.camera, torch.full((3, 4), OTHER)),
    )]  # fmt: skip
    assert torch.equal(pool_tokens(context_of(*more), CONFIG, 2), plain)
    more[2][:, -4:] = TEXT
    assert not torch.allclose(pool_tokens(context_of(*more), CONFIG, 2), plain)


def test_tokens_of_a_camera_that_the_contract_lacks_are_refused(encoder, frames):
    """They were averaged into the text, or dropped, in silence."""
    context = encoder.encode(frames.observation(torch.arange(2)))
    for config in (CONFIG, FeatureConfig(grid=0)):
        with pytest.raises(UserError, match="tokens of camera 1, the contract has 1 cameras"):
            pool_tokens(context, config, 1)


def test_rule_07_a_scorer_of_another_robot_is_refused(encoder, frames, tmp_path):
    scorer_of(trained(encoder, frames, tmp_path / "cache")[0], encoder).save(tmp_path)
    renamed = dataclasses.replace(CONTRACT.state[1], name="position.w")
    other = example_contract(state=(CONTRACT.state[0], renamed, CONTRACT.state[2]), rate_hz=10.0)
    with pytest.raises(ContractMismatch, match=r"rate: 20 Hz against 10 Hz; state\[1\]: name 'position.y' against"):
        load_scorer(tmp_path, other)
    statistics = Statistics((0.5, 0.0, -0.5), (2.0, 1.0, 0.7), (0.1, 0.5), (0.4, 0.5))
    with pytest.raises(ContractMismatch, match=r"state_std differs in columns \[2\]"):
        load_scorer(tmp_path, example_contract(statistics=statistics))


def test_rule_12_a_killed_cache_goes_on_where_it_was(encoder, frames, tmp_path, monkeypatch):
    whole = FeatureCache(tmp_path / "whole", encoder, frames, CONFIG)
    whole.fill()
    encoder.calls = 0
    cache = FeatureCache(tmp_path / "killed", encoder, frames, CONFIG)

    blocks = []

    def die_in_the_fourth(count):
        blocks.append(count)
        if len(blocks) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(progress=die_in_the_fourth)
    # A kill while a block is being written leaves its temporary file and no block.
    missing = next((tmp_path / "whole").rglob("block-00003-*")).name
    (cache.folder / f".{missing}.{os.getpid()}.partial").write_bytes(b"half")
    with pytest.raises(UserError, match=missing):
        cache.read()
    seen = []
    FeatureCache(tmp_path / "killed", encoder, frames, CONFIG).fill(progress=seen.append)
    assert sum(seen) == len(frames)
    assert encoder.calls == len(frames) + 8  # only those of the block that was not written yet
    assert torch.equal(cache.read(), whole.read())


def test_what_a_policy_keeps_to_sample_from_is_not_held_with_the_features(frames, tmp_path):
    """Keys and values of a block's frames took 2 GiB that nothing read (defect)."""

    class WithKeys(ExampleEncoder):
        def encode(self, observation):
            assert all(keys() is None for keys in made)
            context = super().encode(observation)
            context.extras["keys"] = torch.zeros(len(observation), 100)
            made.append(weakref.ref(context.extras["keys"]))
            return context

    made = []
    cache = FeatureCache(tmp_path, WithKeys(CONTRACT), frames, CONFIG)
    cache.fill()
    assert len(made) == -(-len(frames) // 8) and made[-1]() is None
    assert torch.equal(cache.read(), cache[torch.arange(len(frames))])


def test_processes_share_a_cache(encoder, frames, tmp_path):
    cache = FeatureCache(tmp_path, encoder, frames, CONFIG)
    for process in range(3):
        FeatureCache(tmp_path, encoder, frames, CONFIG).fill(process=process, processes=3)
    assert encoder.calls == len(frames)
    alone = FeatureCache(tmp_path / "alone", encoder, frames, CONFIG)
    alone.fill()
    assert torch.equal(cache.read(), alone.read())


def test_frames_that_were_there_are_not_computed_again(encoder, episodes, tmp_path):
    """A second iteration adds rollouts behind those of the first."""
    first, both = FrameTable.of(episodes), FrameTable.of([*episodes, *episodes])
    FeatureCache(tmp_path, encoder, first, CONFIG).fill()
    encoder.calls = 0
    cache = FeatureCache(tmp_path, encoder, both, CONFIG)
    cache.fill()
    assert encoder.calls == len(both) - len(first) // 8 * 8
    alone = FeatureCache(tmp_path / "alone", encoder, both, CONFIG)
    alone.fill()
    assert torch.equal(cache.read(), alone.read())


def test_a_cache_belongs_to_its_encoder_pooling_and_frames(encoder, frames, episodes, tmp_path):
    def key(encoder=encoder, frames=frames, config=CONFIG):
        return FeatureCache(tmp_path, encoder, frames, config).fingerprint

    changed = [dataclasses.replace(e, images=dict(e.images)) for e in episodes]
    changed[2].images["left"] = changed[2].images["left"].copy()
    changed[2].images["left"][1, 3, 3, 0] ^= 1
    retold = [dataclasses.replace(e, instruction="wave") for e in episodes]
    keys = {
        key(),
        key(encoder=ExampleEncoder(CONTRACT, seed=1)),
        key(config=FeatureConfig(grid=3)),
        key(frames=FrameTable.of(changed)),
        key(frames=FrameTable.of(retold)),
        key(frames=FrameTable.of(episodes[::-1])),
    }
    assert len(keys) == 6
    # The size after projection is not part of it: the cache holds what is projected.
    assert key(config=FeatureConfig(grid=2, dim=9)) == key()


def test_a_broken_block_is_refused(encoder, frames, tmp_path):
    cache = FeatureCache(tmp_path, encoder, frames, CONFIG)
    cache.fill()
    path = next(cache.folder.glob("block-00001-*"))
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.raises(UserError, match=f"{path.name}: not a block of this cache"):
        cache.read()
    other = FeatureCache(tmp_path, ExampleEncoder(CONTRACT, seed=1), frames, CONFIG)
    other.fill()
    path.write_bytes(next(other.folder.glob("block-00001-*")).read_bytes())
    with pytest.raises(UserError, match="another cache"):
        cache.read()


def test_frames_leave_their_episodes_as_they_are():
    """They may be shared with others; one data set's images are held once, however many sets there are."""
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, steps, steps % 2 == 0) for steps in (6, 4, 9)]
    before = [dict(episode.images) for episode in episodes]
    frames = FrameTable.of(episodes)
    for name in before[0]:
        wanted = np.concatenate([images[name] for images in before])
        assert np.array_equal(frames.images[name][:].numpy(), wanted)
        for episode, images in zip(episodes, before, strict=True):
            assert episode.images[name] is images[name]
        # As the reader leaves them: parts of one array, in order.
        ends = np.cumsum([len(images[name]) for images in before])
        for episode, part in zip(episodes, np.split(wanted, ends[:-1]), strict=True):
            episode.images[name] = part
    shared, turned = FrameTable.of(episodes), FrameTable.of(episodes[::-1])
    for name, images in shared.images.items():
        assert np.shares_memory(images[:].numpy(), episodes[1].images[name])
        assert np.array_equal(turned.images[name][:3].numpy(), episodes[2].images[name][:3])
        assert not np.shares_memory(turned.images[name][:].numpy(), episodes[2].images[name])
        assert not np.shares_memory(FrameTable.of(episodes[:2]).images[name][:].numpy(), episodes[0].images[name])
    others = [example_episode(rng, 5, True)]
    mixed = FrameTable.of([*others, *episodes])
    for name, images in mixed.images.items():
        wanted = np.concatenate([episode.images[name] for episode in (*others, *episodes)])
        rows = torch.from_numpy(rng.permutation(len(mixed)))
        assert np.array_equal(images[rows].numpy(), wanted[rows]) and np.array_equal(images[3:9], wanted[3:9])
        assert np.array_equal(images.subset(rows)[torch.tensor([2, 0, 2])], wanted[rows[[2, 0, 2]]])


def test_a_subset_is_what_its_rows_show():
    rng = np.random.default_rng(1)
    frames = FrameTable.of([example_episode(rng, 6, True), example_episode(rng, 4, False)])
    rows = torch.tensor([4, 2, 3])
    some, same = frames.subset(rows).observation(torch.arange(3)), frames.observation(rows)
    assert torch.equal(some.state, same.state) and some.instruction == same.instruction
    assert all(torch.equal(some.images[name], same.images[name]) for name in same.images)
    assert frames.subset(rows).fingerprint != frames.fingerprint


def test_held_out_frames_do_not_shape_the_features():
    pooled = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    among = torch.arange(0, 40, 2)
    told = fit_projection(pooled, 4, among=among)
    assert torch.equal(told.components, fit_projection(pooled[among], 4).components)


def test_images_are_hashed_once_for_all_caches(encoder, frames, tmp_path, monkeypatch):
    first = FeatureCache(tmp_path, encoder, frames, CONFIG)
    monkeypatch.setattr(FrameTable, "subset", lambda *_: pytest.fail("hashed again"))
    assert FeatureCache(tmp_path, encoder, frames, CONFIG).fingerprint == first.fingerprint
    assert FeatureCache(tmp_path, encoder, frames, FeatureConfig(grid=1)).fingerprint != first.fingerprint
