"""The rank correlation of critique's score with the measured gain: known numbers, planted runs, too few of them."""

import json

import numpy as np
import pytest
from scipy import stats

from deas_vla.critique.verdict import Critique, Measured
from deas_vla.errors import UserError
from studies.critique.correlation import CorrelationConfig, Critic, critics_of, main, spearman, summarize

pytestmark = pytest.mark.unit


def found(score: float) -> Critique:
    one = Measured(score, score, score)
    return Critique(9, 9, [one] * 5, one, one, one, one, one, {2: score}, one, (2, "best"), score, score > 0, [])


def critics(gains) -> list[Critic]:
    return [Critic(f"run-{i}/critic", None, f"policy-{i % 3}", None, gain, 50) for i, gain in enumerate(gains)]


def test_fewer_than_twelve_show_nothing():
    scores = np.linspace(0.01, 0.2, 11).tolist()
    text, values = summarize(critics(scores), list(map(found, scores)))
    assert values["correlations"]["score"][0] == pytest.approx(1) and not values["shown"]
    assert "Not shown: 11 critics are too few" in text and "over 11 critics of 3 policies" in text
    scores.append(0.3)
    text, values = summarize(critics(scores), list(map(found, scores)))
    assert values["shown"] and "Shown:" in text and len(values["critics"]) == 12
    text, values = summarize(critics(scores[::-1]), list(map(found, scores)))
    assert not values["shown"] and "is not above 0" in text
    # A critic without a score is left out, and said.
    text, values = summarize(critics([*scores[:11], 0.5]), [*map(found, scores[:11]), found(np.nan)])
    assert not values["shown"] and "1 critics have no score" in text


def test_the_interval_covers_the_correlation():
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal pair with Pearson's 0.6
    inside = 0
    for _ in range(200):
        x, y = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 15).T
        rho, low, high = spearman(x.tolist(), y.tolist())
        assert rho == pytest.approx(stats.spearmanr(x, y).statistic)
        inside += low <= truth <= high
    assert inside >= 182
    assert spearman([1, 2, 3], [1, 2, 3])[1:] == (-1, 1)


def plant(run, methods, scorers=()):
    folder = run / "evaluation" / "methods" / "lift"
    folder.mkdir(parents=True)
    sources = {"policy": "p", "critic": "c", **{name: f"c-{name}" for name in scorers}}
    record = {"sources": sources, "settings": {"scorers": [f"{name}:c-{name}" for name in scorers]}}
    (run / "evaluation" / "stage.json").write_text(json.dumps(record))
    for name, outcomes in methods.items():
        episodes = [{"scene": i, "sample": 0, "success": bool(each)} for i, each in enumerate(outcomes)]
        (folder / f"{name}.json").write_text(json.dumps(episodes))


def test_gains_are_those_of_choosing(tmp_path):
    methods = {
        "policy": [0, 0, 0, 0],
        "random_candidate": [0, 1, 0, 0],
        "best_of_n": [1, 1, 0, 1],
        "blind": [0, 0, 1, 0],
    }
    plant(tmp_path / "lift", methods, ["blind"])
    own, blind = critics_of(tmp_path / "lift")
    assert (own.name, str(own.folder), own.gain, own.episodes) == ("lift/critic", "c", 0.5, 4)
    assert (blind.name, str(blind.folder), blind.gain) == ("lift/blind", "c-blind", 0.0)
    plant(tmp_path / "other", methods | {"best_of_n": [1, 1, 1]})
    with pytest.raises(UserError, match="did not play the same episodes"):
        critics_of(tmp_path / "other")
    with pytest.raises(UserError, match="there is no run to look at"):
        main(CorrelationConfig())
