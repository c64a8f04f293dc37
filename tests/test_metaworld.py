"""Meta-World: its own steps, the same start in every process, branches, what is in sight, experts."""

import zlib

import numpy as np
import pytest

from deas_vla.envs.metaworld.experts import ATTEMPT_STEPS, NoisyExpert
from deas_vla.envs.metaworld.tasks import MT10, TASKS
from deas_vla.envs.registry import contract_of, env_config, make_env
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError

CAMERAS = ["workspace_right", "gripper"]
COMMANDS = np.random.default_rng(0).uniform(-1, 1, (48, 4)).astype(np.float32)
# A fixture that scenes move last of all, contacts with a free object, a joint that scenes begin open.
THREE = ("peg-insert-side-v3", "push-v3", "drawer-close-v3")

needs_metaworld = pytest.mark.sim


def config(task, **settings):
    exact = {"expert_noise": 0.0, "expert_grasp_bias": 0.0}
    return env_config("metaworld", task, **exact | settings)


@pytest.fixture(scope="module", params=THREE)
def env(request):
    env = make_env(config(request.param, expert_noise=0.2, expert_grasp_bias=0.006))
    yield env
    env.close()


def same(one, other):
    """Whether two chunks went the same way, bit for bit, pictures included."""
    return (
        np.array_equal(one.states, other.states)
        and np.array_equal(one.actions, other.actions)
        and np.array_equal(one.success, other.success)
        and all(np.array_equal(one.images[name], other.images[name]) for name in one.images)
    )


# ---- without the simulator --------------------------------------------------------------------------------------


@pytest.mark.unit
def test_rule_07_the_contract_has_names_limits_and_rate_and_no_places_of_objects():
    contract = contract_of(config("push-v3"))
    assert [column.name for column in contract.state] == [
        *(f"hand_position.{axis}" for axis in "xyz"),
        "gripper.opening",
    ]
    assert {(column.low, column.high) for column in contract.action} == {(-1.0, 1.0)}
    assert contract.rate_hz == 80 and [camera.name for camera in contract.cameras] == CAMERAS
    assert contract == contract_of(config("door-open-v3"))  # one policy plays them all


@pytest.mark.unit
def test_every_task_is_told_in_words_of_its_own():
    assert len(TASKS) == 50 and set(MT10) <= set(TASKS)
    assert len({task.instruction for task in TASKS.values()}) == 50
    assert all(task.horizon % 16 == 0 and 0 < task.horizon <= 500 for task in TASKS.values())


@pytest.mark.unit
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "push"}, "unknown Meta-World task 'push'; did you mean 'push-v3'"),
        ({"cameras": ["griper"]}, "did you mean 'gripper'"),
        ({"cameras": ["robot0_eye_in_hand"]}, "known: workspace_right"),
        ({"cameras": []}, "cameras"),
    ],
)
def test_a_mistyped_configuration_is_told_what_would_fit(settings, message):
    with pytest.raises(UserError, match=message):
        contract_of(config(**{"task": "push-v3"} | settings))


class Sees:
    """An expert that tells what it sees."""

    def get_action(self, observation):
        self.seen = observation.copy()
        observation[:] = np.nan  # as some of Meta-World's do with parts of it
        return np.array([3.0, 0.0, 0.0, -0.4], np.float32)


@pytest.mark.unit
def test_a_noisy_expert_errs_by_its_settings_and_draws_its_error_anew():
    rng, observation = np.random.default_rng(0), np.arange(39.0)
    expert = NoisyExpert(Sees(), noise=0.1, bias=0.02)
    errors = []
    for _ in range(2 * ATTEMPT_STEPS):
        command = expert.command(observation, rng)
        errors.append(expert.policy.seen - observation)
        assert command.dtype == np.float32 and np.abs(command).max() <= 1 and command[3] == np.float32(-0.4)
    errors = np.array(errors)
    assert not errors[:, np.r_[0:4, 6:39]].any()
    assert len(np.unique(errors[:, 4])) == 2 and 0 < np.abs(errors[:, 4:6]).max() < 0.1
    exact = NoisyExpert(Sees(), noise=0.0, bias=0.0)
    assert exact.command(observation, rng).tolist() == pytest.approx([1.0, 0.0, 0.0, -0.4])
    assert np.array_equal(exact.policy.seen, observation)


