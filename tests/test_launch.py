"""How a recipe ends: exit status, one line, and no traceback for what a user can fix."""

import errno
import json
from dataclasses import dataclass

import pytest

from deas_vla import launch
from deas_vla.errors import UserError
from deas_vla.files import atomic_path
from deas_vla.launch import disk_full, run_recipe

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


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_recipe(raises(ZeroDivisionError()), Config, [])


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
    assert (disk_full(error) is not None) == full


def test_other_processes_wait_for_the_first_to_tell_and_print_no_help(monkeypatch, capsys):
    naps = []
    monkeypatch.setattr(launch.time, "sleep", naps.append)
    monkeypatch.setenv("RANK", "1")
    assert end_of(raises(UserError("only here"))) == 2
    assert naps == [launch.OTHER_RANKS_WAIT_S] and "only here" in capsys.readouterr().err
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
    assert f"disk full at {tmp_path / 'critic.safetensors'}; free space" in disk_full(caught.value)
