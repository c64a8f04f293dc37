"""Registries: what a user can add (a policy, a scorer, a simulator, a robot), by name.

    POLICIES = Registry("policy", group="deas_vla.policies", builtin={"small_vla": "deas_vla.policies.small_vla"})
    register_policy = POLICIES.register

    @register_policy("linear")          # in any module, of this package or of another
    class LinearPolicy(ChunkPolicy): ...

A name is looked up among what was registered, then in the package, then among the entry points of installed packages
(``linear = my_package.linear`` in the group). A user may also type ``my_package.linear:linear``: that module is
imported first. Names that are read from files never import anything but the package and entry points.
"""

import difflib
import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path

from deas_vla.errors import UserError


class Registry[T]:
    """Names of one sort of things.

    Args:
        what: the sort, for messages: ``policy``.
        group: of the entry points: ``deas_vla.policies``.
        builtin: name to the module of this package that registers it; imported when it is asked for.
    """

    def __init__(self, what: str, *, group: str, builtin: Mapping[str, str]) -> None:
        self.what, self.group, self.builtin = what, group, dict(builtin)
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers a class or function; the last one of a name counts."""

        def keep(entry: T) -> T:
            self._entries[name] = entry
            return entry

        return keep

    def find(self, name: object, where: str | Path | None = None) -> T:
        """What is registered under a name.

        Args:
            name: as registered.
            where: the file or flag that asks for it, for the message.

        Raises:
            UserError: if there is none, with the names there are.
        """
        if isinstance(name, str) and name not in self._entries:
            module = self.builtin.get(name) or self._entry_points().get(name)
            if module is not None:
                importlib.import_module(module)
        if not isinstance(name, str) or name not in self._entries:
            names = self.names()
            close = difflib.get_close_matches(str(name), names, 1)
            hint = f"did you mean {close[0]}? " if close else ""
            place = f"{where}: " if where is not None else ""
            raise UserError(f"{place}unknown {self.what} {name!r}; {hint}there are {', '.join(names)}")
        return self._entries[name]

    def resolve(self, typed: str, where: str | Path | None = None) -> tuple[str, T]:
        """A name that a user typed, ``NAME`` or ``MODULE:NAME``, and what is registered under it.

        Raises:
            UserError: if the module cannot be found, or the name is unknown.
        """
        module, _, name = typed.rpartition(":")
        if module:
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                place = f"{where}: " if where is not None else ""
                raise UserError(
                    f"{place}cannot import {module} ({error}); install it, or add its folder to PYTHONPATH"
                ) from error
        return name, self.find(name, where)

    def name_of(self, entry: T) -> str:
        """The name under which a class is registered, or the nearest of its base classes.

        Raises:
            UserError: if it is not registered.
        """
        for base in getattr(entry, "__mro__", (entry,)):
            for name, registered in self._entries.items():
                if registered is base:
                    return name
        raise UserError(
            f"{getattr(entry, '__name__', entry)} is not registered as a {self.what}; "
            f"decorate it with @register_{self.what}(NAME)"
        )

    def names(self) -> list[str]:
        """All names that can be found, sorted; nothing is imported."""
        return sorted({*self._entries, *self.builtin, *self._entry_points()})

    def _entry_points(self) -> dict[str, str]:
        return {point.name: point.module for point in entry_points(group=self.group)}
