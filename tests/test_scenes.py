"""Whether an evaluation's scenes are unseen is read from the data's own records (design rule 10)."""

import numpy as np
import pytest
from data_example import example_contract, example_episode
from policy_example import small_policy

from deas_vla.config import parse, to_json
from deas_vla.critic.critic import CriticConfig
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError
from deas_vla.files import read_json, write_json
from deas_vla.report.report import write_run_report
from deas_vla.rollouts.scenes import record_scenes, require_unseen, scenes_of, seen_scenes
from deas_vla.training.loop import make_accelerator
from recipes import finetune_policy, train_critic
from recipes.evaluate import EvaluateConfig, EvaluationConfig, evaluate

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
    report = {"fingerprint": folder.name, "settings": {"critic": to_json(CriticConfig())}}
    report |= {"seconds": 1.0, "peak_memory_bytes": 1, "sources": {k: str(v) for k, v in sources.items()}}
    write_json(folder / "stage.json", report)
    return folder


@pytest.fixture
def run(tmp_path):
    demos = stage(tmp_path / "demos")
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


def test_rule_10_the_report_says_unseen_only_of_what_the_data_did_not_record(run, tmp_path):
    """It once compared numbers that are a million apart by construction, whatever data there had been (defect)."""
    old = stage(tmp_path / "old", "policy")
    for number, (scenes, sources) in enumerate((
        ([2_020_000, 2_020_001], {"critic": run[1]}), ([2_010_000, 2_010_001], {"critic": run[1]}),
        ([2_020_000, 2_020_001], {"critic": run[1], "start_from": old}),
    )):  # fmt: skip
        evaluation = stage(tmp_path / str(number) / "evaluation", policy=run[0], **sources)
        plan = to_json(EvaluationConfig(num_candidates=2, candidate_counts=[2]))
        settings = {"evaluation": plan, "tasks": ["lift"], "env": "robosuite", "seed": 1}
        write_json(evaluation / "stage.json", read_json(evaluation / "stage.json") | {"settings": settings})
        decision = {"step": 0, "index": 0, "value": -1.0, "scores": [-1.0, -2.0]}
        record = {"sample": 0, "success": True, "steps": 3, "decisions": [decision]}
        for method in ("policy", "best_of_n"):
            path = evaluation / "methods" / "lift" / f"{method}.json"
            write_json(path, [record | {"scene": scene} for scene in scenes])
        if scenes[0] == 2_010_000:
            with pytest.raises(UserError, match=r"scenes \[2010001\] were also used"):
                write_run_report(evaluation)
        else:
            report = write_run_report(evaluation)
            assert ("unseen" in report["headline"]["detail"]) == ("start_from" not in sources)


def test_rule_10_what_was_mixed_in_and_what_came_later_is_recorded(tmp_path):
    """Data of --more.folders and of a second collection were not looked at (defect)."""
    folders = {"demonstrations": (3, 4), "rollouts": (1_000_003, 1_000_004), "rollouts_2": (5, 6), "mine": (2_010_001,)}
    for name, scenes in folders.items():
        data = episodes(*scenes)
        for episode in data:
            episode.source = "demonstration" if name == "demonstrations" else "rollout"
        write_dataset(stage(tmp_path / name) / "dataset", data, example_contract(), f"local/{name}")
    policy = stage(tmp_path / "policy", "policy", {})
    small_policy().save(policy / "policy")
    tuned, critic, mine = tmp_path / "tuned", tmp_path / "critic", tmp_path / "mine" / "dataset"
    flags = [f"--demonstrations={tmp_path / 'demonstrations'}", "--training.steps=1", "--training.batch_size=2"]
    flags += [f"--rollouts={tmp_path / 'rollouts'},{tmp_path / 'rollouts_2'}"]
    own = ["--critic.horizon=4", "--features.dim=2", "--image_encoder.dim=0", f"--more.folders={mine}"]
    own += [f"--policy={policy}", f"--output={critic}"]
    train_critic.main(parse(train_critic.TrainCriticConfig, [*flags, *own]))
    own = ["--method=filtered_bc", f"--start_from={policy}", f"--output={tuned}"]
    finetune_policy.main(parse(finetune_policy.FinetunePolicyConfig, [*flags, *own]))
    read = {str(tmp_path / name): set(scenes) for name, scenes in folders.items() if name != "mine"}
    assert seen_scenes([tuned]) == (read, [])
    assert seen_scenes([critic]) == (read | {str(mine): {2_010_001}}, [])
