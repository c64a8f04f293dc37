"""The configuration grammar: what a command line means, what it refuses, and how it explains itself."""

import dataclasses
import importlib
import json
import typing
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.config import fingerprint, from_json, parse, to_json
from deas_vla.errors import UserError

RECIPES = sorted(path.stem for path in (Path(__file__).parent.parent / "recipes").glob("[a-z]*.py"))


@dataclass(frozen=True)
class Head:
    """How values are represented.

    Attributes:
        kind: categorical, or scalar
            for ablation.
        bins: number of bins.
        low: lower end of the support.
        high: upper end of the support.
    """

    kind: Literal["categorical", "scalar"] = "categorical"
    bins: int = 101
    low: float = -1.0
    high: float = 0.0


@dataclass
class Critic:
    """The critic."""

    # τ of the expectile loss,
    # in (0, 1).
    expectile: float = 0.7
    # Widths of the layers.
    widths: tuple[int, ...] = (512, 512)
    # The head.
    head: Head = field(default_factory=lambda: Head(bins=51))

    def __post_init__(self):
        if not 0 < self.expectile < 1:
            raise ValueError("expectile must be between 0 and 1")


@dataclass
class Recipe:
    """Does the job.

    At length.
    """

    # Where everything goes.
    output: Path = Path("outputs/demo")
    # What to call it.
    name: str | None = None
    # Tasks to learn.
    tasks: list[str] = field(default_factory=lambda: ["Lift"])
    # Less of everything.
    fast: bool = False
    # Time limit, or none.
    limit: float | None = None
    # A remark.
    label: str = ""
    # The critic.
    critic: Critic = field(default_factory=Critic)


@pytest.mark.unit
def test_no_arguments_give_the_defaults():
    assert parse(Recipe, []) == Recipe()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("argv", "path", "value"),
    [
        (["--critic.expectile=0.9"], "critic.expectile", 0.9),
        (["--critic.expectile", "1e-3"], "critic.expectile", 1e-3),
        (["--critic.head.kind=scalar"], "critic.head.kind", "scalar"),
        (["--critic.widths=64"], "critic.widths", (64,)),
        (["--critic.widths=[64, 32]"], "critic.widths", (64, 32)),
        (["--tasks=Lift,Stack"], "tasks", ["Lift", "Stack"]),
        (["--tasks=007,on"], "tasks", ["007", "on"]),
        (["--tasks=[old]/x,y"], "tasks", ["[old]/x", "y"]),
        (['--tasks=["a, b", "c"]'], "tasks", ["a, b", "c"]),
        (["--name=1e3"], "name", "1e3"),
        (["--name=a=b"], "name", "a=b"),
        (["--name=null"], "name", None),
        (["--limit=5"], "limit", 5.0),
        (["--critic.head.bins=010"], "critic.head.bins", 10),
        (["--output=x/y"], "output", Path("x/y")),
        (["--fast"], "fast", True),
        (["--fast", "false"], "fast", False),
        (["--fast", "--limit=-1"], "limit", -1.0),
        (["--limit=1", "--limit=2"], "limit", 2.0),
    ],
)
def test_flags_set_fields_with_their_types(argv, path, value):
    got = parse(Recipe, argv)
    for name in path.split("."):
        got = getattr(got, name)
    assert got == value and type(got) is type(value)


@pytest.mark.unit
def test_a_home_folder_behind_an_equals_sign_is_the_users(monkeypatch, tmp_path):
    """The shell expands ~ only where a word begins: ``--output=~/run`` made a folder named ~ (defect)."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["recipe.py", "--output=~/run", "--tasks=~/a,b~/c,~", "--label=see ~/x"])
    config = parse(Recipe)
    assert config.output == tmp_path / "run" and config.label == "see ~/x"
    assert config.tasks == [str(tmp_path / "a"), "b~/c", str(tmp_path)]
    file = tmp_path / "settings.yaml"
    file.write_text("output: ~/run\ntasks: [~/a, b~/c]\nlabel: see ~/x")
    config = parse(Recipe, [f"--config={file}"])
    assert (config.output, config.tasks, config.label) == (tmp_path / "run", [str(tmp_path / "a"), "b~/c"], "see ~/x")


@pytest.mark.unit
def test_a_flag_keeps_the_rest_of_a_customised_default():
    """The default of critic.head has 51 bins; setting its kind must not bring back the class's own 101."""
    assert parse(Recipe, ["--critic.head.kind=scalar"]).critic.head == Head("scalar", 51)


