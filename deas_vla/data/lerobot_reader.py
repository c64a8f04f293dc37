"""A LeRobotDataset v3 into episodes: ours bit for bit, and those of others that say when the task was done.

The parquet files are read directly, and only images that were rendered are decoded: seconds instead of minutes, and
LeRobot itself is imported only to decode videos.
"""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot_format import FORMAT, IMAGES, SIDECAR
from deas_vla.errors import ContractMismatch, UserError, require

REQUIRED = (
    "observation.state",
    "action",
    "next.reward",
    "next.success",
    "next.done",
    "episode_index",
    "task_index",
)
OPTIONAL = ("next.truncated", "frame.is_fresh", "frame.is_final", "scene")


def read(
    root: Path, expected: Contract | None, source: str, minimum_episodes: int
) -> tuple[list[Episode], Contract, dict]:
    """See `lerobot_io.read_dataset`."""
    root = Path(root)
    info = _read_json(root / "meta" / "info.json", "not a LeRobot data set")
    version = str(info.get("codebase_version"))
    if not version.startswith("v3."):
        raise UserError(
            f"{root} has LeRobot format {version}, this needs v3; convert it with LeRobot's own script first"
        )
    sidecar = {}
    if (root / SIDECAR).is_file():
        sidecar = _read_json(root / SIDECAR, "not readable")
        if sidecar.get("format") != FORMAT:
            raise UserError(
                f"{root / SIDECAR}: format {sidecar.get('format')!r}, this version reads {FORMAT}"
            )
        contract = Contract.from_json(sidecar["contract"], root / SIDECAR)
        if expected is not None:
            expected.require_same(contract, "what is expected", str(root))
    elif expected is not None:
        contract = expected
    else:
        raise UserError(f"{root} has no {SIDECAR} to say what its columns mean; give a contract for it")
    _require_columns(root, info, contract)

    table = _Table(root, info)
    if table.episodes < minimum_episodes:
        raise UserError(
            f"{root}: {table.episodes} episodes, at least {minimum_episodes} are needed; collect more"
        )
    episodes = table.split(sidecar.get("source", source))
    images = table.images(info, contract, episodes)
    for number, (episode, pictures) in enumerate(zip(episodes, images, strict=True)):
        episode.images = pictures
        episode.validate(contract, f"{root}, episode {number}")
    return episodes, contract, sidecar.get("metadata", {})


def _require_columns(root: Path, info: dict, contract: Contract) -> None:
    """Compares the data set's own description with the contract."""
    present = info["features"]
    for name in REQUIRED:
        if name not in present:
            hint = "; the critic cannot learn without it" if name.startswith("next.") else ""
            raise UserError(
                f"{root}: column {name} is missing{hint}; its columns are {', '.join(sorted(present))}"
            )
    lines = []
    if float(info["fps"]) != contract.rate_hz:
        lines.append(f"rate: {float(info['fps']):g} Hz against {contract.rate_hz:g} Hz")
    for key, columns in (("observation.state", contract.state), ("action", contract.action)):
        names, wanted = _names(present[key]), [column.name for column in columns]
        if names is None:
            lines.append(f"{key}: its columns have no names")
        elif names != wanted:
            different = [f"{a} against {b}" for a, b in zip(names, wanted, strict=False) if a != b]
            lines.append(f"{key}: {'; '.join([f'{len(names)} columns against {len(wanted)}', *different])}")
    for camera in contract.cameras:
        feature = present.get(IMAGES + camera.name)
        if feature is None:
            lines.append(f"camera {camera.name} is missing")
        elif tuple(feature["shape"]) != (camera.height, camera.width, 3):
            lines.append(
                f"camera {camera.name}: {tuple(feature['shape'])} against {(camera.height, camera.width, 3)}"
            )
    if lines:
        raise ContractMismatch(f"{root} and its contract do not fit together: {'; '.join(lines)}")


def _names(feature: dict) -> list[str] | None:
    """Names of a vector's columns: a list, or lists in a dictionary, as LeRobot has both."""
    names = feature.get("names")
    if isinstance(names, dict):
        names = [name for group in names.values() for name in group]
    return names


