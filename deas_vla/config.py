"""Command lines: nested dataclasses become flags with dots, and the comments above their fields become ``--help``.

    --critic.expectile=0.7 --tasks=lift,stack --config=my.yaml

tyro does the work: draccus, LeRobot's parser, resets a customised default (``lambda: Critic(hidden_dim=256)``) when one
field of it is set. Added: lists with commas, ``true`` and ``false``, a file of settings, one line for each mistake.
"""

import contextlib
import dataclasses
import datetime
import difflib
import hashlib
import io
import itertools
import json
import os
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any, get_args, get_origin

from deas_vla.errors import UserError


def parse[T](config_class: type[T], argv: list[str] | None = None, prog: str | None = None) -> T:
    """Builds a configuration: flags win over the file of ``--config``, that over ``--preset=NAME``, that over defaults.

    Each field of the dataclass has a comment above or behind it, or a line under ``Attributes:`` of its class: its
    ``--help``. Its `preset_values` says what a preset sets, its `for_arguments` which class fits the arguments. Raises
    UserError, one line, for an unknown flag, a missing or wrong value, or an unreadable file.
    """
    import tyro

    argv = expand_home(sys.argv[1:]) if argv is None else argv
    config_class = _fitting(config_class, argv)
    known = _flag_types(config_class)
    arguments = _with_files_and_switches(argv, known)
    chosen = [flag.removeprefix("--preset=") for flag in arguments if flag.startswith("--preset=")]
    if chosen and "preset" in known:
        arguments = _as_flags(config_class.preset_values(chosen[-1]), known) + arguments
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            config, unknown = tyro.cli(
                config_class, args=arguments, prog=prog, config=(tyro.conf.FlagConversionOff,),
                use_underscores=True, return_unknown_args=True, registry=_registry(),
            )  # fmt: skip
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_first_paragraph(errors.getvalue())) from None
    if unknown:
        raise UserError(_unknown(unknown[0], known))
    return config


def expand_home(argv: list[str]) -> list[str]:
    """``--output=~/run`` as the shell would read it in a word of its own: behind a "=" it leaves the ~ as it is.

    In a file of settings nothing else would read it.
    """
    return [re.sub(r"(?<=[=,\"])~(?=[/,\"]|$)", lambda _: os.path.expanduser("~"), token) for token in argv]


def from_json[T](config_class: type[T], values: dict, where: str | Path) -> T:
    """The inverse of `to_json`, absent fields are defaults; a UserError names `where` for unknown and wrong ones."""
    named = [f"--{name}={value}" for name, value in values.items() if isinstance(value, str)]
    try:
        return parse(config_class, _as_flags(values, _flag_types(_fitting(config_class, named))))
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def to_json(config: Any) -> dict:
    """A configuration as JSON values: paths become strings, tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def flat(values: dict, prefix: str = "") -> dict:
    """Nested values under dotted names, as flags have them."""
    found = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def incidental(default: Any) -> Any:
    """A field that does not change what a stage makes: where it is kept, how often progress is shown."""
    given = {"default_factory": default.copy} if isinstance(default, list) else {"default": default}
    return dataclasses.field(**given, metadata={"outcome": False})


def outcome_settings(config: Any) -> dict:
    """The settings that decide what a stage makes, as JSON values: all but `incidental` fields; a dict is complete."""
    if isinstance(config, dict):
        return config
    values = to_json(config)
    for field in dataclasses.fields(config):
        if not field.metadata.get("outcome", True):
            del values[field.name]
        elif dataclasses.is_dataclass(getattr(config, field.name)):
            values[field.name] = outcome_settings(getattr(config, field.name))
    return values


def fingerprint(*parts: Any) -> str:
    """SHA-256 of configurations and other JSON values; equal parts in the same order have equal fingerprints."""
    values = [to_json(part) if dataclasses.is_dataclass(part) else part for part in parts]
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fitting[T](config_class: type[T], argv: list[str]) -> type[T]:
    """Which flags there are may follow from another flag, as a simulator's settings from ``--env``."""
    return config_class.for_arguments(argv) if hasattr(config_class, "for_arguments") else config_class


