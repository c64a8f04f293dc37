"""Options against a slow reference that follows the definition, step by step."""

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from hypothesis import given, settings
from hypothesis import strategies as st

from deas_vla.data.frames import FrameTable
from deas_vla.data.options import Options, RewardSpec, build_chunks, build_options, chunk_return, returns_to_go
from deas_vla.data.sampling import group_probabilities, sample_indices, split_by_episode, split_text
from deas_vla.errors import UserError

pytestmark = pytest.mark.unit
CONTRACT = example_contract()


def build(episodes, horizon=4, reward=None, discounts=(0.9, 0.99)):
    return build_options(
        episodes,
        CONTRACT,
        horizon=horizon,
        reward_discount=discounts[0],
        bootstrap_discount=discounts[1],
        reward=reward or RewardSpec(),
    )


def reference_options(episodes, horizon, discounts):
    """{(episode, step): option} by the definition, one step at a time, in plain Python."""
    options, first = {}, 0
    for number, episode in enumerate(episodes):
        row_of = {int(step): first + i for i, step in enumerate(episode.frame_steps)}
        first += len(row_of)
        for t, row in row_of.items():
            collected, m, done, chunk = 0.0, 0, False, []
            for k in range(horizon):
                if t + k < episode.length:
                    chunk.append(episode.actions[t + k])
                    collected += discounts[0] ** k * (0.0 if episode.success[t + k] else -1.0)
                    m, done = m + 1, done or bool(episode.success[t + k])
                else:
                    chunk.append(episode.actions[-1])
            if m and (done or (m == horizon and t + m in row_of)):
                bootstrap = 0.0 if done else discounts[1] ** m
                options[number, t] = (row, row_of.get(t + m), m, done, collected, bootstrap, np.array(chunk))
    return options


@st.composite
def episode_lists(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    episodes = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.integers(1, 14))
        frames = sorted(draw(st.sets(st.integers(0, steps), min_size=1)))
        source = draw(st.sampled_from(["demonstration", "rollout"]))
        episodes.append(example_episode(rng, steps, draw(st.booleans()), frames=frames, source=source))
    return episodes


@settings(deadline=None, max_examples=150)
@given(episodes=episode_lists(), horizon=st.integers(1, 6))
def test_options_follow_the_definition(episodes, horizon):
    expected = reference_options(episodes, horizon, (0.8, 0.95))
    starts = sum(int((episode.frame_steps < episode.length).sum()) for episode in episodes)
    if not expected:
        with pytest.raises(UserError, match=f"{starts} dropped" if starts else "followed by an action"):
            build(episodes, horizon, discounts=(0.8, 0.95))
        return
    options = build(episodes, horizon, discounts=(0.8, 0.95))
    assert options.dropped + options.cut == starts - len(expected)
    assert list(expected) == list(zip(options.episode.tolist(), options.step.tolist(), strict=True))
    for i, (start, end, m, done, collected, bootstrap, chunk) in enumerate(expected.values()):
        assert int(options.start_frame[i]) == start
        assert done or int(options.end_frame[i]) == end
        assert (int(options.length[i]), bool(options.terminated[i])) == (m, done)
        assert options.valid[i].tolist() == [k < m for k in range(horizon)]
        assert options.returns[i].item() == pytest.approx(collected, rel=1e-6, abs=1e-6)
        assert options.bootstrap[i].item() == pytest.approx(bootstrap, rel=1e-6)
        assert torch.equal(options.chunk[i], CONTRACT.normalize_action(torch.from_numpy(chunk)))
        assert int(options.group[i]) == ("demonstration", "success", "failure").index(
            episodes[int(options.episode[i])].group
        )


@settings(deadline=None, max_examples=50)
@given(episodes=episode_lists())
def test_frames_are_where_options_say(episodes):
    frames = FrameTable.of(episodes)
    try:
        options = build(episodes)
    except UserError:
        return
    assert len(frames) == sum(len(episode.frame_steps) for episode in episodes)
    for i in range(len(options)):
        start, end = int(options.start_frame[i]), int(options.end_frame[i])
        number, t = int(options.episode[i]), int(options.step[i])
        assert (int(frames.episode[start]), int(frames.step[start])) == (number, t)
        assert int(frames.episode[end]) == number
        if not options.terminated[i]:
            assert int(frames.step[end]) == t + int(options.length[i])
        episode = episodes[number]
        seen = frames.observation(options.start_frame[i : i + 1])
        place = episode.frame_steps.tolist().index(t)
        assert np.array_equal(seen.state[0].numpy(), episode.states[t])
        assert seen.instruction == [episode.instruction]
        for name, images in episode.images.items():
            assert np.array_equal(seen.images[name][0].numpy(), images[place])


