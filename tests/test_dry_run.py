"""What stages that play episodes, and a whole loop, would take: said before, as an upper bound; nothing is written."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from data_example import example_episode
from rollout_example import HORIZON, LinePolicy, LineWorkers, MovesRight
from test_scenes import stage
from test_seam_simulator import POINT_MASS

from deas_vla.config import parse
from deas_vla.envs.simulator import SimulatorConfig
from deas_vla.errors import UserError
from deas_vla.export.export import ExportConfig, export_run
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.rollouts import outputs
from deas_vla.rollouts.collect import BLOCKS, DATASET, write_collected
from deas_vla.rollouts.estimate import collecting_needs, evaluation_needs
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.outputs import Outputs
from deas_vla.training import estimate
from deas_vla.training.estimate import bytes_in
from deas_vla.training.loop import make_accelerator
from recipes import collect_rollouts, finetune_robocasa
from recipes.collect_rollouts import CollectRolloutsConfig, RolloutsConfig

pytestmark = pytest.mark.unit
# Every episode lasts until its time limit, as estimates have it.
NEVER = -3.0
TINY = [
    "--tasks=reach", "--workers=0", "--parallel_episodes=3", "--simulator.camera_size=64", "--simulator.horizon=24",
    "--demos.episodes=3", "--rollouts.episodes=40", "--rollouts.frame_every=2", "--execute_steps=4",
    "--policy.horizon=4", "--policy.width=32", "--policy.layers=2", "--bc.batch_size=4", "--critic.horizon=4",
    "--critic.hidden_dim=16", "--features.dim=4", "--image_encoder.dim=4", "--image_encoder_training.batch_size=4",
    "--critic_training.batch_size=4", "--improvement.batch_size=4", "--evaluation.scenes=10",
    "--evaluation.candidate_counts=1,4",
]  # fmt: skip


@pytest.fixture
def line(tmp_path, monkeypatch):
    """Settings of rollouts in the world of one line, of a policy that fails there."""

    @contextmanager
    def workers(self, task, processes=1):
        yield LineWorkers()

    monkeypatch.setattr(SimulatorConfig, "open_workers", workers)
    monkeypatch.setattr(outputs, "load_policy", lambda folder: LinePolicy(NEVER))
    stage(tmp_path / "policy", "policy")
    plan = RolloutsConfig(episodes=8, frame_every=2)
    return CollectRolloutsConfig(output=f"{tmp_path}/rollouts", policy=f"{tmp_path}/policy", rollouts=plan)


def test_rollouts_write_what_was_said_and_are_refused_where_it_does_not_fit(line, tmp_path, monkeypatch):
    accelerator, dry, written = make_accelerator(), Outputs(dry_run=True), []
    collect_rollouts.collect_rollouts(accelerator, replace(line, dry_run=True), dry)
    (need,) = dry.said
    assert need.work == "at most 8 episodes of 14 steps, as in lift" and need.seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]

    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=need.disk / 2))
        with pytest.raises(
            UserError, match=r"of disk, .* is free: set --rollouts\.episodes=[345], free space, or name"
        ):
            collect_rollouts.collect_rollouts(accelerator, line)
    assert not (tmp_path / "rollouts").exists()

    def measured(folder, *arguments, **options):
        write_collected(folder, *arguments, **options)
        written.append(bytes_in(folder / BLOCKS) + bytes_in(folder / DATASET / "data"))

    monkeypatch.setattr(collect_rollouts, "write_collected", measured)
    collect_rollouts.collect_rollouts(accelerator, line)
    assert written == [pytest.approx(need.disk, rel=0.2)]


def test_an_evaluation_writes_what_was_said(tmp_path):
    policy = LinePolicy(NEVER)
    scorer, jobs = MovesRight(policy), paired_jobs(list(range(6)), samples=2)
    methods = {"policy": BestOfN(policy, 1, "first", scorer), "best_of_n": BestOfN(policy, 5, "best", scorer)}
    played, settings = [(method, len(jobs)) for method in methods.values()], {"workers": 1, "parallel_episodes": 4}
    (need,) = evaluation_needs(
        make_accelerator(), tmp_path, SimulatorConfig(**settings), LineWorkers(), played, (5, 0), HORIZON
    )
    assert need.work == "at most 24 episodes of 14 steps, as in lift"
    for name, method in methods.items():
        evaluate_method(name, LineWorkers(), method, jobs, tmp_path, seed=0, parallel=4, execute_steps=HORIZON)
    assert bytes_in(tmp_path) == pytest.approx(need.disk, rel=0.2)
    # The oracle plays every candidate of four decisions to the end: 5 x (4 + 3 + 2 + 1) / 4 episodes more for each.
    (more,) = evaluation_needs(
        make_accelerator(), tmp_path, SimulatorConfig(**settings), LineWorkers(), played, (5, 100), HORIZON
    )
    assert more.seconds > 5 * need.seconds and more.disk > 5 * need.disk


def test_one_episode_of_one_step_is_enough_to_try(tmp_path):
    """The guide's own simulator: its expert may succeed at once, and one step has no statistics (defect)."""
    workers, scenes = LineWorkers(), [0, 1, 2]
    episode = example_episode(np.random.default_rng(0), 1, True, source="demonstration", every=1)
    collect = lambda some, finished: [episode]  # noqa: E731
    settings = SimulatorConfig(workers=1, parallel_episodes=4)
    (need,), (expected, contract, _) = collecting_needs(
        make_accelerator(), tmp_path, settings, workers, scenes, collect
    )
    assert need.work == "at most 3 episodes of 14 steps, as in lift" and len(expected) == 3 * 14
    assert contract.statistics is not None


def test_the_dry_run_of_a_loop_says_every_stage_and_writes_nothing(tmp_path, capsys):
    """Its stages read what is not there: each leaves to the next what it would make, as large as it can be."""
    file, output = tmp_path / "point_dry.py", tmp_path / "run"
    file.write_text(POINT_MASS.replace("RESTORES", "True").replace('"point_mass")', '"point_dry")'))
    flags = [f"--env={file}:point_dry", f"--output={output}", "--dry_run", *TINY]
    finetune_robocasa.main(parse(finetune_robocasa.FinetuneRobocasaConfig, flags))
    lines = capsys.readouterr().out.splitlines()
    said = {line[:18].strip(): line for line in lines}
    stages = ["demonstrations", "policy", "rollouts", "features", "image encoder", "critic", "filtered_bc"]
    stages += ["advantage_weighted", "evaluation", "all together"]
    assert [name for name in said if name in stages] == stages
    assert "at most 40 episodes of 24 steps, as in reach" in said["rollouts"]
    # At most 3 x 24 and 40 x 24 steps, a frame every step and every second one, and some more at the ends.
    assert 550 < int(said["features"].split()[-2]) < 1100
    assert not output.exists()


def test_an_export_that_cannot_fit_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    for name in ("policy", "critic"):
        stage(tmp_path / "run" / name, name)
    (tmp_path / "run/policy/policy/model.safetensors").write_bytes(bytes(10 << 20))
    config = ExportConfig(run=str(tmp_path / "run"), output=str(tmp_path / "reranker"))
    monkeypatch.setattr(estimate, "free_memory", lambda: 9 << 20)
    with pytest.raises(
        UserError, match=r"^export needs about 13 MiB of memory, 9 MiB is free: take a machine with 13 MiB"
    ):
        export_run(config)
    monkeypatch.setattr(estimate, "free_memory", lambda: 20 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=9 << 20))
    with pytest.raises(UserError, match=r"^export needs 10 MiB of disk, 9 MiB is free: .*another disk \(--output\)"):
        export_run(config)
