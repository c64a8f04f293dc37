"""The folder of a LeRobot data set, v2.0, v2.1 or v3: where its rows, pictures and sentences are.

==============  ==========================================  ================================================
what            v2.0 and v2.1 (GR00T reads these)           v3
==============  ==========================================  ================================================
rows            one parquet file an episode                 many episodes a file
videos          one file an episode and camera              many episodes a file, by their times
sentences       meta/tasks.jsonl                            meta/tasks.parquet
episodes        meta/episodes.jsonl                         meta/episodes/*/*.parquet
groups          meta/modality.json, where GR00T uses it     (none)
==============  ==========================================  ================================================

Nothing is judged here: a file that cannot be read is an error, what is in it is up to the reader and to the audit.
"""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deas_vla.data.lerobot.format import FORMAT, SIDECAR
from deas_vla.data.lerobot.info import check_info
from deas_vla.errors import UserError

INFO = "meta/info.json"
MODALITY = "meta/modality.json"
VERSIONS = ("v2.0", "v2.1", "v3.")


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


class LerobotFolder:
    """A data set on disk.

    Args:
        root: its folder.

    Raises:
        UserError: if it is no LeRobot data set, of another version, or its info.json cannot be worked with.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self.info = read_json(self.root / INFO, "not a LeRobot data set")
        self.version = str(self.info.get("codebase_version"))
        if not self.version.startswith(VERSIONS):
            raise UserError(
                f"{self.root} has LeRobot format {self.version}, this reads v2.0, v2.1 and v3; "
                "convert it with LeRobot's own script first"
            )
        check_info(self.info, self.root / INFO, self.episodic)

    @property
    def episodic(self) -> bool:
        """One file an episode: v2."""
        return self.version.startswith("v2.")

    @property
    def features(self) -> dict[str, dict]:
        return self.info["features"]

    @property
    def rate_hz(self) -> float:
        return float(self.info["fps"])

    @cached_property
    def sidecar(self) -> dict:
        """What this project wrote about the data set (lerobot_format.py), or {}."""
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
        """Sentence by task index."""
        if self.episodic:
            path = self.root / "meta" / "tasks.jsonl"
            return {line["task_index"]: line["task"] for line in read_lines(path, task_index=int, task=str)}
        path = self.root / "meta" / "tasks.parquet"
        table = read_table(path, full=True)
        # Pandas keeps its index in a column of that name, or of the index's own.
        texts = [name for name in table.column_names if name != "task_index"]
        if not texts or "task_index" not in table.column_names:
            raise UserError(f"{path}: no task_index or no sentences in it; copy the data set again")
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
            found = [meta for file in self._lists() for meta in self._v3_episodes(file)]
        return {meta.number: meta for meta in sorted(found, key=lambda meta: meta.number)}

    def _lists(self) -> list[Path]:
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise UserError(f"{self.root} has no parquet files in meta/episodes/; copy it again")
        return files

    def _v3_episodes(self, file: Path) -> list[EpisodeMeta]:
        keys = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        names = [
            f"videos/{key}/{what}" for key in keys for what in ("chunk_index", "file_index", "from_timestamp")
        ]
        found = []
        for row in read_table(file, ["episode_index", "length", *names], full=True).to_pylist():
            videos = {}
            for key in keys:
                path = self.info["video_path"].format(
                    video_key=key,
                    chunk_index=row[f"videos/{key}/chunk_index"],
                    file_index=row[f"videos/{key}/file_index"],
                )
                videos[key] = (self.root / path, row[f"videos/{key}/from_timestamp"])
            found.append(EpisodeMeta(row["episode_index"], row["length"], videos))
        return found

    def data_files(self) -> list[Path]:
        """The parquet files with the rows, in order; of v2 those that its own list of episodes asks for."""
        if self.episodic:
            return [self.data_file(number) for number in self.episodes]
        files = sorted((self.root / "data").glob("*/*.parquet"))
        if not files:
            raise UserError(f"{self.root} has no parquet files in data/; copy it again")
        return files

    def data_file(self, number: int) -> Path:
        """The file of one episode of v2."""
        return self.root / self.info["data_path"].format(
            episode_chunk=number // self._chunk, episode_index=number
        )

    def video(self, key: str, number: int) -> tuple[Path, float]:
        """The video of one episode and the second at which it begins in it."""
        if not self.episodic:
            return self.episodes[number].videos[key]
        path = self.info["video_path"].format(
            episode_chunk=number // self._chunk, video_key=key, episode_index=number
        )
        return self.root / path, 0.0

    @property
    def _chunk(self) -> int:
        return int(self.info.get("chunks_size", 1000))


def read_table(file: Path, columns: list[str] | None = None, *, full: bool = False) -> pa.Table:
    """A parquet file, or some of its columns.

    Args:
        file: the file.
        columns: which; None: all.
        full: whether empty entries are refused, which numpy would make False or NaN without a word.

    Raises:
        UserError: if it is missing or cut off, lacks a column, or has an empty entry where none may be.
    """
    try:
        table = pq.read_table(file, columns=columns, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read ({_one_line(error)}); copy it again") from error
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
            f"{path.parent.parent}: {problem} ({path.name}: {_one_line(error)}); copy it again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path.parent.parent}: {problem} ({path.name}: not an object); copy it again")
    return value


def read_lines(path: Path, **needed: type) -> list[dict]:
    """The objects of a ``.jsonl`` file, each with the needed keys, of these types."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({_one_line(error)}); copy it again") from error
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
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
    return column


def is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind)


def decode_image(encoded: bytes, shape: tuple[int, ...], where: str) -> np.ndarray:
    """(h, w, 3) uint8 of a picture in a parquet file.

    Raises:
        UserError: if it is not a picture, or of another size than `shape`.
    """
    from PIL import Image

    try:
        image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    except (OSError, TypeError, SyntaxError) as error:
        raise UserError(f"{where}: not an image ({_one_line(error)}); copy the data set again") from error
    if image.shape != shape:
        raise UserError(f"{where}: image is {image.shape}, info.json says {shape}")
    return image


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