# ---- scenes and branches ----------------------------------------------------------------------------------------


@needs_metaworld
def test_rule_10_a_scene_starts_the_same_whatever_was_played_before(env):
    first = env.reset(3)
    start = env.save().physics
    one = env.play(COMMANDS[:20])
    env.reset(4)
    env.play_expert(60, np.random.default_rng(9))
    again = env.reset(3)
    assert np.array_equal(env.save().physics, start)
    assert np.array_equal(first["state"], again["state"])
    assert all(np.array_equal(first["images"][k], again["images"][k]) for k in CAMERAS)
    assert same(one, env.play(COMMANDS[:20]))


@needs_metaworld
def test_rule_10_a_branch_goes_on_as_the_original(env):
    env.reset(5)
    env.play_expert(44, np.random.default_rng(5))
    state = env.save()
    onward = []
    for _ in range(2):
        one, expert = env.play(COMMANDS[:16]), env.play_expert(12, np.random.default_rng(1))
        onward.append((one, expert, env.reward, env.observation))
        env.reset(6)  # another scene: what the model and the environment hold must come back too
        env.play_expert(10, np.random.default_rng(6))
        env.restore(state)
        assert env.steps == 44 and np.array_equal(env.save().physics, state.physics)
    (one, expert, reward, seen), (other, again, its_reward, its_seen) = onward
    assert same(one, other) and same(expert, again)
    assert reward == its_reward and np.array_equal(seen, its_seen)


@needs_metaworld
def test_rule_10_states_can_be_restored_in_any_slot_of_another_process():
    settings = config("push-v3", expert_noise=0.2)
    with EnvWorkers(settings, 0) as here, EnvWorkers(settings, 1) as there:
        first = [workers.reset([0, 1], [7, 8]) for workers in (here, there)]
        for one, other in zip(*first, strict=True):
            assert all(np.array_equal(one["images"][k], other["images"][k]) for k in CAMERAS)
            assert one["instruction"] == TASKS["push-v3"].instruction
        here.play([0, 1], [COMMANDS[:16], COMMANDS[16:32]])
        states = here.save([0, 1])
        there.restore([4, 2], states)
        onward = [here.play([0, 1], [COMMANDS[32:]] * 2), there.play([4, 2], [COMMANDS[32:]] * 2)]
        assert all(same(one, other) for one, other in zip(*onward, strict=True))
        assert there.horizon == TASKS["push-v3"].horizon


@needs_metaworld
def test_what_the_expert_played_can_be_played_again(env):
    env.reset(2)
    one = env.play_expert(env.horizon, np.random.default_rng(2))
    env.reset(2)
    assert same(one, env.play(one.actions))


# ---- Meta-World's own -------------------------------------------------------------------------------------------


@needs_metaworld
@pytest.mark.parametrize(
    "task", [task if task in THREE else pytest.param(task, marks=pytest.mark.slow) for task in MT10]
)
def test_it_moves_rewards_and_succeeds_as_metaworlds_own_environment(task):
    """Stock Meta-World, reset to the same scene, and driven by its own expert with stock's own observations."""
    from metaworld import MT1
    from metaworld.policies import ENV_POLICY_MAP

    env = make_env(config(task))
    env.reset(11)
    benchmark = MT1(task, seed=0)
    stock = benchmark.train_classes[task]()
    stock.set_task(benchmark.train_tasks[0])
    stock._last_rand_vec = env.simulator._last_rand_vec.copy()
    seen, _ = stock.reset()
    assert np.allclose(seen, env.observation, atol=1e-9)
    policy, rng = ENV_POLICY_MAP[task](), np.random.default_rng(zlib.crc32(task.encode()))
    success = []
    while not (success and success[-1]) and len(success) < env.horizon:
        command = np.clip(policy.get_action(seen.copy()) + 0.1 * rng.standard_normal(4), -1, 1)
        command = command.astype(np.float32)
        seen, reward, _, _, info = stock.step(command)
        success.append(bool(info["success"]))
        assert env.step(command) == success[-1]
        assert np.allclose(seen, env.observation, atol=1e-7) and env.reward == pytest.approx(reward, abs=1e-6)
    env.close()
    assert success[-1] or task == "peg-insert-side-v3"


