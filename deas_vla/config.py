"""The configuration grammar of all recipes: nested dataclasses, flags with dots, JSON or YAML files.

A recipe's configuration is one dataclass whose fields are values or further dataclasses. Each field is explained
in a comment above it, or under ``Attributes:`` in its class's docstring. `parse` turns ``--critic.expectile=0.7
--tasks=Lift,Stack --config=my.yaml`` into an instance, as LeRobot's command lines do; flags win over the file, the
file wins over the defaults. Values are decoded by draccus, LeRobot's own parser.

Two things are our own. Where a dataclass is a default of another (``default_factory=lambda: Critic(width=64)``),
setting one of its fields keeps the others of that default. And every mistake is one line that names the flag.
"""

import ast
import dataclasses
import difflib
import hashlib
import inspect
import json
import re
import shutil
import sys
import textwrap
import types
import typing
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from deas_vla.errors import UserError


@dataclass(frozen=True)
class Option:
    """One field that can be set.

    Attributes:
        name: dotted name, for example ``critic.expectile``.
        type: the declared type.
        default: default as JSON, or `dataclasses.MISSING` if it must be given.
        help: its explanation, or "".
    """

    name: str
    type: Any
    default: Any
    help: str


# ---- for recipes -----------------------------------------------------------------------------------------------


def parse[T](config_class: type[T], argv: list[str] | None = None, prog: str | None = None) -> T:
    """Builds a configuration from a command line.

    Args:
        config_class: a dataclass.
        argv: the arguments; None: those of this process.
        prog: name of the program in ``--help``; None: that of this process.

    Raises:
        UserError: for an unknown flag (with the nearest known one), a value of the wrong type, a missing value, a
            value that the class refuses by ValueError, or an unreadable file.
        SystemExit: after printing ``--help``.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(help_text(config_class, prog or Path(sys.argv[0]).name))
        raise SystemExit(0)

    known = {option.name: option for option in options(config_class)}
    flags, file = _read_flags(argv, known)
    values = _defaults(config_class)
    if file is not None:
        _merge(values, read_file(Path(file)), known, where=f"{file}: ")
    for name, text in flags:
        *parents, leaf = name.split(".")
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[leaf] = _from_text(known[name].type, text, name)
    return _build(config_class, values, prefix="")


def from_json[T](config_class: type[T], value: dict, where: str | Path) -> T:
    """The inverse of `to_json`; fields that are absent have their defaults.

    Args:
        config_class: a dataclass.
        value: what `to_json` gave.
        where: the file it came from, for messages.

    Raises:
        UserError: if a field is unknown or has a wrong value.
    """
    values = _defaults(config_class)
    known = {option.name: option for option in options(config_class)}
    _merge(values, value, known, where=f"{where}: ")
    try:
        return _build(config_class, values, prefix="")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def to_json(config: Any) -> dict:
    """A configuration as JSON values: paths become strings, tuples become lists."""
    import draccus

    return draccus.encode(config)


def fingerprint(*parts: Any) -> str:
    """SHA-256 of configurations and other JSON values; equal parts in the same order have equal fingerprints.

    A stage's output carries the fingerprint of what it was made from, and is made anew when that changes.
    """
    value = [to_json(part) if is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def options(config_class: type) -> list[Option]:
    """All fields that can be set, those of nested dataclasses included, in order of declaration."""
    return _options(config_class, _defaults(config_class), prefix="")


def help_text(config_class: type, prog: str) -> str:
    """What ``--help`` prints: every flag with its type, default and explanation."""
    width = min(shutil.get_terminal_size().columns, 110)
    lines = [f"usage: {prog} [--config=FILE] [--NAME=VALUE ...]", ""]
    lines += [_summary(config_class), "", "  --config=FILE"]
    lines += _indent("JSON or YAML file with the same names, nested; flags win over it.", width)
    group = ""
    for option in options(config_class):
        parent = option.name.rpartition(".")[0]
        if parent != group:
            group = parent
            lines += ["", f"{parent}: {_summary(_class_at(config_class, parent))}" if parent else ""]
        value = "required" if option.default is MISSING else f"default: {_show(option.default)}"
        lines += [f"  --{option.name}={_describe(option.type)}  ({value})"]
        lines += _indent(option.help, width)
    return "\n".join(lines)


# ---- fields and their explanations -----------------------------------------------------------------------------


def _fields(cls: type) -> list[tuple[str, Any, Any]]:
    """(name, type, default) of the fields that the constructor takes; a default of MISSING must be given."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if field.init:
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            found.append((field.name, hints[field.name], default))
    return found