@pytest.mark.unit
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path, suffix, encoding):
    file = tmp_path / f"c.{suffix}"
    file.write_text(json.dumps({"limit": 3, "critic": {"expectile": 0.8, "head": {"kind": "scalar"}}}), encoding)
    config = parse(Recipe, ["--limit=4", f"--config={file}"])
    assert config == parse(Recipe, ["--config", str(file), "--limit=4"])
    assert config.limit == 4.0
    assert config.critic == Critic(0.8, (512, 512), Head("scalar", 51))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--critic.expectle=1"], ["--critic.expectle", "did you mean --critic.expectile?"]),
        (["--expectile=0.9"], ["did you mean --critic.expectile?"]),
        (["--config_path=x"], ["did you mean --config?"]),
        (["--zzz=1"], ["--zzz", "--help"]),
        (["--critic=1"], ["unknown flag --critic"]),
        (["Lift"], ["'Lift'", "--name=value"]),
        (["--tasks"], ["--tasks", "Missing value"]),
        (["--tasks", "Lift", "Stack"], ["'Stack'", "lists as --name=one,two"]),
        (["--critic.expectile=high"], ["--critic.expectile", "float", "'high'"]),
        (["--critic.expectile=true"], ["--critic.expectile", "float", "'true'"]),
        (["--critic.expectile=null"], ["--critic.expectile", "float"]),
        (["--critic.head.bins=1.5"], ["--critic.head.bins", "int", "'1.5'"]),
        (["--critic.head.bins=1:30"], ["--critic.head.bins", "int", "'1:30'"]),
        (["--critic.head.kind=tanh"], ["--critic.head.kind", "'tanh'", "'categorical', 'scalar'"]),
        (["--critic.widths=a"], ["--critic.widths", "int", "'a'"]),
        (["--fast=2"], ["--fast", "expected true or false, not '2'"]),
        (["--limit=[1"], ["--limit", "null|FLOAT"]),
        (["--critic.expectile=2"], ["critic: expectile must be between 0 and 1"]),
        (["--config=not_there.yaml"], ["not_there.yaml", "No such file"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_flag(argv, parts):
    with pytest.raises(UserError) as raised:
        parse(Recipe, argv)
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"critic": {"expectle": 1}}', "did you mean --critic.expectile?"),
        ('{"critic": 3}', "unknown flag --critic"),
        ("[1]", "must hold names and values"),
        ('{"limit": ', "is not valid JSON or YAML"),
        ("critic:\n\texpectile: 0.8", "is not valid JSON or YAML"),
        ('{"limit": "soon"}', "--limit"),
        ('{"label": false}', "--label is text; put label's value in quotes"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_mistake_in_a_file_is_one_line(tmp_path, text, part, suffix):
    file = tmp_path / f"bad.{suffix}"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        parse(Recipe, [f"--config={file}"])
    assert part in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.unit
def test_a_date_and_a_list_in_a_file_are_text_as_it_stands_there(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("label: 2024-01-01\ntasks: ['runs, old', 2024-01-02, on the left]\n")
    config = parse(Recipe, [f"--config={file}"])
    assert config.label == "2024-01-01"
    assert config.tasks == ["runs, old", "2024-01-02", "on the left"]


@pytest.mark.unit
def test_a_field_without_default_must_be_given():
    cls = dataclasses.make_dataclass("Needy", [("path", str)])
    assert parse(cls, ["--path=x"]).path == "x"
    with pytest.raises(UserError, match=r"--path STR \(required\)"):
        parse(cls, [])


recipes = st.builds(
    Recipe,
    output=st.text("abc/_", min_size=1).map(Path),
    name=st.none() | st.text("abn0.1 =", min_size=1).filter(str.strip),
    tasks=st.lists(st.text('abc01,[] "', min_size=1)),
    fast=st.booleans(),
    limit=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    critic=st.builds(
        Critic,
        expectile=st.floats(0.01, 0.99),
        widths=st.lists(st.integers(1, 4096), min_size=1).map(tuple),
        head=st.builds(Head, kind=st.sampled_from(["categorical", "scalar"]), bins=st.integers(1, 999)),
    ),
)


def as_flags(value: dict, prefix: str = "") -> list[str]:
    flags = []
    for key, item in value.items():
        if isinstance(item, dict):
            flags += as_flags(item, f"{prefix}{key}.")
        elif isinstance(item, list):
            flags.append(f"--{prefix}{key}={json.dumps(item)}")
        else:
            flags.append(f"--{prefix}{key}={item if isinstance(item, str) else json.dumps(item)}")
    return flags


@pytest.mark.unit
@given(recipes)
def test_every_configuration_survives_flags_and_json(config):
    assert parse(Recipe, as_flags(to_json(config))) == config
    assert from_json(Recipe, json.loads(json.dumps(to_json(config))), "x") == config


@pytest.mark.unit
@given(recipes, recipes)
def test_fingerprints_differ_exactly_when_configurations_do(one, other):
    assert (fingerprint(one) == fingerprint(other)) == (to_json(one) == to_json(other))


@pytest.mark.unit
def test_fingerprint_sees_every_part_and_no_order_of_names():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(1, 2), fingerprint(2, 1), fingerprint([1, 2]), fingerprint(1), fingerprint(Head())}) == 5
    assert fingerprint(Head()) == fingerprint({"kind": "categorical", "bins": 101, "low": -1.0, "high": 0.0})


@pytest.mark.unit
def test_help_explains_every_field(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Recipe, ["--help"], prog="recipe.py")
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "usage: recipe.py" in text and "Does the job." in text
    assert "--critic.expectile FLOAT τ of the expectile loss, in (0, 1). (default: 0.7)" in text
    assert "--critic.head.kind {categorical,scalar} categorical, or scalar for ablation." in text
    assert "--critic.head.bins INT number of bins. (default: 51)" in text


def unexplained(cls: type, prefix: str = "") -> list[str]:
    """The fields, nested ones too, for which ``--help`` has a default but no words."""
    docstrings = pytest.importorskip("tyro._docstrings")
    silent = []
    for name, hint in typing.get_type_hints(cls).items():
        if is_dataclass(hint):
            silent += unexplained(hint, f"{prefix}{name}.")
        elif not docstrings.get_field_docstring(cls, name, ()):
            silent.append(prefix + name)
    return silent


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_explains_every_field(recipe):
    module = importlib.import_module(f"recipes.{recipe}")
    own = [v for v in vars(module).values() if is_dataclass(v) and v.__module__ == module.__name__]
    assert own, f"recipes/{recipe}.py defines no configuration"
    for cls in own:
        assert unexplained(cls) == []
        assert to_json(parse(cls, [])) == to_json(cls())
