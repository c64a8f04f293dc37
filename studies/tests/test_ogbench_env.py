"""Fast OGBench episodes go the way of the library's own environment, bit for bit; rewards are the library's."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deas_vla.errors import UserError
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.rollouts.scenes import scenes_of
from studies.ogbench.data import OGBenchData, write_npz
from studies.ogbench.env import ENVIRONMENTS, KINDS, OGBenchEnvs, OGBenchTask, relabel
from studies.ogbench.evaluate import Decision, play_episodes

TASKS = {
    name: OGBenchTask(name, "play", number)
    for name, number in (("cube-single", 1), ("cube-double", 4), ("scene", 4), ("puzzle-3x3", 3))
}


@cache
def ours(name: str) -> OGBenchEnvs:
    return OGBenchEnvs(TASKS[name])


class Official:
    """The library's environment as its users make it; only the draws that it does not seed are seeded."""

    def __init__(self, name: str):
        import gymnasium
        import ogbench
        from ogbench.manipspace.envs.manipspace_env import ManipSpaceEnv

        self.box = gymnasium.spaces.Box(-1.0, 1.0, (5,), np.float32)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ManipSpaceEnv, "action_space", property(lambda _: self.box))
            self.env = ogbench.make_env_and_datasets(TASKS[name].name, env_only=True)
        self.inner, self.patched = self.env.unwrapped, ManipSpaceEnv

    def reset(self, seed: int) -> np.ndarray:
        self.box.seed(seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.patched, "action_space", property(lambda _: self.box))
            return self.env.reset(seed=seed)[0]

    def play(self, actions: np.ndarray) -> tuple[np.ndarray, list[float], bool, bool]:
        rewards, terminated, truncated = [], False, False
        for action in actions:
            observation, reward, terminated, truncated, _ = self.env.step(action)
            rewards.append(reward)
            if terminated or truncated:
                break
        return observation, rewards, terminated, truncated


@cache
def official(name: str) -> Official:
    return Official(name)


