"""The page of robosuite's tasks: every verdict follows from what was played, missed ones included."""

import json

import numpy as np
import pytest

from deas_vla.errors import UserError
from deas_vla.report.robosuite import write_robosuite_results

pytestmark = pytest.mark.unit

TASKS = ("lift", "stack", "pick_place_can", "door")
# Share of the policy's failures that each arm turns into successes.
ARMS = {
    "best_of_n": 0.4,
    "filtered_bc": 0.3,
    "advantage_weighted": 0.5,
    "advantage_weighted + best_of_n": 0.7,
    "second_round": 0.8,
    "second_round + best_of_n": 0.9,
    "iql": 0.1,
    "zero_noise": 0.2,
    "best_of_2": 0.2,
    "oracle": 0.6,
}


def write_run(folder, task, seed, arms=ARMS, scenes=200, seconds=60.0):
    for name in ("demonstrations", "policy", "rollouts", "critic", "evaluation"):
        settings = {"seed": seed}
        if name == "evaluation":
            settings |= {"tasks": [task], "evaluation": {"num_candidates": 8, "draws": 2}}
        (folder / name).mkdir(parents=True)
        about = {"settings": settings, "seconds": seconds, "fingerprint": "0", "inputs": {}, "sources": {}}
        (folder / name / "stage.json").write_text(json.dumps(about))
    rng = np.random.default_rng((TASKS.index(task), seed))
    base, luck = rng.random((scenes, 2)) < 0.4, rng.random((scenes, 2))
    place = folder / "evaluation" / "arms" / task
    place.mkdir(parents=True)
    for arm, share in ({"policy": 0.0} | arms).items():
        success = base | (luck < share) if share >= 0 else base & (luck > -share)
        # The oracle plays a few scenes once.
        success = success[:20, :1] if arm == "oracle" else success
        records = [
            {"scene": 100 + scene, "draw": draw, "success": bool(success[scene, draw])}
            for scene in range(len(success))
            for draw in range(success.shape[1])
        ]
        (place / f"{arm}.json").write_text(json.dumps(records))
    return folder


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / f"{task}-{seed}", task, seed) for seed in (1, 2, 3) for task in TASKS]


def verdicts(results) -> list:
    return [row["met"] for row in results["targets"]]


def test_what_was_played_is_what_the_page_says(runs, tmp_path):
    results = write_robosuite_results(runs, tmp_path / "out", [], "0123abc")
    assert all(verdicts(results)), results["targets"]
    success, gains = results["success"], results["gain_over_policy"]
    for arm, share in ARMS.items():
        if arm != "oracle":
            assert success[arm]["mean"]["success"] == pytest.approx(0.4 + 0.6 * share, abs=0.03)
            difference = success[arm]["mean"]["success"] - success["policy"]["mean"]["success"]
            assert gains[arm]["mean"]["difference"] == pytest.approx(difference)
    # Luck is shared: best-of-N gets 0.4 / 0.6 of what the oracle gets in the same scenes.
    assert results["headroom"]["mean"] == pytest.approx(0.4 / 0.6, abs=0.12)
    ahead = results["compared"]["weighted_over_cloned"]["mean"]
    assert ahead["difference"] == pytest.approx(0.6 * 0.2, abs=0.03) and ahead["losses"] == 0
    page = (tmp_path / "out" / "robosuite.md").read_text()
    assert "0123abc" in page and "not shown" not in page and "| 2 |" in page
    assert json.loads((tmp_path / "out" / "robosuite.json").read_text()) == results


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"best_of_n": 0.1}, [1, 3]),
        ({"best_of_n": -0.2}, [1, 2, 3]),
        ({"advantage_weighted": 0.2}, [4, 5]),
        ({"advantage_weighted": 0.33}, [5]),
        ({"advantage_weighted + best_of_n": 0.45}, [6]),
        ({"second_round": 0.45}, [8]),
        ({"second_round + best_of_n": 0.6}, [9]),
    ],
)
def test_what_is_missed_is_said(tmp_path, changed, missed):
    runs = [
        write_run(tmp_path / f"{task}-{seed}", task, seed, ARMS | changed)
        for seed in (1, 2, 3)
        for task in TASKS
    ]
    found = verdicts(write_robosuite_results(runs, tmp_path / "out", [], "0"))
    assert not any(found[number] for number in missed)
    assert "**not shown**" in (tmp_path / "out" / "robosuite.md").read_text()


def test_too_little_shows_nothing(tmp_path):
    runs = [write_run(tmp_path / f"lift-{seed}", "lift", seed) for seed in (1, 2)]
    assert not verdicts(write_robosuite_results(runs, tmp_path / "out", [], "0"))[0]
    slow = [write_run(tmp_path / f"slow-{seed}", "lift", seed, seconds=600) for seed in (1, 2)]
    assert not verdicts(write_robosuite_results(slow, tmp_path / "out", [], "0"))[-1]


def test_an_arm_that_was_not_played_is_not_measured(tmp_path):
    few = {"best_of_n": 0.4}
    results = write_robosuite_results(
        [write_run(tmp_path / "lift-1", "lift", 1, few)], tmp_path / "out", [], "0"
    )
    assert verdicts(results)[3:10] == [None] * 7
    assert "not measured" in (tmp_path / "out" / "robosuite.md").read_text()


def test_runs_that_are_not_one_result_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="one a task and seed"):
        write_robosuite_results([runs[0], runs[0]], tmp_path / "out", [], "0")
    path = runs[0] / "critic" / "stage.json"
    about = json.loads(path.read_text())
    about["settings"]["steps"] = 7
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match="differ in more than their seeds"):
        write_robosuite_results(runs, tmp_path / "out", [], "0")
