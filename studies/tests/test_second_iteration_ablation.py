"""The second iteration's ablation: several critics choose as one, and differences are paired over tasks and seeds."""

import json

import numpy as np
import pytest
import torch
from policy_example import observations, small_policy
from reranker_example import other_statistics, small_scorer

from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.improvement.selection import SelectionConfig

# Last: a recipe may have the name of a library.
from studies.ablations.second_iteration import Pairing, decider
from studies.ablations.second_iteration_table import judge, second_iteration_tables

pytestmark = pytest.mark.unit
KEYS = [NoiseKey(0, scene, 0, 0) for scene in range(6)]


@pytest.fixture
def policy():
    return small_policy()


def critic_stage(folder, policy, seed, **changes):
    scorer = small_scorer(policy, seed, observations(12, seed=seed))
    for name, value in changes.items():
        setattr(scorer, name, value)
    scorer.save(folder / "critic")
    return folder, scorer


def test_one_critic_chooses_as_best_of_n_does(policy, tmp_path):
    folder, scorer = critic_stage(tmp_path / "one", policy, 1)
    assert scorer.critic.config.num_q > 1
    seen = observations(6, seed=2)
    selection = SelectionConfig(noise_scale=0.5)
    expected = BestOfN(policy, 8, "best", scorer, selection).choose(seen, KEYS)
    found = decider(policy, Pairing("policy", ("critic",)), [folder]).choose(seen, KEYS)
    assert torch.equal(found.index, expected.index) and len(set(expected.index.tolist())) > 1
    for name in ("candidates", "scores", "value"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_two_critics_choose_by_the_mean_of_what_each_sees(policy, tmp_path):
    stages = [critic_stage(tmp_path / str(seed), policy, seed) for seed in (1, 2)]
    seen = observations(6, seed=3)
    alone = [
        BestOfN(policy, 8, "best", scorer, SelectionConfig(noise_scale=0.5)).choose(seen, KEYS) for _, scorer in stages
    ]
    both = decider(policy, Pairing("policy", ("critic", "critic_2")), [stage[0] for stage in stages])
    mean = torch.stack([choice.scores for choice in alone]).mean(0)
    found = both.choose(seen, KEYS).index
    assert torch.equal(found, mean.argmax(1))
    assert not torch.equal(found, alone[0].index) and not torch.equal(found, alone[1].index)


def test_critics_that_read_other_numbers_do_not_choose_together(policy, tmp_path):
    first = critic_stage(tmp_path / "first", policy, 1)[0]
    foreign = critic_stage(tmp_path / "foreign", policy, 2, encoder_fingerprint="0" * 64)[0]
    pair = Pairing("policy", ("critic", "critic_2"))
    with pytest.raises(UserError, match="reads other tokens"):
        decider(policy, pair, [first, foreign])
    scaled = critic_stage(tmp_path / "scaled", policy, 2, contract=other_statistics(policy.contract))[0]
    with pytest.raises(UserError, match="statistics"):
        decider(policy, pair, [first, scaled])


def played(folder, task, seed, wins):
    """What the ablation leaves of a run: pairing to who won."""
    settings = {"tasks": [task], "seed": seed}
    place = folder / "methods" / task
    place.mkdir(parents=True)
    (folder / "stage.json").write_text(json.dumps({"settings": settings}))
    for name, won in wins.items():
        records = [{"scene": 100 * seed + scene, "sample": 0, "success": bool(one)} for scene, one in enumerate(won)]
        (place / f"{name}.json").write_text(json.dumps(records))
    return folder


def test_differences_are_paired_over_tasks_and_seeds(tmp_path):
    scenes = np.arange(100)
    gained = {("lift", 1): 20, ("lift", 2): 10, ("door", 1): 0, ("door", 2): -10}
    stages = [
        played(
            tmp_path / f"{task}-{seed}",
            task,
            seed,
            {"one": scenes < 50, "two": scenes < 50 + gain, "all": scenes < 100},
        )
        for (task, seed), gain in gained.items()
    ]
    results = judge(stages, {"one": None, "two": "one", "all": "two"})
    assert (results["tasks"], results["seeds"]) == (["lift", "door"], [1, 2])
    assert "difference" not in results["pairings"]["one"]
    over = results["pairings"]["two"]["difference"]
    assert over["per_task"]["lift"]["difference"] == pytest.approx(0.15)
    assert over["per_task"]["door"]["difference"] == pytest.approx(-0.05)
    assert over["mean"]["difference"] == pytest.approx(0.05)
    assert (over["mean"]["wins"], over["mean"]["losses"]) == (30, 10)
    # Each has its own to be compared with.
    assert results["pairings"]["all"]["difference"]["mean"]["difference"] == pytest.approx(0.45)
    success, differences = second_iteration_tables(results).split("\n\n")
    assert [line.split("|")[1].strip() for line in success.splitlines()[2:]] == ["one", "two", "all"]
    assert success.splitlines()[3].split("|")[2].strip().startswith("65 (")
    rows = [[cell.strip().split(" (")[0] for cell in line.split("|")[1:5]] for line in differences.splitlines()]
    assert rows[2:] == [["two − one", "+15.0", "−5.0", "+5.0"], ["all − two", "+35.0", "+55.0", "+45.0"]]
