"""The run folders of the OGBench suite: read whole, checked, and nothing filled in that is not there.

    RUNS/<data set>/seed-<k>/behaviour-H<h>/             the behaviour policy that all agents of chunk length h share
    RUNS/<data set>/seed-<k>/task<i>/<variant>/          one agent, with its training's stage.json and metrics.jsonl
    RUNS/<data set>/seed-<k>/task<i>/<variant>/evaluation/<method>.json, curve/<update>.json
    RUNS/data/<data set>-v0.json                         how the data were made
    RUNS/machine.json, RUNS/critic_update.json           what it ran on, and the speed benchmark

Any of them may be absent: the results then have a gap there.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deas_vla.config import flat
from deas_vla.errors import UserError
from studies.grid import Cell, Grid

EXECUTE = "-execute-"  # in a method's name: the agent played fewer actions of a chunk than it does by default


@dataclass(frozen=True)
class Method:
    """One evaluation of one agent: its episodes, ordered by scene.

    Attributes:
        rule: the selection rule.
        candidates: N.
        execute: actions played of each chunk, or None where the file does not say.
        scenes: (S,) the scenes' numbers, ascending.
        success: (S,) bool.
        q: (D,) the agent's Q of each chunk that was played; NaN where it has none.
        returns: (D,) the Monte-Carlo return that followed, in the agent's discounts; NaN where none was recorded.
        decided_in: (D,) row of `scenes` in which each decision was taken.
        cpu_seconds: CPU time of the evaluation, or None.
    """

    rule: str
    candidates: int
    execute: int | None
    scenes: tuple[int, ...]
    success: np.ndarray
    q: np.ndarray
    returns: np.ndarray
    decided_in: np.ndarray
    cpu_seconds: float | None

    @property
    def cell(self) -> Cell:
        return Cell(self.scenes, self.success)


@dataclass(frozen=True)
class Run:
    """One agent, trained with one seed on one task.

    Attributes:
        stage: what stage.json says of the training; empty if it is not finished.
        metrics: the lines of metrics.jsonl.
        methods: name to evaluation.
        curve: update to the evaluation at that update.
    """

    stage: dict
    metrics: list[dict]
    methods: dict[str, Method]
    curve: dict[int, Method]

    @property
    def settings(self) -> dict:
        return flat(self.stage.get("settings", {}))


@dataclass
class DataSetRuns:
    """All runs on one data set.

    Attributes:
        runs: variant to (seed, task) to run; what is not there was not run.
        behaviours: (seed, chunk length) to what stage.json says of that behaviour policy.
        data: what the file beside the data says; empty for a user's own files.
    """

    runs: dict[str, dict[tuple[int, int], Run]] = field(default_factory=dict)
    behaviours: dict[tuple[int, int], dict] = field(default_factory=dict)
    data: dict = field(default_factory=dict)

    @property
    def cells(self) -> list[tuple[int, int]]:
        return sorted({key for runs in self.runs.values() for key in runs})

    def grid(self, variant: str, method: str) -> Grid:
        """Success of a variant in one method, wherever that was played."""
        runs = self.runs.get(variant, {})
        return {key: run.methods[method].cell for key, run in runs.items() if method in run.methods}


def read_runs(folder: Path, seeds: list[int] | tuple[int, ...] = ()) -> dict[str, DataSetRuns]:
    """Reads the run folders below `folder`, by name of the data set.

    Args:
        folder: of all runs.
        seeds: training seeds to read; empty: all.

    Raises:
        UserError: if there are none, a file is not what it should be, or two methods to be compared were played
            in different scenes.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; --runs names the one that the OGBench runs are in")
    found: dict[str, DataSetRuns] = {}
    for seed_folder in sorted(folder.glob("*/seed-*")):
        if not (number := re.fullmatch(r"seed-(\d+)", seed_folder.name)):
            continue
        seed = int(number[1])
        if seeds and seed not in seeds:
            continue
        data_set = found.setdefault(seed_folder.parent.name, DataSetRuns())
        for path in sorted(seed_folder.iterdir()):
            if match := re.fullmatch(r"behaviour-H(\d+)", path.name):
                data_set.behaviours[seed, int(match[1])] = read_object(path / "stage.json", optional=True)
            elif match := re.fullmatch(r"task(\d+)", path.name):
                _read_task(data_set, path, (seed, int(match[1])))
    found = {name: data_set for name, data_set in found.items() if data_set.runs}
    for name, data_set in found.items():
        data_set.data = read_object(folder / "data" / f"{name}-v0.json", optional=True)
    if not found:
        raise UserError(f"{folder} holds no runs (<data set>/seed-<k>/task<i>/<agent>); run studies/ogbench/suite.py")
    return found


