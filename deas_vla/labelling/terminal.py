"""Labelling in a terminal: the film in coloured half blocks, an answer by one key."""

import shutil
import sys

import numpy as np

from deas_vla.keys import Keys
from deas_vla.labelling.labelling import Labelling, Progress

HELP = (
    "s success at the end    f failure    t this picture is the first that shows it done",
    ", . a picture back, on    space stops, goes on    r from the start    u undo    q quit",
)
ANSWERS = {"s": "success", "f": "failure"}
CLEAR, HOME, END_OF_LINE = "\x1b[2J", "\x1b[H", "\x1b[0m\x1b[K"
SHOWN_HZ = 10  # pictures a second; more would flicker over a network
LONG_S = 3600.0  # a key that is waited for while the film stands


def label_in_terminal(labelling: Labelling) -> None:
    """Asks about one episode after the other until all have an outcome or somebody quits."""
    with Keys("label on a page instead: --page") as keys:
        while (now := labelling.progress()).episode is not None:
            answer = _watch(labelling, now, keys)
            if answer == "q":
                break
            if answer == "u":
                labelling.undo()
            else:
                labelling.give(now.episode, answer)
    print(END_OF_LINE)


def _watch(labelling: Labelling, now: Progress, keys: Keys) -> str | int:
    """Plays the film until a key says what to do: an answer, ``u`` or ``q``."""
    row, last, running = 0, now.rows - 1, True
    print(CLEAR, end="")
    while True:
        _draw(labelling, now, row)
        running = running and row < last
        key = keys.pressed(1 / SHOWN_HZ if running else LONG_S)
        if key in ("u", "q"):
            return key
        if key in ANSWERS:
            return ANSWERS[key]
        if key == "t" and row > 0:
            return row
        if key is None and running:
            row = min(last, row + max(1, round(now.rate_hz / SHOWN_HZ)))
        elif key in (",", "."):
            row, running = min(last, max(0, row + (1 if key == "." else -1))), False
        elif key == "r":
            row, running = 0, True
        elif key == " ":
            running = not running


def _draw(labelling: Labelling, now: Progress, row: int) -> None:
    columns, lines = shutil.get_terminal_size()
    height = 2 * max(2, lines - 5)
    picture = labelling.picture(now.episode, row, height)
    if picture.shape[1] > columns:
        height = max(2, height * columns // picture.shape[1] // 2 * 2)
        picture = labelling.picture(now.episode, row, height)[:, :columns]
    text = [
        f"{now.labelled} of {now.total} labelled, {now.successes} succeeded; episode {now.episode}: {now.instruction}",
        *half_blocks(picture),
        f"picture {row} of {now.rows - 1}, {row / now.rate_hz:.1f} s",
        *HELP,
    ]
    sys.stdout.write(HOME + "".join(line + END_OF_LINE + "\n" for line in text))
    sys.stdout.flush()


def half_blocks(picture: np.ndarray) -> list[str]:
    """A picture (2 n, w, 3) uint8 as n lines of w upper half blocks, each with the colours of two pixels."""
    above, below = picture[0::2].tolist(), picture[1::2].tolist()
    return [
        "".join(
            "\x1b[38;2;{};{};{}m\x1b[48;2;{};{};{}m▀".format(*a, *b) for a, b in zip(upper, lower, strict=True)
        )
        for upper, lower in zip(above, below, strict=True)
    ]  # fmt: skip
