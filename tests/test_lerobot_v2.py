"""GR00T's LeRobot v2.0 and v2.1: columns by their groups' names, frames by number, success and reward as declared."""

import dataclasses
import shutil

import numpy as np
import pytest
from v2_example import (
    FRONT,
    LENGTHS,
    MODALITY,
    REAL,
    SENTENCES,
    SUCCEEDS,
    brightness,
    data_file,
    edit_json,
    edit_lines,
    edit_rows,
    numbers,
    v2_contract,
    video_file,
    write_v2,
)

from deas_vla.data.contract import Camera, Column, Statistics
from deas_vla.data.frames import FrameTable
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.errors import ContractMismatch, UserError


@pytest.fixture(scope="module", params=["v2.0", "v2.1"])
def written(request, tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2") / "dataset", version=request.param)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v21") / "dataset")


@pytest.fixture
def copy(original, tmp_path):
    return shutil.copytree(original, tmp_path / "dataset")


def refused(root, message, *arguments, **options):
    with pytest.raises(UserError, match=message) as error:
        read_dataset(root, *arguments, **options)
    assert "\n" not in str(error.value)


def test_columns_have_the_names_of_their_groups(written):
    episodes, contract, _ = read_dataset(written)
    assert [column.name for column in contract.state] == ["arm.0", "arm.1", "arm.2", "gripper.0", "gripper.1"]
    assert [column.name for column in contract.action] == ["arm.0", "arm.1", "arm.2", "gripper_close.0"]
    assert {column.unit for column in (*contract.state, *contract.action)} == {"unknown"}
    assert (contract.embodiment, contract.rate_hz, contract.cameras) == ("arm", 10.0, (Camera("front", 32, 32),))
    for number, episode in enumerate(episodes):
        states, actions = numbers(number)
        assert np.array_equal(episode.actions, actions[: episode.length].astype(np.float32))
        assert np.array_equal(episode.states[: episode.length], states[: episode.length].astype(np.float32))
        assert (episode.instruction, episode.source) == (SENTENCES[number % 2], "demonstration")


def test_rule_07_a_contract_picks_its_columns_by_name(written):
    """The contract has the groups in another order, with names for the axes: nothing depends on the file's order."""
    episodes, contract, _ = read_dataset(written, v2_contract())
    assert contract == v2_contract()
    for number, episode in enumerate(episodes):
        states, actions = numbers(number)
        steps = episode.length
        assert np.array_equal(episode.states[:steps], states[:steps, [3, 4, 0, 1, 2]].astype(np.float32))
        assert np.array_equal(episode.actions, actions[:steps, [3, 0, 1, 2]].astype(np.float32))


def test_a_contract_may_leave_groups_out(written):
    arm = v2_contract(state=v2_contract().state[2:])
    assert read_dataset(written, arm)[0][0].states.shape == (LENGTHS[0] + 1, 3)


def test_rule_07_other_groups_are_refused_with_the_difference(written):
    whole = v2_contract()
    longer = dataclasses.replace(whole, action=(*whole.action, Column("arm.hand", "rad")))
    with pytest.raises(ContractMismatch, match="action: group arm has 3 columns against 4"):
        read_dataset(written, longer)
    with pytest.raises(ContractMismatch, match="rate: 10 Hz against 20 Hz"):
        read_dataset(written, v2_contract(rate_hz=20.0))
    with pytest.raises(ContractMismatch, match="camera wrist is missing"):
        read_dataset(written, v2_contract(cameras=(Camera("wrist", 32, 32),)))
    with pytest.raises(ContractMismatch, match=r"camera front: \(32, 32, 3\) against \(96, 96, 3\)"):
        read_dataset(written, v2_contract(cameras=(Camera("front", 96, 96),)))


def test_rule_02_ends(written):
    """A success ends an episode; without one its last row is the last observation, and has an image."""
    for number, episode in enumerate(read_dataset(written)[0]):
        assert (episode.terminated, episode.truncated) == (SUCCEEDS[number], not SUCCEEDS[number])
        assert episode.length == LENGTHS[number] - (not SUCCEEDS[number])
        assert episode.rewards.sum() == SUCCEEDS[number]
        if episode.truncated:
            assert episode.frame_steps[-1] == episode.length


def test_frames_belong_to_their_rows(written):
    for every in (1, 4):
        for episode in read_dataset(written, image_every=every)[0]:
            images = episode.images["front"]
            assert len(images) == len(episode.frame_steps)
            wanted = [row for row in range(0, len(episode.states) - episode.terminated) if row % every == 0]
            assert set(wanted) <= set(episode.frame_steps.tolist())
            for row, image in zip(episode.frame_steps, images, strict=True):
                assert abs(image[:, :12].mean() - brightness(row)) < 4, row


def test_options_are_made_of_it(written):
    contract = v2_contract(statistics=Statistics((0.0,) * 5, (1.0,) * 5, (0.0,) * 4, (1.0,) * 4))
    episodes, _, _ = read_dataset(written, contract, image_every=4)
    options = build_options(
        episodes, contract, horizon=4, reward_discount=0.9, bootstrap_discount=0.9, reward=RewardSpec()
    )
    assert len(options) > 8 and len(FrameTable.of(episodes)) >= len(options)
    assert set(options.episode[options.terminated].tolist()) == {0, 2}


# ---- success and reward -----------------------------------------------------------------------------------------


