"""The doctor lists what is there, what is missing, and the command that brings it."""

import json

import pytest

from deas_vla import cli, doctor

pytestmark = pytest.mark.unit
NEEDED = ["torch>=2.7", "pytest>=1; extra == 'sim'"]


@pytest.fixture
def installed(monkeypatch):
    def install(requirements, draws=True):
        monkeypatch.setattr(doctor, "_requirements", lambda: requirements)
        monkeypatch.setattr(doctor, "draws_with", lambda platform: draws)
        monkeypatch.setattr(doctor, "DEMO", ("", "sim"))

    return install


def test_the_demo_is_ready_when_its_packages_fit_and_something_draws(installed):
    installed(NEEDED)
    diagnosis = doctor.diagnose()
    assert diagnosis["ready"] and diagnosis["extras"] == {"": [], "sim": []}
    assert "the demo can run" in doctor.report(diagnosis)


def test_each_missing_thing_is_named_with_its_command(installed):
    installed(["torch>=99", "no-such-package>=1; extra == 'sim'"], draws=False)
    diagnosis = doctor.diagnose()
    assert not diagnosis["ready"] and diagnosis["extras"]["sim"] == ["no-such-package>=1"]
    assert diagnosis["extras"][""][0].startswith("torch>=99 (is 2.")
    text = doctor.report(diagnosis)
    assert "EXTRAS=sim tools/install.sh" in text and doctor.GL_COMMAND in text and "make install" in text


def test_without_an_installation_nothing_is_ready(installed):
    installed([])
    assert not doctor.diagnose()["ready"]


def test_what_is_needed_comes_from_the_metadata_of_this_project():
    extras = doctor.missing_packages()
    assert {"", *doctor.DEMO} <= extras.keys() and extras[""] == []


def test_a_gl_platform_that_fails_is_reported_as_such(monkeypatch):
    monkeypatch.setattr(doctor, "GL_PROBE", "import os; assert os.environ['MUJOCO_GL'] == 'egl'")
    assert doctor.draws_with("egl") and not doctor.draws_with("osmesa")


@pytest.mark.parametrize(("draws", "status"), [(True, 0), (False, 1)])
def test_the_command_prints_json_and_fails_if_the_demo_cannot_run(draws, status, installed, capsys):
    installed(NEEDED, draws)
    assert cli.main(["doctor", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["ready"] == draws
    assert cli.main(["doctor"]) == status
    assert (doctor.GL_COMMAND in capsys.readouterr().out) == (not draws)
