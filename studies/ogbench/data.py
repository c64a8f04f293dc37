"""OGBench's npz files: read with every fault reported in one line, written in the official layout.

A file holds trajectories end to end. Row t has the state s_t, the action a_t taken in it, and the simulator's own
state (`qpos`, `qvel`, for some tasks `button_states`), from which OGBench computes the rewards of each task. The
last row of a trajectory has ``terminals`` true: its state is the successor of the row before it, and its action
leads nowhere.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError
from deas_vla.files import atomic_path

# Name: type in the file and number of dimensions, in the official order.
COLUMNS = {
    "observations": (np.float32, 2),
    "actions": (np.float32, 2),
    "terminals": (np.bool_, 1),
    "qpos": (np.float32, 2),
    "qvel": (np.float32, 2),
    "button_states": (np.int64, 2),
}
# Tasks without buttons do not have it.
OPTIONAL = "button_states"
# Actions that are larger than 1 by no more than this are so by rounding, and are clipped.
ROUNDING = 1e-5


@dataclass
class OGBenchData:
    """The rows of one file.

    Attributes:
        observations: (T, S) float32.
        actions: (T, A) float32 in [-1, 1].
        terminals: (T,) bool; true in the last row of each trajectory.
        qpos: (T, Q) float32, the simulator's positions.
        qvel: (T, V) float32, the simulator's velocities.
        button_states: (T, B) int64, or None for tasks without buttons.
    """

    observations: np.ndarray
    actions: np.ndarray
    terminals: np.ndarray
    qpos: np.ndarray
    qvel: np.ndarray
    button_states: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.terminals)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns that there are, by name, in the official order."""
        return {name: getattr(self, name) for name in COLUMNS if getattr(self, name) is not None}


def read_npz(path: Path) -> OGBenchData:
    """Reads an OGBench file of a manipulation task with states as observations.

    Args:
        path: the npz file, OGBench's own or one of `write_npz`.

    Returns:
        Its rows; columns that are not among `COLUMNS` are left out.

    Raises:
        UserError: if the file is missing, cut short, lacks a column, or holds anything that training could not use.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; studies/ogbench/make_data.py makes one")
    columns: dict[str, np.ndarray] = {}
    reading = "the file"
    try:
        file = np.load(path, allow_pickle=False)
        # A single array (.npy) opens just as well.
        if isinstance(file, np.lib.npyio.NpzFile):
            with file:
                for name in COLUMNS:
                    if name in file:
                        reading = f"'{name}'"
                        columns[name] = file[name]
    except Exception as error:  # of many types: zip, zlib and numpy's header parser each raise their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path}: {reading} cannot be read ({reason}); it may be cut short: get or make it anew"
        ) from error
    missing = [name for name in COLUMNS if name not in columns and name != OPTIONAL]
    if missing:
        raise UserError(f"{path}: no '{missing[0]}' in it; OGBench's manipulation data sets have {', '.join(COLUMNS)}")
    return _checked(columns, path)


def write_npz(path: Path, data: OGBenchData) -> None:
    """Writes an OGBench file, whole or not at all; equal data give equal bytes.

    ``ogbench.make_env_and_datasets(name, dataset_path=PATH)`` loads it if ``NAME-val.npz`` lies beside it.

    Args:
        path: the npz file.
        data: its rows.

    Raises:
        UserError: if `read_npz` would refuse the file.
    """
    checked = _checked(data.columns(), path)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        # Entries of the archive carry no time of day: numpy leaves them at 1980.
        np.savez_compressed(file, **checked.columns())


def _checked(columns: dict[str, np.ndarray], path: Path) -> OGBenchData:
    """The columns in their types, if they fit each other and hold nothing impossible."""
    terminals = columns["terminals"]
    if terminals.dtype != np.bool_:
        # Some tools store it as numbers.
        if terminals.dtype.kind not in "iuf" or not np.isin(terminals, (0, 1)).all():
            raise UserError(f"{path}: 'terminals' must be true or false, not {terminals.dtype} of other values")
        columns["terminals"] = terminals.astype(np.bool_)
    rows = len(columns["terminals"]) if columns["terminals"].ndim else 0
    for name in sorted(columns, key=lambda name: name != "terminals"):
        column, (dtype, dimensions) = columns[name], COLUMNS[name]
        if column.ndim != dimensions or len(column) != rows or 0 in column.shape:
            shape = ", ".join(["T", name[0].upper()][:dimensions])
            raise UserError(f"{path}: '{name}' has shape {column.shape}; ({shape}) with T = {rows} rows is needed")
        codes = {"b": "b", "i": "iu", "f": "f"}[np.dtype(dtype).kind]
        if column.dtype.kind not in codes:
            raise UserError(f"{path}: '{name}' has type {column.dtype}; {np.dtype(dtype)} is needed")
        columns[name] = column.astype(dtype, copy=False)
        if codes == "f" and not np.isfinite(columns[name]).all():
            row = int(np.flatnonzero(~np.isfinite(columns[name]).all(axis=1))[0])
            raise UserError(f"{path}: '{name}' is not finite (row {row}); the file is damaged")
    largest = np.abs(columns["actions"]).max()
    if largest > 1 + ROUNDING:
        raise UserError(f"{path}: 'actions' reach {largest:.9g}; they must lie in [-1, 1]")
    if largest > 1:
        columns["actions"] = columns["actions"].clip(-1, 1)
    if not columns["terminals"][-1]:
        raise UserError(f"{path}: the last row does not end a trajectory; rows are missing at the end")
    return OGBenchData(**columns)
