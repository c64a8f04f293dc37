"""The doctor tells what is there, what is missing, and the command that brings it."""

import json

import pytest

from deas_vla import cli, doctor
from deas_vla.doctor import Package, parts

pytestmark = pytest.mark.unit

FITTING = [
    Package("torch", "2.11.0", ">=2.7,<2.12", ()),
    Package("robosuite", "1.5.2", "==1.5.2", ("sim",)),
    Package("lerobot", "0.6.1", "==0.6.1", ("lerobot",)),
    Package("deepspeed", None, ">=0.19", ("deepspeed",)),
]


def part(name: str, packages: list[Package], gl: bool = True) -> doctor.Part:
    return next(p for p in parts(packages, {"osmesa": gl, "egl": False}) if p.name.startswith(name))


def test_demo_is_ready_when_its_packages_fit_and_something_draws():
    assert not part("demo", FITTING).missing and not part("demo", FITTING).commands


def test_each_missing_thing_is_named_with_its_command():
    missing = [FITTING[0], Package("robosuite", None, "==1.5.2", ("sim",)), *FITTING[2:]]
    assert part("demo", missing).missing == ("robosuite==1.5.2",)
    assert "sim" in part("demo", missing).commands[0]
    assert not part("recipes/train_critic.py", missing).missing, "training needs no simulator"

    old = [Package("torch", "2.3.0", ">=2.7,<2.12", ()), *FITTING[1:]]
    assert part("the critic", old).missing == ("torch>=2.7,<2.12 (is 2.3.0)",)

    blind = part("demo", FITTING, gl=False)
    assert blind.missing == ("a GL library to draw camera images with",)
    assert blind.commands == (doctor.GL_COMMAND,)
    assert "deepspeed>=0.19" in part("accelerate_configs/deepspeed", FITTING).missing


def test_nothing_installed_is_one_part_that_says_so():
    (everything,) = parts([], {"osmesa": False, "egl": False})
    assert "not installed" in everything.missing[0] and everything.commands


def test_robocasa_is_asked_for_with_its_assets(tmp_path, monkeypatch):
    names = [need for need, _ in doctor._robocasa_needs()]
    assert any("assets" in name for name in names)
    package = tmp_path / "robocasa"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert [need for need, _ in doctor._robocasa_needs()] == ["robocasa's kitchen assets"]
    model = package / "models" / "assets" / "fixtures" / "sinks" / "Sink025" / "model.xml"
    model.parent.mkdir(parents=True)
    model.touch()
    assert doctor._robocasa_needs() == ()


def test_packages_come_from_the_metadata_of_this_project():
    found = {p.name: p for p in doctor.packages()}
    assert found["torch"].fits and found["torch"].extras == ()
    assert found["robosuite"].extras == ("sim",) and found["robosuite"].needed == "==1.5.2"
    assert "deas_vla" not in found


def test_a_gl_platform_that_fails_is_reported_as_such(monkeypatch):
    monkeypatch.setattr(doctor, "GL_PROBE", "import os; assert os.environ['MUJOCO_GL'] == 'egl'")
    assert doctor.rendering() == {"osmesa": False, "egl": True}


@pytest.mark.parametrize(("draws", "status"), [(True, 0), (False, 1)])
def test_command_prints_json_and_fails_if_the_demo_cannot_run(draws, status, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "packages", lambda: FITTING)
    monkeypatch.setattr(doctor, "rendering", lambda: {"osmesa": draws, "egl": False})
    assert cli.main(["doctor", "--json"]) == status
    told = json.loads(capsys.readouterr().out)
    assert told["parts"][0]["ready"] == draws and told["machine"]["cores"] >= 1

    assert cli.main(["doctor"]) == status
    table = capsys.readouterr().out
    assert "robosuite" in table and "1.5.2" in table
    assert (doctor.GL_COMMAND in table) == (not draws)
