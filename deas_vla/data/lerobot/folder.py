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

LeRobot decodes the videos. The parquet files are read here: `LeRobotDataset` reads v3 only, looks for missing files on
the hub and takes 12 s to import, its script from v2.1 to v3 refuses v2.0, and the audit looks into broken folders. A
file that cannot be read is an error here; its content is judged elsewhere.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from deas_vla.data.images import StoredImages
from deas_vla.data.lerobot import FORMAT, FRAME_MARKS, SIDECAR, files
from deas_vla.errors import UserError, as_user_error, require
from deas_vla.files import read_json

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

INFO, MODALITY = "meta/info.json", "meta/modality.json"
DECLARED = "declared"  # what of the file beside a data set its user has said: flag of `deas-vla declare` to value
VERSIONS = ("v2.0", "v2.1", "v3.")
EPISODES_WORTH_A_BAR = 50  # below this, a progress bar would only flicker
VIDEO_FIELDS = ("chunk_index", "file_index", "from_timestamp")  # what the list of episodes of v3 says of each camera
FRAMES_AT_ONCE = 64  # frames of a video that are decoded at once


@dataclass
class Rows:
    """The rows of episode `number` in one parquet file, of which row `first` is the first of them."""

    number: int
    file: Path
    name: str  # of the file, below the data set's folder
    first: int
    columns: dict[str, np.ndarray]  # (rows,) or (rows, width) each

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))