def test_options_that_do_not_join_are_told_from_those_that_do():
    """Images every 8 steps and one more after every second: single steps start there and lead nowhere."""
    rng = np.random.default_rng(0)
    frames = sorted({step for step in range(65) if step % 8 == 0 or step % 16 == 1})
    apart = [example_episode(rng, 64, False, frames=frames)]
    every = [example_episode(rng, 64, False, every=1)]
    assert build(apart, 1).chained == 0.0
    assert build(apart, 16).chained == build(every, 1).chained == 1.0
    half = [example_episode(rng, 64, True, every=1), *apart]
    assert 0.8 < build(half, 1).chained < 1.0
    # Whoever ends with the episode joins nothing, and need not.
    assert build([example_episode(rng, 8, False, every=8)], 8).chained == 1.0
    # Nor is it a fault of the images that a timeout cut short what would have started there.
    assert build([example_episode(rng, 64, False, every=8)], 16).chained == 1.0


def test_imitation_needs_neither_rewards_nor_an_image_at_the_end_of_a_chunk():
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, 30, False, frames=[0, 8, 16]), example_episode(rng, 5, True, frames=[3, 5])]
    episodes[0].rewards[:] = np.nan
    with pytest.raises(UserError, match="3 dropped"):
        build(episodes[:1], 12)
    chunks = build_chunks(episodes, CONTRACT, horizon=12)
    assert (chunks.step.tolist(), chunks.episode.tolist()) == ([0, 8, 16, 3], [0, 0, 0, 1])
    assert chunks.start_frame.tolist() == [0, 1, 2, 3] and chunks.valid.sum(1).tolist() == [12, 12, 12, 2]
    for row, (number, step) in enumerate([(0, 0), (0, 8), (0, 16), (1, 3)]):
        played = episodes[number].actions[np.arange(step, step + 12).clip(max=episodes[number].length - 1)]
        assert torch.equal(chunks.chunk[row], CONTRACT.normalize_action(torch.from_numpy(played)))
    assert build_chunks(episodes[1:], CONTRACT, horizon=2).group.tolist() == [Options.SUCCESS]


def test_rule_02_terminated_is_not_truncated():
    rng = np.random.default_rng(0)
    success, timeout = (example_episode(rng, 10, ok, every=2) for ok in (True, False))
    options = build([success, timeout])
    ends = options.step + options.length == 10
    succeeded = options.episode == 0
    assert torch.equal(options.terminated, ends & succeeded)
    assert (options.bootstrap[options.terminated] == 0).all()
    # Both options that meet the success are kept, the short one too.
    assert options.length[ends & succeeded].tolist() == [4, 2]
    # At the timeout a whole option bootstraps from the last stored observation; a shorter one is dropped.
    last = ends & ~succeeded
    assert options.length[last].tolist() == [4] and options.cut == 1
    assert torch.allclose(options.bootstrap[last], torch.tensor([0.99**4]))
    frames = FrameTable.of([success, timeout])
    assert (frames.step[options.end_frame[last]] == 10).all()


def test_rule_02_a_failure_is_worth_failing_for_ever():
    """A tabular chain: the robot is stuck in one place until the time is up, or walks to the goal.

    The value of being stuck is the fixed point −(1 − γ₁ᴴ) / ((1 − γ₁)(1 − γ₂ᴴ)). Options that a timeout cuts short are
    discounted like options of another horizon, whose fixed point is another one: they would pull it down.
    """
    rng, horizon, g1, g2 = np.random.default_rng(0), 16, 0.9, 0.99
    stuck = example_episode(rng, 40, False, every=8)
    walk = example_episode(rng, 24, True, every=1)
    options = build([stuck, walk], horizon, discounts=(g1, g2))
    frames = FrameTable.of([stuck, walk])
    # State 0: stuck. State 1 + t: the walk after t steps.
    state = torch.where(frames.episode == 0, 0, 1 + frames.step)
    value = torch.zeros(1 + 25)
    for _ in range(400):
        targets = options.returns + options.bootstrap * value[state[options.end_frame]]
        start = state[options.start_frame]
        total = torch.zeros_like(value).index_add(0, start, targets)
        value = total / torch.bincount(start, minlength=len(value)).clamp_min(1)
    forever = -(1 - g1**horizon) / ((1 - g1) * (1 - g2**horizon))
    assert value[0].item() == pytest.approx(forever, rel=1e-4)
    assert value[24] == 0 and (value[1:25].diff() >= 0).all() and value[1] > forever / 2