def actions_of(seed: int, steps: int, dtype: type = np.float32) -> np.ndarray:
    """(steps, 5) moves with a drift, so that the method gets somewhere."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(0, 0.7, (steps, 5)) + rng.normal(0, 0.4, 5), -1, 1).astype(dtype)


def slot_data(envs: OGBenchEnvs, row: int = 0):
    return envs._slots[row]._data


def press(data, number: int) -> None:
    """A button on its way down, just before the point where it counts as pressed."""
    data.joint(f"buttonbox_joint_{number}").qpos[0] = -0.0195
    data.joint(f"buttonbox_joint_{number}").qvel[0] = -1.0


@pytest.mark.unit
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_names_of_tasks(env):
    for kind in KINDS:
        for number in range(1, 6):
            task = OGBenchTask.parse(f"{env}-{kind}-singletask-task{number}-v0")
            assert task == OGBenchTask(env, kind, number)
            assert OGBenchTask.parse(task.name) == task
            assert task.dataset == f"{env}-{kind}-v0"
        assert OGBenchTask.parse(f"{env}-{kind}-singletask-v0").number == ENVIRONMENTS[env][1]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("cube-single-play-v0", "singletask"),
        ("cube-singel-play-singletask-task1-v0", "did you mean 'cube-single'"),
        ("cube-single-play-singletask-task6-v0", "tasks 1 to 5"),
        ("cube-single-play-singletask-task0-v0", "tasks 1 to 5"),
        ("cube-single-explore-singletask-task1-v0", "play or noisy"),
        ("visual-scene-play-singletask-task1-v0", "unknown OGBench environment 'visual-scene'"),
        ("", "is not ENV"),
    ],
)
def test_an_unknown_task_is_one_clear_line(name, word):
    with pytest.raises(UserError, match=word) as caught:
        OGBenchTask.parse(name)
    assert "\n" not in str(caught.value)


@pytest.mark.sim
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_library_agrees_on_names_goals_and_default_tasks(env):
    import gymnasium
    import ogbench  # noqa: F401
    from gymnasium.envs.registration import load_env_creator

    goals, default = ENVIRONMENTS[env]
    spec = gymnasium.spec(f"{env}-singletask-v0")
    official_class = load_env_creator(spec.entry_point)
    made = object.__new__(official_class)
    made._env_type, made._reward_task_id = spec.kwargs["env_type"], 0
    made._num_cubes = goals
    if env.startswith("puzzle"):
        made._num_rows, made._num_cols = (int(n) for n in env.removeprefix("puzzle-").split("x"))
        assert made._num_rows * made._num_cols == goals
    made.set_tasks()
    assert made._reward_task_id == default
    assert len(made.task_infos) == 5
    if env.startswith("cube"):
        assert all(len(info["goal_xyzs"]) == goals for info in made.task_infos)
    assert all(gymnasium.spec(OGBenchTask(env, "play", n).env_name) for n in range(1, 6))


@pytest.mark.sim
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TASKS)
def test_an_episode_equals_the_librarys_bit_for_bit(name, dtype):
    envs, reference = ours(name), official(name)
    seeds, chunk, steps = [7, 2_000_000], 7, 42
    actions = np.stack([actions_of(seed, steps, dtype) for seed in seeds])
    first = envs.reset(seeds)
    outcomes = [envs.play(actions[:, k : k + chunk]) for k in range(0, steps, chunk)]
    assert envs.observation_dim == first.shape[1]
    for row, seed in enumerate(seeds):
        np.testing.assert_array_equal(first[row], reference.reset(seed))
        for k, outcome in zip(range(0, steps, chunk), outcomes, strict=True):
            observation, rewards, *_ = reference.play(actions[row, k : k + chunk])
            np.testing.assert_array_equal(outcome.observations[row], observation)
            np.testing.assert_array_equal(outcome.rewards[row], rewards)
            assert outcome.played[row] == chunk
            assert not outcome.over[row]
    assert min(outcome.rewards.min() for outcome in outcomes) >= -envs.num_subgoals


@pytest.mark.sim
@pytest.mark.parametrize(("name", "number"), [("scene", 0), ("scene", 1), ("puzzle-3x3", 0), ("puzzle-3x3", 4)])
def test_a_pressed_button_acts_as_in_the_library(name, number):
    envs, reference = ours(name), official(name)
    actions = actions_of(1, 12)
    envs.reset([3])
    reference.reset(3)
    before = envs._slots[0]._buttons.copy()
    for data in (slot_data(envs), reference.inner.data):
        press(data, number)
    outcome = envs.play(actions[None])
    observation, rewards, *_ = reference.play(actions)
    changed = np.flatnonzero(envs._slots[0]._buttons != before).tolist()
    neighbours = {0: [0, 1, 3], 4: [1, 3, 4, 5, 7]}
    assert changed == ([number] if name == "scene" else neighbours[number])
    np.testing.assert_array_equal(envs._slots[0]._buttons, reference.inner._cur_button_states)
    np.testing.assert_array_equal(outcome.observations[0], observation)
    np.testing.assert_array_equal(outcome.rewards[0], rewards)


@pytest.mark.sim
@pytest.mark.parametrize(("number", "slider"), [(0, "drawer_slide"), (1, "window_slide")])
def test_a_moving_part_is_locked_as_in_the_library(number, slider):
    envs, reference = ours("scene"), official("scene")
    actions = actions_of(2, 20)
    envs.reset([8])
    reference.reset(8)
    both = (slot_data(envs), reference.inner.data)
    for data in both:
        press(data, number)
    envs.play(actions[None, :8])
    reference.play(actions[:8])
    for data in both:
        data.joint(slider).qpos[0] /= 2
        data.joint(slider).qvel[0] = 2.0 if slider == "window_slide" else -2.0
        press(data, number)
    outcome = envs.play(actions[None, 8:])
    observation, *_ = reference.play(actions[8:])
    assert envs._slots[0]._buttons[number] == 0
    np.testing.assert_array_equal(outcome.observations[0], observation)


@pytest.mark.sim
def test_locks_belong_to_an_episode():
    """Of three episodes one unlocks its drawer; a push then moves that drawer, and no other."""
    envs = ours("scene")
    envs.reset([1, 2, 3])
    press(slot_data(envs, 1), 0)
    still = np.zeros((3, 2, 5))
    envs.play(still)
    where = []
    for row in range(3):
        drawer = slot_data(envs, row).joint("drawer_slide")
        drawer.qvel[0] = -1.0
        where.append(drawer.qpos[0])
    envs.play(still)
    moved = [abs(slot_data(envs, row).joint("drawer_slide").qpos[0] - where[row]) > 0.005 for row in range(3)]
    assert moved == [False, True, False]


@pytest.mark.sim
def test_a_cube_thrown_out_of_a_scene_is_put_back_as_in_the_library(capsys):
    envs, reference = ours("scene"), official("scene")
    actions = actions_of(4, 8)
    envs.reset([11])
    reference.reset(11)
    for data in (slot_data(envs), reference.inner.data):
        data.joint("object_joint_0").qpos[1] = 1.0
        data.joint("object_joint_0").qvel[:] = 0.3
    outcome = envs.play(actions[None])
    observation, *_ = reference.play(actions)
    assert "instability" in capsys.readouterr().out
    np.testing.assert_array_equal(outcome.observations[0], observation)
    assert abs(slot_data(envs).joint("object_joint_0").qpos[1]) < 0.3


@pytest.mark.sim
@pytest.mark.parametrize("name", ["cube-single", "scene"])
@settings(max_examples=5)
@given(
    seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4, unique=True),
    chunk=st.integers(1, 6),
    other=st.integers(0, 100),
)
def test_episodes_know_nothing_of_each_other(name, seeds, chunk, other):
    envs, steps = ours(name), 6
    actions = np.stack([actions_of(seed, steps) for seed in seeds])
    first = envs.reset(seeds)
    together = [envs.play(actions[:, k : k + chunk]).observations for k in range(0, steps, chunk)]
    envs.reset([other])
    envs.play(actions_of(other, 3)[None])
    for row, seed in enumerate(seeds):
        np.testing.assert_array_equal(envs.reset([seed])[0], first[row])
        alone = [envs.play(actions[row : row + 1, k : k + chunk]).observations[0] for k in range(0, steps, chunk)]
        np.testing.assert_array_equal(alone, [o[row] for o in together])


@pytest.mark.sim
def test_success_inside_a_chunk_ends_the_episode_there():
    envs, reference = ours("cube-single"), official("cube-single")
    envs.reset([1, 2])
    reference.reset(1)
    for data in (slot_data(envs), reference.inner.data):
        # Above its goal: it falls into it after a few steps.
        data.joint("object_joint_0").qpos[:3] = data.mocap_pos[0] + [0.0, 0.0, 0.14]
    actions = np.zeros((2, 12, 5), np.float32)
    outcome = envs.play(actions)
    _, rewards, terminated, _ = reference.play(actions[0])
    played = outcome.played[0]
    assert 1 < played < 12
    # The library tells with the step after, whose reward is that of the success: 0.
    assert terminated
    assert len(rewards) == played + 1
    np.testing.assert_array_equal([*outcome.rewards[0, :played], 0.0], rewards)
    assert np.isnan(outcome.rewards[0, played:]).all()
    assert outcome.success.tolist() == outcome.over.tolist() == [True, False]
    assert outcome.played[1] == 12
    # It stays over: a further chunk changes nothing there.
    again = envs.play(actions)
    assert again.played.tolist() == [0, 12]
    np.testing.assert_array_equal(again.observations[0], outcome.observations[0])
    assert again.success.tolist() == [True, False]


@pytest.mark.sim
@pytest.mark.parametrize("early", [0, 1])
def test_the_time_limit_is_the_librarys_and_success_in_the_last_step_comes_too_late(early):
    envs, reference = ours("cube-single"), official("cube-single")
    envs.reset([5])
    reference.reset(5)
    assert envs.max_steps == 200
    still = np.zeros((1, envs.max_steps - 1 - early, 5), np.float32)
    assert not envs.play(still).over[0]
    reference.play(still[0])
    for data in (slot_data(envs), reference.inner.data):
        data.joint("object_joint_0").qpos[:3] = data.mocap_pos[0]
    outcome = envs.play(np.zeros((1, 5, 5), np.float32))
    _, _, terminated, truncated = reference.play(np.zeros((5, 5), np.float32))
    assert outcome.over[0]
    assert outcome.played[0] == 1
    assert outcome.success[0] == terminated == bool(early)
    assert truncated


@pytest.mark.sim
def test_evaluated_episodes_do_not_depend_on_how_many_are_played_at_once():
    def decide(observations, keys):
        noise = [candidate_noise(k.seed, k.scene, k.sample, k.decision, 1, 5, 5)[0] for k in keys]
        # What is seen matters too, but not through a matrix product: that may round differently in another batch.
        return Decision((torch.stack(noise) - 0.1 * observations[:, None, :5]).clamp(-1, 1), None, None)

    envs, scenes = ours("cube-single"), scenes_of("evaluation", 3, 0)
    together = play_episodes(envs, decide, scenes, seed=0)
    assert play_episodes(envs, decide, scenes, seed=0, block=2) == together
    assert [play_episodes(envs, decide, [scene], seed=0)[0] for scene in scenes] == together
    assert [record["steps"] for record in together] == [200] * 3
    assert together[0]["rewards"] == [[-1.0, 200]]
    assert len(together[0]["decisions"]) == 40


@pytest.mark.sim
def test_what_cannot_be_played_is_refused():
    envs = ours("cube-single")
    envs.reset([1, 2])
    for shape in [(1, 3, 5), (2, 3, 4), (2, 0, 5), (2, 5)]:
        with pytest.raises(ValueError, match="shape"):
            envs.play(np.zeros(shape))
    with pytest.raises(ValueError, match="episode 1 are not finite"):
        envs.play(np.full((2, 1, 5), [[[0.0]], [[np.nan]]]))


def example_data(name: str, rows: int = 40) -> OGBenchData:
    """Rows of nonsense in two trajectories, some of them with all goals reached."""
    env = ours(name)._env
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    qpos = np.tile(env.data.qpos, (rows, 1)) + rng.normal(0, 0.02, (rows, env.model.nq))
    there = rng.random(rows) < 0.5
    cubes = getattr(env, "_num_cubes", 0)
    for i in range(cubes):
        qpos[there, 14 + 7 * i : 17 + 7 * i] = env.data.mocap_pos[i] + rng.normal(0, 0.01, 3)
    buttons = None
    if count := getattr(env, "_num_buttons", 0):
        buttons = rng.integers(0, 2, (rows, count))
        buttons[there] = env._target_button_states
    if name == "scene":
        qpos[there, -2:] = env._target_drawer_pos, env._target_window_pos
    terminals = np.zeros(rows, bool)
    terminals[[rows // 3, -1]] = True
    return OGBenchData(
        observations=rng.normal(size=(rows, env.observation_space.shape[0])).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 5)).astype(np.float32),
        terminals=terminals,
        qpos=qpos.astype(np.float32),
        qvel=rng.normal(size=(rows, env.model.nv)).astype(np.float32),
        button_states=buttons,
    )


@pytest.mark.sim
@pytest.mark.parametrize("name", TASKS)
def test_rewards_are_the_librarys_relabelling(name, tmp_path):
    import ogbench

    data = example_data(name)
    for file in ("data.npz", "data-val.npz"):
        write_npz(tmp_path / file, data)
    _, train, _ = ogbench.make_env_and_datasets(TASKS[name].name, dataset_path=str(tmp_path / "data.npz"))
    rewards, success = relabel(TASKS[name], data)
    assert rewards.shape == success.shape == (40,)
    assert rewards.dtype == np.float32
    assert success.dtype == bool
    np.testing.assert_array_equal(rewards[~data.terminals], train["rewards"])
    np.testing.assert_array_equal(success[~data.terminals], train["masks"] == 0)
    np.testing.assert_array_equal(success, rewards == 0)
    assert 5 < success.sum() < 35
    assert rewards.min() >= -TASKS[name].num_subgoals


@pytest.mark.sim
def test_rewards_in_an_episode_are_those_that_relabelling_gives():
    envs = ours("cube-double")
    envs.reset([4])
    qpos, rewards = [], []
    for action in actions_of(4, 12):
        qpos.append(slot_data(envs).qpos.copy())
        rewards.append(envs.play(action[None, None]).rewards[0, 0])
        if len(qpos) == 6:
            slot_data(envs).joint("object_joint_0").qpos[:2] = 0.35, 0.0
            slot_data(envs).joint("object_joint_1").qpos[:3] = slot_data(envs).mocap_pos[1]
    data = example_data("cube-double", 12)
    data.qpos = np.array(qpos, np.float32)
    # The seventh reward is that of the state before the cubes were moved.
    expected, _ = relabel(TASKS["cube-double"], data)
    np.testing.assert_array_equal(rewards[:6] + rewards[7:], np.delete(expected, 6))
    assert rewards[-1] > rewards[0]


@pytest.mark.sim
@pytest.mark.parametrize("column", ["observations", "actions", "qpos", "qvel", "button_states"])
def test_data_of_another_environment_are_refused(column):
    data = example_data("scene")
    setattr(data, column, None if column == "button_states" else getattr(data, column)[:, :-1])
    with pytest.raises(UserError, match=f"'{column}' has .*not data of scene-play-v0"):
        relabel(TASKS["scene"], data)
