"""One episode, whatever it was read from, and blocks of episodes on disk."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deas_vla.data.contract import Contract, Statistics
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import atomic_path

SOURCES = ("demonstration", "rollout")
GROUPS = ("demonstration", "success", "failure")


@dataclass
class Episode:
    """T steps and (T + 1, S) observations, in raw units; images only where they were rendered."""

    instruction: str
    source: str  # ``demonstration`` or ``rollout``
    scene: int  # number of the initial state
    states: np.ndarray  # (T + 1, S) float32; row t is seen before action t, row T after the last action
    actions: np.ndarray  # (T, A) float32 commands as they were played
    rewards: np.ndarray  # (T,) float32 the task's own reward of each step
    success: np.ndarray  # (T,) bool, after each step; at most the last is True: an episode ends when it succeeds
    truncated: bool  # it ended without success, at its time limit (or was cut by whoever recorded it)
    frame_steps: np.ndarray  # (F,) int64 rows of `states` that have images, strictly increasing, in [0, T]
    images: dict[str, np.ndarray]  # camera name to (F, height, width, 3) uint8, upright RGB

    @property
    def length(self) -> int:
        """T, the number of steps played."""
        return len(self.actions)

    @property
    def terminated(self) -> bool:
        """The episode ended because the task was done: nothing comes after it."""
        return bool(self.success[-1])

    @property
    def group(self) -> str:
        """One of `GROUPS`, which training balances."""
        if self.source == "demonstration":
            return "demonstration"
        return "success" if self.terminated else "failure"

    def validate(self, contract: Contract, where: str) -> None:
        """Refuses an episode that training would fail on, or silently learn nonsense from; `where` names it."""
        for problem in self._problems(contract):
            raise UserError(f"{where}: {problem}; record it again or leave it out")

    def _problems(self, contract: Contract):
        steps = self.length
        if steps < 1:
            yield "it has no steps"
        if self.source not in SOURCES:
            yield f"source is {self.source!r}, not one of {', '.join(SOURCES)}"
        if not self.instruction:
            yield "it has no instruction"
        shapes = {
            "states": (self.states, (steps + 1, contract.state_dim), np.float32),
            "actions": (self.actions, (steps, contract.action_dim), np.float32),
            "rewards": (self.rewards, (steps,), np.float32),
            "success": (self.success, (steps,), np.bool_),
        }
        for name, (array, shape, dtype) in shapes.items():
            if array.shape != shape or array.dtype != dtype:
                yield f"{name} is {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}"
        for name, columns in (("states", contract.state), ("actions", contract.action), ("rewards", None)):
            for row, *column in np.argwhere(~np.isfinite(getattr(self, name))):
                named = f" ({columns[column[0]].name})" if column else ""
                yield f"{name}{named} is NaN or infinite at step {row}"
        if self.success[:-1].any():
            yield f"success at step {int(self.success.argmax())}, before its last step {steps - 1}"
        if self.truncated == self.terminated:
            yield f"it is {'both truncated and' if self.truncated else 'neither truncated nor'} terminated"
        frames = self.frame_steps
        if len(frames) == 0 or frames[0] < 0 or frames[-1] > steps or (np.diff(frames) <= 0).any():
            yield f"frame_steps must increase strictly within 0 to {steps}, and there must be one at least"
        expected = [camera.name for camera in contract.cameras]
        if set(self.images) != set(expected):
            yield f"cameras are {', '.join(self.images) or 'none'}, expected {', '.join(expected)}"
        for camera in contract.cameras:
            shape, images = (len(frames), camera.height, camera.width, 3), self.images[camera.name]
            if images.shape != shape or images.dtype != np.uint8:
                yield f"images of {camera.name} are {images.dtype} {images.shape}, expected uint8 {shape}"


def statistics_of(episodes: list[Episode]) -> Statistics:
    """Mean and standard deviation of every column of the states and actions, over all steps of the episodes."""
    import torch

    columns = ([episode.states for episode in episodes], [episode.actions for episode in episodes])
    return Statistics.of(*(torch.from_numpy(np.concatenate(column)) for column in columns))


_ARRAYS = ("states", "actions", "rewards", "success", "frame_steps")
_FACTS = {"instruction": str, "source": str, "scene": int, "truncated": bool}


def save_block(path: Path, episodes: list[Episode]) -> None:
    """Writes episodes to one safetensors file, whole or not at all: a collection that was killed keeps its blocks."""
    tensors, facts = {}, []
    for i, episode in enumerate(episodes):
        tensors |= {f"{i}.{name}": np.ascontiguousarray(getattr(episode, name)) for name in _ARRAYS}
        tensors |= {f"{i}.images.{name}": np.ascontiguousarray(images) for name, images in episode.images.items()}
        facts.append({name: kind(getattr(episode, name)) for name, kind in _FACTS.items()})
        facts[-1]["cameras"] = list(episode.images)
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"episodes": json.dumps(facts)})


def load_block(path: Path) -> list[Episode]:
    """Reads what `save_block` wrote; another file is a UserError."""
    broken = f"{path}: not a block of episodes; delete it and collect it again"
    with as_user_error(broken, SafetensorError), safe_open(path, "numpy") as file:
        return [
            Episode(
                images={name: file.get_tensor(f"{i}.images.{name}") for name in fact.pop("cameras")},
                **{name: file.get_tensor(f"{i}.{name}") for name in _ARRAYS},
                **fact,
            )
            for i, fact in enumerate(json.loads(file.metadata()["episodes"]))
        ]
