"""What a simulator offers: play whole chunks, render only where asked, branch."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.envs.settings import EnvSettings


@dataclass
class ChunkResult:
    """What happened while a chunk was played. n ≤ H steps: it stops at success and at the time limit.

    Attributes:
        states: (n, S) float32 state *after* each step, raw units.
        actions: (n, A) float32 commands as they were played.
        rewards: (n,) float32 the task's own reward column: 1.0 at success, else 0.0.
        success: (n,) bool, read at every step.
        truncated: the time limit was reached without success.
        frames: steps after which images were rendered, counted within the chunk, 1 to n; to `images`.
        images: camera name to (len(frames), height, width, 3) uint8.
    """

    states: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    success: np.ndarray
    truncated: bool
    frames: np.ndarray
    images: dict[str, np.ndarray]

    @property
    def done(self) -> bool:
        return bool(self.success[-1]) or self.truncated

    def last_frame(self, instruction: str) -> dict:
        """What the policy sees after the chunk: ``images``, ``state``, ``instruction``."""
        return {
            "images": {name: image[-1] for name, image in self.images.items()},
            "state": self.states[-1],
            "instruction": instruction,
        }


class ChunkEnv(Protocol):
    """One simulated task: all that is asked of a simulator, by workers, films, branches and the robot of `robots/`.

    A scene is a number: the same one gives the same initial state in every process, whatever was played before.
    Most simulators get `play`, `play_expert` and `over` from `SteppedEnv`.

    Attributes:
        contract: columns, units, rate and cameras.
        horizon: time limit in control steps.
        task: name of the task.
        restores_any_scene: whether one environment can `restore` a state of any scene fast. Then a worker switches one
            environment between its slots; otherwise it makes one for each slot.
    """

    contract: Contract
    horizon: int
    task: str
    restores_any_scene: bool

    def reset(self, scene: int) -> dict:
        """Starts a scene; returns the first frame: ``images``, ``state``, ``instruction``."""
        ...

    def play(self, actions: np.ndarray, frame_every: int = 0) -> ChunkResult:
        """Plays (n, A) commands, stopping at success or the time limit.

        Args:
            actions: commands in the contract's columns and units.
            frame_every: also render when the episode's step count is a multiple of this; 0: only after the last
                step played (always rendered: the policy decides there, or a timeout bootstraps from it).
        """
        ...

    def play_expert(self, steps: int, noise: np.random.Generator, frame_every: int = 0) -> ChunkResult:
        """Like `play`, with the scripted expert's commands, computed in closed loop; its imperfections come from
        `noise` (see the simulator's settings).

        Raises:
            UserError: if there is no expert.
        """
        ...

    def save(self) -> object:
        """The complete state of the simulation, to be pickled: for branching."""
        ...

    def restore(self, state: object) -> None:
        """Goes back to a saved state; what is played then is what would have been played."""
        ...

    def render(self, height: int, width: int) -> np.ndarray:
        """(height, width, 3) uint8, full quality, for people."""
        ...

    def close(self) -> None: ...


class Simulator(ChunkEnv, Protocol):
    """What `register_simulator` takes: a class of environments.

    Attributes:
        settings_class: dataclass of its settings, an `EnvSettings`; recipes show it as ``--simulator.*``.
    """

    settings_class: ClassVar[type[EnvSettings]]

    def __init__(self, settings: EnvSettings, task: str): ...

    @classmethod
    def contract_for(cls, settings: EnvSettings, task: str) -> Contract:
        """The contract of an environment, without starting the simulator or importing its packages.

        Raises:
            UserError: if the task or a camera is unknown.
        """
        ...
