"""Outcomes that somebody gave to episodes that were recorded without: a file beside the data set (`deas-vla label`)."""

from dataclasses import asdict, dataclass
from pathlib import Path

from deas_vla.data.labels import SUCCESS_RULES
from deas_vla.data.lerobot import FORMAT, SIDECAR
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.errors import UserError
from deas_vla.files import read_json, write_json

OUTCOMES = "meta/deas_vla_outcomes.json"


@dataclass(frozen=True)
class Outcome:
    """How an episode went; `success` is the row whose step succeeds, or None for a failure."""

    episode: int
    rows: int  # that it had when somebody looked at it
    success: int | None


def read_outcomes(folder: LerobotFolder) -> list[Outcome]:
    """The outcomes that were given, in the order in which they were; those of other episodes are a UserError."""
    path = folder.root / OUTCOMES
    if not path.is_file():
        return []
    stored, broken = read_json(path), f"{path} is damaged; copy it again, or delete it and label anew"
    lines = stored.get("outcomes")
    if stored.get("format") != FORMAT or not isinstance(lines, list):
        raise UserError(broken)
    given: dict[int, Outcome] = {}
    for line in lines:
        if not isinstance(line, dict) or line.keys() != Outcome.__annotations__.keys():
            raise UserError(broken)
        outcome = Outcome(**line)
        numbers = (outcome.episode, outcome.rows, 0 if outcome.success is None else outcome.success)
        if any(type(number) is not int for number in numbers) or not 0 <= numbers[2] < outcome.rows:
            raise UserError(broken)
        if outcome.episode in given:
            raise UserError(f"{path}: episode {outcome.episode} has two outcomes; remove the line that is wrong")
        length = folder.episodes.get(outcome.episode, {}).get("length", "no")
        if length != outcome.rows:
            changed = f"episode {outcome.episode} has {length} rows and had {outcome.rows} when its outcome was given"
            raise UserError(f"{path}: {changed}; remove its line there and label it again")
        given[outcome.episode] = outcome
    return list(given.values())


def write_outcomes(root: Path, outcomes: list[Outcome]) -> None:
    """Stores them in their order, whole or not at all."""
    write_json(Path(root) / OUTCOMES, {"format": FORMAT, "outcomes": list(map(asdict, outcomes))})


def recorded_outcome(folder: LerobotFolder) -> str | None:
    """What says already how the episodes of a data set went, or None if nothing does."""
    declared = folder.sidecar.get("labels") or {}
    rule = declared.get("success", "column")
    if rule != "column":
        return f"{SIDECAR} (success={rule})"
    if (folder.sidecar and not declared and not folder.declared) or folder.marks_frames:
        return "the program that wrote it"
    column = SUCCESS_RULES["column"]
    return f"its column {column}" if column in folder.features else None
