"""Stages: skipped when done, refused when other settings made them, one run at a time."""

import multiprocessing
import shutil
import time
from dataclasses import dataclass, replace

import pytest
from accelerate import Accelerator

from deas_vla.config import incidental, to_json
from deas_vla.errors import UserError
from deas_vla.training.loop import TrainingConfig
from deas_vla.training.stages import run_stage, stage_report, try_lock
from recipes.collect_rollouts import CollectRolloutsConfig
from recipes.finetune_policy import FinetunePolicyConfig
from recipes.train_critic import TrainCriticConfig

pytestmark = pytest.mark.unit
# Another process that has imported all this already.
FORK = multiprocessing.get_context("fork")
SETTINGS = {"steps": 5, "critic": {"expectile": 0.7}}


@pytest.fixture
def stage(tmp_path):
    calls = []

    def run(name="policy", settings=SETTINGS, inputs=None, work=None):
        def count(folder):
            calls.append(folder.name)
            if work is not None:
                work(folder)

        run_stage(Accelerator(cpu=True), tmp_path / name, settings, inputs or {}, count)
        return calls

    return run


def test_a_finished_stage_is_skipped(stage, tmp_path, capsys):
    assert stage() == ["policy"] and stage() == ["policy"]
    assert "policy: done before, skipped" in capsys.readouterr().out
    report = stage_report(tmp_path / "policy")
    assert report["settings"] == SETTINGS and report["seconds"] >= 0 and report["peak_memory_bytes"] > 1e6


def test_other_settings_are_refused_with_the_difference(stage):
    stage()
    with pytest.raises(UserError, match=r"critic\.expectile: 0\.7 there, 0\.9 now.*choose another --output"):
        stage(settings={"steps": 5, "critic": {"expectile": 0.9}})


def test_a_stage_with_features_of_hours_is_not_to_be_deleted_for_other_settings(stage, tmp_path):
    stage("critic")
    (tmp_path / "critic" / "features").mkdir()
    with pytest.raises(UserError, match="to keep the features that are there") as caught:
        stage("critic", {"steps": 6})
    assert f"--cache={tmp_path / 'critic' / 'features'}" in str(caught.value) and "delete" not in str(caught.value)


@dataclass
class Small:
    """A stage's settings."""

    output: str = incidental("here")
    steps: int = 5
    log_every: int = incidental(10)


@dataclass
class Larger(Small):
    """The same in a later version."""

    dropout: float = 0.0


def test_how_often_progress_is_shown_and_where_a_stage_is_kept_are_no_other_settings(stage):
    stage(settings=Small())
    assert stage(settings=Small(output="there", log_every=100)) == ["policy"]
    with pytest.raises(UserError, match=r"settings \(steps: 5 there, 6 now\)"):
        stage(settings=Small(steps=6))


@pytest.mark.parametrize("recipe", [FinetunePolicyConfig, TrainCriticConfig])
def test_how_often_a_training_prints_and_saves_is_no_other_setting(stage, recipe):
    """Another interval of printing had a finished training refused (defect)."""
    stage(settings=recipe())
    for name, config in vars(other := recipe()).items():
        if isinstance(config, TrainingConfig):
            setattr(other, name, replace(config, log_every=config.log_every + 1, checkpoint_every=1))
    assert stage(settings=other) == ["policy"]
    with pytest.raises(UserError, match=r"settings \(training.steps: \d+ there, 7 now\)"):
        stage(settings=replace(other, training=replace(other.training, steps=7)))


@pytest.mark.parametrize("name", ["workers", "parallel_episodes"])
def test_how_many_simulate_at_once_is_no_other_setting(stage, name):
    """The same folder on a machine with more cores was refused, though no outcome depends on it (defect).

    An older stage noted `parallel_episodes`, which changes what is recorded by rounding alone (test_rollouts.py).
    """
    stage(settings=to_json(CollectRolloutsConfig(**{name: 1})))
    assert stage(settings=CollectRolloutsConfig(**{name: 2})) == ["policy"]


def test_a_dry_run_of_a_finished_stage_says_that_it_is_there(stage, capsys):
    stage(settings=CollectRolloutsConfig())
    assert stage(settings=CollectRolloutsConfig(dry_run=True)) == ["policy"]
    assert "policy: there already" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed: 1 there, 2 now"):
        stage(settings=CollectRolloutsConfig(seed=2, dry_run=True))


def test_a_field_that_is_newer_than_a_stage_was_its_default_there(stage):
    stage(settings=Small())
    assert stage(settings=Larger()) == ["policy"]
    with pytest.raises(UserError, match=r"settings \(dropout: 0\.0 there, 0\.1 now\)"):
        stage(settings=Larger(dropout=0.1))


def test_a_setting_that_there_is_no_more_is_refused(stage):
    stage(settings=Larger(dropout=0.1))
    with pytest.raises(UserError, match=r"dropout: 0\.1 there, 'absent' now"):
        stage(settings=Small())


