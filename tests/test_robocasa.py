"""RoboCasa's adapter against a stand-in that speaks the interface of its gymnasium wrapper (version 1.0.1)."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from deas_vla.envs.panda_omron import ROBOCASA_CAMERAS, columns_of
from deas_vla.envs.registry import env_config, make_env
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError

pytestmark = pytest.mark.unit

ACTION_SIZES = {
    "action.gripper_close": 1,
    "action.end_effector_position": 3,
    "action.end_effector_rotation": 3,
    "action.base_motion": 4,
    "action.control_mode": 1,
}
CONFIG = env_config("robocasa", "CloseDrawer", camera_size=16, cameras=list(ROBOCASA_CAMERAS))


class Kitchen:
    """What the adapter uses of robosuite's environment inside the wrapper."""

    def __init__(self, size):
        self.size, self.drawn, self.drawing = size, 0, dict.fromkeys(ROBOCASA_CAMERAS, True)
        self.sim = SimpleNamespace(render=lambda height, width, camera_name: np.zeros((height, width, 3), np.uint8))
        self.seed, self.moved, self.time = 0, np.zeros(3), 0

    def modify_observable(self, observable_name, attribute, modifier):
        assert attribute in ("enabled", "active")
        self.drawing[observable_name.removesuffix("_image")] = modifier

    def _get_observations(self, force_update=False):
        seen = {
            "robot0_base_pos": np.array([0.0, 0.1, 0.2]) + self.seed,
            "robot0_base_quat": np.array([0.0, 0.0, 0.0, 1.0]),
            "robot0_base_to_eef_pos": self.moved.copy(),
            "robot0_base_to_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
            "robot0_gripper_qpos": np.array([0.02, -0.02]),
        }
        for i, camera in enumerate(ROBOCASA_CAMERAS):
            if self.drawing[camera]:
                self.drawn += 1
                image = np.zeros((self.size, self.size, 3), np.uint8)
                image[-1] = 100 + i  # the simulator draws bottom-up: this is the top row
                image[0] = self.time
                seen[f"{camera}_image"] = image
        return seen


class RoboCasaGymEnv:
    """Same constructor, dictionaries, shapes and types as RoboCasa's."""

    def __init__(self, env_name=None, camera_widths=None, camera_heights=None, enable_render=True, split="test"):
        assert split in ("pretrain", "target", "all")
        assert camera_widths == camera_heights
        self.env, self.enable_render, self.actions = Kitchen(camera_widths), enable_render, []

    def get_observation(self, raw):
        names = {
            "base_position": "base_pos",
            "base_rotation": "base_quat",
            "end_effector_position_relative": "base_to_eef_pos",
            "end_effector_rotation_relative": "base_to_eef_quat",
            "gripper_qpos": "gripper_qpos",
        }
        seen = {f"state.{name}": raw[f"robot0_{part}"].astype(np.float32) for name, part in names.items()}
        for camera in ROBOCASA_CAMERAS:
            black = np.zeros((self.env.size, self.env.size, 3), np.uint8)
            seen[f"video.{camera}"] = raw[f"{camera}_image"][::-1].copy() if self.enable_render else black
        seen["annotation.human.task_description"] = "close the drawer"
        return seen

    def reset(self, seed=None, options=None):
        self.env.seed, self.env.moved, self.env.time = seed, np.zeros(3), 0
        return self.get_observation(self.env._get_observations()), {"success": False}

    def step(self, action):
        assert {name: value.shape for name, value in action.items()} == {
            name: (size,) for name, size in ACTION_SIZES.items()
        }
        self.actions.append(action)
        self.env.moved = self.env.moved + action["action.end_effector_position"]
        self.env.time += 1
        success = bool(self.env.moved[0] > 2.5)
        observation = self.get_observation(self.env._get_observations())
        return observation, float(success), False, False, {"success": success}

    def close(self):
        pass


