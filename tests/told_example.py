"""Small LeRobot data sets, v3 and v2.1, whose images tell their episode and row; and what of them is easily spoiled."""

import io
import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from deas_vla.data.contract import Contract
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout

SIZE, RATE, FRONT = 8, 10, "observation.images.front"
VIDEO_SIZE = 32
TASKS = ("pick the pear", "open the drawer")
LENGTHS = (5, 4, 6)


def picture(episode: int, row: int, size: int = SIZE) -> np.ndarray:
    """(size, size, 3): the left half tells the episode, the right half the row."""
    image = np.zeros((size, size, 3), np.uint8)
    image[:, : size // 2], image[:, size // 2 :] = 10 + 20 * episode, 10 + 10 * row
    return image


def told(image: np.ndarray) -> tuple[int, int]:
    """(episode, row) that an image shows; videos lose a little."""
    return round((float(image[0, 0, 0]) - 10) / 20), round((float(image[0, -1, 0]) - 10) / 10)


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


def write_told_video(
    root: Path,
    version: str = "v3.0",
    *,
    extra: int = 0,
    video_files: Sequence[int] | None = None,
    times: Callable[[int], Sequence[float]] | None = None,
    listed: Callable[[list[dict]], list[dict] | None] | None = None,
    **options,
) -> Path:
    """`write_told` with the images in videos.

    Args:
        extra: frames after the rows of each episode, of no row.
        video_files: of v3, the file of each episode.
        times: the second of each frame in a file of so many; None: one after the other at the rate.
    """
    lengths = options.setdefault("lengths", LENGTHS)
    numbers = options.setdefault("numbers", range(len(lengths)))
    files: dict[int, list[np.ndarray]] = {}
    video_files = video_files or ([0] * len(lengths) if version.startswith("v3") else numbers)
    rows: list[dict] = []
    for number, length, file in zip(numbers, lengths, video_files, strict=True):
        begin = len(files.setdefault(file, [])) / RATE
        end = begin + (length + extra) / RATE
        place = {"chunk_index": 0, "file_index": file, "from_timestamp": begin, "to_timestamp": end}
        rows.append({f"videos/{FRONT}/{name}": value for name, value in place.items()})
        files[file] += [picture(number, row, VIDEO_SIZE) for row in range(length)]
        files[file] += [picture(number + 5, 9, VIDEO_SIZE)] * extra

    def described(info: dict) -> None:
        info["features"][FRONT] = feature("video", (VIDEO_SIZE, VIDEO_SIZE, 3), ["height", "width", "channels"])
        if "info" in options:
            options["info"](info)

    def with_places(made: list[dict]) -> list[dict]:
        made = [row | place for row, place in zip(made, rows, strict=True)] if version.startswith("v3") else made
        return (listed and listed(made)) or made

    def without_images(number: int, columns: dict) -> None:
        del columns[FRONT]
        if "columns" in options:
            options["columns"](number, columns)

    given = {"info": described, "listed": with_places, "columns": without_images}
    write_told(root, version, **(options | given))
    for file, frames in files.items():
        name = f"{FRONT}/chunk-000/file-{file:03d}" if version[1] == "3" else f"chunk-000/{FRONT}/episode_{file:06d}"
        write_frames(root / f"videos/{name}.mp4", frames, times and times(len(frames)))
    return root


def write_frames(
    path: Path,
    frames: Sequence[np.ndarray],
    times: Sequence[float] | None = None,
    *,
    name: str = "libx264",
    format: str = "yuv420p",
    **options: str,
) -> None:
    """A video, by the encoder of this name and with its options, and with pixels of this format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=RATE, options={"crf": "5", "g": "2", "bf": "0"} | options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = format
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="gray16le" if image.ndim == 2 else "rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


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
