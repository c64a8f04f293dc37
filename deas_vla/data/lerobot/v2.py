"""Rows and pictures of a LeRobot data set v2.0 or v2.1, which is also GR00T's: one file an episode."""

from collections.abc import Iterator

import numpy as np

from deas_vla.data.contract import Camera
from deas_vla.data.lerobot.folder import LerobotFolder, decode_image, read_table, to_numpy
from deas_vla.data.video import video_frames
from deas_vla.errors import UserError


class EpisodeFiles:
    """What the reader needs of a v2 data set.

    Args:
        folder: the data set.
        needed: columns without which it cannot be read.
        optional: columns that are read where they are there.

    Raises:
        UserError: if there is no episode, or its list and its files disagree.
    """

    def __init__(self, folder: LerobotFolder, needed: list[str], optional: tuple[str, ...]):
        self.folder = folder
        self.wanted = [name for name in (*needed, *optional) if name in folder.features]
        self.numbers = list(folder.episodes)

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self) -> Iterator[dict[str, np.ndarray]]:
        """The columns of one episode after the other."""
        for number in self.numbers:
            file = self.folder.data_file(number)
            table = read_table(file, self.wanted, full=True)
            if len(table) != self.folder.episodes[number].length:
                raise UserError(
                    f"{file} has {len(table)} rows, episodes.jsonl says {self.folder.episodes[number].length}; "
                    "copy it again"
                )
            yield {name: to_numpy(table.column(name)) for name in self.wanted}

    def pictures(self, key: str, camera: Camera, rows: list[np.ndarray]) -> Iterator[np.ndarray]:
        """The pictures of one episode after the other.

        Args:
            key: column of the camera.
            camera: what they must be.
            rows: for each episode, the rows whose pictures are wanted.

        Returns:
            (F, height, width, 3) uint8 for each episode.
        """
        shape = (camera.height, camera.width, 3)
        for number, wanted in zip(self.numbers, rows, strict=True):
            if self.folder.features[key]["dtype"] == "image":
                file = self.folder.data_file(number)
                column = read_table(file, [key]).column(key).combine_chunks().field("bytes")
                yield np.stack(
                    [decode_image(column[int(row)].as_py(), shape, f"{file}, row {row}") for row in wanted]
                )
                continue
            path, _ = self.folder.video(key, number)
            frames = video_frames(path, wanted)
            if frames.shape[1:] != shape:
                raise UserError(f"{path}: frames are {frames.shape[1:]}, info.json says {shape}")
            yield frames
