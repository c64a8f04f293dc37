"""Episodes as a LeRobotDataset v3 on disk: any tool that reads LeRobot's format reads what is written here.

One row for each of the T + 1 observations of an episode, with the columns of `columns_of`: LeRobot takes every
``observation.*`` for an input of its policies, hence their names. Contract and metadata are in ``meta/deas_vla.json``.
"""

import io
import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot import FORMAT, IMAGES, SIDECAR
from deas_vla.errors import UserError, require
from deas_vla.files import atomic_path

# Statistics of images come from a few frames an episode, every other pixel: a data set's mean does not need more.
STATISTICS_FRAMES, STATISTICS_STRIDE = 8, 2
EPISODES_A_FLUSH = 500  # rows of the table of episodes that are written together; LeRobot's default of ten writes often
NARROWEST_VIDEO = 32  # LeRobot's encoder (SVT-AV1) ends the whole process at images narrower than 28 pixels


def write_dataset(
    root: Path,
    episodes: Iterable[Episode],
    contract: Contract,
    repo_id: str,
    *,
    storage: str = "image",
    metadata: dict | None = None,
) -> None:
    """Writes a LeRobotDataset v3, whole or not at all.

    Args:
        root: must not exist.
        episodes: at least one, all valid and of one source; may be a generator.
        repo_id: LeRobot's name of the data set, for example ``local/lift-demonstrations``.
        storage: ``image`` (PNG, without loss) or ``video`` (LeRobot's default codec: smaller, lossy, slower to write),
            which takes no images under 32 pixels wide.
        metadata: anything JSON that says how the episodes came about: seeds, versions, settings of the environment.
    """
    root = Path(root)
    if root.exists():
        raise UserError(f"{root} exists already; choose another folder, or delete it to make it anew")
    writers = {"image": ImageWriter, "video": VideoWriter}
    if storage not in writers:
        raise UserError(f"storage is {storage!r}; choose image or video")
    narrow = [camera.name for camera in contract.cameras if camera.width < NARROWEST_VIDEO]
    if storage == "video" and narrow:
        what = f"images of {', '.join(narrow)} are under {NARROWEST_VIDEO} pixels wide, too narrow for LeRobot's"
        raise UserError(f'{root}: {what} video encoder; store them as images (storage="image"), or enlarge them')
    require("lerobot", "lerobot")
    # An integer where it is one, as LeRobot has it.
    fps = int(contract.rate_hz) if contract.rate_hz == int(contract.rate_hz) else contract.rate_hz
    with atomic_path(root) as temporary:
        writer = writers[storage](temporary, repo_id, fps, features(contract, storage), contract.embodiment)
        source = None
        # Closed even after an error: an open writer of LeRobot's writes its last rows when it is collected, after
        # the folder was cleared away.
        with closing(writer):
            for number, episode in enumerate(episodes):
                where = f"{root}, episode {number}"
                episode.validate(contract, where)
                source = source or episode.source
                if episode.source != source:
                    fix = "write two data sets"
                    raise UserError(f"{where}: source {episode.source} among episodes of source {source}; {fix}")
                writer.write(columns_of(episode), episode)
        if source is None:
            raise UserError(f"{root}: there are no episodes to write; collect some first")
        # LeRobot writes its features in the order of a set, another in every process: equal data, equal files.
        stats = temporary / "meta" / "stats.json"
        sorted_stats = json.dumps(json.loads(stats.read_text(encoding="utf-8")), indent=4, sort_keys=True)
        stats.write_text(sorted_stats + "\n", encoding="utf-8")
        sidecar = {"format": FORMAT, "source": source, "contract": contract.to_json(), "metadata": metadata or {}}
        (temporary / SIDECAR).write_text(json.dumps(sidecar, indent=1) + "\n", encoding="utf-8")


def features(contract: Contract, storage: str) -> dict[str, dict]:
    """The data set's columns in LeRobot's notation, with the contract's names."""
    described = {}
    for key, columns in (("observation.state", contract.state), ("action", contract.action)):
        described[key] = ("float32", (len(columns),), [column.name for column in columns])
    flags = ("next.success", "next.done", "next.truncated", "frame.is_fresh", "frame.is_final")
    described |= {"next.reward": ("float32", (1,), None), **dict.fromkeys(flags, ("bool", (1,), None))}
    described["scene"] = ("int64", (1,), None)
    for camera in contract.cameras:
        described[IMAGES + camera.name] = (storage, (camera.height, camera.width, 3), ["height", "width", "channels"])
    return {name: dict(zip(("dtype", "shape", "names"), each, strict=True)) for name, each in described.items()}


def columns_of(episode: Episode) -> dict[str, np.ndarray]:
    """The T + 1 rows of an episode, images left out."""
    rows = np.arange(episode.length + 1)
    ends = rows >= episode.length - 1
    return {
        "observation.state": episode.states,
        "action": np.concatenate([episode.actions, episode.actions[-1:]]),
        "next.reward": np.append(episode.rewards, np.float32(0)),  # the task's, of the step
        "next.success": np.append(episode.success, episode.success[-1]),  # read after the step
        "next.done": ends,  # the step was the episode's last, for whatever reason
        "next.truncated": ends & episode.truncated,  # the episode ended here without success
        "frame.is_fresh": np.isin(rows, episode.frame_steps),  # images rendered at this row, else the last ones again
        "frame.is_final": rows == episode.length,  # no step follows, the action repeats the last
        "scene": np.full(len(rows), episode.scene, np.int64),  # number of the initial state
    }


