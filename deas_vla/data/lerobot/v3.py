"""Rows and pictures of a LeRobotDataset v3: many episodes a file.

The parquet files are read directly, and only images that were rendered are decoded: seconds instead of minutes, and
LeRobot itself is imported only to decode videos.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deas_vla.data.contract import Camera
from deas_vla.data.lerobot.folder import LerobotFolder, decode_image, read_table, to_numpy
from deas_vla.errors import UserError, require


class SharedFiles:
    """What the reader needs of a v3 data set; see `lerobot_v2.EpisodeFiles`."""

    def __init__(self, folder: LerobotFolder, needed: list[str], optional: tuple[str, ...]):
        self.folder, self.files = folder, folder.data_files()
        wanted = [
            name
            for name in dict.fromkeys(("episode_index", *needed, *optional))
            if name in ("episode_index", *folder.features)
        ]
        table = pa.concat_tables([read_table(file, wanted, full=True) for file in self.files])
        if len(table) != folder.info["total_frames"]:
            raise UserError(
                f"{folder.root}: {len(table)} rows, info.json says {folder.info['total_frames']}; copy it again"
            )
        self.columns = {name: to_numpy(table.column(name)) for name in wanted}
        number = self.columns["episode_index"]
        self.starts = np.flatnonzero(np.diff(number, prepend=number[0] - 1)) if len(number) else number
        self.ends = np.append(self.starts[1:], len(number))

    def __len__(self) -> int:
        return len(self.starts)

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """The columns of one episode after the other."""
        for start, end in zip(self.starts, self.ends, strict=True):
            yield {name: values[start:end] for name, values in self.columns.items()}

    def pictures(self, key: str, camera: Camera, rows: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The pictures of one episode after the other."""
        shape = (camera.height, camera.width, 3)
        if self.folder.features[key]["dtype"] == "video":
            yield from self._video_frames(key, shape, rows)
            return
        wanted = np.concatenate([start + part for start, part in zip(self.starts, rows, strict=True)])
        frames = self._stored_images(key, shape, wanted)
        yield from np.split(frames, np.cumsum([len(part) for part in rows])[:-1])

    def _stored_images(self, key: str, shape: tuple, wanted: np.ndarray) -> np.ndarray:
        frames = np.empty((len(wanted), *shape), np.uint8)
        first, done = 0, 0
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(1024, columns=[key]):
                    encoded = batch.column(0).field("bytes")
                    while done < len(wanted) and wanted[done] < first + len(batch):
                        row = int(wanted[done])
                        frames[done] = decode_image(
                            encoded[row - first].as_py(), shape, f"{file}, {key}, row {row}"
                        )
                        done += 1
                    first += len(batch)
        return frames

    def _video_frames(self, key: str, shape: tuple, rows: list[np.ndarray]) -> Iterator[np.ndarray]:
        video = require("lerobot.datasets.video_utils", "lerobot")
        fps = self.folder.info["fps"]
        for meta, wanted in zip(self.folder.episodes.values(), rows, strict=True):
            path, begin = meta.videos[key]
            times = [begin + float(row) / fps for row in wanted]
            try:
                frames = video.decode_video_frames(path, times, tolerance_s=0.5 / fps)
            except Exception as error:  # each decoder has its own errors
                raise UserError(f"{path} cannot be decoded ({error}); copy it again") from error
            frames = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
            if frames.shape[1:] != shape:
                raise UserError(f"{path}: frames are {frames.shape[1:]}, info.json says {shape}")
            yield frames