class LerobotFolder:
    """A data set on disk; another version, or an info.json that cannot be worked with, is a UserError.

    `declared`: read it as if this had been said of it, instead of what is noted beside it.
    """

    def __init__(self, root: Path, declared: dict[str, str] | None = None):
        require("pyarrow", "lerobot")
        self.root = Path(root)
        if not (self.root / INFO).is_file():
            raise UserError(f"{self.root}: not a LeRobot data set (there is no {INFO}); copy it again")
        self.info = read_json(self.root / INFO)
        self.version = str(self.info.get("codebase_version"))
        if not self.version.startswith(VERSIONS):
            fix = "this reads v2.0, v2.1 and v3; convert it with LeRobot's own script first"
            raise UserError(f"{self.root} has LeRobot format {self.version}, {fix}")
        # One file an episode: v2.
        self.episodic = self.version.startswith("v2.")
        self._given = declared
        if rate := self.declared.get("rate"):
            self.info["fps"] = _rate(rate)
        files.check_info(self.info, self.root / INFO, self.episodic)
        self.features: dict[str, dict] = self.info["features"]
        self.rate_hz = float(self.info["fps"])

    @property
    def declared(self) -> dict[str, str]:
        """What its user has said of it, or {}; nothing where what is noted cannot be read."""
        if self._given is None:
            with suppress(UserError):
                return self.sidecar.get(DECLARED, {})
        return self._given or {}

    @cached_property
    def sidecar(self) -> dict:
        """What this project wrote about the data set, or {}."""
        return read_sidecar(self.root)

    @property
    def marks_frames(self) -> bool:
        """Whether it has the columns with which this project marks frames; one of them alone is somebody else's."""
        return self.features.keys() >= FRAME_MARKS

    @cached_property
    def modality(self) -> dict | None:
        """GR00T's description of the groups of columns, or None."""
        path = self.root / MODALITY
        return read_json(path) if path.is_file() else None

    @cached_property
    def tasks(self) -> dict[int, str]:
        """Instruction by task index; two instructions of one index are a UserError."""
        if self.episodic:
            path = self.root / "meta" / "tasks.jsonl"
            found = [(line["task_index"], line["task"]) for line in files.read_lines(path, task_index=int, task=str)]
        else:
            path = self.root / "meta" / "tasks.parquet"
            found = files.read_tasks(path)
        tasks: dict[int, str] = {}
        for index, text in found:
            if tasks.setdefault(index, text) != text:
                both = f"{tasks[index]!r} and {text!r}"
                raise UserError(f"{path}: {both} both have task_index {index}; give each a number of its own")
        return tasks

    @cached_property
    def episodes(self) -> dict[int, dict]:
        """The folder's own list of episodes by number, in order: ``length``, and of v3 where the videos are.

        An episode that is listed twice is a UserError: nothing says which of the two is right.
        """
        if self.episodic:
            path = self.root / "meta" / "episodes.jsonl"
            found = files.read_lines(path, episode_index=int, length=int)
        else:
            path = self.root / "meta" / "episodes"
            keys = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
            videos = [f"videos/{key}/{field}" for key in keys for field in VIDEO_FIELDS]
            found = [row for file in self._parquet("meta/episodes") for row in files.read_episodes(file, videos)]
        times = Counter(row["episode_index"] for row in found)
        if twice := [number for number, count in times.items() if count > 1]:
            raise UserError(f"{path}: episode {twice[0]} is listed twice; remove the line that is wrong")
        return {row["episode_index"]: row for row in sorted(found, key=lambda row: row["episode_index"])}

    def data_files(self) -> list[Path]:
        """The parquet files with the rows, in order; of v2 those that its own list of episodes asks for."""
        if not self.episodic:
            return self._parquet("data")
        return [self._episode_path("data_path", number) for number in self.episodes]

    def images(
        self, key: str, size: tuple[int, int], episodes: list[Rows], wanted: list[np.ndarray], name: str = ""
    ) -> list[np.ndarray]:
        """The images of each episode, (F, height, width, 3) uint8, all parts of one array.

        `wanted`: for each episode its rows whose images are wanted, (F,) increasing. Raises UserError if one has
        another `size` (height, width).
        """
        ends = np.cumsum([len(part) for part in wanted])
        images = np.empty((ends[-1], *size, 3), np.uint8)
        parts = np.split(images, ends[:-1])
        few = len(episodes) < EPISODES_WORTH_A_BAR
        with tqdm(desc=name, total=len(episodes), disable=few, dynamic_ncols=True) as bar:
            if self.features[key]["dtype"] == "video":
                for rows, frames, part in zip(episodes, wanted, parts, strict=True):
                    # In pieces: what is decoded lies beside its copy, whatever the length of the episode.
                    for start in range(0, len(frames), FRAMES_AT_ONCE):
                        piece = slice(start, start + FRAMES_AT_ONCE)
                        part[piece] = self._video_frames(key, size, rows.number, frames[piece])
                    bar.update()
                return parts
            done = 0
            for file, group in itertools.groupby(zip(episodes, wanted, strict=True), lambda pair: pair[0].file):
                members = [rows.first + frames for rows, frames in group]
                stored = np.concatenate(members)
                files.read_images(file, key, stored, images[done : done + len(stored)])
                done += len(stored)
                bar.update(len(members))
        return parts

    def stored_images(
        self, key: str, size: tuple[int, int], episodes: list[Rows], wanted: list[np.ndarray]
    ) -> list[StoredImages]:
        """`images`, but each is decoded when it is asked for, and none stays in memory."""
        stored = []
        for rows, frames in zip(episodes, wanted, strict=True):
            if self.features[key]["dtype"] == "video":
                file, begin = self.video(key, rows.number)
                if not file.is_file():
                    raise UserError(f"{file} is missing; copy the data set again")
                decode = partial(self._video_frames, key, size, rows.number)
            else:
                file, begin = rows.file, rows.first
                decode = partial(self._table_images, key, size, file, begin)
            stored.append(StoredImages(decode, frames, size, file, f"{key} from {begin}"))
        return stored

    def _table_images(self, key: str, size: tuple[int, int], file: Path, first: int, wanted: np.ndarray) -> np.ndarray:
        """Images that lie in parquet files, through the memory-mapped copy that LeRobot's own reader makes too."""
        table, begins = self._image_table
        with as_user_error(f"{file} cannot be read; copy it again"):
            encoded = table[(begins[file] + first + wanted).tolist()].column(key)
        images = np.empty((len(wanted), *size, 3), np.uint8)
        for row, image, stored in zip(wanted, images, encoded.to_pylist(), strict=True):
            files.decode_image(files.image_bytes(stored), image, f"{file}, {key}, row {first + int(row)}")
        return images

    @cached_property
    def _image_table(self) -> tuple[Dataset, dict[Path, int]]:
        """The columns of images of all data files, one after the other, and the row at which each file begins."""
        import pyarrow.parquet as pq

        dataset = require("datasets", "lerobot").Dataset
        paths = self.data_files()
        keys = [key for key, feature in self.features.items() if feature["dtype"] == "image"]
        with as_user_error(f"{self.root}/data: the images cannot be copied to the cache of `datasets`", Exception):
            table = dataset.from_parquet([str(file) for file in paths], columns=keys).with_format("arrow")
            counts = [pq.read_metadata(file).num_rows for file in paths]
        return table, dict(zip(paths, np.cumsum([0, *counts[:-1]]).tolist(), strict=True))

    def video(self, key: str, number: int) -> tuple[Path, float]:
        """The video of one episode and the second at which it begins in it; a UserError if the list names none."""
        if self.episodic:
            return self._episode_path("video_path", number, video_key=key), 0.0
        fields = {name: self.episodes[number].get(f"videos/{key}/{name}") for name in VIDEO_FIELDS}
        if missing := [name for name in VIDEO_FIELDS if fields[name] is None]:
            fix = "copy the data set again, or leave the camera out of the contract"
            raise UserError(f"{self.root}/meta/episodes: episode {number} has no videos/{key}/{missing[0]}; {fix}")
        begin = fields.pop("from_timestamp")
        return self.root / self.info["video_path"].format(video_key=key, **fields), begin

    def _video_frames(self, key: str, size: tuple[int, int], number: int, wanted: np.ndarray) -> np.ndarray:
        """Frame n of an episode belongs to its row n, whatever its column of timestamps says."""
        path, begin = self.video(key, number)
        if not path.is_file():
            raise UserError(f"{path} is missing; copy the data set again")
        times = [begin + float(row) / self.rate_hz for row in wanted]
        frames = self._decoded(path, times)
        # Grey pixels of more than 8 bits are depths, and were clipped or scaled.
        if (frames[0] == frames[0, :1]).all() and files.deep_grey(files.video_header(path).pixel_format):
            fix = "mark it in info.json as LeRobot does (info: is_depth_map), and it is left out"
            raise UserError(f"{path} holds depth maps ({files.video_header(path).pixel_format}), no colours; {fix}")
        if frames.shape[1:] != (3, *size):
            found = (*frames.shape[2:], frames.shape[1])
            fix = "correct info.json, or scale the video"
            raise UserError(f"{path}: frames are {found}, info.json says {(*size, 3)}; {fix}")
        return frames.permute(0, 2, 3, 1).numpy()

    def _decoded(self, path: Path, times: list[float]) -> Tensor:
        """(F, 3, height, width) uint8: the frames of a video at these seconds, within half a step each."""
        lerobot = require("lerobot.datasets.video_utils", "lerobot")
        step = 1 / self.rate_hz
        decode = partial(lerobot.decode_video_frames, path, times, tolerance_s=0.5 * step, return_uint8=True)
        try:
            return decode()
        except Exception as error:  # each decoder has its own
            usual = error
        with suppress(Exception):
            # The usual decoder looks frames up by their number, which in a video of a real clock is another.
            return decode(backend="pyav")
        if isinstance(usual, lerobot.FrameTimestampError):  # whose message is many lines of tensors
            span, fix = f"seconds {times[0]:g} to {times[-1]:g}", "encode it anew with a frame at the time of each row"
            raise UserError(f"{path}: its times do not fit its rows, at {span} a frame is over half a step away; {fix}")
        with as_user_error(f"{path} cannot be decoded up to second {times[-1]:g}; copy it again", Exception):
            raise usual

    def _parquet(self, folder: str) -> list[Path]:
        paths = sorted((self.root / folder).glob("*/*.parquet"), key=_by_number)
        if not paths:
            raise UserError(f"{self.root} has no parquet files in {folder}/; copy it again")
        return paths

    def _episode_path(self, key: str, number: int, **fields: str) -> Path:
        chunk = number // self.info.get("chunks_size", 1000)
        return self.root / self.info[key].format(episode_chunk=chunk, episode_index=number, **fields)


