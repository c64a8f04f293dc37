"""The suite at a tiny size: two iterations, both baselines, every method, and its page."""

import json

import pytest

from deas_vla.config import parse
from deas_vla.errors import UserError
from studies.robosuite.summary import TASKS

# Last: a recipe may have the name of a library.

pytest.importorskip("robosuite")

from studies.ablations import second_iteration as second_iteration_ablation
from studies.robosuite import results as robosuite_results
from studies.robosuite import suite as robosuite_suite

TINY = (
    "--workers=0 --demos.episodes=4 --bc.steps=4 --bc.batch_size=8 --policy.layers=2 "
    "--policy.embedded.vision_layers=1 --policy.embedded.text_layers=1 --rollouts.episodes=6 --parallel_episodes=3 "
    "--simulator.horizon=48 --critic.hidden_dim=32 --critic.num_layers=2 --features.dim=8 --image_encoder.dim=8 "
    "--image_encoder_training.steps=6 --image_encoder_training.batch_size=8 --critic_training.steps=6 "
    "--critic_training.batch_size=16 --improvement.steps=4 --improvement.batch_size=8 --evaluation.scenes=2 "
    "--evaluation.samples=1 --evaluation.num_candidates=2 --evaluation.candidate_counts=1,2 "
    "--evaluation.oracle_scenes=1 --evaluation.video=false"
)


def test_a_task_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="choose from lift, stack, pick_place_can, door"):
        parse(robosuite_suite.RobosuiteSuiteConfig, ["--tasks=pour"], prog="robosuite_suite")


def test_the_page_is_about_the_tasks_of_the_suite():
    assert TASKS == tuple(robosuite_suite.TASKS)


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(900)
def test_two_rounds_and_two_baselines_become_a_page(tmp_path, capsys):
    flags = ["--tasks=lift", "--seeds=7", f"--output={tmp_path / 'runs'}", f"--flags={TINY}"]
    robosuite_suite.main(parse(robosuite_suite.RobosuiteSuiteConfig, flags, prog="robosuite_suite"))
    run = tmp_path / "runs" / "lift-7"
    played = {path.stem for path in (run / "evaluation" / "methods" / "lift").glob("*.json")}
    expected = {"second_iteration", "second_iteration + best_of_n", "iql", "qc", "best_of_n", "filtered_bc", "oracle"}
    assert expected <= played
    # Without noise in scenes of their own, not in those of the evaluation.
    quiet = {path.stem: json.loads(path.read_text()) for path in run.glob("without_noise/methods/lift/*.json")}
    assert quiet.keys() == {"policy", "filtered_bc", "advantage_weighted", "second_iteration"}
    scenes = [record["scene"] for record in quiet["policy"]]
    assert len(scenes) == 2 and min(scenes) >= 3_000_000

    settings = json.loads((run / "rollouts_2" / "settings.json").read_text())
    assert settings["settings"]["skip"] == 6 and "advantage_weighted" in settings["sources"]["policy"]
    critic = json.loads((run / "critic_2" / "settings.json").read_text())
    assert set(critic["inputs"]) == {"demonstrations", "rollouts", "rollouts_2", "policy"}
    # Q-chunking sees through the same encoders: nothing was computed twice. Single steps have rollouts of their own, in
    # which every step joins the next.
    encoders = list((run / "features").glob("image-encoder-*"))
    assert len(encoders) == 3
    dense = json.loads((run / "dense_rollouts" / "settings.json").read_text())["settings"]
    assert (dense["skip"], dense["rollouts"]["episodes"], dense["rollouts"]["frame_every"]) == (12, 1, 1)
    steps = json.loads((run / "iql_critic" / "validation.json").read_text())["data"]
    assert steps["chained"] > 0.9

    ablation = tmp_path / "ablation" / "tiny"
    flags = [f"--runs={run}", f"--output={ablation}", "--scenes=2", "--workers=0", "--parallel_episodes=3"]
    second_iteration_ablation.main(
        parse(second_iteration_ablation.SecondIterationAblationConfig, flags, prog="second_iteration_ablation")
    )
    paired = {path.stem: json.loads(path.read_text()) for path in ablation.glob("lift-7/methods/lift/*.json")}
    assert paired.keys() == second_iteration_ablation.PAIRINGS.keys()
    # What the evaluation plays, in other scenes: as many candidates, and scores of the same critics.
    assert {record["scene"] for records in paired.values() for record in records} == set(scenes)
    for name, pairing in second_iteration_ablation.PAIRINGS.items():
        assert len(paired[name][0]["decisions"][0]["scores"]) == pairing.num_candidates
    first, third = (
        paired[name][0]["decisions"][0]["scores"] for name in ("first iteration", "second policy, first critic")
    )
    assert first != third

    out = [f"--runs={tmp_path / 'runs'}", "--seeds=7", f"--output={tmp_path / 'out'}"]
    with pytest.raises(UserError, match="which commit"):
        write_results(*out)
    write_results(*out, "--commit=0123abc", f"--second_iteration_ablations={ablation}")
    assert "two iterations are better than one" in capsys.readouterr().out
    page = (tmp_path / "out" / "robosuite.md").read_text()
    assert "Best of 2 by Q-chunking" in page
    assert "Runs that are not made yet: stack 7, pick_place_can 7, door 7." in page
    record = json.loads((tmp_path / "out" / "robosuite" / "lift-7.json").read_text())
    assert record["methods"].keys() == played and "ranking" in record["critic"]
    assert record["without_noise"].keys() == quiet.keys() and "What is learnt besides less noise" in page
    assert "Two iterations where a critic chooses: tiny" in page and "| second iteration, noise ×1 |" in page
    # The record is enough from now on.
    write_results(f"--runs={tmp_path / 'none'}", *out[1:])
    assert (tmp_path / "out" / "robosuite.md").read_text() == page


def write_results(*flags):
    config = parse(robosuite_results.RobosuiteResultsConfig, list(flags), prog="robosuite_results")
    robosuite_results.main(config)