@pytest.fixture
def robocasa(monkeypatch):
    """Puts the stand-in where RoboCasa would be."""
    package, wrapper = ModuleType("robocasa"), ModuleType("robocasa.wrappers.gym_wrapper")
    registry = ModuleType("robocasa.utils.dataset_registry_utils")
    package.ALL_KITCHEN_ENVIRONMENTS = {"CloseDrawer": None, "OpenDrawer": None}
    wrapper.RoboCasaGymEnv = RoboCasaGymEnv
    registry.get_task_horizon = {"CloseDrawer": 40}.__getitem__
    for module in (package, wrapper, registry):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("robocasa.wrappers", "robocasa.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return wrapper


def commands(n, **groups):
    out = np.zeros((n, 12), np.float32)
    env = make_env(CONFIG)
    for group, value in groups.items():
        out[:, columns_of(env.contract.action, group)] = value
    return out


def test_a_chunk_reaches_the_wrapper_by_name_and_success_ends_it(robocasa):
    env = make_env(CONFIG)
    assert env.horizon == 40
    first = env.reset(7)
    assert first["instruction"] == "close the drawer"
    assert first["state"].dtype == np.float32
    assert np.allclose(first["state"][:3], [7.0, 7.1, 7.2])
    played = env.play(commands(16, end_effector_position=[0.2, 0, 0], gripper_close=0.7, base_motion=[1, 2, 3, 4]))
    action = env._gym.actions[0]
    assert action["action.end_effector_position"].tolist() == pytest.approx([0.2, 0, 0])
    assert action["action.gripper_close"].tolist() == [1.0]
    assert action["action.control_mode"].tolist() == [0.0]
    assert action["action.base_motion"].tolist() == [1.0] * 4  # clipped to the limits
    assert len(played.actions) == 13
    assert played.success.tolist() == [False] * 12 + [True]
    assert played.rewards.tolist() == [0.0] * 12 + [1.0]
    assert played.done and not played.truncated


def test_a_timeout_is_truncated(robocasa):
    env = make_env(CONFIG)
    env.reset(0)
    parts = [env.play(commands(16)) for _ in range(3)]
    assert [part.truncated for part in parts] == [False, False, True]
    assert [len(part.actions) for part in parts] == [16, 16, 8]
    assert not parts[-1].success.any()
    with pytest.raises(ValueError, match="nothing to play"):
        env.play(commands(1))


def test_images_are_upright_and_drawn_only_where_asked(robocasa):
    env = make_env(CONFIG)
    first = env.reset(0)
    for i, camera in enumerate(ROBOCASA_CAMERAS):
        assert first["images"][camera].shape == (16, 16, 3)
        assert (first["images"][camera][0] == 100 + i).all()
    drawn = env._kitchen.drawn
    played = env.play(commands(10), frame_every=4)
    assert played.frames.tolist() == [4, 8, 10]
    assert played.images[ROBOCASA_CAMERAS[0]][:, -1, 0, 0].tolist() == [4, 8, 10]
    assert env._kitchen.drawn - drawn == 3 * len(ROBOCASA_CAMERAS)


def test_rule_10_a_branch_replays_to_the_same_state(robocasa):
    env = make_env(CONFIG)
    env.reset(3)
    env.play(commands(5, end_effector_position=[0.1, 0.2, 0.3]))
    state, here = env.save(), env.state()
    one = env.play(commands(4, end_effector_position=0.1))
    env.reset(8)
    env.restore(state)
    assert np.array_equal(env.state(), here)
    other = env.play(commands(4, end_effector_position=0.1))
    assert np.array_equal(one.states, other.states)


def test_each_slot_has_a_kitchen_of_its_own(robocasa):
    with EnvWorkers(CONFIG, 0) as workers:
        workers.reset([0, 1], [5, 6])
        workers.play([0], [commands(3, end_effector_position=0.5)])
        one, other = workers.play([0, 1], [commands(1), commands(1)])
    assert one.states[0, :3] == pytest.approx(5.0, abs=0.21)
    assert one.states[0, 7:10].tolist() == [1.5, 1.5, 1.5]
    assert other.states[0, :3] == pytest.approx(6.0, abs=0.21)
    assert other.states[0, 7:10].tolist() == [0, 0, 0]


def test_it_says_what_is_missing(robocasa, monkeypatch):
    with pytest.raises(UserError, match="unknown RoboCasa task 'ClosDrawer'; did you mean 'CloseDrawer'"):
        make_env(env_config("robocasa", "ClosDrawer"))
    with pytest.raises(UserError, match=r"no scripted expert.*--demos\.dataset=LEROBOT_FOLDER"):
        make_env(CONFIG).play_expert(3, np.random.default_rng(0))

    def without_assets(**_):
        raise FileNotFoundError(2, "No such file", "fixtures/sinks/Sink025/model.xml")

    monkeypatch.setattr(robocasa, "RoboCasaGymEnv", without_assets)
    with pytest.raises(UserError, match=r"Sink025.*download_kitchen_assets"):
        make_env(CONFIG)


def test_it_says_how_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "robocasa", None)
    with pytest.raises(UserError, match=r"git clone .*robocasa.*mujoco==3\.3\.1.*10 GB"):
        make_env(CONFIG)


def test_a_version_that_robocasa_refuses_is_told(monkeypatch, tmp_path):
    (tmp_path / "robocasa").mkdir()
    (tmp_path / "robocasa" / "__init__.py").write_text("assert False, 'MuJoCo version must be 3.3.1'")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"MuJoCo version must be 3\.3\.1"):
        make_env(CONFIG)
