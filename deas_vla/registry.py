"""Policies, scorers, simulators and robots by name: a decorator adds one, wherever its file is.

A name is looked up among what is registered, then among the modules that this project brings (imported when they are
asked for), then among the entry points of installed distributions. ``my_arm.py:toy`` and ``my_package.arm:toy`` name a
file or a module outside the package, whose import registers ``toy``. A name that is read from a file (a saved scorer),
or by a program that is not ours (LeRobot's), is found where the environment says so: ``DEAS_VLA_PLUGINS=my_arm.py``.
"""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from deas_vla.errors import UserError, unknown

PLUGINS = "DEAS_VLA_PLUGINS"  # environment variable: files and modules that register something, separated by commas


class Registry[T]:
    """Name to class (or function) of one kind, for messages: ``robot``.

    `group`: of the entry points whose names and modules are added, ``deas_vla.robots``; `brought`: name to the module
    of this project that registers it.
    """

    def __init__(self, kind: str, group: str, brought: dict[str, str] | None = None):
        self.kind, self.group, self.brought = kind, group, dict(brought or {})
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """The decorator: ``@register_robot("name")``; a ValueError if something else has the name already."""

        def add(registered: T) -> T:
            before = self._registered.get(name)
            # A class that is made again (a reload in a notebook) replaces itself.
            if before is not None and before.__qualname__ != registered.__qualname__:
                raise ValueError(f"there is a {self.kind} named {name!r} already: {before}")
            self._registered[name] = registered
            return registered

        return add

    def names(self) -> list[str]:
        """All names that `get` knows, sorted."""
        self._import_named_by_user()
        return sorted({*self._registered, *self.brought, *entry_points(group=self.group).names})

    def get(self, name: str) -> T:
        """What has the name; ``FILE.py:NAME`` and ``MODULE:NAME`` are imported first. Of an unknown one a UserError."""
        module, _, name = name.rpartition(":")
        if module:
            import_plugin(module)
        elif name not in self._registered:
            if name in self.brought:
                importlib.import_module(self.brought[name])
            for point in entry_points(group=self.group, name=name):
                importlib.import_module(point.module)
            self._import_named_by_user()
        if name not in self._registered:
            where = f"{module} registers no {self.kind} {name!r}; " if module else ""
            raise UserError(where + unknown(self.kind, name, self.names()))
        return self._registered[name]

    def stored(self, name: object) -> T:
        """What has a name that a file says: one that is registered, and never a module that the file names."""
        if name not in self.names():
            problem = unknown(self.kind, str(name), self.names())
            raise UserError(f"{problem}; if it is your own, name its file: {PLUGINS}=FILE.py")
        return self.get(name)

    def name_of(self, registered: type) -> str | None:
        """The name under which a class or one of its bases is registered; None if it is not."""
        names = {known: name for name, known in self._registered.items()}
        return next((names[candidate] for candidate in registered.__mro__ if candidate in names), None)

    def _import_named_by_user(self) -> None:
        for module in filter(None, os.environ.get(PLUGINS, "").split(",")):
            import_plugin(module)


def import_plugin(module: str) -> None:
    """Imports a file (``path/to/file.py``) or a module by its dotted name, so that it registers what it has.

    A file's own folder is put on the search path, so that a process that this one starts finds it too.
    """
    if not module.endswith(".py"):
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise UserError(f"{module} cannot be imported: {error}") from error
        return
    path = Path(module).resolve()
    if not path.is_file():
        raise UserError(f"{module} is not a file")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    found = importlib.import_module(path.stem)
    if Path(getattr(found, "__file__", None) or "").resolve() != path:
        raise UserError(f"{module}: there is a module {path.stem} elsewhere already; give the file another name")
