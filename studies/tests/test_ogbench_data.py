"""OGBench's files: what is read, what is refused, and that what is made is OGBench's, whoever interrupts it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.errors import UserError, require
from deas_vla.files import sha256_of
from studies.ogbench import make_data
from studies.ogbench.data import COLUMNS, OGBenchData, read_npz, write_npz
from studies.ogbench.experts import STACKING, Oracle, parameters

ROWS = 11


def example(trajectories: int = 2, rows: int = 4, buttons: int = 0, seed: int = 0) -> OGBenchData:
    rng = np.random.default_rng(seed)
    total = trajectories * rows
    return OGBenchData(
        observations=rng.normal(size=(total, 7)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(total, 5)).astype(np.float32),
        terminals=np.arange(1, total + 1) % rows == 0,
        qpos=rng.normal(size=(total, 3)).astype(np.float32),
        qvel=rng.normal(size=(total, 2)).astype(np.float32),
        button_states=rng.integers(2, size=(total, buttons)) if buttons else None,
    )


def assert_same(one: OGBenchData, other: OGBenchData) -> None:
    assert one.columns().keys() == other.columns().keys()
    for name, column in one.columns().items():
        assert column.dtype == other.columns()[name].dtype, name
        np.testing.assert_array_equal(column, other.columns()[name], err_msg=name)


# ---- the format ------------------------------------------------------------------------------------------------


@pytest.mark.unit
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 3), st.integers(0, 99))
def test_what_is_written_is_read(tmp_path_factory, trajectories, rows, buttons, seed):
    path = tmp_path_factory.mktemp("npz") / "some.npz"
    data = example(trajectories, rows, buttons, seed)
    write_npz(path, data)
    assert_same(read_npz(path), data)
    assert [p.name for p in path.parent.iterdir()] == ["some.npz"]


@pytest.mark.unit
def test_equal_data_give_equal_bytes_at_any_time(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", example())
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 5e7)
    write_npz(tmp_path / "b.npz", example())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    write_npz(tmp_path / "c.npz", example(seed=1))
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "c.npz").read_bytes()


@pytest.mark.unit
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_file_of_the_official_layout_is_read(tmp_path, save):
    data = example(buttons=2)
    columns = data.columns() | {"terminals": data.terminals.astype(np.float32), "rewards": np.zeros(len(data))}
    columns["qpos"] = data.qpos.astype(np.float64)
    save(tmp_path / "official.npz", **columns)
    assert_same(read_npz(tmp_path / "official.npz"), data)


def with_value(column: str, row: int, value: float):
    def change(columns: dict) -> None:
        columns[column] = columns[column].copy()
        columns[column][row] = value

    return change


def replaced(column: str, value):
    return lambda columns: columns.update({column: value(columns[column])})


FAULTS = {
    "missing key": (lambda columns: columns.pop("qpos"), "no 'qpos' in it"),
    "one dimension": (replaced("actions", lambda a: a[:, 0]), "'actions' has shape (8,); (T, A)"),
    "images": (replaced("observations", lambda a: a[:, :, None]), "'observations' has shape (8, 7, 1)"),
    "too short": (replaced("observations", lambda a: a[:-1]), "'observations' has shape (7, 7)"),
    "no columns": (replaced("qvel", lambda a: a[:, :0]), "'qvel' has shape (8, 0)"),
    "empty": (lambda columns: columns.update({k: v[:0] for k, v in columns.items()}), "T = 0 rows"),
    "no terminals": (replaced("terminals", lambda a: np.array(True)), "'terminals' has shape ()"),
    "whole numbers": (replaced("observations", lambda a: a.astype(np.int64)), "has type int64"),
    "broken buttons": (replaced("button_states", lambda a: a * 0.5), "'button_states' has type float64"),
    "NaN": (with_value("observations", 3, np.nan), "'observations' is not finite (row 3)"),
    "infinite": (with_value("qvel", 5, np.inf), "'qvel' is not finite (row 5)"),
    "wild action": (with_value("actions", 0, -1.5), "'actions' reach 1.5"),
    "action a little out of range": (with_value("actions", 0, 1.0001), "'actions' reach 1.00010002;"),
    "cut trajectory": (with_value("terminals", -1, False), "the last row does not end a trajectory"),
    "half true": (replaced("terminals", lambda a: a * 0.5), "'terminals' must be true or false"),
    "texts": (replaced("terminals", lambda a: a.astype(str)), "'terminals' must be true or false"),
}


@pytest.mark.unit
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_names_the_file(tmp_path, fault):
    change, words = FAULTS[fault]
    columns = example(buttons=2).columns()
    change(columns)
    path = tmp_path / "faulty.npz"
    np.savez_compressed(path, **columns)
    with pytest.raises(UserError) as caught:
        read_npz(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)
    if columns.keys() == COLUMNS.keys():
        with pytest.raises(UserError, match="faulty"):
            write_npz(tmp_path / "faulty-copy.npz", OGBenchData(**columns))
        assert not (tmp_path / "faulty-copy.npz").exists()


@pytest.mark.unit
def test_actions_that_are_too_large_by_rounding_are_clipped(tmp_path):
    """They were refused as "'actions' reach 1" (defect)."""
    columns = example().columns()
    columns["actions"][2] = np.float32(1.0000002) * np.array([-1, 1, 1, -1, 1])
    np.savez_compressed(tmp_path / "rounded.npz", **columns)
    assert read_npz(tmp_path / "rounded.npz").actions[2].tolist() == [-1, 1, 1, -1, 1]


@pytest.mark.unit
@given(cut=st.floats(0, 0.999))
def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("npz") / "cut.npz"
    write_npz(path, example(20, 50))
    content = path.read_bytes()
    path.write_bytes(content[: int(cut * len(content))])
    with pytest.raises(UserError, match=r"cut\.npz: the file cannot be read") as caught:
        read_npz(path)
    assert "\n" not in str(caught.value)


@pytest.mark.unit
@given(place=st.floats(0.0, 0.7), flip=st.integers(1, 255))
def test_a_damaged_file_is_refused_or_read_as_it_was(tmp_path_factory, place, flip):
    path = tmp_path_factory.mktemp("npz") / "damaged.npz"
    data = example(20, 50)
    write_npz(path, data)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= flip
    path.write_bytes(content)
    try:
        assert_same(read_npz(path), data)
    except UserError as error:
        assert "damaged.npz" in str(error) and "\n" not in str(error)


@pytest.mark.unit
def test_rule_11_other_files_are_refused_and_no_pickle_is_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    objects = np.empty(8, object)
    objects[:] = [Bomb()] * 8
    np.savez(tmp_path / "objects.npz", **(example().columns() | {"observations": objects}))
    np.save(tmp_path / "single.npy", example().actions)
    (tmp_path / "text.npz").write_text("observations, actions")
    (tmp_path / "empty.npz").touch()
    (tmp_path / "folder.npz").mkdir()
    for name in ("objects.npz", "single.npy", "text.npz", "empty.npz", "folder.npz", "none.npz"):
        with pytest.raises(UserError, match=name):
            read_npz(tmp_path / name)
    assert not (tmp_path / "ran").exists()


# ---- the generator ---------------------------------------------------------------------------------------------


@pytest.mark.unit
def test_parameters_are_those_of_the_public_commands():
    for env in STACKING:
        play, noisy = parameters(f"{env}-play-v0"), parameters(f"{env}-noisy-v0")
        assert play.env == noisy.env == f"{env}-v0"
        assert (play.noise, play.noise_smoothing, play.min_norm, play.random_action) == (0.1, 0.5, 0.4, 0.0)
        assert noisy.random_action == (0.2 if "puzzle" in env else 0.1)
    assert parameters("cube-triple-play-v0").stacking == (0.05, 0.35)


@pytest.mark.unit
@pytest.mark.parametrize("name", ["cube-sinlge-play-v0", "cube-single-v0", "cube-single-play", "antmaze-play-v0", ""])
def test_unknown_data_sets_are_one_line_that_lists_what_there_is(name):
    with pytest.raises(UserError, match=r"unknown OGBench data set .* cube-single, .* play, noisy"):
        parameters(name)


@pytest.mark.sim
@pytest.mark.parametrize(
    ("name", "buttons"),
    [("cube-triple-play-v0", 0), ("cube-single-noisy-v0", 0), ("scene-play-v0", 2), ("puzzle-4x4-noisy-v0", 16)],
)
def test_rows_are_aligned_and_nothing_that_was_left_out_matters(name, buttons):
    quick, slow = (Oracle(name, 3, 61, quick=quick).trajectory(2) for quick in (True, False))
    assert_same(quick, slow)
    assert len(quick) == 61 and quick.terminals.tolist() == [False] * 60 + [True]
    assert np.abs(quick.actions).max() <= 1 and quick.actions.std() > 0.1
    # The simulator's state is that of the observation of the same row.
    np.testing.assert_allclose(quick.observations[:, :6], quick.qpos[:, :6], atol=1e-6)
    if buttons:
        assert quick.button_states.shape == (61, buttons)
    else:
        cube = (quick.qpos[:, 14:17] - [0.425, 0, 0]) * 10
        np.testing.assert_allclose(quick.observations[:, 19:22], cube, atol=1e-5)


@pytest.mark.sim
def test_a_trajectory_does_not_depend_on_those_before_it():
    # The scene's experts see a stale target after each change of task; it must not come from another trajectory.
    wanted = [3, 10, 11]
    fresh = [Oracle("scene-noisy-v0", 0, 201).trajectory(i) for i in wanted]
    used, leaky = Oracle("scene-noisy-v0", 0, 201), Oracle("scene-noisy-v0", 0, 201)
    leaky._targets = {}
    np.random.seed(5)
    draws = np.random.get_state()[1].copy()
    leaked = []
    for before, i, trajectory in zip((2, 9, 10), wanted, fresh, strict=True):
        for oracle in (used, leaky):
            oracle.trajectory(before)
        assert_same(used.trajectory(i), trajectory)
        leaked.append(not np.array_equal(leaky.trajectory(i).qpos, trajectory.qpos))
    assert any(leaked), "this test sees nothing"
    assert np.array_equal(np.random.get_state()[1], draws), "the caller's random numbers are its own"


@pytest.mark.sim
def test_another_seed_number_or_split_is_another_trajectory():
    oracle = Oracle("cube-single-play-v0", 0, ROWS)
    played = [oracle.trajectory(0), oracle.trajectory(1), oracle.trajectory(0, "val")]
    oracle.seed = 1
    played.append(oracle.trajectory(0))
    assert len({trajectory.qpos.tobytes() for trajectory in played}) == 4


def make(
    folder: Path,
    name: str = "cube-single-play-v0",
    trajectories: int = 3,
    seed: int = 0,
    workers: int = 1,
    rows: int = ROWS,
) -> Path:
    from studies.ogbench.scripted_data import make_dataset

    return make_dataset(name, trajectories * (rows - 1), seed, folder, workers, rows)


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.npz"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A small data set of one process."""
    folder = tmp_path_factory.mktemp("made")
    make(folder, trajectories=4)
    return folder


