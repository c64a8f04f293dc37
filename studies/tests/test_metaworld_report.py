"""The page of many tasks: what it says follows from what was played, a task that lost included."""

import json
import shutil

import numpy as np
import pytest

from deas_vla.errors import UserError
from studies.metaworld.page import write_metaworld_results

pytestmark = pytest.mark.unit

TASKS = ["reach-v3", "push-v3", "door-open-v3"]


def stage(folder, settings):
    folder.mkdir(parents=True)
    about = {"settings": settings, "seconds": 60.0, "processes": 2, "peak_memory_bytes": 5 * 10**9}
    (folder / "stage.json").write_text(json.dumps(about))


def write_run(folder, seed=1, scenes=60, gains=(0.3, 0.3, 0.3), steps=100):
    """A run in which best-of-N turns so many of each task's failures into successes (below 0: the reverse)."""
    simulator = {
        "cameras": ["gripper"], "camera_size": 64, "expert_noise": 0.2, "expert_grasp_bias": 0.006
    }  # fmt: skip
    stage(folder / "demonstrations", {"demos": {"episodes": 40}, "seed": seed})
    stage(folder / "rollouts", {"rollouts": {"episodes": 100}, "seed": seed})
    for name in ("policy", "critic"):
        stage(folder / name, {"training": {"steps": steps}, "seed": seed})
    plan = {"scenes": scenes, "samples": 1, "num_candidates": 8}
    stage(folder / "evaluation", {"tasks": TASKS, "seed": seed, "evaluation": plan, "simulator": simulator})
    rng = np.random.default_rng(seed)
    for task, gain in zip(TASKS, gains, strict=True):
        base = rng.random(scenes) < 0.5
        moved = rng.random(scenes) < abs(gain)
        methods = {"policy": base, "best_of_n": (base | moved) if gain > 0 else (base & ~moved), "oracle": base[:5]}
        (folder / "evaluation" / "methods" / task).mkdir(parents=True)
        for method, success in methods.items():
            records = [{"scene": 100 + i, "sample": 0, "success": bool(s)} for i, s in enumerate(success)]
            (folder / "evaluation" / "methods" / task / f"{method}.json").write_text(json.dumps(records))
    return folder


def results_of(runs, output, lerobot=()):
    return write_metaworld_results(runs, output, list(lerobot), "0123abc")


def test_a_gain_on_every_task_is_shown_and_the_page_has_its_numbers(tmp_path):
    results = results_of([write_run(tmp_path / "run")], tmp_path / "out")
    assert all(results["shown"].values()) and results["episodes_per_task"] == 60
    mean = results["gain_over_policy"]["best_of_n"]["mean"]
    each = [task["difference"] for task in results["gain_over_policy"]["best_of_n"]["per_task"].values()]
    assert mean["difference"] == pytest.approx(np.mean(each)) and mean["losses"] == 0
    success = results["success"]
    assert mean["difference"] == pytest.approx(
        success["best_of_n"]["mean"]["success"] - success["policy"]["mean"]["success"]
    )
    page = (tmp_path / "out" / "metaworld.md").read_text()
    assert "not shown" not in page and all(task in page for task in TASKS)
    assert json.loads((tmp_path / "out" / "metaworld.json").read_text()) == results
    assert results["gain_over_policy"]["oracle"]["mean"]["pairs"] == 15  # only the scenes that both played


def test_one_task_that_is_worse_is_named_however_large_the_average(tmp_path):
    results = results_of([write_run(tmp_path / "run", gains=(0.8, 0.8, -0.6))], tmp_path / "out")
    assert results["shown"] == {"episodes": True, "average_gain": True, "no_task_worse": False}
    assert results["worse_tasks"] == ["door-open-v3"]


def test_too_few_episodes_show_nothing(tmp_path):
    results = results_of([write_run(tmp_path / "run", scenes=49)], tmp_path / "out")
    assert not results["shown"]["episodes"]


def test_a_gain_that_less_noise_has_too_is_told_from_the_critics(tmp_path):
    run = write_run(tmp_path / "run")
    for task in TASKS:
        methods = run / "evaluation" / "methods" / task
        (methods / "zero_noise.json").write_text((methods / "best_of_n.json").read_text())
        (methods / "best_of_1.json").write_text((methods / "policy.json").read_text())
    controls = results_of([run], tmp_path / "out")["gain_over_control"]
    assert controls["zero_noise"]["mean"]["difference"] == 0
    assert controls["best_of_1"]["mean"]["difference"] > 0.1
    page = (tmp_path / "out" / "metaworld.md").read_text()
    assert "| task | from policy with less noise | from policy without noise |" in page