def read_sidecar(root: Path) -> dict:
    """What this project wrote beside a data set, or {}; another format is a UserError."""
    path = Path(root) / SIDECAR
    if not path.is_file():
        return {}
    sidecar = read_json(path)
    if sidecar.get("format") != FORMAT:
        raise UserError(f"{path}: format {sidecar.get('format')!r}, this version reads {FORMAT}")
    return sidecar


def _rate(text: str) -> float:
    with suppress(ValueError):
        if 0 < float(text) < math.inf:
            return float(text)
    raise UserError(f"--rate={text} is not a number of steps a second above 0")


def _by_number(path: Path) -> list[str | int]:
    """Sorts ``file-999`` before ``file-1000``."""
    parts = re.split(r"(\d+)", f"{path.parent.name}/{path.name}")
    return [int(part) if part.isdigit() else part for part in parts]


def split_episodes(file: Path, columns: dict[str, np.ndarray], name: str) -> Iterator[Rows]:
    """The episodes in one file, in the order in which they lie there; ``episode_index`` is among the columns."""
    numbers = columns["episode_index"].reshape(-1)
    if not len(numbers):
        return
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    for start, end in itertools.pairwise([*starts.tolist(), len(numbers)]):
        part = {name: values[start:end] for name, values in columns.items()}
        yield Rows(int(numbers[start]), file, name, start, part)
