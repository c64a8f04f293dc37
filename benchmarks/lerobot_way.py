"""What each command of docs/lerobot.md takes with a SmolVLA of its true size: 450 million weights, chunks of 50 steps.

    python benchmarks/lerobot_way.py                       # a temporary folder, which is removed
    python benchmarks/lerobot_way.py --folder=FOLDER       # which stays; what is done there is not done again
    python benchmarks/lerobot_way.py --json                # and one JSON object as the last line

Nothing is downloaded: the base has random weights in the sizes of SmolVLM2-500M and LeRobot's own configuration, three
cameras of 256 pixels; the recordings are few and short, with two cameras of 480x640. The commands are those of the
guide, with flags behind them that make steps and frames few, and the fine-tuning one of adapters in the head. Each is a
process of its own; wall and CPU seconds and the highest resident memory are the operating system's. The arm is emulated
on a serial line.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
IMAGE, FRAMES = (480, 640), 20
# SmolVLM2-500M-Video-Instruct.
TEXT = {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280,
}  # fmt: skip
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
FEW = {
    "lerobot-train": "--policy.device=cpu --steps=2 --batch_size=1 --save_freq=2 --num_workers=0",
    "recipes/finetune_policy.py": "--training.steps=2 --training.batch_size=1 --lora.on=head",
    "recipes/train_critic.py": "--training.steps=20 --image_encoder_training.steps=20 --held_out=0.4",
    "deas-vla critique": "--candidates=4 --frames=2",
    "deas-vla export": "--candidates=4",
    "lerobot-eval": "--policy.device=cpu --eval.n_episodes=1 --eval.batch_size=1 --eval.use_async_envs=false",
}


def write_base(folder: Path) -> None:
    """The base's folder, smolvla_base, and the architecture that it names, in LeRobot's own format."""
    import torch
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
    from so101_recordings import INSTRUCTION

    from deas_vla.files import read_json, write_json
    from studies.metaworld.small_smolvlm import write_small_smolvlm

    vlm = write_small_smolvlm(folder / "vlm", [INSTRUCTION], 512, patch=16)
    config = read_json(vlm / "config.json")
    config["text_config"] |= TEXT
    config["vision_config"] |= VISION
    write_json(vlm / "config.json", config | {"scale_factor": 4})
    seen = {"observation.state": PolicyFeature(FeatureType.STATE, (6,))}
    seen |= {f"observation.images.camera{i}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for i in (1, 2, 3)}
    torch.manual_seed(0)
    config = make_policy_config(
        "smolvla", device="cpu", push_to_hub=False, vlm_model_name=str(vlm), input_features=seen,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )  # fmt: skip
    policy = get_policy_class("smolvla")(config)
    print(f"smolvla_base: {sum(p.numel() for p in policy.parameters()) / 1e6:.0f} million weights", flush=True)
    for part in (policy, *make_pre_post_processors(config)):
        part.save_pretrained(folder / "smolvla_base")


def prepare(folder: Path) -> None:
    from lerobot_plugin_example import write_environment
    from so101_example import JOINTS, calibration_file
    from so101_recordings import CAMERAS, record

    write_base(folder)
    record(folder / "recordings" / "demonstrations", [True] * 2, FRAMES, IMAGE, outcome_columns=False)
    record(folder / "recordings" / "rollouts", [True, False] * 2, FRAMES, IMAGE)
    calibration_file(folder)
    write_environment(folder, "so101_toy", CAMERAS, len(JOINTS), len(JOINTS), IMAGE)
    # LeRobot finds a camera without a lens by the name of its distribution.
    metadata = folder / "lerobot_camera_pattern-0.1.dist-info"
    metadata.mkdir()
    (folder / "lerobot_camera_pattern.py").write_text("import so101_example\n", encoding="utf-8")
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lerobot_camera_pattern\nVersion: 0.1\n", encoding="utf-8"
    )


def measured(words: list[str], folder: Path) -> dict[str, float]:
    """Runs a command to its end: seconds, CPU seconds and peak memory in GiB, its own children's included."""
    search = os.pathsep.join([str(folder), str(ROOT / "tests"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {
        "PYTHONPATH": search, "DOT_LOG": str(folder / "played.jsonl"), "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip
    words = [str(ROOT / word) if word.startswith("recipes/") else word for word in words]
    began = time.perf_counter()
    process = subprocess.Popen(words, cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"{shlex.join(words)} failed")
    return {"s": seconds, "cpu_s": usage.ru_utime + usage.ru_stime, "peak_GiB": usage.ru_maxrss / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where everything is made (default: a temporary folder)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    from feetech_bus import FeetechBus
    from markdown import commands, of_file

    place = nullcontext(arguments.folder) if arguments.folder else tempfile.TemporaryDirectory()
    with place as name, FeetechBus() as bus:
        folder = Path(name).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "lerobot_camera_pattern.py").is_file():
            # In a process of its own: what this one had in memory would count as each command's peak.
            maker = multiprocessing.get_context("spawn").Process(target=prepare, args=(folder,))
            maker.start()
            maker.join()
            if maker.exitcode:
                raise SystemExit("the base and the recordings could not be made")
        shape = f"type: pattern, width: {IMAGE[1]}, height: {IMAGE[0]}, fps: 30"
        cameras = ", ".join(f"{camera}: {{{shape}}}" for camera in ("top", "wrist"))
        arm = f"--robot.port={bus.port} --robot.calibration_dir={folder} --robot.id=arm --robot.cameras='{{{cameras}}}'"
        few = FEW | {"robots.rollout": f"{arm} --outcome=failure --episodes=1 --seconds=2"}
        found = {}
        for words in commands(of_file(ROOT / "docs" / "lerobot.md")):
            named = [word for word in words if word not in ("python", "-m")]
            program = " ".join(named[:2] if named[0] == "deas-vla" else named[:1])
            done = folder / f"{len(found)}.json"
            if not done.is_file():
                done.write_text(
                    json.dumps(measured([*words, *shlex.split(few.get(program, ""))], folder)), encoding="utf-8"
                )
            found[f"{len(found)} {program}"] = numbers = json.loads(done.read_text(encoding="utf-8"))
            print(program, *(f"{value:.1f} {unit}" for unit, value in numbers.items()), flush=True)
    for program, numbers in found.items():
        print(f"{program:32s}" + "".join(f"{value:10.1f} {unit}" for unit, value in numbers.items()))
    if arguments.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
