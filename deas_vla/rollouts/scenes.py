"""Scenes by their use, and whether an evaluation's scenes are unseen: read from what the data sets themselves record.

Stages that train write down the scenes of all data that they read (`record_scenes`), and an evaluation compares its own
with those of every stage that it stands on (`require_unseen`), however that data came there.
"""

from collections.abc import Iterable
from pathlib import Path

from deas_vla.data.episodes import Episode
from deas_vla.errors import UserError
from deas_vla.files import read_json, write_json
from deas_vla.training.stages import stage_report

# First scene number of each use: scenes are unlimited, uses are a million apart.
FIRST_SCENE = {"demonstrations": 0, "rollouts": 1_000_000, "evaluation": 2_000_000, "ablation": 3_000_000}
SCENES = "scenes.json"
TRAINED = ("policy", "critic", "scorer")  # what a stage that trained something leaves in its folder


def scenes_of(use: str, count: int, seed: int) -> list[int]:
    """The scene numbers of one use (`FIRST_SCENE`) for a run's seed, 0 to 99; other seeds give other scenes.

    Settings may be chosen on those of ``ablation``. UserError if count, at most 10,000, or seed lets two uses meet.
    """
    if not 0 <= seed < 100 or not 0 <= count <= 10_000:
        raise UserError(f"seed must be 0 to 99 (got {seed}) and a use have at most 10000 scenes (got {count})")
    first = FIRST_SCENE[use] + seed * 10_000
    return list(range(first, first + count))


def record_scenes(stage: Path, data: dict[str, list[Episode]]) -> None:
    """Writes down, in a training stage's folder, the scenes of every data set that it read: name to episodes."""
    scenes = {name: sorted({int(episode.scene) for episode in episodes}) for name, episodes in data.items()}
    write_json(stage / SCENES, scenes)


def seen_scenes(stages: Iterable[Path]) -> tuple[dict[str, set[int]], list[Path]]:
    """Data set to the scenes in it, over finished stages and all that they were made from.

    A data set without numbers of scenes, of a robot or of others, counts its episodes from 0. Beside that: the stages
    that trained something and did not record from which scenes.
    """
    seen: dict[str, set[int]] = {}
    unrecorded, waiting, met = [], [Path(stage) for stage in stages], set()
    while waiting:
        stage = waiting.pop()
        if stage in met:
            continue
        met.add(stage)
        waiting += map(Path, stage_report(stage)["sources"].values())
        if (stage / SCENES).is_file():
            for name, scenes in read_json(stage / SCENES).items():
                seen.setdefault(name, set()).update(scenes)
        elif any((stage / trained).is_dir() for trained in TRAINED):
            unrecorded.append(stage)
    return seen, unrecorded


def require_unseen(scenes: Iterable[int], stages: Iterable[Path]) -> None:
    """Refuses an evaluation in scenes that these stages, or what they were made from, were trained on (UserError).

    Scenes are compared by number, whatever the task: one that another task was trained on counts too.
    """
    wanted, found = set(scenes), []
    for name, there in seen_scenes(stages)[0].items():
        if shared := sorted(wanted & there):
            first = ", ".join(map(str, shared[:3])) + (", …" if shared[3:] else "")
            found.append(f"{len(shared)} in {name} ({first})")
    if found:
        fix = "evaluate with another --seed, or train without that data"
        raise UserError(f"scenes of the evaluation were trained on: {'; '.join(found)}; {fix}")
