"""The whole recipe at a tiny size, as a user starts it: all files, and the same numbers after being killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deas_vla.files import sha256_of

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch",
    "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml"),
    str(ROOT / "recipes" / "finetune_robocasa.py"),
]  # fmt: skip
TINY = [
    "--demos.episodes=5",
    "--bc.steps=12",
    "--bc.batch_size=8",
    "--bc.checkpoint_every=4",
    "--bc.log_every=4",
    "--policy.embedded.vision_layers=1",
    "--policy.embedded.text_layers=1",
    "--policy.layers=2",
    "--rollouts.episodes=6",
    "--parallel_episodes=3",
    "--simulator.horizon=48",
    "--critic.hidden_dim=32",
    "--critic.num_layers=2",
    "--features.dim=8",
    "--image_encoder.dim=8",
    "--image_encoder_training.steps=6",
    "--image_encoder_training.batch_size=8",
    "--image_encoder_training.checkpoint_every=2",
    "--critic_training.steps=12",
    "--critic_training.batch_size=16",
    "--critic_training.log_every=4",
    "--improvement.steps=4",
    "--improvement.batch_size=8",
    "--evaluation.scenes=2",
    "--evaluation.samples=2",
    "--evaluation.num_candidates=2",
    "--evaluation.candidate_counts=1,2,3",
    "--evaluation.oracle_scenes=1",
]
METHODS = {
    "policy", "random_candidate", "zero_noise", "worst_of_n", "best_of_1", "best_of_n", "filtered_bc",
    "advantage_weighted", "advantage_weighted + best_of_n", "oracle",
}  # fmt: skip
# Files whose appearance is the moment to kill, from early to late. Each costs a start of two processes; other stages
# (training of each kind, features) are killed in tests of their own.
KILL_AT = ("rollouts/blocks", "evaluation/methods/lift/policy.json")

pytestmark = [pytest.mark.slow, pytest.mark.sim, pytest.mark.timeout(900)]


def command(output: Path) -> list[str]:
    return [*LAUNCH, *TINY, f"--output={output}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(command(output), check=True, timeout=600)
    return output


def numbers(output: Path) -> dict:
    """The report without what no two runs share."""
    report = json.loads((output / "report.json").read_text())
    return {k: v for k, v in report.items() if k not in ("seconds", "peak_memory_bytes", "command")}


def test_the_recipe_leaves_a_whole_report(run):
    report = json.loads((run / "report.json").read_text())
    assert shlex.split(report["command"]) == ["accelerate", "launch", *command(run)[3:]]
    assert set(report["methods"]) == METHODS
    for name, method in report["methods"].items():
        # Without noise the two samples of a scene would be one episode twice.
        assert method["episodes"] == {"oracle": 1, "zero_noise": 2}.get(name, 4)
        assert method["success_rate"] == method["successes"] / method["episodes"]
        assert method["ci95"][0] <= method["success_rate"] <= method["ci95"][1]
    assert set(report["success_by_n"]) == {"1", "2", "3"}
    # Candidates are made of half the policy's noise: one of them is not the policy.
    assert report["success_by_n"]["1"] == report["methods"]["best_of_1"]
    assert "best_of_n - random_candidate" in report["paired"]
    assert {"difference", "ci95", "p_value"} <= set(report["paired"]["best_of_n - policy"])
    stages = {
        "demonstrations", "policy", "rollouts", "critic", "filtered_bc", "advantage_weighted", "evaluation"
    }  # fmt: skip
    assert set(report["seconds"]) == stages and all(seconds > 0 for seconds in report["seconds"].values())
    assert report["versions"]["robosuite"] and report["seeds"] and report["hashes"]["critic/critic"]
    assert 0 < report["peak_memory_bytes"] < 8e9
    # What the critic was trained on is known by its data: successful demonstrations, and all rollouts.
    seen = json.loads((run / "critic" / "scenes.json").read_text())
    collected = {Path(name).name: scenes for name, scenes in seen.items()}
    assert collected["demonstrations"] and len(collected["rollouts"]) > len(collected["demonstrations"]) / 2
    assert min(collected["rollouts"]) >= 1_000_000 > max(collected["demonstrations"])
    page = (run / "report.html").read_text()
    assert "<video" in page and "http" not in page.replace("http://www.w3.org", "")
    assert (run / "evaluation" / "rollout.mp4").stat().st_size > 1000


def test_a_second_call_skips_every_stage(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("stage.json")}
    result = subprocess.run(command(run), check=True, timeout=300, capture_output=True, text=True)
    assert result.stdout.count("done before, skipped") == 7
    headline = json.loads((run / "report.json").read_text())["headline"]
    assert result.stdout.rstrip().endswith(
        f"{headline['text']}\n{headline['detail']}\nThe report: {run / 'report.html'}"
    )
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("stage.json")}


def test_other_settings_do_not_overwrite_a_run(run):
    result = subprocess.run(
        [sys.executable, *LAUNCH[5:], *TINY, f"--output={run}", "--demos.episodes=6"],
        timeout=300, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 2
    assert "was made with other settings (demos.episodes: 5 there, 6 now)" in result.stderr
    assert "Traceback" not in result.stderr


def test_rule_12_a_killed_recipe_ends_with_the_same_numbers(run, tmp_path):
    output = tmp_path / "run"
    for name in KILL_AT:
        process = subprocess.Popen(command(output), start_new_session=True)
        try:
            deadline = time.monotonic() + 400
            while not (output / name).exists():
                assert process.poll() is None, f"the recipe ended before {name} was there"
                assert time.monotonic() < deadline, f"{name} did not appear"
                time.sleep(0.02)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    subprocess.run(command(output), check=True, timeout=600)
    for stage in ("policy/policy", "critic/critic", "filtered_bc/policy", "advantage_weighted/policy"):
        assert sha256_of(output / stage) == sha256_of(run / stage), stage
    found, expected = numbers(output), numbers(run)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == value, key
