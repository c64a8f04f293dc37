"""What a report is made of: the raw outcomes. Rates and intervals are computed from them in summary.py."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError


@dataclass(frozen=True)
class Outcomes:
    """How a method ended in every scene."""

    scenes: np.ndarray  # (S,) int, the scenes' numbers, no two alike
    success: np.ndarray  # (S, D) bool; noise sample d of a scene has the same noise seeds in every method

    def __post_init__(self):
        scenes, success = np.asarray(self.scenes), np.asarray(self.success, bool)
        object.__setattr__(self, "scenes", scenes)
        object.__setattr__(self, "success", success)
        if scenes.ndim != 1 or success.ndim != 2 or len(scenes) != len(success) or success.size == 0:
            raise ValueError(f"scenes {scenes.shape} and success {success.shape}, expected (S,) and (S, D)")
        if len(np.unique(scenes)) != len(scenes):
            raise ValueError("outcomes: a scene is listed twice")

    @property
    def successes(self) -> int:
        return int(self.success.sum())

    @property
    def episodes(self) -> int:
        return self.success.size


def paired_outcomes(*methods: Outcomes) -> list[np.ndarray] | None:
    """The methods' (S, D) outcomes on the scenes and samples that all of them played; None if there are none.

    An oracle, which is expensive, may have played fewer scenes and samples than the other methods.
    """
    rows = [{int(scene): row for row, scene in enumerate(method.scenes)} for method in methods]
    common = [scene for scene in rows[0] if all(scene in row for row in rows)]
    samples = min(method.success.shape[1] for method in methods)
    if not common:
        return None
    return [method.success[[row[s] for s in common], :samples] for method, row in zip(methods, rows, strict=True)]


@dataclass(frozen=True)
class ValueTrace:
    """The critic's (n,) values V along one episode, at (n,) ascending control steps, and how it ended."""

    steps: np.ndarray
    values: np.ndarray
    success: bool


@dataclass(frozen=True)
class Calibration:
    """The critic's (n,) Q of chunks that were played, the (n,) discounted returns that followed, and (n,) str groups:
    ``demonstration``, ``success`` or ``failure``."""

    q: np.ndarray
    returns: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class OracleDecisions:
    """Decisions in which every candidate was played in a branch of the simulator."""

    scores: np.ndarray  # (K, N) the critic's scores
    returns: np.ndarray  # (K, N) the Monte-Carlo return of each candidate, more is better
    scenes: np.ndarray  # (K,) int, the scene of each decision
    meaning: str  # what `returns` are, in words: "share of 2 continuations that succeeded"


@dataclass(frozen=True)
class Curve:
    """A training curve. Names that share what stands before a slash share a plot: ``critic/value_loss``."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class ReportData:
    """Everything that a report shows. Only the first four fields are needed; a part without data is left out."""

    title: str
    task: str  # what was evaluated, in words
    command: str  # the exact command that makes this result again
    methods: dict[str, Outcomes]  # by name; `METHODS` in summary.py are explained to the reader
    # (method, baseline) of the one comparison that the headline is about, chosen before evaluating.
    primary: tuple[str, str] = ("best_of_n", "policy")
    candidates: int | None = None  # N of the method best_of_n
    success_by_n: dict[int, Outcomes] = field(default_factory=dict)  # of best-of-N
    value_traces: list[ValueTrace] = field(default_factory=list)
    calibration: Calibration | None = None
    oracle_decisions: OracleDecisions | None = None
    curves: dict[str, Curve] = field(default_factory=dict)  # of training
    seconds: dict[str, float] = field(default_factory=dict)  # by stage, in order
    peak_memory_bytes: int | None = None  # upper bound: the peaks of all processes added up
    # Scenes in the records of all training data; None if the records do not say.
    collection_scenes: np.ndarray | None = None
    preset: str = ""  # name of the critic's configuration, and its head
    seeds: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)  # of data, contract, checkpoints, configuration
    versions: dict[str, str] = field(default_factory=dict)  # as `deas_vla.versions.collect_versions` gives them
    config: dict = field(default_factory=dict)  # of the run, JSON-like
    video: Path | None = None  # an mp4 file to embed
    video_caption: str = ""

    def validate(self) -> None:
        """UserError if a scene of the evaluation is in the training data (design rule 10), or a method to be compared
        was not played."""
        for missing in set(self.primary) - self.methods.keys():
            raise UserError(f"'{' - '.join(self.primary)}' needs method {missing}; evaluate it too")
        if self.collection_scenes is not None:
            played = [*self.methods.values(), *self.success_by_n.values()]
            shared = np.intersect1d(self.collection_scenes, np.concatenate([m.scenes for m in played]))
            if len(shared):
                more = " and more" if len(shared) > 5 else ""
                problem = f"evaluation scenes {shared[:5].tolist()}{more} were also used to collect training data"
                raise UserError(f"{problem}; evaluate on other scenes (--seed)")
