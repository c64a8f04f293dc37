"""Is a critic any good, from recordings alone: closed forms, planted critics, held-out episodes only."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from deas_vla.critique.critique import draw
from deas_vla.critique.evidence import Evidence, differences, to_json, unseen_episodes, write_held_out
from deas_vla.critique.page import Asked, first_of_each, panel, write_page
from deas_vla.critique.verdict import FEWEST, best_of, judge, numbers, text_of
from deas_vla.data.episodes import statistics_of
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError
from deas_vla.report.pictures import side_by_side

RANGE = (-50.0, 0.0)


def evidence(rng, success, *, tells=4.0, spread=1.0, agreement=0.8, networks=2, frames=9, candidates=16) -> Evidence:
    """Of a critic whose V is `tells` higher in successes, on candidates whose scores have this spread."""
    progress = np.linspace(0, 0.9, frames)
    value = -20 + tells * success * progress + rng.normal(size=frames)
    monte_carlo = -30 * (1 - progress) if success else np.full(frames, -50.0)
    scores = value[:, None] + spread * rng.normal(size=(frames, candidates))
    return Evidence(
        success, progress, value, scores.mean(1), monte_carlo, scores, networks,
        variance := scores.var(1), agreement * variance, np.full(frames, 0.3),
    )  # fmt: skip


def episodes(rng, count=20, **settings):
    return [evidence(rng, number % 2 == 0, **settings) for number in range(count)]


@pytest.mark.unit
@given(st.integers(1, 7), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_the_best_of_n_is_the_mean_over_all_subsets(n, seed):
    scores = np.random.default_rng(seed).normal(size=(3, 7))
    subsets = [scores[:, list(subset)].max(1) for subset in itertools.combinations(range(7), n)]
    np.testing.assert_allclose(best_of(scores, n), np.mean(subsets, 0) - scores.mean(1), atol=1e-12)


@pytest.mark.unit
def test_a_critic_that_sees_is_told_from_one_that_is_blind():
    rng = np.random.default_rng(0)
    seeing, blind = judge(episodes(rng, 40), RANGE), judge(episodes(rng, 40, tells=0.0), RANGE)
    assert seeing.worth is True and seeing.auc[2].low > 0.5 and "worth reranking" in text_of(seeing)
    assert blind.worth is False and blind.auc[2].low < 0.5 < blind.auc[2].high
    assert blind.recommended == (1, "first") and "does not tell success from failure" in text_of(blind)
    # At its beginning an episode shows nothing, and a critic that sees does not claim to.
    assert seeing.auc[0].low < 0.5 < seeing.auc[0].high


@pytest.mark.unit
def test_networks_that_do_not_agree_are_no_judge():
    found = judge(episodes(np.random.default_rng(1), 40, tells=8.0, agreement=0.1), RANGE)
    assert found.worth is False and found.reliability.value == pytest.approx(0.2 / 1.1)
    assert "do not agree about the candidates" in text_of(found)
    # Ten networks that agree as little are together reliable; one says nothing about it, and is not refused for it.
    assert judge(episodes(np.random.default_rng(1), 40, tells=8.0, agreement=0.1, networks=10), RANGE).worth
    one = judge(episodes(np.random.default_rng(1), 40, tells=8.0, agreement=np.nan, networks=1), RANGE)
    assert one.worth and one.reliability.value == 1 and "it has one network" in text_of(one)


@pytest.mark.unit
@pytest.mark.parametrize("networks", [2, 5])
def test_agreement_is_the_share_of_what_networks_have_in_common(networks):
    """Values with a common part of variance 1, one of each network of variance 3, and one of each network and frame."""
    draw = np.random.default_rng(networks).normal
    common, own = draw(size=(400, 16)), draw(size=(networks, 400, 16)) * 3**0.5
    q_values = torch.from_numpy(common + own + 100 * draw(size=(networks, 400, 1)))
    variance, covariance = differences(q_values)
    assert covariance.sum() / variance.sum() == pytest.approx(1 / 4, abs=0.04)
    pairs = [
        (q_values[a] - q_values[a].mean(1, keepdim=True)) * q_values[b]
        for a, b in itertools.permutations(range(networks), 2)
    ]
    assert torch.allclose(covariance, torch.stack(pairs).mean((0, 2)))
    assert differences(q_values[:1])[1].isnan().all()


@pytest.mark.unit
def test_the_score_is_what_is_promised_as_far_as_it_can_be_believed():
    rng = np.random.default_rng(9)
    good = judge(episodes(rng, 40, tells=20.0), RANGE)
    expected = good.gains[16] * (1.6 / 1.8) * (2 * good.auc[2].value - 1)
    assert good.score == pytest.approx(expected) and good.auc[2].value > 0.95
    lower = [{"tells": 0.0}, {"tells": 20.0, "spread": 0.1}, {"tells": 20.0, "agreement": 0.1}]
    assert all(judge(episodes(rng, 40, **change), RANGE).score < 0.4 * good.score for change in lower)


@pytest.mark.unit
def test_chunks_of_failures_that_rank_higher_are_a_warning():
    made = episodes(np.random.default_rng(1), 40, tells=8.0)
    for each in made:
        each.score = each.candidates.max(1) + (-9 if each.success else 9)
    found = judge(made, RANGE)
    assert found.worth and "played in failures rank higher" in text_of(found)


@pytest.mark.unit
def test_candidates_that_are_all_alike_leave_nothing_to_choose():
    found = judge(episodes(np.random.default_rng(2), 40, tells=8.0, spread=0.0), RANGE)
    assert found.worth is False and found.gains[16] == 0


@pytest.mark.unit
def test_calibration_is_spearmans_correlation_over_all_frames():
    made = episodes(np.random.default_rng(7), 10, tells=8.0)
    scores, returns = (np.concatenate([getattr(each, name) for each in made]) for name in ("score", "monte_carlo"))
    found = judge(made, RANGE).calibration
    assert found.value == pytest.approx(stats.spearmanr(scores, returns).statistic, abs=1e-9)
    assert found.low < found.value < found.high


@pytest.mark.unit
def test_too_few_episodes_are_no_verdict():
    rng = np.random.default_rng(3)
    few = [evidence(rng, number < FEWEST - 1) for number in range(20)]
    found = judge(few, RANGE)
    assert found.worth is None and "too few to tell" in text_of(found)
    assert judge([evidence(rng, True) for _ in range(6)], RANGE).worth is None


def test_intervals_cover_the_truth():
    """Of 60 sets of episodes of a blind critic, the interval of the AUC holds 0.5 in nearly all."""
    rng = np.random.default_rng(4)
    found = [judge(episodes(rng, 16, tells=0.0, frames=5, candidates=2), RANGE, seed).auc[2] for seed in range(60)]
    assert sum(each.low <= 0.5 <= each.high for each in found) >= 51


def test_more_candidates_are_recommended_where_they_add_more():
    rng = np.random.default_rng(5)
    found = judge(episodes(rng, 20, candidates=32), RANGE)
    assert list(found.gains) == [2, 4, 8, 16, 32] and sorted(found.gains.values()) == list(found.gains.values())
    number, rule = found.recommended
    assert found.gains[number] >= 0.9 * found.gains[32] and rule == "best"
    unsure = judge(episodes(rng, 20, agreement=0.5), RANGE)
    assert unsure.worth and unsure.recommended[1] == "consensus"


def test_it_is_written_and_drawn(tmp_path):
    made = episodes(np.random.default_rng(6))
    stored = json.loads(json.dumps(to_json(made)))
    assert all(np.array_equal(v, b[k]) for a, b in zip(made, stored, strict=True) for k, v in vars(a).items())
    pytest.importorskip("matplotlib")
    for name, shown in {"both": made, "one": made[:1]}.items():
        draw(judge(shown, RANGE), shown, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_film_shows_what_was_said_when_and_success(tmp_path):
    """Of 24 Hz every second step is shown: 13 steps are 7 pictures and the last."""
    rng = np.random.default_rng(8)
    for success in (True, False):
        episode, said = example_episode(rng, 13, success), evidence(rng, success, frames=4)
        said.progress = np.array([0, 4, 8, 12]) / 13
        film = panel(Asked("rollouts 3", episode, said), 2)
        assert len(film.frames) == 8 and film.frames[0].shape == (288, 576, 3)
        assert film.success_step == (7 if success else None)
        assert [decision.step for decision in film.decisions] == [0, 2, 4, 6]
        assert [decision.scores[decision.index] for decision in film.decisions] == said.score.tolist()
        # Images were rendered at steps 0, 4, 8, 12 and 13.
        both = [side_by_side([images[i] for images in episode.images.values()], 288) for i in (0, 0, 1, 1, 2, 2, 3, 4)]
        assert all(map(np.array_equal, film.frames, both))


def test_the_first_of_each_outcome_are_shown_on_the_page(tmp_path):
    pytest.importorskip("jinja2")
    rng = np.random.default_rng(6)
    made = episodes(rng, 12)
    asked = [Asked(f"rollouts {i}", example_episode(rng, 5, e.success), e) for i, e in enumerate(made)]
    shown = first_of_each(asked, 1)
    assert [each.name for each in shown] == ["rollouts 0", "rollouts 1"]
    found = judge(made, RANGE)
    write_page(found, shown, 20.0, tmp_path, "critique.png")
    page = (tmp_path / "critique.html").read_text()
    assert all(text in page for text in (*numbers(found).values(), 'src="critique.png"', "rollouts 1, failure"))
    assert sorted(re.findall(r'src="(films/.*?)"', page)) == ["films/00-success.mp4", "films/01-failure.mp4"]
    assert all((tmp_path / name).stat().st_size > 1000 for name in re.findall(r'src="(films/.*?)"', page))


# ---- held-out episodes ---------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path):
    rng = np.random.default_rng(0)
    made = [example_episode(rng, 6, i % 2 == 0) for i in range(4)]
    contract = example_contract(statistics=statistics_of(made))
    write_dataset(tmp_path / "seen", made, contract, "local/seen")
    write_dataset(tmp_path / "other", made[:2], contract, "local/other")
    return made


def test_only_episodes_that_it_was_not_trained_on_are_asked_about(recorded, tmp_path):
    seen, other, critic = tmp_path / "seen", tmp_path / "other", tmp_path / "critic"
    with pytest.raises(UserError, match="does not say which episodes it was trained on"):
        unseen_episodes(critic, seen, recorded)
    write_held_out(critic, {str(seen): [False, True, False, True], str(tmp_path / "gone"): [True]})
    assert unseen_episodes(critic, seen, recorded) == [recorded[1], recorded[3]]
    moved = (tmp_path / "seen").rename(tmp_path / "moved")
    assert unseen_episodes(critic, moved, recorded) == [recorded[1], recorded[3]]
    assert unseen_episodes(critic, other, recorded[:2]) == recorded[:2]
    write_held_out(critic, {str(moved): [False] * 4})
    with pytest.raises(UserError, match="trained on all of its episodes"):
        unseen_episodes(critic, moved, recorded)
    write_held_out(critic, {str(moved): [False, True, False, False]})
    info = moved / "meta" / "info.json"
    info.write_text(info.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="has changed since"):
        unseen_episodes(critic, moved, recorded)