# ---- records ----------------------------------------------------------------------------------------------------


def test_runs_of_one_page_differ_in_their_seed_alone(tmp_path):
    runs, out = [write_run(tmp_path / str(seed), seed) for seed in (1, 2)], tmp_path / "out"
    other = write_run(tmp_path / "3", 3, steps=200)
    with pytest.raises(UserError, match="differ in their seeds and in nothing else"):
        results_of([runs[0], other], out)
    with pytest.raises(UserError, match="have the same seed"):
        results_of([runs[0], runs[0]], out)
    with pytest.raises(UserError, match="no evaluation"):
        results_of([tmp_path / "none"], out)
    with pytest.raises(UserError, match="--commit"):
        write_metaworld_results(runs, out, [], "")
    assert not out.exists()
    results = results_of(runs, out)
    assert results["seeds"] == [1, 2] and results["commits"] == ["0123abc"]
    assert results["gain_over_policy"]["best_of_n"]["mean"]["pairs"] == 2 * 3 * 60


def test_runs_that_come_one_by_one_make_the_same_files_and_need_no_folder_any_more(tmp_path):
    runs = [write_run(tmp_path / str(seed), seed) for seed in (1, 2)]
    lerobot = write_lerobot_run(tmp_path / "lerobot-diffusion", None)
    once, twice = tmp_path / "once", tmp_path / "twice"
    results_of(runs, once, [lerobot])
    results_of(runs[1:], twice)
    results_of([], twice, [lerobot])
    results_of(runs[:1], twice)
    for folder in [*runs, lerobot]:
        shutil.rmtree(folder)
    write_metaworld_results([], twice, [], "")
    files = sorted(path.relative_to(once) for path in once.rglob("*.*"))
    assert len(files) == 2 + 3
    assert all((once / name).read_bytes() == (twice / name).read_bytes() for name in files)
    with pytest.raises(UserError, match="no run yet"):
        write_metaworld_results([], tmp_path / "empty", [], "")


def test_a_run_that_was_played_again_does_not_replace_its_record(tmp_path):
    run = write_run(tmp_path / "run")
    results_of([run], tmp_path / "out")
    path = run / "evaluation" / "methods" / TASKS[0] / "policy.json"
    path.write_text(path.read_text().replace("true", "false", 1))
    with pytest.raises(UserError, match=r"seed-1\.json says otherwise"):
        results_of([run], tmp_path / "out")


# ---- LeRobot ----------------------------------------------------------------------------------------------------


def write_lerobot_run(folder, ours):
    """A run of studies/metaworld/finetune_lerobot.py whose reranker wins four episodes of six in lerobot-eval."""
    stock = {"reach-v3": [True, False, True], "push-v3": [False, True, True]}
    results = {
        "kind": "diffusion",
        "seed": 1,
        "candidates": 8,
        "lerobot-eval": {"policy": {task: [False] * 3 for task in stock}, "best_of_n": stock},
        "evaluate.py": {"best_of_n": ours or stock},
    }
    (folder / "lerobot").mkdir(parents=True)
    (folder / "lerobot" / "results.json").write_text(json.dumps(results))
    return folder


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(None, "in every episode"), ({"reach-v3": [True] * 3, "push-v3": [False] * 3}, "**not** in 3")],
)
def test_lerobots_tools_agree_with_ours_episode_by_episode_or_the_page_says_so(tmp_path, ours, verdict):
    run, lerobot = write_run(tmp_path / "run"), write_lerobot_run(tmp_path / "lerobot", ours)
    results = results_of([run], tmp_path / "out", [lerobot])
    gain = results["lerobot"][0]["summary"]["gain"]
    assert gain["difference"] == pytest.approx(4 / 6) and gain["ci95"][0] > 0
    page = (tmp_path / "out" / "metaworld.md").read_text()
    assert verdict in page and "67 (" in page


def test_a_lerobot_run_that_is_not_finished_is_refused(tmp_path):
    with pytest.raises(UserError, match="finetune_lerobot"):
        results_of([write_run(tmp_path / "run")], tmp_path / "out", [tmp_path])