def read_file(path: Path) -> dict:
    """The names and values in a ``--config`` file, JSON or YAML."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config: {path} is not valid JSON or YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} must hold names and values")
    return values


def _flag_types(config_class: type, prefix: str = "") -> dict[str, Any]:
    """Every flag without its dashes, to the type of its value."""
    found, hints = {}, typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _flag_types(hints[field.name], f"{prefix}{field.name}.")
        elif field.init:
            found[prefix + field.name] = hints[field.name]
    return found


def _with_files_and_switches(argv: list[str], known: dict[str, Any]) -> list[str]:
    """Puts the content of ``--config`` files, as flags, before the others; a bare ``--flag`` of a bool is true."""
    from_files, flags, rest = [], [], iter(argv)
    joined = [f"{token}={next(rest, '')}" if token in ("--config", "--preset") else token for token in rest]
    for token, following in itertools.pairwise([*joined, "--"]):
        if token.startswith("--config="):
            from_files += expand_home(_as_flags(read_file(Path(token.removeprefix("--config="))), known))
        elif known.get(token.removeprefix("--")) is bool and following.startswith("-"):
            flags.append(f"{token}=true")
        else:
            flags.append(token)
    return from_files + flags


def _as_flags(values: dict, known: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested names and values as flags."""
    flags = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and name not in known:
            flags += _as_flags(value, known, name + ".")
        elif known.get(name) is str and isinstance(value, bool | None):
            raise UserError(f"--{name} is text; put {key}'s value in quotes: it was read as {json.dumps(value)}")
        else:
            # YAML reads 2024-01-01 as a date.
            as_text = isinstance(value, str | datetime.date)
            flags.append(f"--{name}={value if as_text else json.dumps(value, default=str)}")
    return flags


def _registry():
    """How tyro reads what it would read otherwise: lists with commas, true and false, null, and LeRobot's choices."""
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    def one_word(metavar: str, read, show=str, fits=lambda value: True) -> PrimitiveConstructorSpec:
        return PrimitiveConstructorSpec(1, metavar, lambda words: read(words[0]), fits, lambda value: [show(value)])

    def read_bool(text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, not {text!r}")
        return text.lower() == "true"

    def read_null(text: str) -> None:
        if text.lower() not in ("null", "none"):
            raise ValueError(f"expected null, not {text!r}")

    @registry.primitive_rule
    def rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type is bool:
            return one_word("true|false", read_bool, json.dumps)
        if info.type is types.NoneType:
            return one_word("null", read_null, json.dumps, lambda value: value is None)
        if info.type_origin in (list, tuple):
            item = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(get_args(info.type)[0], info.markers))
            return one_word(
                f"{item.metavar},…",
                lambda text: info.type_origin(item.instance_from_str([part]) for part in _parts(text)),
                lambda values: ",".join(item.str_from_instance(value)[0] for value in values),
            )
        if dict in map(get_origin, (info.type, *get_args(info.type))):
            import draccus
            import yaml

            return one_word("{…}", lambda text: draccus.decode(info.type, yaml.safe_load(text)))
        return None

    return registry


def _parts(text: str) -> list[str]:
    """The items of ``a,b``, of ``[a, b]``, or of a JSON list, whose texts may hold commas."""
    if text.startswith("[") and text.endswith("]"):
        with contextlib.suppress(ValueError):
            return [part if isinstance(part, str) else json.dumps(part) for part in json.loads(text)]
        text = text[1:-1]
    return [part.strip() for part in text.split(",") if part.strip()]


def _first_paragraph(box: str) -> str:
    """tyro's message without its title, its frame (Unicode or ASCII), and what follows a rule: one line."""
    words: list[str] = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│|").strip()
        if re.fullmatch("[─╰╯+-]+", text):
            if words:
                break
            continue  # without a frame, a rule also stands under the title
        words += text.split()
    return " ".join(words)


def _unknown(token: str, known: dict[str, Any]) -> str:
    """What to say about an argument that is no flag."""
    if not token.startswith("--"):
        return f"unexpected argument '{token}'; values are given as --name=value, lists as --name=one,two"
    name = token[2:].partition("=")[0]
    near = difflib.get_close_matches(name.replace("-", "_"), ["config", *known], n=1)
    near = near or [other for other in known if other.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"unknown flag --{name}; " + (f"did you mean --{near[0]}?" if near else "--help lists them all")
