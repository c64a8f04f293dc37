"""How a recipe ends: exit status, one line, and no traceback for what a user can fix."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from deas_vla import cli, launch
from deas_vla.errors import UserError, as_user_error
from deas_vla.files import atomic_path
from deas_vla.launch import FITS_WITH, run_recipe, system_fault

pytestmark = pytest.mark.unit


@dataclass
class Config:
    """Nothing much."""

    # How many.
    n: int = 1


def end_of(main, argv=()) -> int:
    with pytest.raises(SystemExit) as stopped:
        run_recipe(main, Config, list(argv))
    return stopped.value.code


def raises(error: BaseException):
    def main(config):
        raise error

    return main


def full_disk() -> Exception:
    """As writers report it: the system's error, wrapped."""
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
        except OSError as error:
            raise RuntimeError("could not write") from error
    except RuntimeError as error:
        return error


def test_success_is_zero_and_gets_the_configuration():
    seen = []
    assert end_of(seen.append, ["--n=3"]) == 0
    assert seen == [Config(3)]


@pytest.mark.parametrize(
    ("main", "argv", "status", "line"),
    [
        (raises(UserError("no such task 'Lfit'")), [], 2, "error: no such task 'Lfit'"),
        (print, ["--m=3"], 2, "error: unknown flag --m; --help lists them all"),
        (raises(KeyboardInterrupt()), [], 130, "interrupted; run the same command again to go on"),
        (
            raises(full_disk()),
            [],
            2,
            "error: disk full at model.safetensors; free space and run the same command again: nothing is lost",
        ),
    ],
)
def test_what_a_user_can_fix_is_one_line(main, argv, status, line, capsys):
    assert end_of(main, argv) == status
    assert capsys.readouterr().err == line + "\n"


def test_a_defect_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run_recipe(raises(ZeroDivisionError()), Config, [])
    with pytest.raises(ZeroDivisionError):
        command_that_meets(monkeypatch, ZeroDivisionError())


def command_that_meets(monkeypatch, error: BaseException) -> int:
    """Exit status of a command of deas-vla in which that happens."""

    def doctor(arguments):
        raise error

    monkeypatch.setattr(cli, "doctor", doctor)
    return cli.main(["doctor"])


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (UserError("no such folder"), 2, "error: no such folder\n"),
        (full_disk(), 2, "error: disk full at model.safetensors; free space and run the same command again: nothing "),
        (PermissionError(errno.EACCES, "", "/usr/out"), 2, "error: /usr/out: permission denied; name a folder that "),
    ],
)
def test_a_command_of_deas_vla_ends_as_a_recipe_does(error, status, line, monkeypatch, capsys):
    """An export onto a full disk and an interrupted audit left tracebacks (defects)."""
    assert command_that_meets(monkeypatch, error) == status
    assert capsys.readouterr().err.startswith(line)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x", "file"), True),
        (Exception("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.ENOENT, "x"), False),
        (ValueError("space"), False),
    ],
)
def test_a_full_disk_is_known_however_it_is_wrapped(error, full):
    assert (system_fault(error) is not None) == full


def torch_out_of_memory() -> Exception:
    """As torch itself says it on a CPU."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    return caught.value


MEMORY_RAN_OUT = [
    MemoryError("Unable to allocate 5.15 GiB"),
    torch.OutOfMemoryError("CUDA out of memory."),
    torch_out_of_memory(),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
    RuntimeError("simulator worker 0 died (exit status -9); was memory short?"),
]


@pytest.mark.parametrize("error", MEMORY_RAN_OUT, ids=lambda error: type(error).__name__)
def test_memory_that_ran_out_is_one_line_with_what_to_change(error, capsys):
    """It was "mp4 cannot be decoded; copy it again", or "delete it and run again" of a checkpoint (defect)."""

    def main(config):
        try:
            with as_user_error("film.mp4 cannot be decoded; copy it again", Exception):
                raise error
        except Exception as caught:
            caught.add_note(f"{FITS_WITH}--training.batch_size=16 (2 GiB)")
            raise RuntimeError("a library's own words") from caught

    assert end_of(main) == 2
    error.__notes__ = []
    expected = "error: out of memory: --training.batch_size=16 (2 GiB); then run again: what was finished is kept\n"
    assert capsys.readouterr().err == expected


def test_memory_that_ran_out_before_anything_was_estimated_is_one_line_too():
    assert "a smaller --training.batch_size" in system_fault(MemoryError())
    assert system_fault(RuntimeError("allocate")) is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_one_line(number, capsys):
    assert end_of(raises(OSError(number, os.strerror(number), "/usr/critic"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /usr/critic: ") and line.endswith("name a folder that you may write to")


PRINTS_FOR_EVER = """
import sys
from dataclasses import dataclass
from deas_vla.launch import run_recipe

@dataclass
class Config:
    n: int = 1

def main(config):
    while True:
        print("a line", flush=True)

run_recipe(main, Config)
"""


def test_who_closes_the_pipe_sees_no_traceback():
    """``recipe | head`` (defect)."""
    process = subprocess.Popen([sys.executable, "-c", PRINTS_FOR_EVER], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == ("", 141)


def test_other_processes_wait_for_the_first_to_tell_and_print_no_help(monkeypatch, capsys, tmp_path):
    naps, files = [], [tmp_path / str(rank) / "error.json" for rank in (0, 1)]
    monkeypatch.setattr(launch.time, "sleep", naps.append)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[1]))
    for file in files:
        file.parent.mkdir()
    assert end_of(raises(UserError("only here"))) == 2
    assert naps == [launch.OTHER_RANKS_WAIT_S] and "only here" in capsys.readouterr().err and files[1].is_file()
    # The first has told it, and the launcher did not get round to ending this one.
    files[0].write_text("{}")
    assert end_of(raises(UserError("everywhere"))) == 2 and capsys.readouterr().err == ""
    assert end_of(raises(KeyboardInterrupt())) == 130 and capsys.readouterr().err == ""
    assert end_of(print, ["--help"]) == 0 and capsys.readouterr().out == ""


def test_the_launcher_is_told_the_line(tmp_path, monkeypatch):
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    assert end_of(raises(UserError("no such task"))) == 2
    assert json.loads(file.read_text())["message"]["message"] == "error: no such task"


def test_a_full_disk_names_the_file_even_if_the_library_does_not(tmp_path):
    with pytest.raises(RuntimeError) as caught, atomic_path(tmp_path / "critic.safetensors"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert f"disk full at {tmp_path / 'critic.safetensors'}; free space" in system_fault(caught.value)