def test_rule_02_a_timeout_without_a_stored_observation_is_dropped():
    rng = np.random.default_rng(0)
    stored = example_episode(rng, 10, False, frames=[0, 2, 4, 6, 8, 10])
    missing = example_episode(rng, 10, False, frames=[0, 2, 4, 6, 8])
    assert build([stored]).step.tolist() == [0, 2, 4, 6]
    options = build([missing])
    # Step 6 would end at row 10, step 8 after it.
    assert (options.step.tolist(), options.dropped, options.cut) == ([0, 2, 4], 1, 1)
    assert not options.terminated.any() and (options.bootstrap > 0).all()


def test_rule_02_no_reward_after_the_end():
    options = build([example_episode(np.random.default_rng(0), 6, True, frames=[0, 4, 5])], horizon=4)
    # From step 4: -1, then 0 for the success. From step 5: the success alone.
    assert torch.allclose(options.returns, torch.tensor([-1 - 0.9 - 0.81 - 0.729, -1.0, 0.0]))


def test_rule_03_short_options_discount_by_the_steps_played():
    """y = Σ_{k<m} γ₁ᵏ r + γ₂ᵐ (1 − terminated) V for one full option and one that a success ends."""
    episode = example_episode(np.random.default_rng(0), 6, True, frames=[0, 4, 6])
    options = build([episode])
    value = torch.tensor([-3.0, -5.0])
    target = options.returns + options.bootstrap * value
    expected = [-(1 + 0.9 + 0.81 + 0.729) + 0.99**4 * -3.0, -1.0]
    assert options.length.tolist() == [4, 2]
    assert torch.allclose(target, torch.tensor(expected))


def test_steps_after_the_end_repeat_the_last_action():
    episode = example_episode(np.random.default_rng(0), 5, True, frames=[3])
    options = build([episode])
    assert torch.equal(options.chunk[0, 1:], options.chunk[0, 1:2].expand(3, 2))


@settings(deadline=None, max_examples=100)
@given(
    rewards=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), discount=st.floats(0.1, 1.0), data=st.data()
)
def test_chunk_return_is_the_discounted_sum(rewards, discount, data):
    m = data.draw(st.integers(0, len(rewards)))
    valid = torch.arange(len(rewards)) < m
    expected = sum(discount**k * r for k, r in enumerate(rewards[:m]))
    # What stands in the padding does not count, not even NaN.
    padded = torch.where(valid, torch.tensor(rewards), torch.nan)
    assert chunk_return(padded[None], valid[None], discount).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("discount", [0.0, -0.5, 1.5])
def test_chunk_return_refuses_other_discounts(discount):
    with pytest.raises(ValueError, match="discount"):
        chunk_return(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), discount)


def test_chunk_return_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(B, H\)"):
        chunk_return(torch.zeros(1, 2), torch.ones(1, 3, dtype=torch.bool), 0.9)


def test_rule_09_rewards_are_declared():
    rng = np.random.default_rng(0)
    episode = example_episode(rng, 8, True)
    episode.rewards = np.linspace(0, 7, 8, dtype=np.float32)
    # Neither the source, nor the instruction, nor the size of the numbers changes what is declared.
    assert RewardSpec().of(episode).tolist() == [-1.0] * 7 + [0.0]
    assert RewardSpec("column", 0.0, 7.0).of(episode).tolist() == list(range(8))
    with pytest.raises(UserError, match=r"lies in \[0, 7\], outside the declared \[0, 5\]"):
        RewardSpec("column", 0.0, 5.0).of(episode)
    with pytest.raises(UserError, match="choose success_minus_one or column"):
        RewardSpec("robocasa")
    with pytest.raises(UserError, match="leave minimum and maximum"):
        RewardSpec("success_minus_one", -2.0, 0.0)
    with pytest.raises(UserError, match="below"):
        RewardSpec("column", 1.0, 1.0)
    options = build([episode], reward=RewardSpec("column", 0.0, 7.0), discounts=(1.0, 0.99))
    assert options.returns.tolist() == [0 + 1 + 2 + 3, 4 + 5 + 6 + 7]


DISCOUNTS = {"reward_discount": 0.9, "bootstrap_discount": 0.99, "forever": -1.0}


def test_returns_to_go_have_the_closed_form():
    done = np.arange(8) == 7
    succeeded = returns_to_go(done - 1.0, done, horizon=4, **DISCOUNTS)
    lost = returns_to_go(np.full(8, -1.0), np.zeros(8, bool), horizon=4, **DISCOUNTS)
    chunk = 1 + 0.9 + 0.81 + 0.729
    assert succeeded[8] == 0 and succeeded[7] == 0 and succeeded[6] == pytest.approx(-1)
    assert succeeded[0] == pytest.approx(-chunk - 0.99**4 * (chunk - 0.729))
    # A failure that goes on for ever is worth the same from everywhere.
    assert lost == pytest.approx(np.full(9, -chunk / (1 - 0.99**4)))
    # What is recorded after the task was done does not count.
    longer = returns_to_go(np.append(done - 1.0, [-1.0] * 3), np.append(done, [False] * 3), horizon=4, **DISCOUNTS)
    assert longer[:8] == pytest.approx(succeeded[:8])
    with pytest.raises(ValueError, match="bootstrap_discount"):
        returns_to_go(np.zeros(3), np.zeros(3, bool), horizon=4, **(DISCOUNTS | {"bootstrap_discount": 1.0}))