def _is_nested(field_type: Any) -> bool:
    return isinstance(field_type, type) and is_dataclass(field_type)


def _defaults(cls: type) -> dict:
    """The defaults as JSON, nested; fields without a default are absent."""
    values = {}
    for name, field_type, default in _fields(cls):
        if default is not MISSING:
            values[name] = to_json(default)
        elif _is_nested(field_type):
            values[name] = _defaults(field_type)
    return values


def _options(cls: type, defaults: dict, prefix: str) -> list[Option]:
    values, nested, explained = [], [], _explanations(cls)
    for name, field_type, _ in _fields(cls):
        if _is_nested(field_type):
            nested += _options(field_type, defaults[name], f"{prefix}{name}.")
        else:
            option = Option(prefix + name, field_type, defaults.get(name, MISSING), explained.get(name, ""))
            values.append(option)
    return values + nested


def _explanations(cls: type) -> dict[str, str]:
    """Field name to explanation, those of base classes included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            found |= _docstring_explanations(base) | _comment_explanations(base)
    return found


def _docstring_explanations(cls: type) -> dict[str, str]:
    """Texts of the ``Attributes:`` section of a docstring."""
    found, names = {}, []
    _, _, section = inspect.cleandoc(cls.__dict__.get("__doc__") or "").partition("Attributes:\n")
    for line in section.splitlines():
        if line and not line.startswith(" "):
            break
        entry = re.match(r" {4}(\w+(?:, \w+)*): *(.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        elif line.strip():
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found


def _comment_explanations(cls: type) -> dict[str, str]:
    """Texts of the comments right above each field."""
    try:
        lines = textwrap.dedent(inspect.getsource(cls)).splitlines()
    except (OSError, TypeError):  # a class without a source file
        return {}
    found = {}
    for node in ast.parse("\n".join(lines)).body[0].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment, above = [], node.lineno - 2
            while lines[above].strip().startswith("#"):
                comment.insert(0, lines[above].strip().lstrip("#").strip())
                above -= 1
            if comment:
                found[node.target.id] = " ".join(comment)
    return found


def _summary(cls: type) -> str:
    return inspect.cleandoc(cls.__doc__ or cls.__name__).split("\n\n")[0].replace("\n", " ")


def _class_at(cls: type, path: str) -> type:
    for name in path.split("."):
        cls = typing.get_type_hints(cls)[name]
    return cls


def _indent(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _show(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


# ---- reading ---------------------------------------------------------------------------------------------------


def _read_flags(argv: list[str], known: dict[str, Option]) -> tuple[list[tuple[str, str]], str | None]:
    """Splits a command line into (name, text) pairs and the configuration file, if any."""
    flags, file, rest = [], None, list(argv)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise UserError(f"unexpected argument '{token}'; values are given as --name=value")
        name, given, text = token[2:].partition("=")
        if name != "config" and name not in known:
            raise UserError(f"unknown flag --{name}{_nearest(name, ['config', *known], '--')}")
        if not given:
            switch = name in known and known[name].type is bool
            if rest and not rest[0].startswith("--") and (not switch or rest[0] in ("true", "false")):
                text = rest.pop(0)
            elif switch:
                text = "true"
            else:
                raise UserError(f"--{name} needs a value: --{name}=...")
        if name == "config":
            file = text
        else:
            flags.append((name, text))
    return flags, file


def read_file(path: Path) -> dict:
    """What a ``--config`` file holds.

    Raises:
        UserError: if it cannot be read, or holds no names and values.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"--config: {path} is not valid JSON or YAML: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"--config: {path} must hold names and values")
    return value


