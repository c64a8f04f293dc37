"""Stock lerobot-train, the loop, and stock lerobot-eval, as studies/metaworld/finetune_lerobot.py runs them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lerobot_env_metaworld_small")

from guides import start

from deas_vla.config import parse
from deas_vla.errors import UserError

# Last: a recipe may have the name of a library.
from studies.metaworld import finetune_lerobot
from studies.metaworld.finetune_lerobot import LAST, FinetuneLerobotConfig

SMALL = (
    "--kind=smolvla", "--tasks=drawer-close-v3", "--simulator.camera_size=32", "--workers=0", "--demos.episodes=3",
    "--demos.frame_every=8", "--lerobot.steps=2", "--lerobot.batch_size=2", "--rollouts.episodes=3",
    "--features.dim=4", "--image_encoder.dim=4", "--image_encoder_training.steps=2",
    "--image_encoder_training.batch_size=4",
    "--critic_training.steps=2", "--critic_training.batch_size=4", "--evaluation.scenes=3",
    "--evaluation.num_candidates=3", "--evaluation.candidate_counts=3",
)  # fmt: skip


def test_what_cannot_be_compared_is_refused_before_anything_runs():
    for flags, words in (
        (["--evaluation.samples=2"], "plays each scene once"),
        (["--own_episodes=1"], "camera_size=480"),
    ):
        with pytest.raises(UserError, match=words):
            parse(FinetuneLerobotConfig, flags, prog="finetune_lerobot")


@pytest.mark.slow
def test_lerobot_does_not_wait_for_the_other_processes_of_a_launch(tmp_path, monkeypatch):
    # A file for each process: lines that two of them print may end up in one.
    script = tmp_path / "write_environment.py"
    script.write_text(
        "import json, os, pathlib\n"
        "path = pathlib.Path(__file__).with_name('rank' + os.environ['RANK'] + '.json')\n"
        "path.write_text(json.dumps(dict(os.environ)))\n"
    )
    config = Path(__file__).resolve().parents[2] / "accelerate_configs" / "cpu.yaml"
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), str(script)]
    subprocess.run(launch, check=True)
    before = set(os.environ)
    for name, value in json.loads((tmp_path / "rank1.json").read_text()).items():
        monkeypatch.setenv(name, value)
    assert {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ) - before
    # What is left concerns the machine.
    allowed = {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TORCHINDUCTOR_CACHE_DIR", "COLUMNS", "LINES"}
    assert set(finetune_lerobot.environment_alone()) - before <= allowed


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(1800)
def test_from_lerobot_train_to_lerobot_eval(tmp_path, capfd, monkeypatch):
    run = subprocess.run

    def run_eval_here(command: list[str], **settings):
        """`lerobot-eval` in this process, which has imported LeRobot; other commands as they are."""
        if not command[0].endswith("lerobot-eval"):
            return run(command, **settings)
        with monkeypatch.context() as patch:
            return subprocess.CompletedProcess(command, start("lerobot-eval", command[1:], patch))

    monkeypatch.setattr(subprocess, "run", run_eval_here)
    config = parse(FinetuneLerobotConfig, [*SMALL, f"--output={tmp_path / 'run'}"], prog="finetune_lerobot")
    finetune_lerobot.main(config)
    results = json.loads((tmp_path / "run" / "lerobot" / "results.json").read_text())
    for method in ("policy", "best_of_n"):
        assert len(results["lerobot-eval"][method]["drawer-close-v3"]) == 3
    assert results["lerobot-eval"]["best_of_n"] == results["evaluate.py"]["best_of_n"]
    said = capfd.readouterr().out
    assert "in every episode" in said and said.count("$ ") == 3  # each of LeRobot's commands, to be run by hand

    # LeRobot's training was interrupted after its first checkpoint: it goes on from there.
    stage = tmp_path / "run" / "training"
    (stage / "stage.json").unlink()
    checkpoints = stage / "train" / "checkpoints"
    shutil.rmtree(checkpoints / "000002")
    (checkpoints / "last").unlink()
    (checkpoints / "last").symlink_to("000001")
    from accelerate import Accelerator

    finetune_lerobot.train_policy(Accelerator(cpu=True), config, stage, tmp_path / "run" / "demonstrations")
    assert (checkpoints / "000002").is_dir() and (stage / "train" / LAST).resolve().parent.name == "000002"
    assert "--resume=true" in capfd.readouterr().out
