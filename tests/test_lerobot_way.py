"""docs/lerobot.md, command by command: from a base policy to an emulated SO-101, and nothing else is typed."""

import json
from pathlib import Path

import pytest

pytest.importorskip("scservo_sdk", reason="needs the extra `robots`")
pytest.importorskip("deepdiff", reason="needs the extra `robots`")

import torch
from feetech_bus import FeetechBus
from guides import run_guide
from lerobot_example import normal, observations, smolvla
from lerobot_own import own_chunks
from lerobot_plugin_example import write_environment
from policy_example import close
from so101_example import JOINTS, calibration_file
from so101_recordings import CAMERAS, INSTRUCTION, record

from deas_vla.config import parse
from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import UserError
from deas_vla.policies.registry import load_policy
from recipes import adopt_policy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = (48, 64)
CHECKPOINT = "outputs/so101/train/checkpoints/last/pretrained_model"


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
        few = "--training.steps=2 --training.batch_size=4"
        small = {
            "lerobot-train": "--policy.device=cpu --steps=2 --batch_size=2 --save_freq=2 --num_workers=0",
            "recipes/finetune_policy.py": few,
            "recipes/train_critic.py": f"{few} --critic.hidden_dim=16 --critic.num_layers=1 --features.dim=4 "
            "--image_encoder.dim=4 --image_encoder_training.steps=2 --image_encoder_training.batch_size=4 "
            "--held_out=0.4",
            "deas-vla critique": "--candidates=2 --frames=2",
            "deas-vla export": "--candidates=2",
            "lerobot-eval": "--policy.device=cpu --eval.n_episodes=1 --eval.batch_size=1 --eval.use_async_envs=false "
            f"--output_dir={folder / 'eval'}",
            "robots.rollout": f"--robot.port={bus.port} --robot.calibration_dir={folder} --robot.id=arm "
            f"--robot.cameras='{{{cameras}}}' --outcome=failure --episodes=1 --seconds=0.6 --safety.hold_s=0.1",
        }
        for words in run_guide("docs/lerobot.md", small, patch):
            if words[0] == "lerobot-eval":
                # From here on the export stands alone.
                for name in ("vlm", "smolvla_base", "recordings"):
                    (folder / name).rename(folder / f"moved_{name}")
        for name in ("vlm", "smolvla_base", "recordings"):
            (folder / f"moved_{name}").rename(folder / name)
    return folder


def test_the_checkpoint_keeps_the_bases_cameras_and_the_contract_is_the_datas(way):
    kept = json.loads((way / CHECKPOINT / "config.json").read_text())["input_features"]
    assert "observation.images.camera3" in kept and kept["observation.images.camera1"]["shape"] == [3, 96, 96]
    policy = load_policy(way / "outputs/so101/policy/policy")
    assert [(c.name, c.height, c.width) for c in policy.contract.cameras] == [(name, *IMAGE) for name in CAMERAS]
    assert [column.unit for column in policy.contract.action] == ["deg"] * 5 + ["range_0_100"]
    observation, noise = observations(2, policy.contract, sentences=[INSTRUCTION]), normal(2, 50, 6)
    with torch.no_grad():
        mine = policy.sample(policy.encode(observation), noise[:, None])[:, 0]
    theirs = own_chunks(policy, observation, noise)
    assert close(mine[:, : theirs.shape[1]], theirs)


def test_fine_tuning_leaves_what_the_critic_reads(way):
    before, after = (load_policy(way / "outputs/so101" / name / "policy") for name in ("policy", "filtered_bc"))
    assert after.encoder_fingerprint == before.encoder_fingerprint
    pairs = zip(before.state_dict().values(), after.state_dict().values(), strict=True)
    assert not all(torch.equal(one, two) for one, two in pairs)


def test_what_was_scored_is_played(way):
    """Chunks of 50, a critic of 16: in LeRobot and on the arm 16 are played."""
    manifest = json.loads((way / "outputs/so101/reranker/manifest.json").read_text())
    assert (manifest["policy"]["horizon"], manifest["selection"]["execute_steps"]) == (50, 16)
    assert json.loads((way / "eval/eval_info.json").read_text())["overall"]["n_episodes"] == 1
    assert len((way / "played.jsonl").read_text().splitlines()) == 7
    episodes, contract, _ = read_dataset(way / "outputs/so101/robot/dataset")
    assert [episode.group for episode in episodes] == ["failure"] and contract.embodiment == "so_follower"


def test_another_checkpoint_is_another_stage(way, monkeypatch):
    monkeypatch.chdir(way)
    (way / CHECKPOINT / "README.md").write_text("trained for longer")
    given = [f"--checkpoint={CHECKPOINT}", "--dataset=recordings/demonstrations", "--output=outputs/so101/policy"]
    with pytest.raises(UserError, match="checkpoint"):
        adopt_policy.main(parse(adopt_policy.AdoptPolicyConfig, given))