class _Table:
    """All rows of a data set, images left out, and where its episodes begin and end."""

    def __init__(self, root: Path, info: dict):
        self.root = root
        self.files = sorted((root / "data").glob("*/*.parquet"))
        if not self.files:
            raise UserError(f"{root} has no parquet files in data/; copy it again")
        wanted = [name for name in REQUIRED + OPTIONAL if name in info["features"]]
        tables = [self._read(file, wanted) for file in self.files]
        table = pa.concat_tables(tables)
        if len(table) != info["total_frames"]:
            raise UserError(
                f"{root}: {len(table)} rows, info.json says {info['total_frames']}; copy it again"
            )
        self.columns = {name: _to_numpy(table.column(name)) for name in wanted}
        number = self.columns["episode_index"]
        self.starts = np.flatnonzero(np.diff(number, prepend=number[0] - 1)) if len(number) else number
        self.ends = np.append(self.starts[1:], len(number))
        self.episodes = len(self.starts)
        self.tasks = self._tasks()

    def _read(self, file: Path, columns: list[str]) -> pa.Table:
        try:
            return pq.read_table(file, columns=columns, partitioning=None)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read ({error}); copy it again") from error

    def _tasks(self) -> dict[int, str]:
        file = self.root / "meta" / "tasks.parquet"
        table = self._read(file, None)
        # Pandas keeps its index in a column of that name, or of the index's own.
        text = next(name for name in table.column_names if name != "task_index")
        return dict(zip(table.column("task_index").to_pylist(), table.column(text).to_pylist(), strict=True))

    def split(self, source: str) -> list[Episode]:
        """Episodes without images; `frame_steps` says which rows to decode."""
        return [
            self._episode(number, slice(int(start), int(end)), source)
            for number, (start, end) in enumerate(zip(self.starts, self.ends, strict=True))
        ]

    def _episode(self, number: int, rows: slice, source: str) -> Episode:
        column = {name: values[rows] for name, values in self.columns.items()}
        states, success = column["observation.state"], column["next.success"].astype(bool)
        fresh = column.get("frame.is_fresh", np.ones(len(states), bool)).astype(bool)
        if "frame.is_final" in column and column["frame.is_final"][-1]:
            steps = len(states) - 1
        elif success.any():
            steps = int(success.argmax()) + 1
            # Nothing comes after a success, so nothing will be read off the state after it.
            states, fresh = np.append(states[:steps], states[steps - 1 : steps], 0), fresh[:steps]
        else:
            steps = len(states) - 1
        return Episode(
            instruction=self.tasks[int(column["task_index"][0])],
            source=source,
            scene=int(column["scene"][0]) if "scene" in column else number,
            states=np.ascontiguousarray(states, np.float32),
            actions=np.ascontiguousarray(column["action"][:steps], np.float32),
            rewards=np.ascontiguousarray(column["next.reward"][:steps], np.float32),
            success=success[:steps].copy(),
            truncated=not success[:steps].any(),
            frame_steps=np.flatnonzero(fresh),
            images={},
        )

    def images(self, info: dict, contract: Contract, episodes: list[Episode]) -> list[dict[str, np.ndarray]]:
        """The rendered images of every episode, by camera."""
        rows = [
            int(start) + episode.frame_steps for start, episode in zip(self.starts, episodes, strict=True)
        ]
        wanted = np.concatenate(rows)
        result = [{} for _ in episodes]
        cuts = np.cumsum([len(r) for r in rows])[:-1]
        for camera in contract.cameras:
            key = IMAGES + camera.name
            shape = (camera.height, camera.width, 3)
            if info["features"][key]["dtype"] == "video":
                frames = self._video_frames(info, key, shape, rows)
            else:
                frames = self._stored_images(key, shape, wanted)
            for pictures, part in zip(result, np.split(frames, cuts), strict=True):
                pictures[camera.name] = part
        return result

    def _stored_images(self, key: str, shape: tuple, wanted: np.ndarray) -> np.ndarray:
        frames = np.empty((len(wanted), *shape), np.uint8)
        first, done = 0, 0
        for file in self.files:
            with pq.ParquetFile(file) as parquet:
                for batch in parquet.iter_batches(1024, columns=[key]):
                    encoded = batch.column(0).field("bytes")
                    while done < len(wanted) and wanted[done] < first + len(batch):
                        row = int(wanted[done])
                        frames[done] = _decode(
                            encoded[row - first].as_py(), shape, f"{file}, {key}, row {row}"
                        )
                        done += 1
                    first += len(batch)
        return frames

    def _video_frames(self, info: dict, key: str, shape: tuple, rows: list[np.ndarray]) -> np.ndarray:
        video = require("lerobot.datasets.video_utils", "lerobot")
        columns = [f"videos/{key}/{what}" for what in ("chunk_index", "file_index", "from_timestamp")]
        files = sorted((self.root / "meta" / "episodes").glob("*/*.parquet"))
        table = pa.concat_tables([self._read(file, ["episode_index", *columns]) for file in files])
        places = table.sort_by("episode_index").to_pylist()
        parts = []
        for start, place, wanted in zip(self.starts, places, rows, strict=True):
            chunk, file, begin = (place[column] for column in columns)
            path = self.root / info["video_path"].format(video_key=key, chunk_index=chunk, file_index=file)
            times = [begin + float(row - start) / info["fps"] for row in wanted]
            try:
                frames = video.decode_video_frames(path, times, tolerance_s=0.5 / info["fps"])
            except Exception as error:  # each decoder has its own errors
                raise UserError(f"{path} cannot be decoded ({error}); copy it again") from error
            frames = (frames * 255).round().byte().permute(0, 2, 3, 1).numpy()
            if frames.shape[1:] != shape:
                raise UserError(f"{path}: frames are {frames.shape[1:]}, info.json says {shape}")
            parts.append(frames)
        return np.concatenate(parts)


def _to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) or, for lists of one length, (rows, length)."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type):
        values = array.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(len(array), -1) if len(array) else values.reshape(0, 0)
    return array.to_numpy(zero_copy_only=False)


def _decode(encoded: bytes, shape: tuple, where: str) -> np.ndarray:
    from PIL import Image

    try:
        image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    except (OSError, TypeError, SyntaxError) as error:
        raise UserError(f"{where}: not an image ({error}); copy the data set again") from error
    if image.shape != shape:
        raise UserError(f"{where}: image is {image.shape}, info.json says {shape}")
    return image


def _read_json(path: Path, problem: str) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path.parent.parent}: {problem} ({path.name}: {error})") from error
