"""What every simulator shares: playing a chunk step by step, and telling names apart."""

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np

from deas_vla.envs.config import EnvConfig
from deas_vla.envs.panda_omron import ROBOCASA_CAMERAS
from deas_vla.envs.protocol import ChunkResult
from deas_vla.errors import UserError, unknown


class Stepped(Protocol):
    """What `play_steps` needs of an environment."""

    horizon: int

    @property
    def steps(self) -> int: ...

    def step(self, command: np.ndarray) -> bool: ...

    def state(self) -> np.ndarray: ...

    def images(self) -> dict[str, np.ndarray]: ...


def play_steps(
    env: Stepped, next_command: Callable[[], np.ndarray], count: int, frame_every: int
) -> ChunkResult:
    """Plays up to `count` commands, stopping at success and at the time limit.

    Args:
        env: the environment.
        next_command: gives the (A,) command to play now, as it will be played.
        count: commands to play, at least one.
        frame_every: as in `ChunkEnv.play`.

    Raises:
        ValueError: if the episode is over, or there is nothing to play.
    """
    if env.steps >= env.horizon or count < 1:
        raise ValueError(f"nothing to play: step {env.steps} of {env.horizon}, {count} commands")
    states, actions, success, frames, images = [], [], [], [], []
    last = min(count, env.horizon - env.steps)
    for played in range(1, last + 1):
        actions.append(next_command())
        success.append(env.step(actions[-1]))
        states.append(env.state())
        wanted = frame_every and env.steps % frame_every == 0
        if played == last or success[-1] or wanted:
            frames.append(played)
            images.append(env.images())
        if success[-1]:
            break
    return ChunkResult(
        states=np.stack(states),
        actions=np.stack(actions),
        rewards=np.array(success, dtype=np.float32),
        success=np.array(success, dtype=bool),
        truncated=env.steps >= env.horizon and not success[-1],
        frames=np.array(frames, dtype=np.int64),
        images={name: np.stack([image[name] for image in images]) for name in images[0]},
    )


def check_cameras(config: EnvConfig, known: Collection[str] = ROBOCASA_CAMERAS) -> None:
    """Refuses cameras that the robot does not have.

    Args:
        config: its cameras and their size.
        known: names of the cameras that there are: PandaOmron's, if not given.

    Raises:
        UserError: if a camera is unknown or given twice, there is none, or the size is too small.
    """
    for camera in config.cameras:
        if camera not in known:
            raise UserError(unknown("camera", camera, known))
    if not config.cameras or len(set(config.cameras)) < len(config.cameras) or config.camera_size < 8:
        raise UserError("a policy needs one to three different cameras of at least 8 pixels")
