"""studies.ogbench.train as a user starts it: killed and resumed, with two processes, with data that cannot be used."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from deas_vla.files import sha256_of
from deas_vla.launch import run_recipe
from studies.ogbench import train
from studies.ogbench.data import OGBenchData, write_npz

ROOT = Path(__file__).resolve().parents[2]
TASK = "cube-single-play-singletask-task1-v0"
SMALL = [
    "--flow.hidden_dim=16", "--flow_training.steps=40", "--flow_training.batch_size=16",
    "--flow_training.checkpoint_every=10", "--training.steps=60", "--training.batch_size=16",
    "--training.checkpoint_every=10", "--training.log_every=10", "--deas.critic.hidden_dim=32",
    "--play.episodes=2", "--play.methods=best-2",
]  # fmt: skip

pytestmark = [pytest.mark.sim, pytest.mark.timeout(600)]


def random_rows(trajectories: int = 3, rows: int = 60) -> OGBenchData:
    """Noise of the shape of cube-single's data."""
    rng, total = np.random.default_rng(0), trajectories * rows
    return OGBenchData(
        observations=rng.normal(size=(total, 28)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(total, 5)).astype(np.float32),
        terminals=np.arange(1, total + 1) % rows == 0,
        qpos=rng.normal(size=(total, 21)).astype(np.float32),
        qvel=rng.normal(size=(total, 20)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_npz(folder / "cube-single-play-v0.npz", random_rows())
    return folder


def command(data: Path, output: Path, *flags: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [
        sys.executable,
        *launcher,
        "-m",
        "studies.ogbench.train",
        f"--task={TASK}",
        f"--data={data}",
        f"--output={output}",
        *SMALL,
        *flags,
    ]


def weights(output: Path) -> list[Path]:
    seed = output / "cube-single-play" / "seed-0"
    return [path / "agent" / "agent.safetensors" for path in (seed / "behaviour-H5", seed / "task1" / "deas")]


@pytest.mark.slow
def test_rule_12_killed_and_resumed_gives_the_same_weights_and_two_processes_what_one_gives(data, tmp_path):
    whole, killed, two = tmp_path / "whole", tmp_path / "killed", tmp_path / "two"
    subprocess.run(command(data, whole), check=True, timeout=300)
    checkpoint = killed / "cube-single-play" / "seed-0" / "task1" / "deas" / "checkpoint.safetensors"
    process = subprocess.Popen(command(data, killed), start_new_session=True)
    deadline = time.monotonic() + 200
    while not checkpoint.is_file():
        assert process.poll() is None and time.monotonic() < deadline, f"{checkpoint} did not appear"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command(data, killed), check=True, timeout=300)
    for one, other in zip(weights(whole), weights(killed), strict=True):
        assert sha256_of(one) == sha256_of(other)
    evaluation = Path("cube-single-play", "seed-0", "task1", "deas", "evaluation", "best-2.json")
    played = [(folder / evaluation).read_text().split('"cpu_seconds"')[0] for folder in (whole, killed)]
    assert played[0] == played[1] and '"success"' in played[0]

    launcher = ("-m", "accelerate.commands.launch", "--config_file", str(ROOT / "accelerate_configs" / "cpu.yaml"))
    subprocess.run(command(data, two, launcher=launcher), check=True, timeout=300)
    for one, other in zip(weights(whole), weights(two), strict=True):
        one, other = load_file(one), load_file(other)
        for name, weight in one.items():
            np.testing.assert_allclose(weight, other[name], atol=2e-4, err_msg=name)


def test_bad_input_is_one_line(data, tmp_path, capsys):
    cases = {
        "no_such_task": (["--task=cube-singel-play-singletask-task1-v0"], "did you mean 'cube-single'"),
        "no_such_agent": (["--agent=daes"], "choose deas"),
        "no_file": ([f"--data={tmp_path}"], "cube-single-play-v0.npz"),
        "too_long": (["--agent=bc", "--horizon=60", "--play.methods=first-1"], "the longest has 59"),
        "no_such_method": (["--play.methods=best"], "for example best-8"),
        "no_critic": (["--agent=filtered_bc", "--play.methods=best-8"], "filtered_bc has no critic"),
        "too_many_actions": (["--play.methods=best-2-execute-9"], "more than the agent's chunk of 5"),
    }
    folders = {name: tmp_path / name for name in ("truncated", "other", "nan")}
    for folder in folders.values():
        folder.mkdir()
    file = "cube-single-play-v0.npz"
    (folders["truncated"] / file).write_bytes((data / file).read_bytes()[:3000])
    rows = random_rows()
    rows.observations[7, 3] = np.nan
    np.savez(folders["nan"] / file, **rows.columns())
    rows = random_rows()
    rows.qpos = rows.qpos[:, :-1]
    write_npz(folders["other"] / file, rows)
    cases |= {
        "truncated": ([f"--data={folders['truncated']}"], "cut short"),
        "nan": ([f"--data={folders['nan']}"], "not finite"),
        "other": ([f"--data={folders['other']}"], "'qpos' has 20 columns and cube-single has 21"),
    }
    wrong = {}
    for name, (flags, words) in cases.items():
        arguments = command(data, tmp_path / "run", *flags)[3:]
        with pytest.raises(SystemExit) as caught:
            run_recipe(train.main, train.OGBenchConfig, arguments)
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        if caught.value.code != 2 or len(lines) != 1 or words not in lines[0]:
            wrong[name] = lines
    assert not wrong
