"""One trajectory of an OGBench manipulation data set, played by the scripted experts of the ogbench package.

The parameters are those of OGBench's public generation script (`data_gen_scripts/generate_manipspace.py` and the
command of each data set). That script ignores its seed, and its environments and experts keep drawing from shared
generators; here each trajectory has its own seeds and is the same whichever were played before it.

Run as ``python -m studies.ogbench.experts NAME SEED ROWS`` this is a worker: it reads a trajectory's number a
line, and answers each with the length of a safetensors file (8 bytes, little-endian) and the file. It ends with its
input, and so with the process that started it.
"""

import copy
import hashlib
import signal
import sys
import warnings
from dataclasses import asdict, dataclass

import numpy as np

from deas_vla.errors import UserError, require
from studies.ogbench.data import COLUMNS, OGBenchData

# Probability that a cube goes on top of another: drawn for each trajectory between these.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
    "scene": (0.5, 0.5),
    "puzzle-3x3": (0.5, 0.5),
    "puzzle-4x4": (0.5, 0.5),
    "puzzle-4x5": (0.5, 0.5),
    "puzzle-4x6": (0.5, 0.5),
}
KINDS = ("play", "noisy")
# What there is an expert for, by family of environments.
EXPERTS = {"cube": ["cube"], "puzzle": ["button"], "scene": ["cube", "button", "drawer", "window"]}
# The scale of the noise on position (x, y, z), yaw and gripper in `noisy` data.
NOISE_SCALE = np.array([1, 1, 1, 3, 10])


@dataclass(frozen=True)
class Parameters:
    """How one data set is made.

    Attributes:
        env: gymnasium's id of the environment.
        kind: ``play``: open-loop plans with smooth noise; ``noisy``: a closed-loop expert with Gaussian noise.
        noise: amount of the plan's noise (play), or its greatest amount, drawn for each trajectory (noisy).
        noise_smoothing: width of the plan's noise filter, in steps.
        min_norm: smallest distance that the closed-loop expert aims ahead.
        random_action: probability that a step's action is uniform noise.
        stacking: bounds of the probability that a cube goes on top of another.
    """

    env: str
    kind: str
    noise: float
    noise_smoothing: float
    min_norm: float
    random_action: float
    stacking: tuple[float, float]


def parameters(name: str) -> Parameters:
    """OGBench's parameters for a data set.

    Args:
        name: such as ``cube-single-play-v0``.

    Raises:
        UserError: if there is no scripted expert for it; the message lists what there is.
    """
    family, _, rest = name.rpartition("-v0")[0].rpartition("-")
    if not name.endswith("-v0") or family not in STACKING or rest not in KINDS:
        raise UserError(
            f"unknown OGBench data set '{name}': give ENV-KIND-v0, ENV one of {', '.join(STACKING)}, "
            f"KIND one of {', '.join(KINDS)}"
        )
    shaken = 0.2 if family.startswith("puzzle") else 0.1
    return Parameters(
        env=f"{family}-v0",
        kind=rest,
        noise=0.1,
        noise_smoothing=0.5,
        min_norm=0.4,
        random_action=shaken if rest == "noisy" else 0.0,
        stacking=STACKING[family],
    )


