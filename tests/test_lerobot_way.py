"""docs/lerobot.md, command by command: from a base policy to an emulated SO-101, and nothing else is typed."""

import json
from pathlib import Path

import pytest

pytest.importorskip("scservo_sdk", reason="needs the extra `robots`")
pytest.importorskip("deepdiff", reason="needs the extra `robots`")

from feetech_bus import FeetechBus
from guides import run_guide
from lerobot_example import smolvla
from lerobot_plugin_example import write_environment
from so101_example import JOINTS, calibration_file
from so101_recordings import CAMERAS, record

from deas_vla.data.contract import Camera, Column, Contract

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = (48, 64)


def write_base(folder: Path) -> None:
    """In LeRobot's own format, like smolvla_base: cameras, sizes and columns of a robot that nobody has."""
    cameras = tuple(Camera(f"camera{number}", 96, 96) for number in (1, 2, 3))
    columns = tuple(Column(f"joint_{i}", "rad") for i in range(6))
    smolvla(folder / "vlm", Contract("base", 30.0, columns, columns, cameras), chunk_size=50).save(
        folder / "smolvla_base", standalone=False
    )
    (folder / "smolvla_base" / "contract.json").unlink()


@pytest.fixture(scope="module")
def way(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("way")
    write_base(folder)
    record(folder / "recordings" / "demonstrations", [True] * 3, 24, IMAGE, outcome_columns=False)
    record(folder / "recordings" / "rollouts", [True, False] * 3, 24, IMAGE)
    calibration_file(folder)
    write_environment(folder, "so101_toy", CAMERAS, len(JOINTS), len(JOINTS), IMAGE)
    cameras = ", ".join(
        f"{name}: {{type: pattern, width: {IMAGE[1]}, height: {IMAGE[0]}, fps: 30}}" for name in CAMERAS
    )
    with pytest.MonkeyPatch.context() as patch, FeetechBus() as bus:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        patch.setenv("DOT_LOG", str(folder / "played.jsonl"))
        small = {
            "lerobot-train": "--policy.device=cpu --steps=2 --batch_size=2 --save_freq=2 --num_workers=0",
            "recipes/train_critic.py": "--training.steps=2 --training.batch_size=4 --critic.hidden_dim=16 "
            "--critic.num_layers=1 --features.dim=4 --image_encoder.dim=4 --image_encoder_training.steps=2 "
            "--image_encoder_training.batch_size=4 --held_out=0.4",
            "deas-vla critique": "--candidates=2 --frames=2",
            "deas-vla export": "--candidates=2",
            "lerobot-eval": "--policy.device=cpu --eval.n_episodes=1 --eval.batch_size=1 --eval.use_async_envs=false "
            f"--output_dir={folder / 'eval'}",
            "robots.rollout": f"--robot.port={bus.port} --robot.calibration_dir={folder} --robot.id=arm "
            f"--robot.cameras='{{{cameras}}}' --outcome=failure --episodes=1 --seconds=0.6 --safety.hold_s=0.1",
        }
        for words in run_guide("docs/lerobot.md", small, patch):
            print(words, flush=True)
    return folder


def test_every_command_of_the_guide_runs(way):
    assert json.loads((way / "eval" / "eval_info.json").read_text())["overall"]["n_episodes"] == 1
