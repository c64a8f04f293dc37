"""robosuite under RoboCasa's contract: the same start in every process, branches, the lean loop, the pictures."""

import numpy as np
import pytest

from deas_vla.envs.panda_omron import ACTION_GROUPS, columns_of
from deas_vla.envs.registry import env_config, make_env
from deas_vla.envs.robosuite.tasks import build_simulator
from deas_vla.errors import UserError

pytestmark = pytest.mark.sim

NOISY = env_config("robosuite", "lift", expert_noise=0.3, expert_grasp_bias=0.012)


@pytest.fixture(scope="module")
def lift():
    env = make_env(NOISY)
    yield env
    env.close()


@pytest.fixture(scope="module")
def bins():
    """A scene that moves bodies in the model itself, and objects that are not used."""
    env = make_env(env_config("robosuite", "pick_place_can", expert_noise=0.3, expert_grasp_bias=0.0))
    yield env
    env.close()


def commands(env, n, seed=0):
    """(n, 12) random commands: arm and gripper, with the base at rest."""
    out = np.zeros((n, 12), np.float32)
    rng = np.random.default_rng(seed)
    for group in ("end_effector_position", "end_effector_rotation"):
        out[:, columns_of(env.contract.action, group)] = rng.uniform(-1, 1, (n, 3))
    out[:, columns_of(env.contract.action, "gripper_close")] = rng.integers(0, 2, (n, 1))
    return out


def same(one, other):
    """Whether two chunks went the same way, bit for bit, pictures included."""
    return (
        np.array_equal(one.states, other.states)
        and np.array_equal(one.actions, other.actions)
        and np.array_equal(one.success, other.success)
        and all(np.array_equal(one.images[name], other.images[name]) for name in one.images)
    )


# ---- scenes and branches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lift", "bins"])
def test_rule_10_a_scene_starts_the_same_whatever_was_played_before(name, request):
    env = request.getfixturevalue(name)
    first = env.reset(3)
    start = env.save().physics
    one = env.play(commands(env, 20))
    env.reset(4)
    env.play(commands(env, 40, seed=9))
    again = env.reset(3)
    assert np.array_equal(env.save().physics, start)
    assert np.array_equal(first["state"], again["state"])
    assert all(np.array_equal(first["images"][k], again["images"][k]) for k in first["images"])
    assert same(one, env.play(commands(env, 20)))


def test_scenes_differ(lift):
    starts = np.stack([lift.reset(scene)["images"]["robot0_eye_in_hand"] for scene in range(4)])
    assert len(np.unique(starts.reshape(4, -1), axis=0)) == 4


@pytest.mark.parametrize("name", ["lift", "bins"])
def test_rule_10_a_branch_goes_on_as_the_original(name, request):
    env = request.getfixturevalue(name)
    env.reset(5)
    env.play_expert(24, np.random.default_rng(5))
    state = env.save()
    one = env.play(commands(env, 16))
    expert = env.play_expert(8, np.random.default_rng(1))
    env.reset(6)  # another scene: what the model itself holds must come back too
    env.play_expert(10, np.random.default_rng(6))
    env.restore(state)
    assert env.steps == 24
    assert same(one, env.play(commands(env, 16)))
    assert same(expert, env.play_expert(8, np.random.default_rng(1)))


def test_what_the_expert_played_can_be_played_again(lift):
    lift.reset(2)
    one = lift.play_expert(96, np.random.default_rng(2))
    lift.reset(2)
    assert same(one, lift.play(one.actions))


# ---- episodes ---------------------------------------------------------------------------------------------------


def test_rule_02_success_ends_an_episode_and_the_time_limit_only_truncates_it(lift):
    lift.reset(0)
    won = lift.play_expert(96, np.random.default_rng(0))
    assert won.success[-1] and not won.success[:-1].any()
    assert won.rewards.tolist() == won.success.astype(float).tolist()
    assert won.done and not won.truncated
    lift.reset(0)
    lost = lift.play(np.zeros((lift.horizon + 5, 12)))
    assert len(lost.actions) == lift.horizon
    assert lost.truncated and lost.done and not lost.success.any()
    with pytest.raises(ValueError, match="nothing to play"):
        lift.play(np.zeros((1, 12)))


def test_images_are_drawn_where_asked_and_at_the_end(lift):
    lift.reset(1)
    lift.play(commands(lift, 6))
    played = lift.play(commands(lift, 12, seed=1), frame_every=8)
    assert played.frames.tolist() == [2, 10, 12]  # steps 8 and 16 of the episode, and the last
    assert {image.shape for image in played.images.values()} == {(3, 64, 64, 3)}
    assert len(lift.play(commands(lift, 5), frame_every=0).frames) == 1


def test_commands_beyond_the_limits_are_recorded_as_played(lift):
    lift.reset(1)
    wild = lift.play(np.full((4, 12), 0.9) * 3)
    assert wild.actions.max() == 1.0
    lift.reset(1)
    assert same(wild, lift.play(np.ones((4, 12))))


