"""What a simulator offers: play whole chunks, render only where asked, branch; and a base for stepped ones."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np

from deas_vla.data.contract import Camera, Contract
from deas_vla.errors import UserError, unknown


@dataclass
class EnvSettings:
    """How a simulator's tasks are seen and played; each has its own class, with more fields and its own defaults."""

    cameras: list[str] = field(default_factory=list)  # Cameras that the policy sees, in order.
    camera_size: int = 64  # Height and width of each image in pixels.
    horizon: int = 0  # Time limit in control steps; 0 takes the task's own.

    def require_cameras(self, known: Collection[str]) -> tuple[Camera, ...]:
        """The contract's cameras, of those that the robot has: different, known ones of a size, else a UserError."""
        for camera in self.cameras:
            if camera not in known:
                raise UserError(unknown("camera", camera, known))
        if not self.cameras or len(set(self.cameras)) < len(self.cameras) or self.camera_size < 8:
            raise UserError("a policy needs one to three different cameras of at least 8 pixels")
        return tuple(Camera(name, self.camera_size, self.camera_size) for name in self.cameras)


@dataclass
class ChunkResult:
    """What happened while a chunk, (H, A), was played. n ≤ H steps: it stops at success and at the time limit."""

    states: np.ndarray  # (n, S) float32 state *after* each step, raw units
    actions: np.ndarray  # (n, A) float32 commands as they were played
    rewards: np.ndarray  # (n,) float32 the task's own reward column: 1.0 at success, else 0.0
    success: np.ndarray  # (n,) bool, read at every step
    truncated: bool  # the time limit was reached without success
    frames: np.ndarray  # (F,) steps after which images were rendered, counted within the chunk, 1 to n
    images: dict[str, np.ndarray]  # camera name to (F, height, width, 3) uint8

    @property
    def done(self) -> bool:
        return bool(self.success[-1]) or self.truncated

    def last_frame(self, instruction: str) -> dict:
        """What the policy sees after the chunk: ``images``, ``state``, ``instruction``."""
        images = {name: image[-1] for name, image in self.images.items()}
        return {"images": images, "state": self.states[-1], "instruction": instruction}


class Simulator(Protocol):
    """One simulated task: all that is asked of a simulator by workers, films and branches.

    The simulated arm of `robots/` plays single steps, so it asks for `Stepped` too, which `SteppedEnv` brings. A scene
    is a number: the same one gives the same initial state in every process, whatever was played before.
    """

    settings_class: ClassVar[type[EnvSettings]]  # recipes show its fields as ``--simulator.*``
    contract: Contract
    horizon: int  # time limit in control steps
    task: str
    # Whether one environment can `restore` a state of any scene fast. Then a worker switches one environment between
    # its slots; otherwise it makes one for each slot.
    restores_any_scene: bool

    def __init__(self, settings: EnvSettings, task: str): ...

    @classmethod
    def contract_for(cls, settings: EnvSettings, task: str) -> Contract:
        """The contract of an environment, without starting the simulator; an unknown task or camera is a UserError."""

    def reset(self, scene: int) -> dict:
        """Starts a scene; returns the first frame: ``images``, ``state``, ``instruction``."""

    def play(self, actions: np.ndarray, frame_every: int = 0) -> ChunkResult:
        """Plays (n, A) commands in the contract's columns and units, stopping at success or the time limit.

        `frame_every`: also render when the episode's step count is a multiple of this; 0: only after the last step
        played (always rendered: the policy decides there, or a timeout bootstraps from it).
        """

    def play_expert(self, steps: int, noise: np.random.Generator, frame_every: int = 0) -> ChunkResult:
        """Like `play`, with the scripted expert's commands, computed in closed loop; without one a UserError.

        Its imperfections come from `noise` (see the simulator's settings).
        """

    def save(self) -> object:
        """The complete state of the simulation, to be pickled: for branching."""

    def restore(self, state: object) -> None:
        """Goes back to a saved state; what is played then is what would have been played."""

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8, full quality, for people."""

    def close(self) -> None: ...


class Stepped(Protocol):
    """What `play_steps` needs: a simulator, one that is filmed, or a robot."""

    @property
    def over(self) -> bool:
        """Whether the episode ends here without a success: at the time limit, or because it was aborted."""

    @property
    def steps(self) -> int:
        """Control steps played in this episode."""

    def step(self, command: np.ndarray) -> bool:
        """Plays one (A,) command, on a robot until the end of its control period; returns whether the task is done."""

    def state(self) -> np.ndarray:
        """(S,) float32 the state now, raw units."""

    def images(self) -> dict[str, np.ndarray]:
        """Camera name to (h, w, 3) uint8 now, upright; asked for only where an image is needed."""


def play_steps(env: Stepped, next_command: Callable[[], np.ndarray], count: int, frame_every: int = 0) -> ChunkResult:
    """Plays up to `count` commands, as in `Simulator.play`; `next_command` gives the (A,) one to play and record now.

    Raises ValueError if the episode is over, or there is nothing to play.
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
    """Base of a simulator that is stepped: makes a `Simulator` of a `Stepped`.

    A subclass sets `contract`, `horizon`, `task` and `instruction`, counts `steps`, and has `contract_for`, `reset`,
    `step`, `state`, `images`, `render`, `save` and `restore`; with a scripted expert also `expert_command`.
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
        """Plays (n, A) commands; see `Simulator.play`."""
        commands = iter(as_commands(actions, self.contract))
        return play_steps(self, lambda: next(commands), len(actions), frame_every)

    def play_expert(self, steps: int, noise: np.random.Generator, frame_every: int = 0) -> ChunkResult:
        """Plays up to `steps` commands of the scripted expert; see `Simulator.play_expert`."""
        return play_steps(self, lambda: as_commands(self.expert_command(noise), self.contract)[0], steps, frame_every)

    def expert_command(self, noise: np.random.Generator) -> np.ndarray:
        """(A,) the scripted expert's next command, from the true state; here there is none, which is a UserError."""
        fix = "define expert_command, or collect rollouts of a policy instead"
        raise UserError(f"{type(self).__name__} has no scripted expert for {self.task}; {fix}")

    def close(self) -> None:
        """Frees what the simulator holds."""


def require_frame(frame: dict, contract: Contract, simulator: str) -> dict:
    """The frame, if it shows what the contract says; else a UserError that says what the simulator must give."""
    state, images = np.shape(frame["state"]), frame["images"]
    if state != (contract.state_dim,):
        raise UserError(f"{simulator}.state() gave {state}, its contract has {contract.state_dim} columns of the state")
    names = [camera.name for camera in contract.cameras]
    if set(images) != set(names):
        raise UserError(f"{simulator}.images() gave {', '.join(images) or 'none'}; its contract has {', '.join(names)}")
    for camera in contract.cameras:
        image, shape = images[camera.name], (camera.height, camera.width, 3)
        if image.shape != shape or image.dtype != np.uint8:
            found = f"{image.dtype} {image.shape}"
            raise UserError(f"{simulator}.images() gave {camera.name} as {found}, its contract says uint8 {shape}")
    return frame


def as_commands(actions: np.ndarray, contract: Contract) -> np.ndarray:
    """(n, A) commands as they are really played: clipped to the limits, flags thresholded half-way.

    Raises UserError if the number of columns is wrong or a value is not finite.
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