@pytest.mark.sim
def test_the_number_of_processes_does_not_matter(made, tmp_path):
    make(tmp_path, trajectories=4, workers=3)
    assert hashes(tmp_path) == hashes(made)
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == [
        "cube-single-play-v0-val.npz",
        "cube-single-play-v0.json",
        "cube-single-play-v0.npz",
    ]


@pytest.mark.sim
def test_the_note_beside_the_files_says_how_they_were_made(made):
    note = json.loads((made / "cube-single-play-v0.json").read_text())
    assert {name: file["sha256"] for name, file in note["files"].items()} == hashes(made)
    assert note["settings"]["transitions"] == 4 * (ROWS - 1) and note["settings"]["seed"] == 0
    assert note["settings"]["parameters"]["noise"] == 0.1
    assert note["versions"]["ogbench"] == "1.2.2"
    train = read_npz(made / "cube-single-play-v0.npz")
    assert len(train) == 4 * ROWS and train.terminals.sum() == 4
    assert len(read_npz(made / "cube-single-play-v0-val.npz")) == ROWS


@pytest.mark.sim
def test_files_that_are_there_are_left_alone_or_refused(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "cube-single-play-v0.npz"
    before = path.stat()
    assert make(tmp_path, trajectories=4, workers=2) == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    with pytest.raises(UserError, match=r"other settings \(seed: 0 there, 1 now\)"):
        make(tmp_path, trajectories=4, seed=1)
    with pytest.raises(UserError, match="transitions: 40 there, 20 now"):
        make(tmp_path, trajectories=2)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match="has changed since it was made"):
        make(tmp_path, trajectories=4)
    path.write_bytes(content)
    (tmp_path / "cube-single-play-v0.json").unlink()
    with pytest.raises(UserError, match=r"there, but not cube-single-play-v0\.json"):
        make(tmp_path, trajectories=4)
    assert path.read_bytes() == content, "a user's own file is never written over"


