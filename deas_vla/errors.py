"""Errors a user can fix: one line that names what is wrong and the fix, and no traceback at the command line."""

import difflib
import errno
import importlib
import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something outside the program is wrong: a file, a flag, a data set, a missing package.

    The message is one line: what is wrong, where, and what to do about it. Programs print it and exit with status 2.
    """


class ContractMismatch(UserError):
    """Two parts disagree on columns, units, rate, cameras or normalisation statistics."""


def unknown(what: str, name: str, known: Collection[str]) -> str:
    """One line for a name that does not exist: the nearest one, and the known ones (the first 20)."""
    by_lower = {item.lower(): item for item in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"; did you mean '{by_lower[near[0]]}'?" if near else ""
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f"unknown {what} '{name}'{hint} (known: {', '.join(list(known)[:20])}{more})"


RANGES: dict[str, Callable[[float], bool]] = {
    "at least 0": lambda number: number >= 0,
    "at least 1": lambda number: number >= 1,
    "above 0": lambda number: number > 0,
    "from 0 to 1": lambda number: 0 <= number <= 1,
    "above 0 and at most 1": lambda number: 0 < number <= 1,
    "above 0 and below 1": lambda number: 0 < number < 1,
    "at least 0 and below 1": lambda number: 0 <= number < 1,
}


def require_ranges(config: object, prefix: str, ranges: dict[str, str]) -> None:
    """Refuses fields out of range, by their flags: ``{"at least 1": "horizon num_q"}`` with the prefix "critic."."""
    for limit, names in ranges.items():
        for name in names.split():
            if not RANGES[limit](getattr(config, name)) or math.isinf(getattr(config, name)):
                raise UserError(f"{prefix}{name}={getattr(config, name)} must be {limit}, and finite")


# How libraries that have no class for it say that memory ran out, of the machine or of a GPU; the last two are a worker
# process that the system killed.
OUT_OF_MEMORY = (
    "can't allocate memory", os.strerror(errno.ENOMEM), "bad_alloc", "CUDA out of memory", "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "allocate shared memory", "out of shared memory",
    "is killed by signal: Killed", "died (exit status -9)",
)  # fmt: skip


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what it came of, what that came of, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: an error of that class, or one that says so, is among the causes."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"  # torch's, which is not imported here
        or any(text in str(cause) for text in OUT_OF_MEMORY)
        for cause in causes(error)
    )


@contextmanager
def as_user_error(message: str, *errors: type[Exception]) -> Iterator[None]:
    """A block in which what a library raises when it cannot read something becomes one line, cause in brackets.

    `errors`: further classes than the usual ones. Memory that ran out says nothing of a file, and stays what it is.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, *errors) as error:
        if is_out_of_memory(error):
            raise
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{message} ({first_line})") from error


def require(module: str, extra: str):
    """The imported module of an optional package, or a UserError with the extra (setup.cfg) that brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name.split(".")[0]):
            raise
        fix = f"it comes with the '{extra}' extra: EXTRAS={extra} tools/install.sh"
        raise UserError(f"{module} is not installed; {fix}") from error
