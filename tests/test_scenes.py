"""Whether an evaluation's scenes are unseen is read from the data's own records (design rule 10)."""

import numpy as np
import pytest
from data_example import example_episode

from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.rollouts.scenes import record_scenes, require_unseen, scenes_of, seen_scenes
from deas_vla.training.loop import make_accelerator
from recipes.evaluate import EvaluateConfig, evaluate

pytestmark = pytest.mark.unit


def episodes(*scenes):
    made = [example_episode(np.random.default_rng(0), 6, True) for _ in scenes]
    for episode, scene in zip(made, scenes, strict=True):
        episode.scene = scene
    return made


def stage(folder, trained=None, data=None, **sources):
    """A finished stage that trained something on some data."""
    (folder / trained if trained else folder).mkdir(parents=True)
    if data is not None:
        record_scenes(folder, data)
    report = {"fingerprint": folder.name, "settings": {}, "sources": {k: str(v) for k, v in sources.items()}}
    write_json(folder / "stage.json", report)
    return folder


@pytest.fixture
def run(tmp_path):
    demos = stage(tmp_path / "demonstrations")
    policy = stage(tmp_path / "policy", "policy", {"demonstrations": episodes(3, 4)}, demonstrations=demos)
    data = {"demonstrations": episodes(3, 4), "elsewhere/mine": episodes(7, 2_010_001)}
    critic = stage(tmp_path / "critic", "critic", data, policy=policy)
    return policy, critic


def test_rule_10_scenes_in_more_folders_are_found_by_the_data_itself(run):
    policy, critic = run
    assert seen_scenes([critic]) == ({"demonstrations": {3, 4}, "elsewhere/mine": {7, 2_010_001}}, [])
    with pytest.raises(UserError, match=r"trained on: 1 in elsewhere/mine \(2010001\); evaluate"):
        require_unseen(scenes_of("evaluation", 3, seed=1), [critic])
    require_unseen(scenes_of("evaluation", 3, seed=1), [policy])
    require_unseen(scenes_of("evaluation", 3, seed=2), [critic])


def test_rule_10_the_recipe_refuses_before_it_plays(run, tmp_path):
    policy, critic = run
    config = EvaluateConfig(output=str(tmp_path / "evaluation"), policy=str(policy), critic=str(critic))
    with pytest.raises(UserError, match="scenes of the evaluation were trained on: 1 in elsewhere/mine"):
        evaluate(make_accelerator(), config)


def test_rule_10_what_was_trained_on_comes_from_every_stage_below(tmp_path):
    """A policy that was fine-tuned twice has seen what both fine-tunings read."""
    first = stage(tmp_path / "first", "policy", {"a": episodes(1)})
    second = stage(tmp_path / "second", "policy", {"b": episodes(2)}, start_from=first)
    seen, unrecorded = seen_scenes([second])
    assert seen == {"a": {1}, "b": {2}} and not unrecorded
    old = stage(tmp_path / "old", "policy")  # an adopted one, say
    third = stage(tmp_path / "third", "policy", {"b": episodes(2)}, start_from=old)
    assert seen_scenes([third]) == ({"b": {2}}, [old])
