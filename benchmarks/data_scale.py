"""Does memory grow with the data? And how fast are frames and batches read, beside LeRobot's own loader?

    python benchmarks/data_scale.py                       # 5, 50 and 500 episodes
    python benchmarks/data_scale.py --episodes=5,50       # a short try
    python benchmarks/data_scale.py --json                # and one JSON object as the last line

LeRobot's recorder writes five episodes of 300 frames, two cameras of 480x640 pixels, h264. Larger data sets repeat
their rows under new numbers and their video files under new names. Each step is a process of its own, whose highest
resident memory and CPU seconds (its workers' included) are the operating system's: the data set is read; the recipe
finetune_policy.py clones a small policy; train_critic.py caches features and small images of every fourth frame, and
trains the image encoder and the critic. ``memory_ratio`` is the largest of the largest set's over the smallest's.

Then in one process: random frames through our reader and through LeRobot's loader, and options a second.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CAMERAS, HEIGHT, WIDTH, JOINTS, RATE = ("top", "wrist"), 480, 640, 14, 30
BASE_EPISODES = 5
SMALL_POLICY = ("--policy.image_size=64", "--training.steps=20", "--training.batch_size=16")
CRITIC = ("--training.steps=100", "--image_encoder_training.steps=50")

READ = """
import sys
from pathlib import Path
from deas_vla.data.frames import FrameTable
from deas_vla.data.lerobot.reader import read_dataset
frames = FrameTable.of(read_dataset(Path(sys.argv[1]), image_every=4)[0])
print(len(frames))
"""

RATES = """
import json, sys, time
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from deas_vla.data.frames import FrameTable
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.data.contract import Statistics
from deas_vla.data.episodes import statistics_of
folder, count = Path(sys.argv[1]), int(sys.argv[2])
episodes, contract, _ = read_dataset(folder)
frames = FrameTable.of(episodes)
theirs = LeRobotDataset("local/scale", root=folder)
rng = np.random.default_rng(0)
seconds = {"ours": [], "lerobot": []}
for turn in range(5):
    rows = torch.from_numpy(rng.integers(0, len(frames), count))
    began = time.process_time()
    frames.observation(rows)
    seconds["ours"].append(time.process_time() - began)
    began = time.process_time()
    for row in rows.tolist():
        theirs[row]
    seconds["lerobot"].append(time.process_time() - began)
rates = {name: count / float(np.median(each)) for name, each in seconds.items()}
options = build_options(episodes, contract.with_statistics(statistics_of(episodes)), horizon=16, reward_discount=0.99,
                        bootstrap_discount=0.99, reward=RewardSpec())
began = time.process_time()
for _ in range(200):
    options.batch(torch.from_numpy(rng.integers(0, len(options), 256)))
rates["options"] = 200 * 256 / (time.process_time() - began)
print(json.dumps(rates))
"""


def record(folder: Path) -> None:
    """Five episodes by LeRobot's recorder: a red square is where the hand must go; in two of them it does not."""
    import numpy as np
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    names = [f"joint_{joint}.pos" for joint in range(JOINTS)]
    vector = {"dtype": "float32", "shape": (JOINTS,), "names": names}
    flag = {"dtype": "bool", "shape": (1,), "names": None}
    features = {"observation.state": vector, "action": vector, "next.success": flag}
    features["next.reward"] = {"dtype": "float32", "shape": (1,), "names": None}
    image = {"dtype": "video", "shape": (HEIGHT, WIDTH, 3), "names": ["height", "width", "channels"]}
    features |= {f"observation.images.{camera}": image for camera in CAMERAS}
    encoder = RGBEncoderConfig(vcodec="h264", preset="ultrafast")
    dataset = LeRobotDataset.create(
        "local/scale", RATE, features, root=folder, robot_type="two_arms", use_videos=True, rgb_encoder=encoder
    )
    rng = np.random.default_rng(0)
    background = (np.add.outer(np.arange(HEIGHT), np.arange(WIDTH))[..., None] * [1, 2, 3] // 4 % 256).astype(np.uint8)
    for episode in range(BASE_EPISODES):
        goal, state, success = rng.uniform(0.2, 0.8), rng.normal(0, 0.1, JOINTS).astype(np.float32), episode % 3 != 2
        for step in range(300):
            action = state + rng.normal(0, 0.003, JOINTS).astype(np.float32)
            action[0] = state[0] + 0.02 * np.sign((goal if success else 1 - goal) - state[0])
            done = np.array([success and step == 299])
            frame = {"observation.state": state, "action": action, "task": "reach the square", "next.success": done}
            frame["next.reward"] = done.astype(np.float32)
            for number, camera in enumerate(CAMERAS, 1):
                shown = np.roll(background, 3 * step * number, axis=1)
                left = int(goal * (WIDTH - 20))
                shown[200:220, left : left + 20] = (255, 0, 0)
                frame[f"observation.images.{camera}"] = shown
            dataset.add_frame(frame)
            state = action
        dataset.save_episode()
    dataset.finalize()


def repeat(base: Path, folder: Path, times: int) -> None:
    """The base data set `times` times over: rows under new numbers, video files as new files of the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("videos", "data", "episodes"))
    rows = pq.read_table(next((base / "data").rglob("*.parquet")))
    listed = pq.read_table(next((base / "meta" / "episodes").rglob("*.parquet")))

    def shifted(table: pa.Table, **offsets: int) -> pa.Table:
        for name, offset in offsets.items():
            column = table.column(name)
            values = pa.array([value + offset for value in column.to_pylist()], column.type)
            table = table.set_column(table.schema.get_field_index(name), name, values)
        return table

    def write(part: str, tables: list[pa.Table]) -> None:
        path = folder / part / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables(tables), path)

    lists = []
    for number in range(times):
        files = {f"videos/observation.images.{camera}/file_index": number for camera in CAMERAS}
        steps = {"dataset_from_index": number * len(rows), "dataset_to_index": number * len(rows)}
        lists.append(shifted(listed, episode_index=BASE_EPISODES * number, **files, **steps))
        for camera in CAMERAS:
            video = Path("videos", f"observation.images.{camera}", "chunk-000")
            (folder / video).mkdir(parents=True, exist_ok=True)
            os.link(base / video / "file-000.mp4", folder / video / f"file-{number:03d}.mp4")
    numbered = (
        shifted(rows, episode_index=BASE_EPISODES * number, index=number * len(rows)) for number in range(times)
    )
    write("data", list(numbered))
    write("meta/episodes", lists)
    info = json.loads((folder / "meta" / "info.json").read_text(encoding="utf-8"))
    info |= {"total_episodes": BASE_EPISODES * times, "total_frames": len(rows) * times}
    info["splits"] = {"train": f"0:{BASE_EPISODES * times}"}
    (folder / "meta" / "info.json").write_text(json.dumps(info), encoding="utf-8")


def measured(*command: str) -> dict[str, float]:
    """Runs Python on a script: GiB of its largest process, CPU seconds of it and its children, seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True)
    process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command[:2])} ended with {os.waitstatus_to_exitcode(status)}")
    return {
        "gib": usage.ru_maxrss / 2**20,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "seconds": time.perf_counter() - began,
    }


