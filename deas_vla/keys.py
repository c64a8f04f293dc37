"""Single keys of a terminal."""

import os
import select
import sys
import termios
import tty
from contextlib import AbstractContextManager
from typing import TextIO

from deas_vla.errors import UserError

ESCAPE = b"\x1b"
# What belongs to a key that sends several bytes follows its first one at once, over a network a little later.
ESCAPE_S = 0.02


class Keys(AbstractContextManager):
    """Single keys of a terminal, without Enter; Ctrl-C stays what it is."""

    def __init__(self, fix: str, stream: TextIO | None = None):
        """`fix`: what to do where there is no terminal, for the UserError."""
        self.stream = stream or sys.stdin
        if not self.stream.isatty():
            raise UserError(f"outcomes by key need a terminal; {fix}")

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