@needs_metaworld
@pytest.mark.slow
def test_corner2_is_what_lerobots_environment_shows():
    from lerobot.envs.metaworld import MetaworldEnv as LeRobots

    env = make_env(config("drawer-open-v3", cameras=["corner2"], camera_size=96))
    env.reset(0)
    theirs = LeRobots("drawer-open-v3", obs_type="pixels")
    theirs._ensure_env()
    theirs._env._last_rand_vec, theirs._env._freeze_rand_vec = env.simulator._last_rand_vec, True
    full = theirs.reset()[0]["pixels"]
    ours = env.images()["corner2"].astype(int)
    small = full.reshape(96, 5, 96, 5, 3).mean((1, 3))
    greens = [picture[..., 1] - picture[..., [0, 2]].max(-1) > 20 for picture in (ours, small)]
    assert greens[0].sum() > 40
    assert (greens[0] & greens[1]).sum() > 0.6 * (greens[0] | greens[1]).sum()  # the drawer, upright, there
    env.close()
    theirs.close()


@needs_metaworld
def test_metaworld_has_these_tasks_and_no_others():
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    assert set(TASKS) == set(ALL_V3_ENVIRONMENTS)


# ---- episodes ---------------------------------------------------------------------------------------------------


@needs_metaworld
def test_rule_02_success_ends_an_episode_and_the_time_limit_only_truncates_it():
    env = make_env(config("drawer-close-v3"))
    env.reset(0)
    won = env.play_expert(env.horizon, np.random.default_rng(0), frame_every=16)
    assert won.success[-1] and not won.success[:-1].any() and won.done and not won.truncated
    assert won.rewards.tolist() == won.success.astype(float).tolist()
    assert won.frames.tolist() == [*range(16, len(won.actions), 16), len(won.actions)]
    env.reset(0)
    lost = env.play(np.zeros((env.horizon + 5, 4)))
    assert len(lost.actions) == env.horizon and lost.truncated and not lost.success.any()
    with pytest.raises(ValueError, match="nothing to play"):
        env.play(np.zeros((1, 4)))
    env.close()


@needs_metaworld
def test_the_time_limit_is_ours_and_may_be_beyond_metaworlds_own():
    env = make_env(config("reach-v3", horizon=512))
    env.reset(0)
    for _ in range(512):
        env.step(np.zeros(4))
    assert env.over
    env.close()


# ---- pictures ---------------------------------------------------------------------------------------------------


def seen(picture, channel):
    """How many pixels are clearly of one colour."""
    rest = [c for c in range(3) if c != channel]
    picture = picture.astype(int)
    return int(((picture[..., channel] > 60) & (picture[..., channel] > 1.8 * picture[..., rest].max(-1))).sum())


@needs_metaworld
@pytest.mark.parametrize(("task", "channel"), [("reach-v3", 0), ("push-v3", 1), ("pick-place-v3", 2)])
def test_goals_that_move_are_in_sight_and_scenes_differ(task, channel):
    env = make_env(config(task))
    pictures = [env.reset(scene)["images"]["workspace_right"] for scene in range(8)]
    assert min(seen(picture, channel) for picture in pictures) >= 3
    assert len(np.unique(np.stack(pictures).reshape(8, -1), axis=0)) == 8
    large = env.render(120, 160)
    assert large.shape == (120, 160, 3) and len(np.unique(large.reshape(-1, 3), axis=0)) > 500
    env.close()


# ---- experts ----------------------------------------------------------------------------------------------------


@needs_metaworld
@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_expert_of_every_task_reaches_its_goal_in_time(task):
    """Three of four scenes; where Meta-World's own expert is less sure, six of ten."""
    scenes, enough = (10, 6) if task in HARD else (4, 3)
    env = make_env(config(task))
    wins = 0
    for scene in range(scenes):
        env.reset(scene)
        wins += env.play_expert(env.horizon, np.random.default_rng(scene)).success[-1]
    env.close()
    assert wins >= enough


HARD = ("peg-insert-side-v3", "shelf-place-v3", "soccer-v3")
