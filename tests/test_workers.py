"""Simulators in other processes: the same numbers as in one's own, and no process left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deas_vla.envs.registry import env_config
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError

pytestmark = pytest.mark.sim

CONFIG = env_config("robosuite", "lift", expert_noise=0.3)
CHUNKS = np.random.default_rng(0).uniform(-0.4, 0.4, (5, 16, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def here():
    with EnvWorkers(CONFIG, 0) as workers:
        yield workers


@pytest.fixture(scope="module")
def there():
    with EnvWorkers(CONFIG, 2) as workers:
        yield workers


def equal(one, other):
    return np.array_equal(one.states, other.states) and all(
        np.array_equal(one.images[name], other.images[name]) for name in one.images
    )


def test_rule_10_every_process_plays_the_same(here, there):
    results = []
    for workers in (here, there):
        slots = range(5)
        first = workers.reset(slots, [40, 41, 42, 43, 40])
        played = workers.play(slots, CHUNKS, frame_every=4)
        results.append((first, played, workers.play(slots, CHUNKS[::-1])))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        assert np.array_equal(one["state"], other["state"])
        assert one["instruction"] == "lift the red cube"
    for part in (1, 2):
        assert all(equal(a, b) for a, b in zip(results[0][part], results[1][part], strict=True))
    frame = results[0][1][0].last_frame("lift")
    assert frame["images"]["robot0_eye_in_hand"].shape == (64, 64, 3)
    assert there.horizon == here.horizon == 96


def test_a_slot_knows_nothing_of_the_others(here):
    here.reset([0], [3])
    alone = [here.play([0], [chunk])[0] for chunk in CHUNKS[:3]]
    here.reset([0, 1, 2], [3, 4, 5])
    mixed = []
    for chunk in CHUNKS[:3]:
        mixed.append(here.play([2, 0, 1], [CHUNKS[4], chunk, CHUNKS[3]])[1])
    assert all(equal(a, b) for a, b in zip(alone, mixed, strict=True))


def test_rule_10_states_can_be_restored_in_any_slot_of_any_worker(there):
    there.reset([0, 1], [6, 7])
    there.play([0, 1], CHUNKS[:2])
    states = there.save([0, 1])
    onward = there.play([0, 1], CHUNKS[2:4])
    there.restore([5, 8], states[::-1])
    assert all(equal(a, b) for a, b in zip(onward[::-1], there.play([5, 8], CHUNKS[2:4][::-1]), strict=True))


def test_rule_10_a_branch_comes_back(here, there):
    """Candidates are compared so: the state is restored into one slot each, and afterwards into the first."""
    for workers in (here, there):
        workers.reset([0, 1], [8, 9])
        state = workers.save([0])
        workers.restore([0, 1, 2], state * 3)
        branches = workers.play([0, 1, 2], CHUNKS[:3])
        workers.restore([0], state)
        assert equal(branches[0], workers.play([0], CHUNKS[:1])[0])
        assert not np.array_equal(branches[1].states, branches[0].states)


def test_expert_episodes_come_in_order_and_leave_the_slots_alone(here, there):
    there.reset([0], [1])
    scenes = list(range(50, 57))
    one = list(here.expert_episodes(scenes, scenes, frame_every=8))
    other = list(there.expert_episodes(scenes, scenes, frame_every=8))
    assert all(equal(a[1], b[1]) for a, b in zip(one, other, strict=True))
    assert len({len(played.actions) for _, played in one}) > 1
    few = there.expert_episodes(scenes, scenes)
    next(few)
    with pytest.raises(RuntimeError, match="under way"):
        there.save([0])
    few.close()  # the rest is not wanted
    assert len(there.play([0], [CHUNKS[0]])[0].actions) == 16


def test_errors_come_home_and_end_the_workers(here):
    here.reset([0], [0])
    with pytest.raises(UserError, match="panda_omron"):
        here.play([0], [np.zeros((3, 7))])
    workers = EnvWorkers(env_config("robosuite", "lift", simulation_timestep=0.004), 1)
    with pytest.raises(UserError, match="simulation_timestep"):
        workers.reset([0], [0])
    with pytest.raises(RuntimeError, match="closed"):
        workers.reset([0], [0])
    workers = EnvWorkers(CONFIG, 1)
    with pytest.raises(RuntimeError, match="slot 0 has no scene"):
        workers.play([0], CHUNKS[:1])
    with pytest.raises(UserError, match="cannot be -1"):
        EnvWorkers(CONFIG, -1)


def test_a_worker_that_dies_is_reported_and_the_others_end():
    workers = EnvWorkers(CONFIG, 2)
    workers.reset([0, 1], [0, 1])
    processes = [worker._process for worker in workers._workers]
    os.kill(processes[1].pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="worker 1 died"):
        workers.play([0, 1], CHUNKS[:2])
    assert all(process.poll() is not None for process in processes)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_a_script_needs_no_main_guard_and_its_end_is_theirs(tmp_path):
    """The script has no ``if __name__``, and is killed the hard way while its workers wait."""
    script = tmp_path / "script.py"
    script.write_text(
        "import time\n"
        "from deas_vla.envs.registry import env_config\n"
        "from deas_vla.envs.vector import EnvWorkers\n"
        "workers = EnvWorkers(env_config('robosuite', 'lift'), 2)\n"
        "workers.reset([0, 1], [0, 1])\n"
        "print(*[worker._process.pid for worker in workers._workers], flush=True)\n"
        "time.sleep(600)\n"
    )
    root = str(Path(__file__).parent.parent)
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": root}
    )
    try:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2 and all(alive(pid) for pid in workers)
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)