def test_rule_12_an_interrupted_stage_goes_on_and_is_not_taken_for_done(stage, tmp_path, capsys):
    def killed(folder):
        (folder / "block").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(work=killed)
    assert stage(work=lambda folder: (folder / "block").read_text()) == ["policy", "policy"]
    # The time that is noted is the last attempt's alone.
    assert stage_report(tmp_path / "policy")["attempts"] == 2
    assert "goes on where it was interrupted" in capsys.readouterr().out


def test_an_interrupted_stage_of_other_settings_is_refused(stage):
    def killed(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage(work=killed)
    with pytest.raises(UserError, match="steps: 5 there, 6 now"):
        stage(settings=SETTINGS | {"steps": 6})


def test_a_stage_whose_input_was_made_anew_is_refused(stage, tmp_path):
    stage("data")
    stage("policy", inputs={"data": tmp_path / "data"})
    stage("other", settings={"steps": 9})
    with pytest.raises(UserError, match="stage data was made anew"):
        stage("policy", inputs={"data": tmp_path / "other"})
    with pytest.raises(UserError, match="stage more is new here"):
        stage("policy", inputs={"data": tmp_path / "data", "more": tmp_path / "other"})
    with pytest.raises(UserError, match="stage data is not read now"):
        stage("policy")


def test_a_stage_that_was_refused_before_it_made_anything_is_forgotten(stage, tmp_path):
    """Else the next try, with the settings that the refusal asked for, would be refused for these (defect)."""

    def refused(folder):
        raise UserError("the critic's horizon does not fit")

    with pytest.raises(UserError, match="horizon does not fit"):
        stage(work=refused)
    assert not (tmp_path / "policy").exists()
    stage(settings=SETTINGS | {"steps": 6})

    def half_way(folder):
        (folder / "checkpoint").touch()
        refused(folder)

    with pytest.raises(UserError, match="horizon does not fit"):
        stage("other", work=half_way)
    with pytest.raises(UserError, match="steps: 5 there, 6 now"):
        stage("other", settings=SETTINGS | {"steps": 6})


def test_a_stage_made_with_another_version_of_the_users_file_is_refused(stage, tmp_path, monkeypatch):
    """One who writes a scorer edits it over and over: the old result must not pass for the new one's (defect)."""
    scorer, simulator = tmp_path / "mine.py", tmp_path / "point.py"
    for file in (scorer, simulator):
        file.write_text("version = 1")
    settings = SETTINGS | {"scorer": f"{scorer}:mine"}
    stage(settings=settings)
    stage(settings=settings)
    scorer.write_text("version = 2")
    with pytest.raises(UserError, match=r"the file .*mine\.py has changed"):
        stage(settings=settings)
    monkeypatch.setenv("DEAS_VLA_PLUGINS", str(simulator))
    stage("other")
    simulator.write_text("version = 2")
    with pytest.raises(UserError, match=r"the file .*point\.py has changed"):
        stage("other")


def test_a_stage_that_is_made_again_with_the_same_settings_is_another_one(stage, tmp_path):
    """Its code or its packages may have changed: what was made from the old one must not pass for the new one's."""
    stage("data")
    stage("policy", inputs={"data": tmp_path / "data"})
    assert stage("policy", inputs={"data": tmp_path / "data"}) == ["data", "policy"]
    shutil.rmtree(tmp_path / "data")
    stage("data")
    with pytest.raises(UserError, match="stage data was made anew"):
        stage("policy", inputs={"data": tmp_path / "data"})


def test_an_input_must_be_finished(stage, tmp_path):
    with pytest.raises(UserError, match="data is not a finished stage"):
        stage("policy", inputs={"data": tmp_path / "data"})


def test_a_second_run_waits_for_the_first_and_finds_its_output(stage, monkeypatch):
    at_work, waiting, said = FORK.Event(), FORK.Event(), []

    def work(folder):
        at_work.set()
        assert waiting.wait(60)

    first = FORK.Process(target=stage, kwargs={"work": work})
    first.start()
    assert at_work.wait(60)
    monkeypatch.setattr(Accelerator, "print", lambda _, text: (said.append(text), waiting.set()))
    assert stage() == []
    first.join()
    assert said == [
        "policy: another process is working on it; waiting for it to end", "policy: done before, skipped"
    ]  # fmt: skip


def test_a_claim_is_one_process_and_ends_with_it(tmp_path):
    """Killed while it is at something, a process leaves it to the others."""
    path, held = tmp_path / "methods" / "best.json", FORK.Event()

    def hold():
        with try_lock(path):
            held.set()
            time.sleep(60)

    other = FORK.Process(target=hold)
    other.start()
    try:
        assert held.wait(60)
        with try_lock(path) as mine, try_lock(path.with_name("worst.json")) as free:
            assert not mine and free
    finally:
        other.kill()
        other.join()
    with try_lock(path) as mine:
        assert mine
    assert list(path.parent.glob("*.json")) == []