def without(root, *names):
    for number in range(len(LENGTHS)):
        edit_rows(root, number, lambda columns: [columns.pop(name) for name in names])
    edit_json(root / "meta/info.json", lambda info: [info["features"].pop(name) for name in names])


def test_rule_09_success_is_declared(copy):
    without(copy, "next.success")
    refused(copy, "column next.success is missing; record it, or declare")
    for rule, expected in (
        ("done", [True] * 4),
        ("reward", list(SUCCEEDS)),
        ("always", [True] * 4),
        ("never", [False] * 4),
    ):
        episodes, _, _ = read_dataset(copy, labels=LabelRules(rule, "success"))
        assert [episode.terminated for episode in episodes] == expected
    # The task's reward says that two of them failed.
    refused(copy, "episode 1: success at row 8, but every next.reward up to there is 0", labels=LabelRules("always"))
    without(copy, "next.reward", "next.done")
    refused(copy, "column next.reward is missing", labels=LabelRules("always"))
    episodes, _, _ = read_dataset(copy, labels=LabelRules("always", "success"))
    assert all(episode.rewards.tolist() == [0.0] * (episode.length - 1) + [1.0] for episode in episodes)
    episodes, _, _ = read_dataset(copy, labels=LabelRules("never", "success"))
    assert all(not episode.rewards.any() for episode in episodes)


def test_rule_09_unknown_rules_are_refused():
    with pytest.raises(UserError, match="the rule for success is 'guess'; choose one of column, done"):
        LabelRules("guess")
    with pytest.raises(UserError, match="the rule for reward is 'tail'"):
        LabelRules(reward="tail")


def test_a_data_set_can_be_declared_once(copy):
    without(copy, "next.success")
    declare_dataset(copy, v2_contract(), source="rollout", labels=LabelRules("reward"))
    episodes, contract, _ = read_dataset(copy)
    assert contract == v2_contract()
    assert [episode.group for episode in episodes] == ["success", "failure"] * 2
    # What is declared beside the data wins over what a caller assumes of data that say nothing.
    assert [e.terminated for e in read_dataset(copy, labels=LabelRules("never"))[0]] == list(SUCCEEDS)
    with pytest.raises(UserError, match="says already what its columns mean"):
        declare_dataset(copy, v2_contract())


# ---- planted faults ---------------------------------------------------------------------------------------------


def test_broken_files(copy, original):
    file = data_file(copy, 2)
    file.write_bytes(file.read_bytes()[:200])
    refused(copy, r"episode_000002\.parquet cannot be read")
    shutil.copy(data_file(original, 2), file)
    video_file(copy, 1).write_bytes(video_file(copy, 1).read_bytes()[:300])
    refused(copy, r"episode_000001\.mp4 cannot be decoded")
    video_file(copy, 1).unlink()
    refused(copy, r"episode_000001\.mp4 is missing")
    shutil.copy(video_file(original, 3), video_file(copy, 2))
    shutil.copy(video_file(original, 1), video_file(copy, 1))
    refused(copy, r"episode_000002\.mp4 cannot be decoded up to second 1.3")


def test_broken_descriptions(copy):
    edit_lines(copy / "meta/episodes.jsonl", lambda lines: lines[1].update(length=10))
    refused(copy, r"episodes\.jsonl: episode 1 has 9 rows, the list of episodes says 10")
    edit_lines(copy / "meta/episodes.jsonl", lambda lines: lines[1].update(length=9))
    edit_lines(copy / "meta/tasks.jsonl", lambda lines: lines.pop())
    refused(copy, "episode 1: its instruction 1 is not in the list of tasks")
    edit_json(copy / "meta/modality.json", lambda value: value["action"]["arm"].update(end=9))
    refused(copy, "group arm goes from 0 to 9, action has 4 columns; correct it")
    edit_json(copy / "meta/modality.json", lambda value: value.pop("action"))
    refused(copy, "modality.json: no action in it")
    edit_json(copy / "meta/modality.json", lambda value: value.update(MODALITY))
    edit_json(copy / "meta/modality.json", lambda value: value["video"]["front"].update(original_key="x"))
    refused(copy, "camera front is in column x, which info.json does not have")


def test_nan_names_the_column(copy):
    def plant(columns):
        columns["observation.state"][3][1] = float("nan")

    edit_rows(copy, 3, plant)
    refused(copy, r"episode_000003\.parquet: episode 3: observation\.state arm\.1 is NaN at row 3", v2_contract())


def test_other_size_of_pictures(copy):
    edit_json(copy / "meta/info.json", lambda info: info["features"][FRONT].update(shape=[48, 48, 3]))
    refused(copy, r"frames are \(32, 32, 3\), info\.json says \(48, 48, 3\)")


# ---- the real one -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL.name} in {REAL.parent}: set DEAS_VLA_SHARED_DATA")
def test_the_real_one_is_read():
    refused(REAL, "column next.success is missing")
    episodes, contract, _ = read_dataset(REAL, labels=LabelRules("done"), image_every=32)
    assert (len(contract.state), len(contract.action), contract.rate_hz) == (44, 44, 20.0)
    assert contract.action[7].name == "left_hand.0" and contract.state[41].name == "waist.0"
    assert [episode.length for episode in episodes] == [416, 470, 470, 412, 328]
    assert all(episode.terminated and episode.rewards.sum() == 1 for episode in episodes)
    assert episodes[0].instruction == "pick the pear from the counter and place it in the plate"
    assert episodes[0].images["ego_view"].shape == (13, 256, 256, 3)
