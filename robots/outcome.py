"""How an episode went: by key press, or from a robot that knows."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from deas_vla.errors import UserError
from deas_vla.keys import Keys
from robots.robot import Robot

OutcomeSource = Literal["auto", "keys", "sim", "success", "failure"]
Verdict = Literal["success", "failure", "again", "quit"]
KEYS: dict[str, Verdict] = {"s": "success", "f": "failure", "r": "again", "q": "quit"}
NO_TERMINAL = "give --outcome=sim, success or failure without one"
ASKED = "s success, f failure, r record it again: the arm then goes back slowly; q or Esc quit: it stays"


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
        self.keys = Keys(NO_TERMINAL) if self.source == "keys" else nullcontext()

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
