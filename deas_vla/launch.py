"""How a recipe starts and ends: its command line, and one clear line for an error that a user can fix."""

import ctypes
import errno
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from deas_vla.config import parse
from deas_vla.errors import UserError, causes, is_out_of_memory
from deas_vla.files import WRITING

# Begins the note on an error of a stage that says what to change when memory runs out.
FITS_WITH = "what takes less memory: "
# How long a process other than the first waits before it reports an error: mostly the first one has met the same
# error, reports it and ends, and the launcher then ends the others. On a loaded machine that takes seconds.
OTHER_RANKS_WAIT_S = 20.0
INTERRUPTED = 128 + signal.SIGINT  # what shells give a program that Ctrl-C ended
PR_SET_PDEATHSIG = 1  # prctl(2): the signal that a process gets when its parent ends


def run_recipe[T](main: Callable[[T], object], config_class: type[T], argv: list[str] | None = None) -> NoReturn:
    """Parses the command line, runs a recipe and ends the process.

    Exit status: 0 when `main` returns; 2 for a `UserError` and for a full disk or memory, reported in one line, once
    for all processes; 130 when interrupted. Any other exception is a defect and keeps its traceback.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))

    def work() -> None:
        if rank == 0 or not {"--help", "-h"} & set(sys.argv[1:] if argv is None else argv):
            main(parse(config_class, argv))
            leave_process_group()

    status = exit_status(work, lambda line: _report(line, rank))
    if status == INTERRUPTED and rank == 0:
        print("interrupted; run the same command again to go on", file=sys.stderr, flush=True)
    sys.exit(status)


def exit_status(work: Callable[[], int | None], report: Callable[[str], object]) -> int:
    """Does the work of a command, and says with which status its process ends; `report` gets the line of an error.

    0, or what `work` returns; 2 for what a user can fix; `INTERRUPTED`. Any other exception is raised; a closed pipe
    ends the process.
    """
    try:
        return work() or 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Quietly, as a program of the shell does, when who reads the output has enough (``… --help | head``).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        line = str(error) if isinstance(error, UserError) else system_fault(error)
        if line is None:
            raise
        report(f"error: {line}")
        return 2


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone, even by SIGKILL.

    torchrun gives each process a session of its own, in which no signal to the launcher's group reaches it.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_process_group() -> None:
    """Ends the threads of torch.distributed, if it runs; for a process that has done its work, not for one that failed.

    A thread of gloo that still holds tensors while the interpreter ends aborts the process ("terminate called without
    an active exception"). After an error others may wait in a collective, and leaving the group could wait for them.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()
        distributed.destroy_process_group()


def system_fault(error: BaseException) -> str | None:
    """One line for an error that came of memory, a disk or quota that is full, or a folder that may not be written.

    None for others. Writers wrap the system's error each in their own way: all its causes are searched, and texts too.
    """
    if is_out_of_memory(error):
        fix = _note(error, FITS_WITH) or "end other programs, or take a smaller --training.batch_size"
        return f"out of memory: {fix}; then run again: what was finished is kept"
    for cause in causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(cause):
            where = getattr(cause, "filename", None) or _note(error, WRITING) or Path.cwd()
            return f"disk full at {where}; free space and run the same command again: nothing is lost"
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{cause.filename or 'a file'}: {os.strerror(number).lower()}; name a folder that you may write to"
    return None


def _note(error: BaseException, kind: str) -> str | None:
    """The first note of this kind, by how it begins, on an error or what caused it."""
    notes = (note for cause in causes(error) for note in getattr(cause, "__notes__", []))
    return next((note.removeprefix(kind) for note in notes if note.startswith(kind)), None)


def _report(line: str, rank: int) -> None:
    # torchrun and accelerate end with a report of their own, many lines long; it quotes what is left in this file.
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if rank != 0:
        time.sleep(OTHER_RANKS_WAIT_S)
        # Each process of this machine has a folder, named by its number.
        if file and (Path(file).parents[1] / "0" / Path(file).name).is_file():
            return
    print(line, file=sys.stderr, flush=True)
    if file:
        info = {"py_callstack": line, "timestamp": str(int(time.time()))}
        Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": info}}), encoding="utf-8")
