"""OGBench's single-task manipulation benchmark: names of tasks, their rewards, many episodes in one process."""

import re
import warnings
from dataclasses import dataclass

import numpy as np

from deas_vla.errors import UserError, require, unknown
from studies.ogbench.data import OGBenchData

# Environment to its number of goals (cubes, buttons, sliding parts) and the task that is meant where none is named.
ENVIRONMENTS = {
    "cube-single": (1, 2),
    "cube-double": (2, 2),
    "cube-triple": (3, 2),
    "cube-quadruple": (4, 2),
    "cube-octuple": (8, 2),
    "scene": (5, 2),
    "puzzle-3x3": (9, 4),
    "puzzle-4x4": (16, 4),
    "puzzle-4x5": (20, 2),
    "puzzle-4x6": (24, 2),
}
KINDS = ("play", "noisy")
TASKS = 5


@dataclass(frozen=True)
class OGBenchTask:
    """One task of the benchmark.

    Attributes:
        env: environment, such as ``cube-single``.
        kind: of its data: ``play`` or ``noisy``.
        number: 1 to 5.
    """

    env: str
    kind: str
    number: int

    @classmethod
    def parse(cls, name: str) -> "OGBenchTask":
        """Reads OGBench's name of a task; without a number it is the environment's default task, as there.

        Args:
            name: such as ``cube-single-play-singletask-task1-v0``.

        Raises:
            UserError: if there is no such task; the message names what there is.
        """
        match = re.fullmatch(rf"(.+)-({'|'.join(KINDS)})-singletask(?:-task(\d+))?-v0", name)
        if not match:
            raise UserError(
                f"task '{name}' is not ENV-KIND-singletask-taskN-v0, for example "
                f"cube-single-play-singletask-task1-v0 (KIND: {' or '.join(KINDS)}; ENV: {', '.join(ENVIRONMENTS)})"
            )
        env, kind, number = match.groups()
        if env not in ENVIRONMENTS:
            raise UserError(unknown("OGBench environment", env, ENVIRONMENTS))
        task = cls(env, kind, ENVIRONMENTS[env][1] if number is None else int(number))
        if not 1 <= task.number <= TASKS:
            raise UserError(f"task '{name}': {env} has tasks 1 to {TASKS}, not {task.number}")
        return task

    @property
    def name(self) -> str:
        """``ENV-KIND-singletask-taskN-v0``."""
        return f"{self.env}-{self.kind}-singletask-task{self.number}-v0"

    @property
    def dataset(self) -> str:
        """Name of the data set that all tasks of this environment share."""
        return f"{self.env}-{self.kind}-v0"

    @property
    def env_name(self) -> str:
        """gymnasium's id of the environment with this task."""
        return f"{self.env}-singletask-task{self.number}-v0"

    @property
    def num_subgoals(self) -> int:
        """Goals of the task; a step's reward is the number reached minus this."""
        return ENVIRONMENTS[self.env][0]


