"""How an episode went: by key press, or from a robot that knows."""

import os
import select
import sys
import termios
import tty
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, TextIO

from deas_vla.errors import UserError
from robots.robot import Robot

OutcomeSource = Literal["auto", "keys", "sim", "success", "failure"]
Verdict = Literal["success", "failure", "again", "quit"]
KEYS: dict[str, Verdict] = {"s": "success", "f": "failure", "r": "again", "q": "quit"}
ESCAPE = b"\x1b"
# What belongs to a key that sends several bytes follows its first one at once, over a network a little later.
ESCAPE_S = 0.02
ASKED = "s success, f failure, r record it again: the arm then goes back slowly; q or Esc quit: it stays"


class Keys(AbstractContextManager):
    """Single keys of a terminal, without Enter; Ctrl-C stays what it is.

    Raises:
        UserError: if there is no terminal.
    """

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream or sys.stdin
        if not self.stream.isatty():
            raise UserError("outcomes by key need a terminal; give --outcome=sim, success or failure without one")

    def __enter__(self) -> "Keys":
        self.before = termios.tcgetattr(self.stream)
        tty.setcbreak(self.stream, termios.TCSANOW)
        return self

    def __exit__(self, *exception: object) -> None:
        termios.tcsetattr(self.stream, termios.TCSANOW, self.before)

    def pressed(self, wait_s: float = 0.0) -> str | None:
        """The next key, or None if there is none within so many seconds."""
        if not self._waiting(wait_s):
            return None
        # Not through the stream: it would take more keys than one, and select would not see them.
        key = self._read()
        return self._after_escape() if key == ESCAPE else key.decode(errors="replace").lower()

    def _after_escape(self) -> str | None:
        """Esc alone is q. Arrows, F1 or Alt-s send more bytes behind it: none of them says how an episode went."""
        if not self._waiting(ESCAPE_S):
            return "q"
        if self._read() in (b"[", b"O"):
            # Numbers follow, and a letter or ~ as the last byte.
            while self._waiting(ESCAPE_S) and not b"@" <= self._read() <= b"~":
                pass
        return None

    def _waiting(self, seconds: float) -> bool:
        return bool(select.select([self.stream], [], [], seconds)[0])

    def _read(self) -> bytes:
        byte = os.read(self.stream.fileno(), 1)
        if not byte:
            raise UserError("the terminal is gone; nobody can say how the episodes went")
        return byte


class Judge(AbstractContextManager):
    """Says how an episode went.

    Args:
        source: who knows; ``auto``: the robot if it does, else a key.
        robot: its ``succeeded`` is None if it does not know.

    Raises:
        UserError: if keys are asked for without a terminal, or a robot that does not know.
    """

    def __init__(self, source: OutcomeSource, robot: Robot):
        knows = robot.succeeded is not None
        if source == "sim" and not knows:
            raise UserError(f"--outcome=sim: {robot.name} does not know whether it succeeded; use keys")
        self.source = ("sim" if knows else "keys") if source == "auto" else source
        self.robot = robot
        self.keys = Keys() if self.source == "keys" else nullcontext()

    def __enter__(self) -> "Judge":
        self.keys.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.keys.__exit__(*exception)

    def ready(self, what: str) -> bool:
        """Asks whether an episode may begin; False: quit."""
        if self.source != "keys":
            return True
        print(f"{what}: set the scene. Enter starts, q quits", flush=True)
        # Python 3.12.0 and 3.12.1 switch off what makes a line feed of the Enter key.
        while (key := self.keys.pressed(0.1)) not in ("\n", "\r", "q"):
            pass
        return key != "q"

    def now(self) -> Verdict | None:
        """How the episode went if that can be said already; it then ends."""
        if self.source == "sim":
            return "success" if self.robot.succeeded else None
        return KEYS.get(self.keys.pressed() or "") if self.source == "keys" else None

    def at_the_end(self) -> Verdict:
        """How it went, now that its time is over."""
        if self.source == "sim":
            return "failure"
        if self.source != "keys":
            return self.source
        print(f"time is over: {ASKED}", flush=True)
        while (verdict := KEYS.get(self.keys.pressed(0.1) or "")) is None:
            pass
        return verdict
