"""A registry finds what was registered, what the package has, and what a user names; files import nothing."""

import sys

import pytest

from deas_vla.errors import UserError
from deas_vla.registry import Registry

pytestmark = pytest.mark.unit


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A registry in a package of its own, with one builtin entry."""
    (tmp_path / "toy_package.py").write_text(
        "from deas_vla.registry import Registry\n"
        "TOYS = Registry('toy', group='toy_package.toys', builtin={'ball': 'toy_ball'})\n"
    )
    (tmp_path / "toy_ball.py").write_text(
        "from toy_package import TOYS\n@TOYS.register('ball')\nclass Ball: pass\n"
    )
    (tmp_path / "toy_outside.py").write_text(
        "from toy_package import TOYS\n@TOYS.register('kite')\nclass Kite: pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import toy_package

    yield toy_package.TOYS
    for name in ("toy_package", "toy_ball", "toy_outside"):
        sys.modules.pop(name, None)


def test_what_the_package_has_is_imported_when_it_is_asked_for(registry):
    assert registry.names() == ["ball"] and "toy_ball" not in sys.modules
    ball = registry.find("ball")
    assert ball.__name__ == "Ball" and registry.name_of(ball) == "ball"
    assert registry.name_of(type("Football", (ball,), {})) == "ball"


def test_a_module_that_a_user_names_is_imported_and_a_name_in_a_file_imports_nothing(registry):
    with pytest.raises(UserError, match=r"saved\.json: unknown toy 'toy_outside:kite'; .*there are ball"):
        registry.find("toy_outside:kite", "saved.json")
    assert "toy_outside" not in sys.modules
    name, kite = registry.resolve("toy_outside:kite")
    assert name == "kite" and kite.__name__ == "Kite" and registry.find("kite") is kite
    with pytest.raises(UserError, match="cannot import no_such_module"):
        registry.resolve("no_such_module:kite")


def test_an_entry_point_of_an_installed_package_is_found(registry, tmp_path):
    installed = tmp_path / "toys-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[toy_package.toys]\nkite = toy_outside\n")
    assert registry.names() == ["ball", "kite"]
    assert registry.find("kite").__name__ == "Kite"


def test_unknown_names_are_refused_with_the_nearest_one():
    registry: Registry[type] = Registry("toy", group="nothing.here", builtin={"ball": "nowhere"})
    with pytest.raises(UserError, match=r"--toy: unknown toy 'bal'; did you mean ball\? there are ball"):
        registry.find("bal", "--toy")
    with pytest.raises(UserError, match="unknown toy 3"):
        registry.find(3)
    with pytest.raises(UserError, match=r"int is not registered as a toy; decorate it with @register_toy"):
        registry.name_of(int)