def read_object(path: Path, *, optional: bool = False) -> dict:
    """A JSON object; empty if the file is optional and not there."""
    if optional and not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); delete it and run its recipe again") from error
    return value


def _read_task(data_set: DataSetRuns, folder: Path, key: tuple[int, int]) -> None:
    first: dict[str, tuple[Path, Method]] = {}
    for path in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        evaluation = path / "evaluation"
        files = {file.stem: file for file in sorted(evaluation.glob("*.json"))}
        steps = {int(file.stem): file for file in (evaluation / "curve").glob("*.json") if file.stem.isdigit()}
        stage = read_object(path / "stage.json", optional=True)
        if not (files or steps or stage):
            continue
        run = Run(stage, _read_metrics(path / "metrics.jsonl"), {}, {})
        # Curves may be played in fewer scenes than what is compared, but all their points in the same ones.
        for kind, there, methods in (
            ("methods", files, run.methods),
            ("curves", dict(sorted(steps.items())), run.curve),
        ):
            for name, file in there.items():
                methods[name] = method = _read_method(file)
                other, before = first.setdefault(kind, (file, method))
                if before.scenes != method.scenes:
                    raise UserError(
                        f"{file} was played in other scenes than {other} ({_differing(before, method)}): they cannot "
                        "be paired; delete one of the two and evaluate it again"
                    )
        data_set.runs.setdefault(path.name, {})[key] = run


def _differing(a: Method, b: Method) -> str:
    only = sorted(set(a.scenes) ^ set(b.scenes))
    return f"{len(b.scenes)} and {len(a.scenes)} scenes, {only[0]} only in one"


def _read_metrics(path: Path) -> list[dict]:
    """The lines of a metrics.jsonl; a last line that was cut off by a kill is left out."""
    lines = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8").splitlines():
            with suppress(json.JSONDecodeError):
                lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and "step" in line]


def _read_method(path: Path) -> Method:
    content = read_object(path)
    try:
        method, episodes = (content["method"], sorted(content["episodes"], key=lambda episode: episode["scene"]))
        scenes = tuple(int(episode["scene"]) for episode in episodes)
        ends = [episode["success"] for episode in episodes]
        if not scenes:
            raise ValueError("no episodes")
        if len(set(scenes)) < len(scenes):
            raise ValueError("a scene is listed twice")
        if not all(end in (0, 1) for end in ends):
            raise ValueError("success is neither true nor false")
        decisions = [episode.get("decisions") or [] for episode in episodes]
        # None, where there is no critic, becomes NaN.
        q, returns = (
            np.array([decision.get(key) for part in decisions for decision in part], np.float64) for key in ("q", "mc")
        )
        rule, candidates = str(method["rule"]), int(method["num_candidates"])
        execute = None if method.get("execute") is None else int(method["execute"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} is not an evaluation of an OGBench agent ({what}); delete it and evaluate again"
        ) from error
    return Method(
        rule=rule,
        candidates=candidates,
        execute=execute,
        scenes=scenes,
        success=np.array(ends, bool),
        q=q,
        returns=returns,
        decided_in=np.repeat(np.arange(len(scenes)), [len(part) for part in decisions]),
        cpu_seconds=content.get("cpu_seconds"),
    )
