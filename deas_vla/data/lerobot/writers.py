"""The two ways in which episodes get into a LeRobotDataset v3 (lerobot_format.py). This module imports LeRobot."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import compute_episode_stats, get_feature_stats
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import get_file_size_in_mb
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.datasets.utils import update_chunk_file_indices
from lerobot.utils.utils import SuppressProgressBars

from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.format import IMAGES, held_frame, png

# Statistics of images come from a few frames an episode, every other pixel: a data set's mean does not need more.
STATISTICS_FRAMES, STATISTICS_STRIDE = 8, 2
# Rows of the table of episodes that are written together; LeRobot's default of ten writes often.
EPISODES_A_FLUSH = 500


class ImageWriter:
    """Images as PNG inside the parquet files, encoded once per rendered frame and in memory."""

    def __init__(self, root: Path, repo_id: str, fps: float, features: dict, robot: str):
        self.meta = LeRobotDatasetMetadata.create(
            repo_id,
            fps,
            features,
            robot_type=robot,
            root=root,
            use_videos=False,
            metadata_buffer_size=EPISODES_A_FLUSH,
        )
        self.schema = get_hf_features_from_features(self.meta.features).arrow_schema
        self.writer: pq.ParquetWriter | None = None
        self.chunk, self.file, self.rows_in_file = 0, 0, 0

    def write(self, columns: dict[str, np.ndarray], episode: Episode) -> None:
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
        arrays = {name: self._array(name, values) for name, values in columns.items()}
        held = held_frame(episode)
        for camera, images in episode.images.items():
            encoded = [png(image) for image in images]
            arrays[IMAGES + camera] = pa.StructArray.from_arrays(
                [
                    pa.array([encoded[frame] for frame in held], pa.binary()),
                    pa.array([f"frame-{row:06d}.png" for row in range(rows)]),
                ],
                ["bytes", "path"],
            )
            statistics[IMAGES + camera] = _image_statistics(images)
        self._write_rows(pa.table([arrays[field.name] for field in self.schema], schema=self.schema))
        where = {
            "data/chunk_index": self.chunk,
            "data/file_index": self.file,
            "dataset_from_index": first,
            "dataset_to_index": first + rows,
        }
        self.meta.save_episode(number, rows, [episode.instruction], statistics, where)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.meta.finalize()

    def _array(self, name: str, values: np.ndarray) -> pa.Array:
        field = self.schema.field(name).type
        if pa.types.is_fixed_size_list(field):
            return pa.FixedSizeListArray.from_arrays(
                pa.array(values.ravel(), field.value_type), field.list_size
            )
        return pa.array(values, field)

    def _write_rows(self, table: pa.Table) -> None:
        """One row group an episode, and a new file before one grows past LeRobot's limit."""
        if self.writer is not None:
            size = get_file_size_in_mb(self._path())
            if size * (1 + len(table) / self.rows_in_file) >= self.meta.data_files_size_in_mb:
                self.writer.close()
                self.writer, self.rows_in_file = None, 0
                self.chunk, self.file = update_chunk_file_indices(
                    self.chunk, self.file, self.meta.chunks_size
                )
        if self.writer is None:
            self._path().parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(
                self._path(), self.schema, compression="snappy", use_dictionary=True
            )
        self.writer.write_table(table)
        self.rows_in_file += len(table)

    def _path(self) -> Path:
        return self.meta.root / self.meta.data_path.format(chunk_index=self.chunk, file_index=self.file)


class VideoWriter:
    """One video a camera, encoded by LeRobot's own recorder."""

    def __init__(self, root: Path, repo_id: str, fps: float, features: dict, robot: str):
        self.dataset = LeRobotDataset.create(
            repo_id, fps, features, robot_type=robot, root=root, use_videos=True
        )

    def write(self, columns: dict[str, np.ndarray], episode: Episode) -> None:
        held = held_frame(episode)
        for row in range(episode.length + 1):
            frame = {name: np.atleast_1d(values[row]) for name, values in columns.items()}
            images = {IMAGES + camera: images[held[row]] for camera, images in episode.images.items()}
            self.dataset.add_frame({**frame, **images, "task": episode.instruction})
        # In this process: a pool of processes an episode costs more than it saves, and forks a threaded program.
        with SuppressProgressBars():
            self.dataset.save_episode(parallel_encoding=False)

    def close(self) -> None:
        self.dataset.finalize()


def _image_statistics(images: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics a channel, (3, 1, 1) each, over (F, h, w, 3) images scaled to [0, 1]."""
    picked = np.linspace(0, len(images) - 1, min(len(images), STATISTICS_FRAMES)).round().astype(int)
    sample = images[picked, ::STATISTICS_STRIDE, ::STATISTICS_STRIDE].transpose(0, 3, 1, 2)
    statistics = get_feature_stats(sample, axis=(0, 2, 3), keepdims=True)
    return {k: v if k == "count" else np.squeeze(v / 255.0, axis=0) for k, v in statistics.items()}
