"""What a critic said of recorded episodes, to look at: films with its values, and one page with verdict and figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deas_vla.critique.evidence import Evidence
from deas_vla.critique.verdict import VERDICTS, Critique, numbers, recommendation
from deas_vla.data.episodes import Episode
from deas_vla.files import atomic_path
from deas_vla.report.pictures import side_by_side
from deas_vla.report.template import rendered
from deas_vla.report.video import Panel, write_video
from deas_vla.rollouts.play import Decision

FOLDER, PAGE = "films", "critique.html"
SHOWN_HZ, HEIGHT = 10, 288  # pictures a second, at most, and their height


@dataclass
class Asked:
    """An episode and what was said of it."""

    name: str
    episode: Episode
    evidence: Evidence


class Pictures(Sequence):
    """(HEIGHT, w, 3) uint8: all cameras at every so many steps and at the last; each is decoded when it is shown."""

    def __init__(self, episode: Episode, every: int):
        self.episode = episode
        self.steps = np.append(np.arange(0, episode.length, every), episode.length)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> np.ndarray:
        # Between two rendered frames the earlier one stands.
        frame = np.searchsorted(self.episode.frame_steps, self.steps[index], side="right") - 1
        return side_by_side([images[max(0, frame)] for images in self.episode.images.values()], HEIGHT)


def panel(asked: Asked, every: int) -> Panel:
    """The film of an episode: the values so far, each candidate's score, and as played that of the recorded chunk."""
    pictures, said = Pictures(asked.episode, every), asked.evidence
    steps = np.round(said.progress * asked.episode.length)
    decisions = [
        Decision(round(step / every), len(scores), float(value), [*scores.tolist(), float(score)])
        for step, value, scores, score in zip(steps, said.value, said.candidates, said.score, strict=True)
    ]
    return Panel(asked.name, pictures, decisions, len(pictures) - 1 if said.success else None)


def first_of_each(asked: list[Asked], count: int) -> list[Asked]:
    """The first `count` successes and failures."""
    return [each for success in (True, False) for each in [a for a in asked if a.evidence.success == success][:count]]


def write_page(found: Critique, filmed: list[Asked], rate_hz: float, folder: Path, figure: str) -> None:
    """Writes a film of each episode into ``films``, and ``critique.html``, which shows them and the figure."""
    every = max(1, round(rate_hz / SHOWN_HZ))
    films = {}
    for number, each in enumerate(filmed):
        outcome = "success" if each.evidence.success else "failure"
        films[f"{FOLDER}/{number:02d}-{outcome}.mp4"] = f"{each.name}, {outcome}: {each.episode.instruction}"
        write_video(folder / FOLDER / f"{number:02d}-{outcome}.mp4", [panel(each, every)], rate_hz / every)
    page = rendered(
        Path(__file__).with_name("critique.html.j2"),
        verdict=VERDICTS[found.worth],
        critique=found,
        recommendation=recommendation(found),
        numbers=numbers(found),
        figure=figure,
        films=films,
    )
    with atomic_path(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
