"""A small data set in the layout of LeRobot v2.1 as GR00T uses it: parquet, mp4 and meta files, with planted faults."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deas_vla.data.contract import Camera, Column, Contract

# A real one, for those who have it: shared data lies beside the checkout, or where this variable says.
SHARED = Path(os.environ.get("DEAS_VLA_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = SHARED / "gr00t_pick_place"

SIZE, RATE = 32, 10
LENGTHS = (12, 9, 14, 9)
SUCCEEDS = (True, False, True, False)
FRONT = "observation.images.front"
SENTENCES = ("pick the pear", "open the drawer")
MODALITY = {
    "state": {"arm": {"start": 0, "end": 3}, "gripper": {"start": 3, "end": 5}},
    "action": {"arm": {"start": 0, "end": 3}, "gripper_close": {"start": 3, "end": 4}},
    "video": {"front": {"original_key": FRONT}},
    "annotation": {"human.action.task_description": {}},
}
INSTRUCTION = "annotation.human.action.task_description"


def v2_contract(**changes) -> Contract:
    """What the columns mean; the groups in another order than in the files."""
    values = {
        "embodiment": "arm",
        "rate_hz": float(RATE),
        "state": (
            *(Column(f"gripper.{side}", "m") for side in ("left", "right")),
            *(Column(f"arm.{joint}", "rad") for joint in ("shoulder", "elbow", "wrist")),
        ),
        "action": (
            Column("gripper_close.close", "flag", "binary", 0.0, 1.0),
            *(Column(f"arm.{joint}", "rad", "continuous", -1.0, 1.0) for joint in ("shoulder", "elbow", "wrist")),
        ),
        "cameras": (Camera("front", SIZE, SIZE),),
    }
    return Contract(**(values | changes))


def numbers(number: int) -> tuple[np.ndarray, np.ndarray]:
    """(T, 5) states and (T, 4) actions of an episode, as they lie in the files."""
    rng = np.random.default_rng(number)
    states = rng.uniform(-1, 1, (LENGTHS[number], 5))
    actions = rng.uniform(-1, 1, (LENGTHS[number], 4))
    actions[:, 3] = actions[:, 3] > 0
    return states, actions


def brightness(row: int) -> int:
    """Of the left half of the picture of a row."""
    return 20 + 15 * (row % 15)


def picture(row: int, size: int = SIZE) -> np.ndarray:
    image = np.full((size, size, 3), brightness(row), np.uint8)
    image[:, size // 2 :] = np.linspace(0, 255, size, dtype=np.uint8)[:, None, None]
    return image


def write_video(path: Path, frames: int, *, size: int = SIZE, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "10"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for row in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(row, size), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_v2(root: Path, *, version: str = "v2.1") -> Path:
    """Four episodes, two of which succeed; float64 as in GR00T's own."""
    first, statistics, collected = 0, [], []
    for number, length in enumerate(LENGTHS):
        states, actions = numbers(number)
        done = np.arange(length) == length - 1
        columns = {
            "observation.state": pa.array(states.tolist()),
            "action": pa.array(actions.tolist()),
            "timestamp": np.arange(length) / RATE,
            INSTRUCTION: np.full(length, number % 2),
            "task_index": np.full(length, number % 2),
            "frame_index": np.arange(length),
            "episode_index": np.full(length, number),
            "index": first + np.arange(length),
            "next.reward": (done & SUCCEEDS[number]).astype(np.float64),
            "next.done": done,
            "next.success": done & SUCCEEDS[number],
        }
        first += length
        file = data_file(root, number)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        write_video(video_file(root, number), length)
        statistics.append({"observation.state": moments(states), "action": moments(actions)})
        collected.append((states, actions))

    def feature(dtype: str, width: int = 1, names: list[str] | None = None) -> dict:
        return {"dtype": dtype, "shape": [width], "names": names}

    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "total_tasks": len(SENTENCES),
        "chunks_size": 1000,
        "fps": RATE,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            FRONT: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": ["height", "width", "channel"]},
            "observation.state": feature("float64", 5, [f"motor_{i}" for i in range(5)]),
            "action": feature("float64", 4, [f"motor_{i}" for i in range(4)]),
            "timestamp": feature("float64"),
            **{name: feature("int64") for name in (INSTRUCTION, "task_index", "frame_index", "episode_index", "index")},
            "next.reward": feature("float64"),
            "next.done": feature("bool"),
            "next.success": feature("bool"),
        },
    }
    meta = root / "meta"
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(info))
    (meta / "modality.json").write_text(json.dumps(MODALITY))
    write_lines(meta / "tasks.jsonl", [{"task_index": i, "task": text} for i, text in enumerate(SENTENCES)])
    write_lines(
        meta / "episodes.jsonl",
        [{"episode_index": i, "tasks": [SENTENCES[i % 2]], "length": n} for i, n in enumerate(LENGTHS)],
    )
    if version == "v2.1":
        lines = [{"episode_index": i, "stats": each} for i, each in enumerate(statistics)]
        write_lines(meta / "episodes_stats.jsonl", lines)
    else:
        states, actions = (np.concatenate(part) for part in zip(*collected, strict=True))
        whole = {"observation.state": moments(states), "action": moments(actions)}
        (meta / "stats.json").write_text(json.dumps(whole))
    return root


def moments(values: np.ndarray) -> dict[str, list[float]]:
    return {what: getattr(values, what)(0).tolist() for what in ("mean", "std", "min", "max")}


def data_file(root: Path, number: int) -> Path:
    return root / "data" / "chunk-000" / f"episode_{number:06d}.parquet"


def video_file(root: Path, number: int) -> Path:
    return root / "videos" / "chunk-000" / FRONT / f"episode_{number:06d}.mp4"


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit_json(path: Path, change) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_lines(path: Path, change) -> None:
    lines = read_lines(path)
    change(lines)
    write_lines(path, lines)


def edit_rows(root: Path, number: int, change) -> None:
    """Hands the columns of an episode to a function, as lists, and writes what it made of them."""
    columns = pq.read_table(data_file(root, number)).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), data_file(root, number))


OUTCOME_COLUMNS = ("next.reward", "next.done", "next.success", "next.truncated", "frame.is_fresh", "frame.is_final")


def drop_outcomes(root: Path) -> Path:
    """Makes a data set, v2 or v3, one that somebody recorded without saying how its episodes went."""
    (root / "meta/deas_vla.json").unlink(missing_ok=True)
    edit_json(root / "meta/info.json", lambda info: [info["features"].pop(name, None) for name in OUTCOME_COLUMNS])
    for file in (root / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        pq.write_table(table.drop([name for name in OUTCOME_COLUMNS if name in table.column_names]), file)
    return root
