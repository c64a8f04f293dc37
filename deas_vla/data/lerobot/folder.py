"""The folder of a LeRobot data set, v2.0, v2.1 or v3: where its rows, images and instructions are.

==============  ==========================================  ================================================
what            v2.0 and v2.1 (GR00T reads these)           v3
==============  ==========================================  ================================================
rows            one parquet file an episode                 many episodes a file
videos          one file an episode and camera              many episodes a file, by their times
instructions    meta/tasks.jsonl                            meta/tasks.parquet
episodes        meta/episodes.jsonl                         meta/episodes/*/*.parquet
groups          meta/modality.json, where GR00T uses it     (none)
==============  ==========================================  ================================================

LeRobot decodes the videos. The parquet files are read here, because `LeRobotDataset` reads v3 only, looks for a missing
file on the hub, and the audit must look into broken folders; and because it is slower: importing LeRobot took 12 s on a
busy core, reading 505 of 4,040 rows 1.0 s where this took 0.5 s. Its script v2.1 to v3 refuses GR00T's v2.0 folders.

Nothing is judged here: a file that cannot be read is an error, what is in it is up to the reader and to the audit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.lerobot import FORMAT, SIDECAR
from deas_vla.data.lerobot.files import check_info, read_images, read_lines, read_table, to_numpy
from deas_vla.errors import UserError, as_user_error, require
from deas_vla.files import read_json

INFO, MODALITY = "meta/info.json", "meta/modality.json"
VERSIONS = ("v2.0", "v2.1", "v3.")
# Below this, a progress bar would only flicker.
EPISODES_WORTH_A_BAR = 50


@dataclass(frozen=True)
class EpisodeMeta:
    """What the folder's own list says of an episode.

    Attributes:
        number: its index.
        length: how many rows it has.
        videos: camera column to the file of its video and the second at which it begins there; v3 only.
    """

    number: int
    length: int
    videos: dict[str, tuple[Path, float]]


@dataclass
class Rows:
    """The rows of one episode in one parquet file.

    Attributes:
        number: the episode.
        file: the parquet file.
        first: which row of the file is the first of them.
        columns: (rows,) or (rows, width) arrays.
    """

    number: int
    file: Path
    first: int
    columns: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class LerobotFolder:
    """A data set on disk.

    Args:
        root: its folder.

    Raises:
        UserError: if it is no LeRobot data set, of another version, or its info.json cannot be worked with.
    """

    def __init__(self, root: Path):
        require("pyarrow", "lerobot")
        self.root = Path(root)
        if not (self.root / INFO).is_file():
            raise UserError(f"{self.root}: not a LeRobot data set (there is no {INFO}); copy it again")
        self.info = read_json(self.root / INFO)
        self.version = str(self.info.get("codebase_version"))
        if not self.version.startswith(VERSIONS):
            raise UserError(
                f"{self.root} has LeRobot format {self.version}, this reads v2.0, v2.1 and v3; "
                "convert it with LeRobot's own script first"
            )
        # One file an episode: v2.
        self.episodic = self.version.startswith("v2.")
        check_info(self.info, self.root / INFO, self.episodic)
        self.features: dict[str, dict] = self.info["features"]
        self.rate_hz = float(self.info["fps"])

    @cached_property
    def sidecar(self) -> dict:
        """What this project wrote about the data set, or {}."""
        path = self.root / SIDECAR
        if not path.is_file():
            return {}
        sidecar = read_json(path)
        if sidecar.get("format") != FORMAT:
            raise UserError(f"{path}: format {sidecar.get('format')!r}, this version reads {FORMAT}")
        return sidecar

    @cached_property
    def modality(self) -> dict | None:
        """GR00T's description of the groups of columns, or None."""
        path = self.root / MODALITY
        return read_json(path) if path.is_file() else None

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Instruction by task index."""
        if self.episodic:
            path = self.root / "meta" / "tasks.jsonl"
            return {line["task_index"]: line["task"] for line in read_lines(path, task_index=int, task=str)}
        path = self.root / "meta" / "tasks.parquet"
        table = read_table(path, full=True)
        # Pandas keeps its index in a column of that name, or of the index's own.
        texts = [name for name in table.column_names if name != "task_index"]
        if not texts or "task_index" not in table.column_names:
            raise UserError(f"{path}: no task_index or no instructions in it; copy the data set again")
        return dict(zip(table.column("task_index").to_pylist(), table.column(texts[0]).to_pylist(), strict=True))

    @cached_property
    def episodes(self) -> dict[int, EpisodeMeta]:
        """The folder's own list of episodes, by number, in order."""
        if self.episodic:
            lines = read_lines(self.root / "meta" / "episodes.jsonl", episode_index=int, length=int)
            found = [EpisodeMeta(line["episode_index"], line["length"], {}) for line in lines]
        else:
            found = [meta for file in self._parquet("meta/episodes") for meta in self._v3_episodes(file)]
        return {meta.number: meta for meta in sorted(found, key=lambda meta: meta.number)}

    def data_files(self) -> list[Path]:
        """The parquet files with the rows, in order; of v2 those that its own list of episodes asks for."""
        if not self.episodic:
            return self._parquet("data")
        return [
            self.root / self.info["data_path"].format(episode_chunk=number // self._chunk, episode_index=number)
            for number in self.episodes
        ]

    def rows(self, needed: list[str], optional: tuple[str, ...] = ()) -> Iterator[Rows]:
        """The rows of one episode after the other, as they lie in the files.

        Args:
            needed: columns without which the data set cannot be read.
            optional: columns that are read where they are there.

        Raises:
            UserError: if a file is missing, cut off or lacks a column, or their number is not the one that is
                written down.
        """
        names = dict.fromkeys(("episode_index", *needed, *optional))
        wanted = [name for name in names if name == "episode_index" or name in self.features]
        total = 0
        for file in self.data_files():
            table = read_table(file, wanted, full=True)
            columns = {name: to_numpy(table.column(name)) for name in wanted}
            total += len(table)
            for rows in split_episodes(file, columns):
                if self.episodic and len(rows) != self.episodes[rows.number].length:
                    raise UserError(
                        f"{file} has {len(rows)} rows, episodes.jsonl says {self.episodes[rows.number].length}; "
                        "copy it again"
                    )
                yield rows
        if not self.episodic and total != self.info["total_frames"]:
            raise UserError(f"{self.root}: {total} rows, info.json says {self.info['total_frames']}; copy it again")

    def images(
        self, key: str, size: tuple[int, int], episodes: list[Rows], wanted: list[np.ndarray], name: str = ""
    ) -> list[np.ndarray]:
        """The images of each episode, all parts of one array.

        Args:
            key: column of the camera.
            size: height and width that they must have.
            episodes: of `rows`.
            wanted: for each episode its rows whose images are wanted, (F,) increasing.
            name: of the progress bar, which is shown for many episodes.

        Returns:
            (F, height, width, 3) uint8 for each episode, contiguous.

        Raises:
            UserError: if an image is missing, broken or of another size.
        """
        ends = np.cumsum([len(part) for part in wanted])
        images = np.empty((ends[-1], *size, 3), np.uint8)
        parts = np.split(images, ends[:-1])
        few = len(episodes) < EPISODES_WORTH_A_BAR
        with tqdm(desc=name, total=len(episodes), disable=few, dynamic_ncols=True) as bar:
            for rows, frames, part in zip(episodes, wanted, parts, strict=True):
                if self.features[key]["dtype"] == "video":
                    part[:] = self._video_frames(key, size, rows.number, frames)
                    bar.update()
            if self.features[key]["dtype"] == "image":
                done = 0
                for file, group in itertools.groupby(range(len(episodes)), lambda i: episodes[i].file):
                    members = list(group)
                    stored = np.concatenate([episodes[i].first + wanted[i] for i in members])
                    read_images(file, key, stored, images[done : done + len(stored)])
                    done += len(stored)
                    bar.update(len(members))
        return parts

    def video(self, key: str, number: int) -> tuple[Path, float]:
        """The video of one episode and the second at which it begins in it."""
        if not self.episodic:
            return self.episodes[number].videos[key]
        fields = {"episode_chunk": number // self._chunk, "video_key": key, "episode_index": number}
        return self.root / self.info["video_path"].format(**fields), 0.0

    def _video_frames(self, key: str, size: tuple[int, int], number: int, wanted: np.ndarray) -> np.ndarray:
        """Frame n of an episode belongs to its row n, whatever its column of timestamps says."""
        decode = require("lerobot.datasets.video_utils", "lerobot").decode_video_frames
        path, begin = self.video(key, number)
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the data set again")
        times = [begin + float(row) / self.rate_hz for row in wanted]
        broken = f"{path} cannot be decoded up to second {times[-1]:g}; copy it again"
        with as_user_error(broken, Exception):  # each decoder has its own errors
            frames = decode(path, times, tolerance_s=0.5 / self.rate_hz, return_uint8=True)
        if frames.shape[1:] != (3, *size):
            found = (*frames.shape[2:], frames.shape[1])
            raise UserError(f"{path}: frames are {found}, info.json says {(*size, 3)}")
        return frames.permute(0, 2, 3, 1).numpy()

    def _v3_episodes(self, file: Path) -> list[EpisodeMeta]:
        keys = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        fields = ("chunk_index", "file_index", "from_timestamp")
        names = [f"videos/{key}/{field}" for key in keys for field in fields]
        found = []
        for row in read_table(file, ["episode_index", "length", *names], full=True).to_pylist():
            videos = {}
            for key in keys:
                chunk, number, begin = (row[f"videos/{key}/{field}"] for field in fields)
                path = self.info["video_path"].format(video_key=key, chunk_index=chunk, file_index=number)
                videos[key] = (self.root / path, begin)
            found.append(EpisodeMeta(row["episode_index"], row["length"], videos))
        return found

    def _parquet(self, folder: str) -> list[Path]:
        files = sorted((self.root / folder).glob("*/*.parquet"))
        if not files:
            raise UserError(f"{self.root} has no parquet files in {folder}/; copy it again")
        return files

    @property
    def _chunk(self) -> int:
        return int(self.info.get("chunks_size", 1000))


def split_episodes(file: Path, columns: dict[str, np.ndarray]) -> Iterator[Rows]:
    """The episodes in one file, in the order in which they lie there.

    Args:
        file: the file.
        columns: of it, ``episode_index`` among them.
    """
    numbers = columns["episode_index"].reshape(-1)
    if not len(numbers):
        return
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    for start, end in itertools.pairwise([*starts.tolist(), len(numbers)]):
        part = {name: values[start:end] for name, values in columns.items()}
        yield Rows(int(numbers[start]), file, start, part)