def _merge(values: dict, given: dict, known: dict[str, Option], where: str, prefix: str = "") -> None:
    """Writes a file's values over the defaults, in place."""
    for key, value in given.items():
        name = f"{prefix}{key}"
        if "." in str(key):
            parent = name.rpartition(".")[0]
            raise UserError(f"{where}'{key}': names with dots are for flags; nest it under '{parent}'")
        if name in known:
            values[key] = value
        elif any(other.startswith(name + ".") for other in known):
            if not isinstance(value, dict):
                raise UserError(f"{where}'{name}' must hold names and values")
            _merge(values.setdefault(key, {}), value, known, where, name + ".")
        else:
            raise UserError(f"{where}unknown field '{name}'{_nearest(name, list(known), '')}")


def _nearest(name: str, known: list[str], dashes: str) -> str:
    """ " ; did you mean ..." from the whole name, or else from its last part."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.6)
    near = near or [k for k in known if k.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    return f"; did you mean {dashes}{near[0]}?" if near else "; --help lists them all"


def _members(field_type: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type alone."""
    return get_args(field_type) if get_origin(field_type) in (Union, types.UnionType) else (field_type,)


def _from_text(field_type: Any, text: str, name: str) -> Any:
    """A flag's text as a JSON value for a type: text stays text where the type is text."""
    import yaml

    members = _members(field_type)
    if type(None) in members and text.lower() in ("null", "none"):
        return None
    if any(
        m in (str, Path) or (get_origin(m) is Literal and isinstance(get_args(m)[0], str)) for m in members
    ):
        return text
    items = [m for m in members if get_origin(m) in (list, tuple)]
    if items and not text.lstrip().startswith("["):
        item_type = get_args(items[0])[0]
        return [_from_text(item_type, part.strip(), name) for part in text.split(",") if part.strip()]
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{name} must be {_describe(field_type)}, not {text}") from error


def _build[T](cls: type[T], values: dict, prefix: str) -> T:
    arguments = {}
    for name, field_type, _ in _fields(cls):
        if _is_nested(field_type):
            arguments[name] = _build(field_type, values.get(name, {}), f"{prefix}{name}.")
            continue
        if name not in values:
            raise UserError(f"--{prefix}{name} must be given: {_describe(field_type)}")
        try:
            arguments[name] = _decode(field_type, values[name])
        except (TypeError, ValueError) as error:
            raise UserError(
                f"--{prefix}{name} must be {_describe(field_type)}, not {_show(values[name])}"
            ) from error
    try:
        return cls(**arguments)
    except (ValueError, UserError) as error:
        raise UserError(f"--{prefix.rstrip('.')}: {error}" if prefix else str(error)) from error


def _decode(field_type: Any, value: Any) -> Any:
    """A JSON value as a declared type.

    Raises:
        TypeError: if it is not of that type.
    """
    import draccus

    # draccus lets null pass for every type, true for a number and a text for a list of its letters.
    members = _members(field_type)
    refused = value is None and type(None) not in members
    refused |= isinstance(value, bool) and not any(m is bool or get_origin(m) is Literal for m in members)
    refused |= isinstance(value, str) and all(get_origin(m) in (list, tuple) for m in members)
    if refused:
        raise TypeError
    try:
        return draccus.decode(field_type, value)
    except Exception as error:  # of many types, plain Exception among them
        raise TypeError(str(error)) from error


def _describe(field_type: Any) -> str:
    """A type in words a user knows: ``int``, ``true|false``, ``a|b``, ``list of str``."""
    members = [m for m in _members(field_type) if m is not type(None)]
    if len(members) > 1 or len(members) < len(_members(field_type)):
        return "|".join(
            [_describe(m) for m in members] + ["null"] * (len(members) < len(_members(field_type)))
        )
    if get_origin(field_type) is Literal:
        return "|".join(str(choice) for choice in get_args(field_type))
    if get_origin(field_type) in (list, tuple):
        return f"list of {_describe(get_args(field_type)[0])}"
    if field_type is bool:
        return "true|false"
    if field_type is Path:
        return "path"
    return getattr(field_type, "__name__", str(field_type))
