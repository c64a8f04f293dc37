"""The episodes of a data set that records no outcome, one after the other; each answer is stored at once."""

from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np

from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot import SIDECAR
from deas_vla.data.lerobot.findings import refuse
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout, image_size
from deas_vla.data.lerobot.outcomes import OUTCOMES, Outcome, read_outcomes, recorded_outcome, write_outcomes
from deas_vla.data.lerobot.rows import instruction_of, is_text, read_rows
from deas_vla.data.lerobot.videos import misplaced
from deas_vla.errors import UserError
from deas_vla.report.pictures import side_by_side

UNKNOWN = LabelRules("never", "success")  # rows are read without asking how they ended


@dataclass(frozen=True)
class Progress:
    """The next episode, and how far one is."""

    episode: int | None  # its number, or None if all have an outcome
    rows: int
    instruction: str
    rate_hz: float
    labelled: int
    total: int
    successes: int
    last: int | None  # number of the episode that `undo` would ask about again


class Labelling:
    """Asks for the outcomes of one data set; what was given before is kept, so it goes on where it stopped.

    Raises UserError if the data set is broken, has no camera, or says already how its episodes went.
    """

    def __init__(self, root: str | Path):
        self.folder = folder = LerobotFolder(Path(root))
        if recorded := recorded_outcome(folder):
            fix = f"to give it by hand all the same, delete {SIDECAR}" if SIDECAR in recorded else "train with it"
            raise UserError(f"{root}: how its episodes went is said by {recorded}; {fix}")
        self.layout = layout = Layout.of(folder)
        if not layout.cameras:
            raise UserError(f"{root} has no camera, so there is nothing to look at; declare what succeeded (--success)")
        rows = refuse(folder.root, read_rows(folder, layout, UNKNOWN, desc=folder.root.name))
        refuse(folder.root, misplaced(folder, layout, rows))
        self.episodes = {part.number: part for part in sorted(rows, key=lambda part: part.number)}
        self.progress()
        self._lock = Lock()

    def progress(self) -> Progress:
        """As it stands in the file, which another terminal may have written to."""
        given = read_outcomes(self.folder)
        labelled = {outcome.episode for outcome in given}
        part = next((part for number, part in self.episodes.items() if number not in labelled), None)
        tasks = {} if is_text(self.folder, self.layout.instruction) else self.folder.tasks
        return Progress(
            episode=None if part is None else part.number,
            rows=0 if part is None else len(part),
            instruction="" if part is None else instruction_of(part, self.layout.instruction, tasks),
            rate_hz=self.folder.rate_hz,
            labelled=len(given),
            total=len(self.episodes),
            successes=sum(outcome.success is not None for outcome in given),
            last=given[-1].episode if given else None,
        )

    def picture(self, episode: int, row: int, height: int) -> np.ndarray:
        """(height, w, 3) uint8: what the cameras saw at a row of an episode."""
        part = self.episodes[episode]
        if not 0 <= row < len(part):
            raise IndexError(f"episode {episode} has no row {row}")
        at, sizes = np.array([row]), {key: image_size(self.folder, key) for key in self.layout.cameras.values()}
        with self._lock:
            images = [self.folder.stored_images(key, size, [part], [at])[0][0] for key, size in sizes.items()]
        return side_by_side(images, height)

    def give(self, episode: int, answer: str | int) -> None:
        """Stores how the next episode went; its number is given so that an answer to a film shown twice counts once.

        The answer is ``success`` at its end, ``failure``, or the first row whose picture shows it done: the step before
        that row is the one that succeeded. Raises UserError if another episode is next, or it is none of these.
        """
        with self._lock:
            now = self.progress()
            if episode != now.episode:
                raise UserError(f"episode {episode} has its outcome or is not the next one; look again")
            if answer not in ("success", "failure") and (type(answer) is not int or not 0 < answer < now.rows):
                raise UserError(f"the outcome {answer!r} is not success, failure or a row from 1 to {now.rows - 1}")
            row = {"success": now.rows - 1, "failure": None}[answer] if isinstance(answer, str) else answer - 1
            write_outcomes(self.folder.root, [*read_outcomes(self.folder), Outcome(episode, now.rows, row)])

    def undo(self) -> None:
        """Forgets the last outcome, if there is one: that episode is asked about again."""
        with self._lock:
            if given := read_outcomes(self.folder):
                write_outcomes(self.folder.root, given[:-1])

    def summary(self) -> str:
        """One line for the end."""
        now = self.progress()
        counts = f"{now.labelled} of {now.total} episodes have an outcome, {now.successes} succeeded"
        command = "label" if now.labelled < now.total else "audit"
        verb = "go on" if command == "label" else "check the data"
        return f"{self.folder.root / OUTCOMES}: {counts}; {verb} with: deas-vla {command} {self.folder.root}"