def relabel(task: OGBenchTask, data: OGBenchData) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of a task for stored rows, by the library's own relabelling.

    A row's reward is that of its own state. All rows are relabelled; the library does the same after it has taken off
    the last row of each trajectory.

    Args:
        task: of the environment that the data are from.
        data: T rows.

    Returns:
        (T,) float32 rewards, from minus the number of goals to 0, and (T,) bool, whether all goals are reached.

    Raises:
        UserError: if the data are of another environment, or ogbench is not installed.
    """
    env = _official(task)
    shapes = {
        "observations": (data.observations.shape[1], env.observation_space.shape[0]),
        "actions": (data.actions.shape[1], env.action_space.shape[0]),
        "qpos": (data.qpos.shape[1], env.model.nq),
        "qvel": (data.qvel.shape[1], env.model.nv),
        "button_states": (
            0 if data.button_states is None else data.button_states.shape[1],
            getattr(env, "_num_buttons", 0),
        ),
    }
    for column, (there, needed) in shapes.items():
        if there != needed:
            raise UserError(
                f"'{column}' has {there} columns and {task.env} has {needed}: these are not data of {task.dataset}"
            )
    columns = {"qpos": data.qpos, "button_states": data.button_states}
    require("ogbench.relabel_utils", "ogbench").relabel_dataset(task.env_name, env, columns)
    return columns["rewards"], columns["masks"] == 0


@dataclass
class Outcome:
    """What one chunk of actions did in B episodes.

    Attributes:
        observations: (B, S) float64 after it.
        rewards: (B, h) float32: of the state in which each action was taken; NaN where none was played.
        played: (B,) actions played; fewer than h where the episode ended, 0 where it was over before.
        success: (B,) bool, the episode has succeeded.
        over: (B,) bool, it has succeeded or its time is up.
    """

    observations: np.ndarray
    rewards: np.ndarray
    played: np.ndarray
    success: np.ndarray
    over: np.ndarray


class OGBenchEnvs:
    """Episodes of one task, played chunk by chunk in one process.

    They share one compiled model; each has its own data, buttons, locks and random numbers, and goes the way that
    the library's environment goes with the same seed and actions, bit for bit, however many there are.

    The library tells success one step late: the step after the goals were reached ends the episode, whatever its
    action. Here the episode ends where the goals are reached, and the number of steps is one less. Goals reached by
    the very last step that the time limit allows do not count, as there.

    Args:
        task: what to play.

    Attributes:
        observation_dim: S.
        action_dim: A.
        max_steps: the task's time limit as registered.
        num_subgoals: goals of the task.

    Raises:
        UserError: if ogbench is not installed.
    """

    def __init__(self, task: OGBenchTask):
        from studies.ogbench.control import ArmControl

        self.task, self._env = task, _official(task)
        self._control = ArmControl(self._env)
        self.observation_dim, self.action_dim = (self._env.observation_space.shape[0], self._env.action_space.shape[0])
        self.max_steps = int(require("gymnasium", "ogbench").spec(task.env_name).max_episode_steps)
        self.num_subgoals = task.num_subgoals
        self._slots: list = []
        self._count = 0

    def reset(self, seeds: list[int]) -> np.ndarray:
        """Begins one episode for each seed, each as the library's ``reset(seed=seed)``.

        Returns:
            (B, S) float64 observations.
        """
        from studies.ogbench.episode import Episode

        while len(self._slots) < len(seeds):
            self._slots.append(Episode(self._env, self._control, self.max_steps))
        self._count = len(seeds)
        self._observations = np.stack([slot.reset(seed) for slot, seed in zip(self._slots, seeds, strict=False)])
        return self._observations.copy()

    def play(self, chunks: np.ndarray) -> Outcome:
        """Plays h actions in every episode that is not over; one that ends inside plays no more of them.

        Args:
            chunks: (B, h, A) in [-1, 1]; rows of episodes that are over are not read.

        Raises:
            ValueError: if the shape is not that of the running episodes, or an action to be played is not finite.
        """
        chunks = np.asarray(chunks)
        batch, steps = self._count, chunks.shape[1] if chunks.ndim == 3 else 0
        if chunks.shape != (batch, steps, self.action_dim) or not steps:
            raise ValueError(f"chunks have shape {chunks.shape}, not ({batch}, h ≥ 1, {self.action_dim})")
        rewards, played = np.full((batch, steps), np.nan, np.float32), np.zeros(batch, np.int64)
        slots = self._slots[:batch]
        # In the precision of the actions, as the library does it.
        targets = self._env.unnormalize_action(chunks)
        for row, slot in enumerate(slots):
            if slot.over:
                continue
            if not np.isfinite(targets[row]).all():
                raise ValueError(f"actions of episode {row} are not finite")
            for k, action in enumerate(targets[row].tolist()):
                rewards[row, k] = slot.reward
                slot.step(action)
                played[row] += 1
                if slot.over:
                    break
            self._observations[row] = slot.observe()
        return Outcome(
            observations=self._observations.copy(),
            rewards=rewards,
            played=played,
            success=np.array([slot.success for slot in slots]),
            over=np.array([slot.over for slot in slots]),
        )


def _official(task: OGBenchTask):
    with warnings.catch_warnings():
        # About a screen that is not there.
        warnings.simplefilter("ignore")
        require("ogbench.manipspace", "ogbench")
    from studies.ogbench.episode import make_official

    return make_official(task.env_name)