def shown_frame(episode: Episode) -> np.ndarray:
    """(T + 1,) which of the episode's frames each row shows: the last one rendered (before the first: the first)."""
    last = np.searchsorted(episode.frame_steps, np.arange(episode.length + 1), side="right") - 1
    return last.clip(min=0)


class ImageWriter:
    """Images as PNG inside the parquet files, encoded once per rendered frame and in memory.

    LeRobot's recorder takes statistics over every pixel and sends images through files: 4,040 rows of two 84 px cameras
    took it 39.8 s, this 1.3 s. Metadata, schema and other statistics are LeRobot's; a test compares both row by row.
    """

    def __init__(self, root: Path, repo_id: str, fps: float, features: dict, robot: str):
        import pyarrow as pa
        import pyarrow.parquet as pq
        from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
        from lerobot.datasets.feature_utils import get_hf_features_from_features

        self.pa, self.pq = pa, pq
        self.meta = LeRobotDatasetMetadata.create(
            repo_id, fps, features, robot_type=robot, root=root, use_videos=False,
            metadata_buffer_size=EPISODES_A_FLUSH,
        )  # fmt: skip
        self.schema = get_hf_features_from_features(self.meta.features).arrow_schema
        self.writer: pq.ParquetWriter | None = None
        self.chunk, self.file, self.rows_in_file = 0, 0, 0

    def write(self, columns: dict[str, np.ndarray], episode: Episode) -> None:
        from lerobot.datasets.compute_stats import compute_episode_stats

        rows, number, first = episode.length + 1, self.meta.total_episodes, self.meta.total_frames
        self.meta.save_episode_tasks([episode.instruction])
        columns = columns | {
            "timestamp": np.arange(rows) / self.meta.fps,
            "frame_index": np.arange(rows),
            "episode_index": np.full(rows, number),
            "index": np.arange(first, first + rows),
            "task_index": np.full(rows, self.meta.get_task_index(episode.instruction)),
        }
        statistics = compute_episode_stats(columns, self.meta.features)
        # A vector of one entry is a number in LeRobot's schema.
        stored = {name: list(v.squeeze(-1) if v.shape[1:] == (1,) else v) for name, v in columns.items()}
        for camera, images in episode.images.items():
            encoded, shown = [png(image) for image in images], shown_frame(episode)
            stored[IMAGES + camera] = [
                {"bytes": encoded[frame], "path": f"frame-{row:06d}.png"} for row, frame in enumerate(shown)
            ]
            statistics[IMAGES + camera] = _image_statistics(images)
        self._write_rows(self.pa.Table.from_pydict(stored, self.schema))
        where = {"data/chunk_index": self.chunk, "data/file_index": self.file}
        where |= {"dataset_from_index": first, "dataset_to_index": first + rows}
        self.meta.save_episode(number, rows, [episode.instruction], statistics, where)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.meta.finalize()

    def _write_rows(self, table) -> None:
        """One row group an episode, and a new file before one grows past LeRobot's limit."""
        from lerobot.datasets.io_utils import get_file_size_in_mb
        from lerobot.datasets.utils import update_chunk_file_indices

        if self.writer is not None:
            size = get_file_size_in_mb(self._path())
            if size * (1 + len(table) / self.rows_in_file) >= self.meta.data_files_size_in_mb:
                self.writer.close()
                self.writer, self.rows_in_file = None, 0
                self.chunk, self.file = update_chunk_file_indices(self.chunk, self.file, self.meta.chunks_size)
        if self.writer is None:
            self._path().parent.mkdir(parents=True, exist_ok=True)
            self.writer = self.pq.ParquetWriter(self._path(), self.schema, compression="snappy", use_dictionary=True)
        self.writer.write_table(table)
        self.rows_in_file += len(table)

    def _path(self) -> Path:
        return self.meta.root / self.meta.data_path.format(chunk_index=self.chunk, file_index=self.file)


class VideoWriter:
    """One video a camera, encoded by LeRobot's own recorder."""

    def __init__(self, root: Path, repo_id: str, fps: float, features: dict, robot: str):
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        self.dataset = LeRobotDataset.create(repo_id, fps, features, robot_type=robot, root=root, use_videos=True)

    def write(self, columns: dict[str, np.ndarray], episode: Episode) -> None:
        from lerobot.utils.utils import SuppressProgressBars

        shown = shown_frame(episode)
        for row in range(episode.length + 1):
            frame = {name: np.atleast_1d(values[row]) for name, values in columns.items()}
            images = {IMAGES + camera: images[shown[row]] for camera, images in episode.images.items()}
            self.dataset.add_frame({**frame, **images, "task": episode.instruction})
        # In this process: a pool of processes an episode costs more than it saves, and forks a threaded program.
        with SuppressProgressBars():
            self.dataset.save_episode(parallel_encoding=False)

    def close(self) -> None:
        self.dataset.finalize()


def png(image: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as PNG; light compression, which for small images costs a third of the time."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics a channel, (3, 1, 1) each, over (F, h, w, 3) images scaled to [0, 1]."""
    from lerobot.datasets.compute_stats import get_feature_stats

    picked = np.linspace(0, len(images) - 1, min(len(images), STATISTICS_FRAMES)).round().astype(int)
    sample = images[picked, ::STATISTICS_STRIDE, ::STATISTICS_STRIDE].transpose(0, 3, 1, 2)
    statistics = get_feature_stats(sample, axis=(0, 2, 3), keepdims=True)
    return {k: v if k == "count" else np.squeeze(v / 255.0, axis=0) for k, v in statistics.items()}
