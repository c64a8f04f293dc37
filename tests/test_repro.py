"""What other people's inputs did to the recipes, each once: see the reports behind them in a test's docstring."""

import json
from contextlib import contextmanager

import pytest
from rollout_example import HORIZON, LinePolicy, LineWorkers, MovesRight
from test_scenes import stage

from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.rollouts import outputs
from deas_vla.training.loop import make_accelerator
from deas_vla.training.stages import stage_report
from recipes import collect_rollouts, evaluate
from recipes.evaluate import EvaluationConfig
from studies.ogbench.train import source_of

pytestmark = pytest.mark.unit


@pytest.fixture
def line(tmp_path, monkeypatch):
    """The world of one line in place of a simulator; a policy of chunks of four steps."""

    @contextmanager
    def workers(self, task, processes=1):
        yield LineWorkers()

    policy = LinePolicy(drift=0.3)
    monkeypatch.setattr(SimulatorConfig, "open_workers", workers)
    monkeypatch.setattr(outputs, "load_policy", lambda folder: policy)
    stage(tmp_path / "policy", "policy")
    return policy


def test_a_policy_of_short_chunks_is_recorded_as_it_was_played(line, tmp_path):
    """Isaac-GR00T issue 470: 16 steps are asked for, a chunk has four (defect: 16 were recorded)."""
    config = collect_rollouts.CollectRolloutsConfig(output=f"{tmp_path}/rollouts", policy=f"{tmp_path}/policy")
    config.rollouts.episodes = 2
    collect_rollouts.collect_rollouts(make_accelerator(), config)
    assert stage_report(tmp_path / "rollouts")["facts"] == {"execute_steps": HORIZON}
    declared = json.loads((tmp_path / "rollouts/dataset/meta/deas_vla.json").read_text())
    assert declared["metadata"]["settings"]["rollouts"]["execute_steps"] == HORIZON


def evaluated(tmp_path, monkeypatch, policy, scored):
    monkeypatch.setattr(outputs, "load_scorer", lambda folder, contract: MovesRight(policy, scored))
    monkeypatch.setattr(evaluate, "write_run_report", lambda folder: {"headline": {"text": "", "detail": ""}})
    stage(tmp_path / "critic", "critic")
    plan = EvaluationConfig(1, 1, 2, [1], oracle_scenes=0, video=False)
    paths = {name: f"{tmp_path}/{name}" for name in ("policy", "critic")}
    config = evaluate.EvaluateConfig(output=f"{tmp_path}/evaluation", evaluation=plan, **paths)
    evaluate.evaluate(make_accelerator(), config)
    return stage_report(tmp_path / "evaluation")["facts"]


@pytest.mark.parametrize(("scored", "told"), [(HORIZON, False), (2, True)])
def test_an_evaluation_records_what_it_played_and_tells_what_was_not_scored(
    line, tmp_path, monkeypatch, capsys, scored, told
):
    """A critic of 16 steps and a policy of 50: 34 actions are played that it never scored (defect: without a word)."""
    assert evaluated(tmp_path, monkeypatch, line, scored) == {"execute_steps": HORIZON}
    line = "the critic scores the first 2 of the 4 actions that are played of a chunk; --evaluation.execute_steps=2"
    assert (line in capsys.readouterr().out) == told


def test_data_of_ogbench_are_told_apart_by_their_content(tmp_path):
    """Another file of the same name and size was taken for the one that an agent was trained on (defect)."""
    files = [tmp_path / folder / "cube-single-play-v0.npz" for folder in ("one", "two")]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_bytes(bytes([number]) * 100)
    marks = [source_of(file, seed=0) for file in files]
    assert marks[0]["data"] == marks[1]["data"] and marks[0] != marks[1] == source_of(files[1], seed=0)
