"""The Monte-Carlo returns of candidates, and critics judged by it."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rollout_example import CONTRACT, HORIZON, LIMIT, LinePolicy, LineWorkers, MovesRight

from deas_vla.critic.critic import CriticConfig
from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.rollouts.oracle import returns_of
from deas_vla.rollouts.play import Job, play_episodes
from studies.ablations.critic_table import ablation_table, gain_over, possible_gain, score
from studies.ablations.monte_carlo import MonteCarloReturns, collect_monte_carlo

pytestmark = pytest.mark.unit
N, K = 5, 4


def collect(folder, scenes=range(12), share=0.5, **changes):
    settings = {"seed": 0, "continuations": K, "share": share, "execute_steps": HORIZON, "block": 5} | changes
    return collect_monte_carlo(LineWorkers(), BestOfN(LinePolicy(drift=0.8), N), list(scenes), folder, **settings)


@pytest.fixture(scope="module")
def monte_carlo(tmp_path_factory):
    return collect(tmp_path_factory.mktemp("monte_carlo"))


# ---- collection ------------------------------------------------------------------------------------------------


def test_probes_are_decisions_of_the_policy_and_do_not_disturb_its_episodes(monte_carlo):
    played = play_episodes(
        LineWorkers(),
        BestOfN(LinePolicy(drift=0.8)),
        [Job(scene) for scene in range(12)],
        seed=0,
        parallel=3,
        execute_steps=HORIZON,
    )
    assert monte_carlo.candidates.shape == (len(monte_carlo), N, HORIZON, CONTRACT.action_dim)
    assert 0 < len(monte_carlo) < sum(len(rollout.decisions) for rollout in played)
    for row in range(len(monte_carlo)):
        episode = played[monte_carlo.scene[row]].episode
        step = monte_carlo.step[row]
        assert step in {decision.step for decision in played[monte_carlo.scene[row]].decisions}
        assert np.array_equal(monte_carlo.state[row], episode.states[step])
        actions = episode.actions[step : step + HORIZON]
        assert np.array_equal(monte_carlo.candidates[row, 0, : len(actions)], actions)


def test_a_branch_begins_with_its_candidate(monte_carlo):
    """On the line the outcome of the chunk itself is plain: whoever moves past 1 within it has won there."""
    for row in range(len(monte_carlo)):
        place = monte_carlo.state[row, 0] + np.cumsum(monte_carlo.candidates[row, :, :, 0], 1)
        left = LIMIT - monte_carlo.step[row]
        won = (place[:, :left] > 1).any(1)
        assert monte_carlo.success[row, won].all()
        first = (place > 1).argmax(1) + 1
        assert (monte_carlo.steps[row, won] == first[won, None]).all()
        # Whoever has not, goes on with the policy.
        assert (monte_carlo.steps[row, ~won] > min(HORIZON, left - 1)).all()


def test_continuations_differ_from_each_other_but_are_the_same_for_all_candidates(tmp_path):
    class Still(LinePolicy):
        """Proposes one and the same chunk where it is asked for several."""

        def sample(self, context, noise):
            chunks = super().sample(context, noise)
            return chunks if noise.shape[1] == 1 else chunks[:, :1].expand_as(chunks).clone()

    settings = {"seed": 0, "continuations": K, "share": 1.0, "execute_steps": HORIZON}
    found = collect_monte_carlo(LineWorkers(), BestOfN(Still(drift=0.6), N), list(range(12)), tmp_path, **settings)
    assert (found.steps == found.steps[:, :1]).all() and (found.success == found.success[:, :1]).all()
    assert (np.ptp(found.steps, axis=2) > 0).any()


def test_a_collection_that_was_killed_goes_on_where_it_was(tmp_path, monte_carlo):
    collect(tmp_path, scenes=range(10))
    files = sorted(tmp_path.iterdir())
    again = collect(tmp_path)
    assert [len(files), len(list(tmp_path.iterdir()))] == [2, 3]
    assert np.array_equal(again.steps, monte_carlo.steps) and np.array_equal(again.scene, monte_carlo.scene)


def test_nothing_probed_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"raise --monte_carlo\.share"):
        collect(tmp_path, share=1e-9)


def test_files_come_back_as_they_were_and_broken_ones_are_refused(tmp_path, monte_carlo):
    path = tmp_path / "monte_carlo.safetensors"
    monte_carlo.save(path)
    again = MonteCarloReturns.load(path)
    assert again.instruction == monte_carlo.instruction and set(again.images) == set(monte_carlo.images)
    for name in ("state", "candidates", "steps", "success", "scene", "step"):
        assert np.array_equal(getattr(again, name), getattr(monte_carlo, name))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="collect it again"):
        MonteCarloReturns.load(path)


def test_returns_are_those_of_the_critic(monte_carlo):
    config = CriticConfig(horizon=HORIZON)
    returns = monte_carlo.returns(config)
    for index in [(0, 0, 0), (1, 2, 3), (len(monte_carlo) - 1, N - 1, K - 1)]:
        branch = np.zeros(monte_carlo.steps[index], bool)
        branch[-1] = monte_carlo.success[index]
        assert returns[index] == pytest.approx(returns_of(branch, config)[0])


# ---- judging critics -------------------------------------------------------------------------------------------


def fair(rng, decisions=60, spread=1.0):
    """Candidates whose chances of success differ as told, their outcomes and returns."""
    chance = 1 / (1 + np.exp(-spread * rng.standard_normal((decisions, N))))
    success = rng.random((decisions, N, K)) < chance[..., None]
    return chance, np.where(success, -3.0, -20.0), success, np.arange(decisions) // 2


def test_one_who_knows_the_chances_gains_and_one_who_does_not_gains_nothing():
    chance, returns, success, scene = fair(np.random.default_rng(0), 400, spread=2.0)
    knows = score(chance[None], returns, success, scene)
    constant = score(np.zeros((1, 400, N)), returns, success, scene)
    opposite = score(-chance[None], returns, success, scene)
    assert knows.gain_ci95[0] > 0.1 and knows.worst < -0.1 and knows.spearman > 0.5
    assert constant.gain == pytest.approx(0) and constant.worst == pytest.approx(0) and constant.spearman == 0
    assert (opposite.gain, opposite.worst) == pytest.approx((knows.worst, knows.gain))
    assert knows.headroom > 0.9


def test_two_critics_are_compared_in_the_same_decisions():
    """The difference is that of the gains, and known better than either; a critic is not ahead of itself."""
    chance, returns, success, scene = fair(np.random.default_rng(2), 400, spread=2.0)
    knows, confused = chance[None], chance[None] + np.random.default_rng(3).normal(0, 0.2, (2, 400, N))
    gained = [score(one, returns, success, scene) for one in (knows, confused)]
    more = gain_over(knows, confused, success, scene)
    assert more["difference"] == pytest.approx(gained[0].gain - gained[1].gain)
    assert more["ci95"][1] - more["ci95"][0] < min(one.gain_ci95[1] - one.gain_ci95[0] for one in gained)
    assert gain_over(knows, knows, success, scene) == {"difference": 0.0, "ci95": (0.0, 0.0)}


def test_what_is_possible_is_not_luck():
    """Equal candidates leave nothing to gain, though the luckiest of them looks much better than the rest."""
    _, returns, success, scene = fair(np.random.default_rng(1), 1000, spread=0.0)
    possible = possible_gain(returns, success, scene)
    assert possible["ci95"][0] < 0 < possible["ci95"][1]
    assert score(returns.mean(2)[None], returns, success, scene).gain > 0.2


@settings(max_examples=15)
@given(scale=st.floats(0.01, 100), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_only_the_order_of_scores_counts(scale, shift, seed):
    rng = np.random.default_rng(seed)
    _, returns, success, scene = fair(rng, 8)
    scores = rng.integers(-3, 4, (1, 8, N)).astype(float)
    assert score(scores, returns, success, scene) == score(scale * scores + shift, returns, success, scene)


def test_the_critic_of_the_line_is_a_good_one(monte_carlo):
    """Farther right is better there, and the critic says so."""
    policy = LinePolicy(drift=0.8)
    decider = BestOfN(policy, N, "best", MovesRight(policy))
    seen = monte_carlo.observation(slice(None))
    encoded = decider.scorer.encode(policy.encode(seen), seen)
    chunks = decider.scorer.chunks(torch.from_numpy(monte_carlo.candidates))
    mine = score(
        decider.scorer.score(encoded, chunks).numpy()[None],
        monte_carlo.returns(CriticConfig(horizon=HORIZON)),
        monte_carlo.success,
        monte_carlo.scene,
    )
    assert mine.gain > 0 > mine.worst and mine.spearman > 0.5


def test_the_table_has_the_best_first():
    _, returns, success, scene = fair(np.random.default_rng(0), 50, spread=2.0)

    rate = success.mean(2)[None]

    def entry(scores, over=None):
        mine = asdict(score(scores, returns, success, scene))
        return {"critics": 1, "seconds": 1.0, "score": mine, "over_default": over}

    worse = gain_over(-rate, rate, success, scene)
    lines = ablation_table({"variants": {"bad": entry(-rate, worse), "default": entry(rate)}}).splitlines()
    assert lines[2].startswith("| `default` | **+") and lines[3].startswith("| `bad` | **−")
    assert lines[2].split(" | ")[2] == "–" and lines[3].split(" | ")[2].startswith("−")
    # One scene has no interval, and a table all the same.
    alone = entry(rate, gain_over(rate, -rate, success, np.zeros(50)))
    assert alone["over_default"]["ci95"] is None
    assert ablation_table({"variants": {"good": alone}}).splitlines()[2].split(" | ")[2].startswith("+")
