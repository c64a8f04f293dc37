"""Small LeRobot data sets, v3 and v2.1, whose images tell their episode and row; and what of them is easily spoiled."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deas_vla.data.contract import Contract
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout

SIZE, RATE, FRONT = 8, 10, "observation.images.front"
TASKS = ("pick the pear", "open the drawer")
LENGTHS = (5, 4, 6)


def picture(episode: int, row: int) -> np.ndarray:
    """(SIZE, SIZE, 3): the left half tells the episode, the right half the row."""
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[:, : SIZE // 2], image[:, SIZE // 2 :] = 10 + 20 * episode, 10 + 10 * row
    return image


def told(image: np.ndarray) -> tuple[int, int]:
    """(episode, row) that an image shows."""
    return (int(image[0, 0, 0]) - 10) // 20, (int(image[0, -1, 0]) - 10) // 10


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind)
    return buffer.getvalue()


def columns_of(episode: int, length: int, first: int, success: bool) -> dict:
    """The rows of an episode: the state tells episode and row, too."""
    last = np.arange(length) == length - 1
    return {
        "observation.state": np.stack([np.full(length, episode), np.arange(length)], 1).astype(np.float32),
        "action": np.stack([np.full(length, episode / 10), np.arange(length) / 100], 1).astype(np.float32),
        "timestamp": (np.arange(length) / RATE).astype(np.float32),
        "frame_index": np.arange(length),
        "episode_index": np.full(length, episode),
        "index": first + np.arange(length),
        "task_index": np.full(length, episode % 2),
        "next.reward": (last & success).astype(np.float32),
        "next.done": last,
        "next.success": last & success,
        FRONT: [encoded(picture(episode, row)) for row in range(length)],
    }


def feature(dtype: str, shape: Sequence[int] = (1,), names: object = None) -> dict:
    return {"dtype": dtype, "shape": list(shape), "names": names}


def features() -> dict[str, dict]:
    numbers = dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64")
    flags = {"next.done": "bool", "next.success": "bool", "next.reward": "float32", "timestamp": "float32"}
    return {
        "observation.state": feature("float32", (2,), ["episode", "row"]),
        "action": feature("float32", (2,), ["a", "b"]),
        **{name: feature(dtype) for name, dtype in (numbers | flags).items()},
        FRONT: feature("image", (SIZE, SIZE, 3), ["height", "width", "channels"]),
    }


def table_of(columns: dict, declared: dict[str, dict]) -> pa.Table:
    made = {}
    for name, values in columns.items():
        if declared.get(name, {}).get("dtype") == "image":
            paths = pa.array([f"{row}.png" for row in range(len(values))])
            made[name] = pa.StructArray.from_arrays([pa.array(values, pa.binary()), paths], ["bytes", "path"])
        else:
            made[name] = pa.array(values.tolist() if getattr(values, "ndim", 1) > 1 else values)
    return pa.table(made)


def write_told(
    root: Path,
    version: str = "v3.0",
    *,
    lengths: Sequence[int] = LENGTHS,
    successes: Sequence[bool] | None = None,
    files: Sequence[Sequence[int]] | None = None,
    numbers: Sequence[int] | None = None,
    columns: Callable[[int, dict], dict | None] | None = None,
    info: Callable[[dict], None] | None = None,
    listed: Callable[[list[dict]], list[dict] | None] | None = None,
    tasks: Sequence[str] = TASKS,
) -> Path:
    """Writes a data set; what is not given is legal.

    Args:
        successes: of each episode; None: all but the last.
        files: of v3, the episodes (by position) in each data file, in the order in which they lie there.
        numbers: of the episodes; None: 0, 1, 2, …
        columns, info, listed: change the columns of an episode (by number), info.json, and the list of episodes.
    """
    count = len(lengths)
    numbers, successes = numbers or range(count), successes or [True] * (count - 1) + [False]
    firsts = np.cumsum([0, *lengths]).tolist()
    description = {
        "codebase_version": version,
        "robot_type": "toy",
        "fps": RATE,
        "total_episodes": count,
        "total_frames": firsts[-1],
        "total_tasks": len(tasks),
        "chunks_size": 1000,
        "splits": {"train": f"0:{count}"},
        "features": features(),
    }
    v3 = version.startswith("v3")
    episode = "chunk-{episode_chunk:03d}/episode_{episode_index:06d}"
    description["data_path"] = (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet" if v3 else f"data/{episode}.parquet"
    )
    description["video_path"] = (
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if v3
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    )
    if info:
        info(description)
    tables = []
    for position, number in enumerate(numbers):
        made = columns_of(number, lengths[position], firsts[position], successes[position])
        made = (columns and columns(number, made)) or made
        tables.append(table_of(made, description["features"]))
    files = files or [range(count)]
    place_of = {position: file for file, members in enumerate(files) for position in members}
    rows = [
        {"episode_index": number, "length": lengths[position], "tasks": [tasks[number % len(tasks)]]}
        for position, number in enumerate(numbers)
    ]
    (root / "meta").mkdir(parents=True)
    if v3:
        for file, members in enumerate(files):
            path = root / f"data/chunk-000/file-{file:03d}.parquet"
            write_tables(path, [tables[position] for position in members])
        for position, row in enumerate(rows):
            row |= {"data/chunk_index": 0, "data/file_index": place_of[position]}
            row |= {"dataset_from_index": firsts[position], "dataset_to_index": firsts[position + 1]}
        rows = (listed and listed(rows)) or rows
        write_tables(root / "meta/episodes/chunk-000/file-000.parquet", [pa.Table.from_pylist(rows)])
        write_tasks(root, {"task_index": range(len(tasks)), "task": tasks}, ["task"])
    else:
        for position, number in enumerate(numbers):
            write_tables(root / f"data/chunk-000/episode_{number:06d}.parquet", [tables[position]])
        rows = (listed and listed(rows)) or rows
        write_lines(root / "meta/episodes.jsonl", rows)
        lines = [{"task_index": index, "task": text} for index, text in enumerate(tasks)]
        write_lines(root / "meta/tasks.jsonl", lines)
    (root / "meta/info.json").write_text(json.dumps(description, ensure_ascii=False), encoding="utf-8")
    return root


def write_tables(path: Path, tables: list[pa.Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables, promote_options="permissive"), path)


def write_lines(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_tasks(root: Path, columns: dict, index: list[str]) -> None:
    """``tasks.parquet`` with these columns, some of them as the index of pandas."""
    import pandas

    frame = pandas.DataFrame({name: list(values) for name, values in columns.items()})
    (frame.set_index(index) if index else frame).to_parquet(root / "meta/tasks.parquet")


def own_contract(root: Path) -> Contract:
    """What a data set says of itself."""
    folder = LerobotFolder(root)
    return Layout.of(folder).contract(folder)
