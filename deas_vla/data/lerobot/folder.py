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

import io
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from deas_vla.data.lerobot import FORMAT, SIDECAR
from deas_vla.errors import UserError, require

if TYPE_CHECKING:
    import pyarrow as pa

INFO, MODALITY = "meta/info.json", "meta/modality.json"
VERSIONS = ("v2.0", "v2.1", "v3.")
IMAGE_TYPES = ("image", "video")
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
        self.info = read_json(self.root / INFO, "not a LeRobot data set")
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
        sidecar = read_json(path, "not readable")
        if sidecar.get("format") != FORMAT:
            raise UserError(f"{path}: format {sidecar.get('format')!r}, this version reads {FORMAT}")
        return sidecar

    @cached_property
    def modality(self) -> dict | None:
        """GR00T's description of the groups of columns, or None."""
        path = self.root / MODALITY
        return read_json(path, "not readable") if path.is_file() else None

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
        return dict(
            zip(table.column("task_index").to_pylist(), table.column(texts[0]).to_pylist(), strict=True)
        )

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
            self.root
            / self.info["data_path"].format(episode_chunk=number // self._chunk, episode_index=number)
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
            raise UserError(
                f"{self.root}: {total} rows, info.json says {self.info['total_frames']}; copy it again"
            )

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
                    _read_images(file, key, stored, images[done : done + len(stored)])
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
        try:
            frames = decode(path, times, tolerance_s=0.5 / self.rate_hz, return_uint8=True)
        except Exception as error:  # each decoder has its own errors
            raise UserError(
                f"{path} cannot be decoded up to second {times[-1]:g} ({one_line(error)}); copy it again"
            ) from error
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


def check_info(info: dict, path: Path, episodic: bool) -> None:
    """Refuses an info.json that cannot be worked with; nobody asks again.

    Args:
        info: its content.
        path: where it is, for the message.
        episodic: whether the data set has one file an episode (v2).

    Raises:
        UserError: naming the file and the key.
    """

    def require_that(holds: bool, key: str, wanted: str) -> None:
        if not holds:
            raise UserError(f"{path}: {key} is not {wanted}; correct it, or copy the data set again")

    for key in ("features", "fps", "data_path" if episodic else "total_frames"):
        if key not in info:
            raise UserError(f"{path}: no {key} in it; copy the data set again")
    fps = info["fps"]
    number = isinstance(fps, int | float) and not isinstance(fps, bool)
    require_that(number and math.isfinite(fps) and fps > 0, "fps", "a number above 0")
    require_that(_whole(info.get("chunks_size", 1)), "chunks_size", "a whole number above 0")
    require_that(isinstance(info["features"], dict), "features", "an object of columns")
    for name, feature in info["features"].items():
        _check_feature(f"features.{name}", feature, require_that)
    if episodic:
        numbers = {"episode_chunk": 0, "episode_index": 0}
        require_that(_formats(info["data_path"], numbers), "data_path", f"a path of {_braces(numbers)}")
    else:
        require_that(isinstance(info["total_frames"], int), "total_frames", "a whole number")
        numbers = {"chunk_index": 0, "file_index": 0}
    if any(feature["dtype"] == "video" for feature in info["features"].values()):
        fields = {"video_key": "", **numbers}
        require_that(_formats(info.get("video_path"), fields), "video_path", f"a path of {_braces(fields)}")


def _check_feature(key: str, feature: object, require_that) -> None:
    described = isinstance(feature, dict) and {"dtype", "shape"} <= feature.keys()
    require_that(described, key, "an object with dtype and shape")
    dtype, shape, names = feature["dtype"], feature["shape"], feature.get("names")
    require_that(isinstance(dtype, str), f"{key}.dtype", "a text")
    sizes = isinstance(shape, list) and all(map(_whole, shape))
    require_that(sizes, f"{key}.shape", "a list of whole numbers above 0")
    require_that(names is None or isinstance(names, list | dict), f"{key}.names", "a list or an object")
    if dtype in IMAGE_TYPES:
        require_that(len(shape) == 3, f"{key}.shape", "that of an image, three numbers")
        require_that(not isinstance(names, list) or len(names) == 3, f"{key}.names", "three names")
    elif isinstance(names, dict):
        values = list(names.values())
        positions = all(isinstance(value, int) for value in values)
        right = (
            sorted(values) == list(range(len(values)))
            if positions
            else all(isinstance(value, list) for value in values)
        )
        require_that(right, f"{key}.names", "an object of lists, or of each name's position from 0 on")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _formats(template: object, fields: dict) -> bool:
    """Whether a path can be made of these fields and no others."""
    try:
        return isinstance(template, str) and bool(template.format(**fields))
    except (LookupError, ValueError, AttributeError, TypeError):
        return False


def _braces(fields: dict) -> str:
    return ", ".join(f"{{{name}}}" for name in fields)


def read_table(file: Path, columns: list[str] | None = None, *, full: bool = False) -> pa.Table:
    """A parquet file, or some of its columns.

    Args:
        file: the file.
        columns: which; None: all.
        full: whether empty entries are refused, which numpy would silently make False or NaN.

    Raises:
        UserError: if it is missing or cut off, lacks a column, or has an empty entry where none may be.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}); copy it again") from error
    for name in table.column_names if full else ():
        if count := table.column(name).null_count:
            raise UserError(
                f"{file}: column {name} has {count} empty entries; record the episodes again or leave them out"
            )
    return table


def read_json(path: Path, problem: str) -> dict:
    """A JSON object out of a data set's ``meta`` folder; `problem` says what it means if it is not there."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.parent.parent}: {problem} ({path.name}: {one_line(error)}); copy it again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path.parent.parent}: {problem} ({path.name}: not an object); copy it again")
    return value


def read_lines(path: Path, **needed: type) -> list[dict]:
    """The objects of a ``.jsonl`` file, each with the needed keys, of these types."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}); copy it again") from error
    for number, line in enumerate(lines, 1):
        if not isinstance(line, dict):
            raise UserError(f"{path}, line {number}: not an object; copy the data set again")
        for key, kind in needed.items():
            if key not in line:
                raise UserError(f"{path}, line {number}: no {key} in it; copy the data set again")
            if not isinstance(line[key], kind):
                raise UserError(f"{path}, line {number}: {key} is {line[key]!r}; copy the data set again")
    return lines


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) or, for lists of one length, lists of lists among them, (rows, numbers in a row)."""
    values = array = plain(column).combine_chunks()
    while is_list(values.type):
        values = values.flatten()
    numbers = values.to_numpy(zero_copy_only=False)
    if values is array:
        return numbers
    return numbers.reshape(len(array), -1) if len(array) else numbers.reshape(0, 0)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column as lists of lists where a library registered a type of its own for tables of numbers."""
    import pyarrow as pa

    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _read_images(file: Path, key: str, wanted: np.ndarray, images: np.ndarray) -> None:
    """Decodes the images in these rows of a parquet file, and no others, into (F, height, width, 3) uint8."""
    import pyarrow.parquet as pq
    from PIL import Image

    first, done = 0, 0
    with pq.ParquetFile(file) as parquet:
        for batch in parquet.iter_batches(1024, columns=[key]):
            encoded = batch.column(0).field("bytes")
            while done < len(wanted) and wanted[done] < first + len(batch):
                where = f"{file}, {key}, row {int(wanted[done])}"
                try:
                    with Image.open(io.BytesIO(encoded[int(wanted[done]) - first].as_py())) as stored:
                        image = np.asarray(stored.convert("RGB"))
                except (OSError, TypeError, SyntaxError) as error:
                    problem = f"not an image ({one_line(error)}); copy the data set again"
                    raise UserError(f"{where}: {problem}") from error
                if image.shape != images.shape[1:]:
                    raise UserError(f"{where}: image is {image.shape}, info.json says {images.shape[1:]}")
                images[done] = image
                done += 1
            first += len(batch)
