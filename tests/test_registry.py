"""A registry finds what was registered, what the package has, and what a user names; files import nothing."""

import sys

import pytest

from deas_vla.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry in a package of its own, with one builtin entry."""
    (tmp_path / "toy_package.py").write_text(
        "from deas_vla.registry import Registry\nTOYS = Registry('toy', 'toy_package.toys', {'ball': 'toy_ball'})\n"
    )
    (tmp_path / "toy_ball.py").write_text("from toy_package import TOYS\n@TOYS.register('ball')\nclass Ball: pass\n")
    (tmp_path / "toy_outside.py").write_text("from toy_package import TOYS\n@TOYS.register('kite')\nclass Kite: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import toy_package

    yield toy_package.TOYS
    for name in ("toy_package", "toy_ball", "toy_outside"):
        sys.modules.pop(name, None)


def test_what_the_package_has_is_imported_when_it_is_asked_for(registry):
    assert registry.names() == ["ball"] and "toy_ball" not in sys.modules
    ball = registry.get("ball")
    assert ball.__name__ == "Ball" and registry.name_of(ball) == "ball"
    assert registry.name_of(type("Football", (ball,), {})) == "ball"
    assert registry.name_of(int) is None


@pytest.mark.parametrize("typed", ["toy_outside:kite", "{folder}/toy_outside.py:kite"])
def test_a_module_or_file_that_a_user_names_is_imported(registry, tmp_path, typed):
    kite = registry.get(typed.format(folder=tmp_path))
    assert kite.__name__ == "Kite" and registry.get("kite") is kite


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("no_such_module:kite", "no_such_module cannot be imported"),
        ("no/such/file.py:kite", "no/such/file.py is not a file"),
        ("toy_outside:ball_of_wool", "toy_outside registers no toy 'ball_of_wool'"),
        ("bal", "unknown toy 'bal'; did you mean 'ball'"),
    ],
)
def test_what_is_not_there_is_refused(registry, typed, message):
    with pytest.raises(UserError, match=message):
        registry.get(typed)


def test_an_entry_point_of_an_installed_package_is_found(registry, tmp_path):
    installed = tmp_path / "toys-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[toy_package.toys]\nkite = toy_outside\n")
    assert registry.names() == ["ball", "kite"]
    assert registry.get("kite").__name__ == "Kite"


def test_two_things_of_one_name_are_refused(registry):
    registry.get("ball")
    with pytest.raises(ValueError, match="there is a toy named 'ball' already"):
        registry.register("ball")(int)