class Oracle:
    """Plays the trajectories of one data set.

    Args:
        name: of the data set, such as ``cube-single-play-v0``.
        seed: of the data set.
        rows: rows a trajectory; 1001 in OGBench.
        quick: leave out what no column depends on; see `_quicken`.

    Raises:
        UserError: if the name is unknown or ogbench is not installed.
    """

    def __init__(self, name: str, seed: int, rows: int, quick: bool = True):
        self.name, self.seed = name, seed
        self.parameters = parameters(name)
        with warnings.catch_warnings():
            # About a screen that is not there and gymnasium's newer checks.
            warnings.simplefilter("ignore")
            require("ogbench.manipspace", "ogbench")
            self.env = require("gymnasium", "ogbench").make(
                self.parameters.env,
                terminate_at_goal=False,
                mode="data_collection",
                max_episode_steps=rows,
                disable_env_checker=True,
            )
        self._experts = self._make_experts()
        inner = self.env.unwrapped
        # What episodes change and a reset does not restore. In the environment: targets of tasks that are not the
        # current one (the noisy experts see one stale reading after each change of task) ...
        self._targets = {key: copy.deepcopy(value) for key, value in vars(inner).items() if key.startswith("_target_")}
        self.env.reset(seed=0)
        # ... and in the model: which drawer is locked, where targets are marked.
        self._model_arrays = [(a, a.copy()) for a in (inner.model.dof_damping, inner.model.site_pos)]
        if quick:
            _quicken(inner)

    def trajectory(self, index: int, split: str = "train") -> OGBenchData:
        """Trajectory number `index` of a split: a pure function of these and of the data set's name, seed and rows.

        Args:
            index: its number, 0 or more.
            split: ``train``, or ``val`` for the file that OGBench has for validation.

        Returns:
            Its rows.
        """
        stream = _number(self.name if split == "train" else f"{self.name}-{split}")
        draws_elsewhere = np.random.get_state()
        try:
            for attempt in range(100):
                seeds = np.random.SeedSequence([stream, self.seed, index, attempt])
                played = self._play(*seeds.generate_state(2))
                if not self.parameters.env.startswith("scene") or _in_sight(played.qpos[:, 14:17]):
                    return played
        finally:
            np.random.set_state(draws_elsewhere)
        raise RuntimeError(f"{self.name}: trajectory {index} lost its cube 100 times")

    def _play(self, expert_seed: int, env_seed: int) -> OGBenchData:
        vars(self.env.unwrapped).update(copy.deepcopy(self._targets))
        for array, value in self._model_arrays:
            array[:] = value
        # The experts draw from numpy's global generator.
        np.random.seed(expert_seed)
        state, info = self.env.reset(seed=int(env_seed))
        how = self.parameters
        low, high = how.stacking
        stacking = np.random.uniform(low, high) if low < high else low
        noise = np.random.uniform(0, how.noise) if how.kind == "noisy" else 0.0
        expert = self._experts[info["privileged/target_task"]]
        expert.reset(state, info)
        rows: dict[str, list] = {column: [] for column in COLUMNS}
        done = False
        while not done:
            if np.random.rand() < how.random_action:
                action = np.random.uniform(-1, 1, size=5)
            else:
                action = np.array(expert.select_action(state, info))
                if how.kind == "noisy":
                    action = action + np.random.normal(0, noise * NOISE_SCALE)
            action = np.clip(action, -1, 1)
            next_state, _, terminated, truncated, info = self.env.step(action)
            done = terminated or truncated
            if expert.done:
                # The old target's `info` serves for one more step, as in the public script.
                new = self.env.unwrapped.set_new_target(p_stack=stacking)
                expert = self._experts[new[1]["privileged/target_task"]]
                expert.reset(*new)
            row = {"observations": state, "actions": action, "terminals": done}
            for column in ("qpos", "qvel", "button_states"):
                if f"prev_{column}" in info:
                    row[column] = info[f"prev_{column}"]
            for column, value in row.items():
                rows[column].append(value)
            state = next_state
        return OGBenchData(**{c: np.array(v, COLUMNS[c][0]) for c, v in rows.items() if v})

    def _make_experts(self) -> dict:
        """The expert of each kind of target."""
        how, family = self.parameters, self.parameters.env.partition("-")[0]
        variant = "plan" if how.kind == "play" else "markov"
        experts = {}
        for part in EXPERTS[family]:
            module = require(f"ogbench.manipspace.oracles.{variant}.{part}_{variant}", "ogbench")
            make = getattr(module, f"{part.capitalize()}{variant.capitalize()}Oracle")
            if how.kind == "play":
                given = {"noise": how.noise, "noise_smoothing": how.noise_smoothing}
            else:
                given = {"min_norm": how.min_norm}
            if family == "puzzle":
                given["gripper_always_closed"] = True
            experts[part] = make(env=self.env, **given)
        return experts


def facts(name: str) -> dict:
    """The parameters of a data set as JSON values."""
    return asdict(parameters(name)) | {"stacking": list(parameters(name).stacking)}


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _in_sight(cube: np.ndarray) -> bool:
    """OGBench's check of a scene: the cube stays where the camera sees it, or in the drawer."""
    too_far_right = cube[:, 1] >= 0.29
    too_far_left = (cube[:, 1] <= -0.3) & ((cube[:, 2] < 0.06) | (cube[:, 2] > 0.08))
    return not (too_far_right | too_far_left).any()


def _quicken(env) -> None:
    """Leaves out work that no column of the data depends on; the data stay the same to the last bit.

    A step computes the dictionary of all readings three times: before it (only the buttons' positions are used), for
    the observation and for ``info``. Nothing moves between the last two and the next step, so one is enough. Colours
    are for pictures.
    """
    compute, known = env.compute_ob_info, {}

    def remembered() -> dict:
        if not known:
            known.update(compute())
        return dict(known)

    def forgetting(method):
        def call(*arguments, **named):
            known.clear()
            return method(*arguments, **named)

        return call

    env.compute_ob_info = remembered
    env.post_step = forgetting(env.post_step)
    env.set_new_target = forgetting(env.set_new_target)
    for geoms in ("_cube_geom_ids_list", "_cube_target_geom_ids_list", "_button_geom_ids_list"):
        if hasattr(env, geoms):
            setattr(env, geoms, [[] for _ in getattr(env, geoms)])


def _serve(name: str, seed: int, rows: int) -> None:
    from safetensors.numpy import save

    # Ctrl-C goes to all processes of a terminal; the one that was started by hand ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout.buffer, sys.stderr
    oracle = Oracle(name, seed, rows)
    for line in sys.stdin:
        split, index = line.split()
        content = save(oracle.trajectory(int(index), split).columns())
        answers.write(len(content).to_bytes(8, "little") + content)
        answers.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