def steps_of(data: Path, run: Path) -> dict[str, tuple[str, ...]]:
    recipes = ROOT / "recipes"
    return {
        "read": ("-c", READ, str(data)),
        "policy": (
            str(recipes / "finetune_policy.py"), "--demonstrations=", f"--more.folders={data}", "--method=filtered_bc",
            f"--output={run}/policy", *SMALL_POLICY,
        ),
        "critic": (
            str(recipes / "train_critic.py"), "--demonstrations=", "--rollouts=", f"--more.folders={data}",
            f"--policy={run}/policy", f"--output={run}/critic", *CRITIC,
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", default="5,50,500", help="multiples of 5 (default: %(default)s)")
    parser.add_argument("--folder", default="outputs/data_scale", help="where data and runs go (default: %(default)s)")
    parser.add_argument("--steps", default="read,policy,critic", help="which are measured (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=64, help="random frames a turn for the rates (default: 64)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = Path(arguments.folder)
    shutil.rmtree(folder, ignore_errors=True)
    base = folder / "base"
    # In a process of its own: the highest memory of a process that starts others counts in theirs.
    recording = multiprocessing.get_context("spawn").Process(target=record, args=(base,))
    recording.start()
    recording.join()
    if recording.exitcode:
        raise SystemExit("the recording failed")

    results: dict[str, dict] = {}
    print("episodes  step     memory   CPU seconds   seconds")
    for count in map(int, arguments.episodes.split(",")):
        data = folder / f"{count}_episodes"
        repeat(base, data, count // BASE_EPISODES)
        declare = ["-m", "deas_vla.cli", "declare", str(data), "--units=rad", "--source=rollout"]
        subprocess.run([sys.executable, *declare], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        steps = steps_of(data, folder / f"{count}_run")
        results[str(count)] = {}
        for name in arguments.steps.split(","):
            row = results[str(count)][name] = measured(*steps[name])
            print(
                f"{count:8d}  {name:6s} {row['gib']:6.2f} GiB {row['cpu_s']:10.1f} s {row['seconds']:10.1f} s",
                flush=True,
            )
    smallest, largest = min(results, key=int), max(results, key=int)
    ratios = {name: results[largest][name]["gib"] / results[smallest][name]["gib"] for name in results[smallest]}
    print(
        f"memory of {largest} episodes over that of {smallest}:", ", ".join(f"{k} {v:.2f}" for k, v in ratios.items())
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    rates = [sys.executable, "-c", RATES, str(folder / f"{smallest}_episodes"), str(arguments.frames)]
    done = subprocess.run(rates, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    rates = json.loads(done.stdout.splitlines()[-1])
    print(
        f"random frames per CPU second: {rates['ours']:.1f}, LeRobot's loader {rates['lerobot']:.1f}; "
        f"options per CPU second: {rates['options']:.0f}, {rates['options'] / rates['lerobot']:.0f} times its samples"
    )
    if arguments.json:
        print(json.dumps({"memory_ratio": max(ratios.values()), "ratios": ratios, "rates": rates, "results": results}))


if __name__ == "__main__":
    main()
