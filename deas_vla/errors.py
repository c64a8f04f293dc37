"""Errors a user can mend: one line that names the thing and the mend, and no traceback at the command line."""


class UserError(Exception):
    """Something outside the program is wrong: a file, a flag, a data set, a missing package.

    The message is one line: what is wrong, where, and what to do about it. Command-line entry points print it
    and exit with status 2; library callers may catch it like any exception.
    """


class ContractMismatch(UserError):
    """Two parts disagree on columns, units, rate, cameras or normalisation statistics."""


def require(module: str, extra: str):
    """Imports an optional package, or says how to install it.

    Args:
        module: dotted name of the module to import.
        extra: the extra of this project (setup.cfg) that brings it.

    Returns:
        The imported module.

    Raises:
        UserError: if the package is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and not module.startswith(error.name.split(".")[0]):
            raise
        raise UserError(
            f"{module} is not installed; it comes with the '{extra}' extra: EXTRAS={extra} tools/install.sh"
        ) from error