# ---- physics ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("turning", "tolerance"), [(False, 1e-6), (True, 1e-4)])
def test_the_lean_loop_moves_as_robosuites_own(turning, tolerance):
    """Commands for every part of the robot, with contacts; robosuite rounds rotations and headings to single precision.

    Two of robosuite's habits are undone for the comparison: at the first step it uses a mass matrix from before the
    gripper was set up, and goals are measured from where the base was one physics step ago.
    """
    config = env_config("robosuite", "lift", simulation_timestep=0.002)
    env, stock = make_env(config), build_simulator(config.settings, "lift")
    stock.reset()
    env.reset(0)
    robot = stock.robots[0]
    controller = robot.composite_controller
    env.data.qpos[:], env.data.qvel[:] = stock.sim.data.qpos, stock.sim.data.qvel
    env.data.qacc_warmstart[:] = stock.sim.data.qacc_warmstart
    env._mujoco.mj_step1(env.model, env.data)
    env.control.reset()
    assert np.array_equal(env.control.home, robot.part_controllers["right"].initial_joint)
    for part in robot.part_controllers.values():
        part.new_update = True
    rng = np.random.default_rng(0)
    columns = {column.name: i for i, column in enumerate(env.contract.action)}
    groups = {group: columns_of(env.contract.action, group) for group in ACTION_GROUPS}
    for t in range(24):
        command = rng.uniform(-1, 1, 12).astype(np.float32)
        if not turning:
            command[groups["end_effector_rotation"]] = 0
        command[columns["gripper_close.close"]] = float(t % 8 > 3)
        command[columns["control_mode.base"]] = float(12 <= t < 18)
        flat = controller.create_action_vector(
            {
                "right": command[groups["end_effector_position"] + groups["end_effector_rotation"]],
                "right_gripper": 2 * command[groups["gripper_close"]] - 1,
                "base": command[groups["base_motion"][:3]],
                "torso": command[groups["base_motion"][3:]],
                "base_mode": 2 * command[columns["control_mode.base"]] - 1,
            }
        )
        stock.sim.step1()
        controller.update_state()
        stock.step(flat)
        env.step(command)
        assert np.abs(stock.sim.data.qpos - env.data.qpos).max() < tolerance, t
    assert abs(env.data.qpos[0]) > 0.01  # the base did move
    stock.sim.forward()
    seen = stock._get_observations(force_update=True)
    names = ("base_pos", "base_quat", "base_to_eef_pos", "base_to_eef_quat", "gripper_qpos")
    theirs = np.concatenate([seen[f"robot0_{name}"] for name in names])
    ours = env.state()
    for start in (3, 10):  # a quaternion and its negative are the same rotation
        part = slice(start, start + 4)
        theirs[part] *= np.sign(theirs[part] @ ours[part])
    assert np.abs(theirs - ours).max() < 3 * tolerance + 1e-6


@pytest.mark.parametrize("timestep", [0.0, 0.004, 0.03, -0.005])
def test_a_physics_step_that_does_not_divide_a_control_step_is_refused(timestep):
    with pytest.raises(UserError, match="simulation_timestep"):
        make_env(env_config("robosuite", "lift", simulation_timestep=timestep))


def test_the_hands_quaternion_does_not_jump(lift):
    lift.reset(0)
    states = lift.play_expert(96, np.random.default_rng(0)).states
    columns = columns_of(lift.contract.state, "end_effector_rotation_relative")
    assert np.abs(np.diff(states[:, columns], axis=0)).max() < 0.2
    assert np.allclose(np.linalg.norm(states[:, columns], axis=1), 1, atol=1e-5)


# ---- pictures ---------------------------------------------------------------------------------------------------


def red(image):
    """(h, w) where a picture is clearly red."""
    image = image.astype(int)
    return (image[..., 0] > 90) & (image[..., 1:].max(-1) < 0.6 * image[..., 0])


@pytest.mark.parametrize("scene", range(6))
def test_the_cube_is_in_sight(lift, scene):
    images = lift.reset(scene)["images"]
    seen = red(images["robot0_agentview_left"])
    assert 6 <= seen.sum() <= 200
    rows, _ = np.nonzero(seen)
    assert rows.mean() > 24  # on the table, in the lower part: the picture is upright
    assert red(images["robot0_eye_in_hand"]).sum() >= 6


def test_a_picture_for_people_is_large_and_not_empty(lift):
    lift.reset(0)
    picture = lift.render(120, 160)
    assert picture.shape == (120, 160, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 500


def test_unused_objects_stay_out_of_the_way(bins):
    bins.reset(0)
    bins.play(commands(bins, 48))
    for name in ("Milk", "Bread", "Cereal"):
        assert bins.data.body(f"{name}_main").xpos[2] == pytest.approx(10.0, abs=0.01)
