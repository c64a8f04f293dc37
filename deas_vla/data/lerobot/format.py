"""Episodes as a LeRobotDataset v3 on disk: any tool that reads LeRobot's format reads what is written here.

A data set has one row for each of the T + 1 observations of an episode. Besides LeRobot's own columns:

====================  =================================================================================
next.reward           the task's reward of the step
next.success          success, read after the step
next.done             the step was the episode's last, for whatever reason
next.truncated        the episode ended here without success
frame.is_fresh        the images of this row were rendered at this row; otherwise the last ones are held
frame.is_final        the observation after the last action: no step follows, the action repeats the last
scene                 number of the initial state
====================  =================================================================================

They are not called ``observation.*`` because LeRobot takes every such column for an input of its policies. The
contract with its statistics, the source and free metadata are in ``meta/deas_vla.json``.
"""

import io

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode

SIDECAR = "meta/deas_vla.json"
FORMAT = 1
IMAGES = "observation.images."
# Cameras that a policy was pretrained with and a robot may lack: LeRobot fills them in, masked.
EMPTY_CAMERA = f"{IMAGES}empty_camera_"


def fps(contract: Contract) -> int | float:
    """LeRobot's rate: an integer where it is one."""
    return int(contract.rate_hz) if contract.rate_hz == int(contract.rate_hz) else contract.rate_hz


def features(contract: Contract, storage: str) -> dict[str, dict]:
    """The data set's columns in LeRobot's notation, with the contract's names."""

    def one(dtype: str) -> dict:
        return {"dtype": dtype, "shape": (1,), "names": None}

    def vector(columns) -> dict:
        return {"dtype": "float32", "shape": (len(columns),), "names": [column.name for column in columns]}

    return {
        "observation.state": vector(contract.state),
        "action": vector(contract.action),
        "next.reward": one("float32"),
        "next.success": one("bool"),
        "next.done": one("bool"),
        "next.truncated": one("bool"),
        "frame.is_fresh": one("bool"),
        "frame.is_final": one("bool"),
        "scene": one("int64"),
    } | {
        f"{IMAGES}{camera.name}": {
            "dtype": storage,
            "shape": (camera.height, camera.width, 3),
            "names": ["height", "width", "channels"],
        }
        for camera in contract.cameras
    }


def columns_of(episode: Episode) -> dict[str, np.ndarray]:
    """The T + 1 rows of an episode, images left out."""
    rows = episode.length + 1
    ends = np.arange(rows) >= rows - 2
    fresh = np.zeros(rows, bool)
    fresh[episode.frame_steps] = True
    return {
        "observation.state": episode.states,
        "action": np.concatenate([episode.actions, episode.actions[-1:]]),
        "next.reward": np.append(episode.rewards, np.float32(0)),
        "next.success": np.append(episode.success, episode.success[-1]),
        "next.done": ends,
        "next.truncated": ends & episode.truncated,
        "frame.is_fresh": fresh,
        "frame.is_final": np.arange(rows) == rows - 1,
        "scene": np.full(rows, episode.scene, np.int64),
    }


def held_frame(episode: Episode) -> np.ndarray:
    """(T + 1,) which of the episode's frames each row shows: the last one rendered (before the first: the first)."""
    last = np.searchsorted(episode.frame_steps, np.arange(episode.length + 1), side="right") - 1
    return last.clip(min=0)


def png(image: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as PNG; light compression, which for small images costs a third of the time."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