@pytest.mark.sim
@pytest.mark.slow
def test_killed_and_started_again_it_makes_the_same_files(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    arguments = {"name": "puzzle-3x3-play-v0", "trajectories": 6, "rows": 151}
    code = "import sys; from pathlib import Path; from studies.ogbench.scripted_data import make_dataset\n"
    code += f"make_dataset('{arguments['name']}', 6 * 150, 0, Path(sys.argv[1]), 2, 151)"
    process = subprocess.Popen([sys.executable, "-c", code, str(killed)], stderr=subprocess.DEVNULL)
    parts = killed / "puzzle-3x3-play-v0.parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.safetensors"))) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file.name: file.stat().st_mtime_ns for file in parts.glob("*.safetensors")}
    assert 2 <= len(finished) < 7 and not list(killed.glob("*.npz"))

    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        make(killed, seed=1, **arguments)
    kept = {name: (parts / name).stat().st_mtime_ns for name in finished}
    assert kept == finished
    make(killed, **arguments)
    make(whole, **arguments)
    assert hashes(killed) == hashes(whole)
    assert not parts.exists()


@pytest.mark.sim
@pytest.mark.parametrize("env", ["cube-single", "scene", "puzzle-3x3"])
def test_ogbench_loads_what_is_made_here_and_gives_it_rewards(tmp_path, env):
    path = make(tmp_path, f"{env}-play-v0", trajectories=2)
    name = f"{env}-play-singletask-task1-v0"
    _, train, validation = require("ogbench", "ogbench").make_env_and_datasets(
        name, dataset_path=str(path), add_info=True
    )
    ours = read_npz(path)
    inner = ~ours.terminals
    assert len(train["rewards"]) == inner.sum() and len(validation["rewards"]) == ROWS - 1
    for column in ("observations", "actions", "qpos", "qvel"):
        np.testing.assert_array_equal(train[column], getattr(ours, column)[inner])
    goals = {"cube-single": 1, "scene": 5, "puzzle-3x3": 9}[env]
    assert train["rewards"].min() >= -goals and train["rewards"].max() <= 0
    np.testing.assert_array_equal(train["masks"], train["rewards"] < 0)


# ---- the recipe ------------------------------------------------------------------------------------------------


def recipe():
    return make_data


@pytest.mark.unit
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--dataset=cube-sinlge-play-v0", "unknown OGBench data set 'cube-sinlge-play-v0'"),
        ("--transitions=1500", "--transitions=1500 must be a multiple of 1000"),
        ("--transitions=0", "--transitions=0 must be"),
        ("--seed=-1", "--seed=-1 must be at least 0"),
        ("--workers=0", "--workers=0 must be at least 1"),
        ("--datset=scene-play-v0", "did you mean --dataset?"),
    ],
)
def test_bad_settings_are_one_line_and_make_nothing(argument, words, tmp_path, capsys):
    from deas_vla.launch import run_recipe

    module = recipe()
    with pytest.raises(SystemExit) as caught:
        run_recipe(module.main, module.MakeOGBenchDataConfig, [argument, f"--output={tmp_path / 'out'}"])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and words in line
    assert not (tmp_path / "out").exists()