@settings(deadline=None, max_examples=50)
@given(episodes=episode_lists(), horizon=st.integers(1, 6))
def test_returns_to_go_satisfy_the_options_own_recursion(episodes, horizon):
    """G_t = R_t + bootstrap · G_{t+m} for every option: what V must agree with if it is exact."""
    returns = [
        returns_to_go(RewardSpec().of(episode), episode.success, horizon=horizon, **DISCOUNTS) for episode in episodes
    ]
    try:
        options = build(episodes, horizon)
    except UserError:
        return
    for i in range(len(options)):
        g, t, m = returns[options.episode[i]], int(options.step[i]), int(options.length[i])
        expected = options.returns[i].item() + options.bootstrap[i].item() * g[t + m]
        assert g[t] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_batches_are_an_index():
    options = build([example_episode(np.random.default_rng(0), 40, False)])
    rows = torch.tensor([3, 0, 3])
    batch = options.batch(rows)
    assert isinstance(batch, Options) and len(batch) == 3
    assert torch.equal(batch.chunk, options.chunk[rows]) and torch.equal(batch.step, options.step[rows])
    assert options.batch(options.step > 8).step.min() == 12


def test_groups_are_balanced():
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, 40, False) for _ in range(6)]
    episodes += [example_episode(rng, 12, True), example_episode(rng, 8, True, source="demonstration")]
    options = build(episodes)
    weights = {"demonstration": 1.0, "success": 2.0, "failure": 1.0}
    probabilities = group_probabilities(options.group, weights)
    for code, share in ((Options.DEMONSTRATION, 0.25), (Options.SUCCESS, 0.5), (Options.FAILURE, 0.25)):
        part = probabilities[options.group.numpy() == code]
        assert part.sum() == pytest.approx(share) and np.ptp(part) == 0
    # A group without options leaves its share to the others.
    two = build(episodes[:-1])
    probabilities = group_probabilities(two.group, weights)
    assert probabilities[two.group.numpy() == Options.SUCCESS].sum() == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="nothing to sample"):
        group_probabilities(two.group, {"demonstration": 1.0, "success": 0.0, "failure": 0.0})
    with pytest.raises(UserError, match="each of demonstration, success, failure"):
        group_probabilities(two.group, {"demos": 1.0})


def test_rule_12_batches_depend_on_seed_and_step_only():
    probabilities = np.array([0.0, 0.5, 0.25, 0.0, 0.25, 0.0])
    run = [sample_indices(3, step, 64, probabilities) for step in range(200)]
    # Resumed at step 150, or asked in any order, the batches are those of the uninterrupted run.
    for step in (150, 7, 199):
        assert np.array_equal(sample_indices(3, step, 64, probabilities), run[step])
    assert not np.array_equal(run[0], run[1])
    assert not np.array_equal(sample_indices(4, 0, 64, probabilities), run[0])
    frequency = np.bincount(np.concatenate(run), minlength=6) / (200 * 64)
    assert (frequency[probabilities == 0] == 0).all()
    assert np.abs(frequency - probabilities).max() < 0.02  # four standard deviations


def test_split_holds_out_whole_episodes_of_each_group():
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, 5, i % 4 == 0) for i in range(40)]
    mask = split_by_episode(episodes, 0.2, seed=1)
    succeeded = np.array([episode.terminated for episode in episodes])
    assert (mask[succeeded].sum(), mask[~succeeded].sum()) == (2, 6)
    assert np.array_equal(mask, split_by_episode(episodes, 0.2, seed=1))
    assert not np.array_equal(mask, split_by_episode(episodes, 0.2, seed=2))
    assert not split_by_episode(episodes, 0.0, seed=1).any()
    # A tenth of five is none, and then nothing says whether the critic only remembers (defect: in silence).
    few = [*episodes[:2], *(example_episode(rng, 5, True, source="demonstration") for _ in range(5))]
    mask = split_by_episode(few, 0.1, seed=1)
    text = "episodes held out: 1 of 5 (demonstration), 0 of 1 (success), 0 of 1 (failure)"
    assert mask.sum() == 1 and split_text(few, mask) == text
    with pytest.raises(UserError, match="held-out"):
        split_by_episode(episodes, 1.0, seed=1)
