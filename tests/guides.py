"""Runs the commands of a guide in this process, as a user types them."""

import importlib
import runpy
import shlex
import sys

import pytest
from accelerate.state import AcceleratorState
from markdown import commands, of_file
from source_tree import ROOT

from deas_vla import cli

# Programs of LeRobot's, and the modules whose `main` they are.
LEROBOT = {"lerobot-train": "lerobot.scripts.lerobot_train", "lerobot-eval": "lerobot.scripts.lerobot_eval"}


def split_command(words: list[str]) -> tuple[str, list[str]]:
    """What a command starts, and its arguments: the path of a script, a module, or a program."""
    words = [words[0].removeprefix(".venv/bin/"), *words[1:]]
    if words[:2] == ["accelerate", "launch"]:
        assert words[2] == "--config_file" and (ROOT / words[3]).is_file(), words
        words = ["python", *words[4:]]
    if words[0] == "python":
        words = words[2:] if words[1] == "-m" else words[1:]
    return words[0], words[1:]


def start(what: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs a script, a module, the command `deas-vla` or a program of LeRobot's; returns its exit status."""
    if what == "deas-vla":
        return cli.main(arguments)
    monkeypatch.setattr(sys, "argv", [what, *arguments])
    try:
        if what in LEROBOT:
            module = importlib.import_module(LEROBOT[what])
            monkeypatch.setattr(module, "init_logging", lambda **_: None)  # pytest's own handlers stay
            module.main()
        elif what.endswith(".py"):
            runpy.run_path(str(ROOT / what), run_name="__main__")
        else:
            runpy.run_module(what, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code or 0
    return 0


def run_guide(name: str, small: dict[str, str], monkeypatch: pytest.MonkeyPatch, wanted=lambda what, arguments: True):
    """Runs the wanted commands of a guide in their order; `small`: flags put behind those of a program or subcommand.

    Yields each command's words before it runs; one that fails ends in an AssertionError.
    """
    for words in commands(of_file(ROOT / name)):
        what, arguments = split_command(words)
        if wanted(what, arguments):
            yield words
            more = shlex.split(small.get(what) or small.get(f"{what} {arguments[0]}", ""))
            status = start(what, [*arguments, *more], monkeypatch)
            # As in a process of its own: LeRobot's and ours ask accelerate for different things.
            AcceleratorState._reset_state(reset_partial_state=True)
            # That of the audit says whether the data are fit, that of the doctor whether all is installed.
            assert status == 0 or arguments[0] in ("doctor", "audit"), f"{name}: {shlex.join(words)}"
