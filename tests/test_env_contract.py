"""Simulators without a simulator: names of columns, commands, and what a mistyped configuration is told."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.envs import rendering
from deas_vla.envs.panda_omron import columns_of, panda_omron_contract
from deas_vla.envs.protocol import EnvSettings, as_commands, require_frame
from deas_vla.envs.registry import EnvConfig, contract_of, env_config, make_env
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError

pytestmark = pytest.mark.unit

CONTRACT = panda_omron_contract(EnvSettings(["robot0_agentview_left"]))
# Start and end of each group in RoboCasa's data sets (its PandaOmron_modality.json).
MODALITY = {
    "state": {
        "base_position": (0, 3),
        "base_rotation": (3, 7),
        "end_effector_position_relative": (7, 10),
        "end_effector_rotation_relative": (10, 14),
        "gripper_qpos": (14, 16),
    },
    "action": {
        "base_motion": (0, 4),
        "control_mode": (4, 5),
        "end_effector_position": (5, 8),
        "end_effector_rotation": (8, 11),
        "gripper_close": (11, 12),
    },
}


@pytest.mark.parametrize("vector", ["state", "action"])
def test_rule_07_columns_have_robocasas_names_in_the_order_of_its_data_sets(vector):
    columns = getattr(CONTRACT, vector)
    assert len(columns) == {"state": 16, "action": 12}[vector]
    assert len({column.name for column in columns}) == len(columns)
    for group, (start, end) in MODALITY[vector].items():
        assert columns_of(columns, group) == list(range(start, end))


def test_both_simulators_offer_the_same_contract():
    suite = contract_of(env_config("robosuite", "stack"))
    casa = contract_of(env_config("robocasa", "PickPlaceCounterToCabinet"))
    assert suite.differences(casa) == []


@given(st.lists(st.floats(-5, 5, width=32), min_size=12, max_size=12))
def test_commands_are_within_the_limits_and_playing_them_again_changes_nothing(row):
    command = as_commands(np.array([row]), CONTRACT)
    flags = columns_of(CONTRACT.action, "gripper_close") + columns_of(CONTRACT.action, "control_mode")
    rest = [i for i in range(12) if i not in flags]
    assert set(command[0, flags]) <= {0.0, 1.0}
    assert np.array_equal(command[0, rest], np.clip(np.float32(row), -1, 1)[rest])
    assert np.array_equal(as_commands(command, CONTRACT), command)


@pytest.mark.parametrize("actions", [np.zeros((3, 7)), np.zeros((1, 3, 12)), np.full((2, 12), np.nan)])
def test_actions_of_another_robot_and_nan_are_refused(actions):
    with pytest.raises(UserError, match="panda_omron"):
        as_commands(actions, CONTRACT)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EnvConfig("robosuit", "lift"), "did you mean 'robosuite'"),
        (env_config("robosuite", "lfit"), "did you mean 'lift'.*stack"),
        (env_config("robosuite", "lift", cameras=["agentview_left"]), "did you mean 'robot0_agentview_left'"),
        (env_config("robosuite", "lift", cameras=[]), "one to three"),
        (env_config("robosuite", "lift", cameras=["robot0_eye_in_hand"] * 2), "different"),
        (env_config("robosuite", "lift", camera_size=2), "8 pixels"),
        (env_config("robocasa", "CloseDrawer", cameras=["frontview"]), "unknown camera"),
    ],
)
def test_a_mistyped_configuration_is_told_what_would_fit(config, message):
    for ask in (contract_of, make_env, lambda c: EnvWorkers(c, 1)):
        with pytest.raises(UserError, match=message) as told:
            ask(config)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("wanted", "installed", "chosen"),
    [
        ("", ("OSMesa", "EGL"), "osmesa"),  # in software: the same pixels on every machine
        ("", ("EGL",), "egl"),
        ("egl", ("OSMesa", "EGL"), "egl"),
        ("egl", ("OSMesa",), None),
        ("", (), None),
        ("glfw", ("OSMesa", "EGL"), None),
    ],
)
def test_rendering_uses_what_is_installed_or_says_what_to_install(monkeypatch, wanted, installed, chosen):
    monkeypatch.setenv("MUJOCO_GL", wanted)
    monkeypatch.setenv("PYOPENGL_PLATFORM", "")
    monkeypatch.setattr(rendering, "_loads", lambda library: any(name in library for name in installed))
    if chosen is not None:
        assert rendering.choose_gl() == chosen
    else:
        with pytest.raises(UserError, match="unset it" if wanted == "glfw" else "apt-get install -y libosmesa6"):
            rendering.choose_gl()


def test_a_first_frame_that_is_not_what_the_contract_says_names_the_simulator():
    (camera,) = CONTRACT.cameras
    shape = (camera.height, camera.width, 3)
    frame = {"state": np.zeros(16, np.float32), "images": {camera.name: np.zeros(shape, np.uint8)}}
    assert require_frame(frame, CONTRACT, "Kitchen") is frame
    faults = {
        r"Kitchen\.state\(\) gave \(2,\), its contract has 16 columns": {"state": np.zeros(2)},
        r"Kitchen\.images\(\) gave left; its contract has robot0": {"images": {"left": np.zeros(shape, np.uint8)}},
        "as float64": {"images": {camera.name: np.zeros(shape)}},
        r"as uint8 \(8, 8, 3\)": {"images": {camera.name: np.zeros((8, 8, 3), np.uint8)}},
    }
    for message, change in faults.items():
        with pytest.raises(UserError, match=message):
            require_frame(frame | change, CONTRACT, "Kitchen")
