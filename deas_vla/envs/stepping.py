"""A chunk played one step at a time: what simulators, a simulator that is filmed and a robot in real time share."""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.envs.protocol import ChunkResult
from deas_vla.errors import UserError


class Stepped(Protocol):
    """What `play_steps` needs.

    Attributes:
        over: whether the episode ends here without a success: at the time limit, or because it was aborted.
        steps: control steps played in this episode.
    """

    @property
    def over(self) -> bool: ...

    @property
    def steps(self) -> int: ...

    def step(self, command: np.ndarray) -> bool:
        """Plays one (A,) command, on a robot until the end of its control period; returns whether the task is done."""
        ...

    def state(self) -> np.ndarray:
        """(S,) float32 the state now, raw units."""
        ...

    def images(self) -> dict[str, np.ndarray]:
        """Camera name to (h, w, 3) uint8 now; asked for only where an image is needed."""
        ...


def play_steps(env: Stepped, next_command: Callable[[], np.ndarray], count: int, frame_every: int = 0) -> ChunkResult:
    """Plays up to `count` commands, stopping at success and where the episode is over.

    Args:
        env: plays them.
        next_command: gives the (A,) command to play now, as it will be played and recorded.
        count: commands to play, at least one.
        frame_every: as in `ChunkEnv.play`.

    Raises:
        ValueError: if the episode is over, or there is nothing to play.
    """
    if env.over or count < 1:
        raise ValueError(f"nothing to play: {count} commands after step {env.steps}, over: {env.over}")
    states, actions, success, frames, images = [], [], [], [], []
    for played in range(1, count + 1):
        actions.append(next_command())
        success.append(env.step(actions[-1]))
        states.append(env.state())
        ended = played == count or success[-1] or env.over
        if ended or (frame_every and env.steps % frame_every == 0):
            frames.append(played)
            images.append(env.images())
        if ended:
            break
    return ChunkResult(
        states=np.stack(states),
        actions=np.stack(actions),
        rewards=np.array(success, dtype=np.float32),
        success=np.array(success, dtype=bool),
        truncated=env.over and not success[-1],
        frames=np.array(frames, dtype=np.int64),
        images={name: np.stack([image[name] for image in images]) for name in images[0]},
    )


class SteppedEnv:
    """Base of a simulator that is stepped: makes a `ChunkEnv` of `step`, `state` and `images`.

    A subclass sets `contract`, `horizon`, `task` and `instruction`, counts `steps`, and has `reset`, `step`, `state`,
    `images`, `render`, `save` and `restore`; with a scripted expert also `expert_command`.
    """

    contract: Contract
    horizon: int
    task: str
    instruction: str
    steps: int = 0
    restores_any_scene: bool = False

    @property
    def over(self) -> bool:
        """Whether the time limit is reached."""
        return self.steps >= self.horizon

    def frame(self) -> dict:
        """What the policy sees now: ``images``, ``state``, ``instruction``."""
        return {"images": self.images(), "state": self.state(), "instruction": self.instruction}

    def play(self, actions: np.ndarray, frame_every: int = 0) -> ChunkResult:
        """Plays (n, A) commands; see `ChunkEnv.play`."""
        commands = iter(as_commands(actions, self.contract))
        return play_steps(self, lambda: next(commands), len(actions), frame_every)

    def play_expert(self, steps: int, noise: np.random.Generator, frame_every: int = 0) -> ChunkResult:
        """Plays up to `steps` commands of the scripted expert; see `ChunkEnv.play_expert`."""
        return play_steps(self, lambda: as_commands(self.expert_command(noise), self.contract)[0], steps, frame_every)

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        """(A,) the scripted expert's next command, from the true state.

        Raises:
            UserError: if there is no expert.
        """
        raise UserError(f"{type(self).__name__} has no scripted expert for {self.task}")

    def close(self) -> None:
        """Frees what the simulator holds."""


def as_commands(actions: np.ndarray, contract: Contract) -> np.ndarray:
    """(n, A) commands as they are really played: clipped to the limits, flags thresholded half-way.

    Raises:
        UserError: if the number of columns is wrong or a value is not finite.
    """
    actions = np.atleast_2d(np.asarray(actions, dtype=np.float32))
    if actions.ndim != 2 or actions.shape[1] != contract.action_dim:
        raise UserError(f"{contract.embodiment} takes (steps, {contract.action_dim}) actions, got {actions.shape}")
    if not np.isfinite(actions).all():
        raise UserError(f"an action for {contract.embodiment} holds NaN or infinite values")
    low = np.array([column.low for column in contract.action], dtype=np.float32)
    high = np.array([column.high for column in contract.action], dtype=np.float32)
    binary = np.array([column.kind == "binary" for column in contract.action])
    return np.where(binary, np.where(actions > (low + high) / 2, high, low), np.clip(actions, low, high))
