"""Data sets as other people's tools leave them: read right, or refused in one line by the reader and by the audit."""

import numpy as np
import pytest
from told_example import FRONT, SIZE, TASKS, feature, own_contract, told, write_lines, write_tasks, write_told

from deas_vla.data.audit.audit import audit
from deas_vla.data.labels import RECORDED
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import UserError

VERSIONS = ("v3.0", "v2.1")


def errors(root, labels=RECORDED) -> list[str]:
    (data,) = audit([root], labels=labels).datasets
    return [f"{f.code}: {f.message}" for f in data.findings.sorted() if f.severity == "error"]


def refused(root, message, **options):
    """Both refuse, the reader in one line; `message` is a pattern of the reader's."""
    with pytest.raises(UserError, match=message) as error:
        read_dataset(root, own_contract(root), **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert errors(root)
    assert not any(line.startswith("audit-stopped") for line in errors(root))


def read(root, labels=RECORDED):
    """The episodes, each image of which shows its own episode and row; the audit passes them too."""
    episodes, _, _ = read_dataset(root, own_contract(root), labels=labels)
    for episode in episodes:
        for step, image in zip(episode.frame_steps, episode.images["front"], strict=True):
            assert told(image) == tuple(episode.states[step, :2].astype(int))
    assert errors(root, labels) == []
    return episodes


@pytest.mark.parametrize("version", VERSIONS)
def test_the_example_is_read(tmp_path, version):
    episodes = read(write_told(tmp_path / "set", version))
    assert [episode.terminated for episode in episodes] == [True, True, False]
    assert [len(episode.states) for episode in episodes] == [6, 5, 6]
    assert [episode.instruction for episode in episodes] == [TASKS[0], TASKS[1], TASKS[0]]


# ---- names (A4, B4, A15) ------------------------------------------------------------------------------------------


def named(names, width=2):
    return lambda info: info["features"]["action"].update(names=names, shape=[width])


def four_actions(_, columns):
    columns["action"] = np.tile(np.arange(4, dtype=np.float32), (len(columns["index"]), 1))


def test_rule_07_joints_of_two_arms_are_told_apart_by_their_groups(tmp_path):
    """Both arms have a joint_0: read by that name alone, the left arm would be the right one."""
    names = {"left": ["joint_0", "joint_1"], "right": ["joint_0", "joint_1"]}
    root = write_told(tmp_path / "set", columns=four_actions, info=named(names, 4))
    wanted = ["left.joint_0", "left.joint_1", "right.joint_0", "right.joint_1"]
    assert [column.name for column in own_contract(root).action] == wanted
    assert read(root)[0].actions[0].tolist() == [0, 1, 2, 3]


def test_names_in_an_object_stay_as_they_are_where_they_are_unique(tmp_path):
    root = write_told(tmp_path / "set", info=named({"motors": ["x", "y"]}))
    assert [column.name for column in own_contract(root).action] == ["x", "y"]


def test_a_list_in_a_list_of_names_is_flattened(tmp_path):
    root = write_told(tmp_path / "set", info=named([["x", "y"]]))
    assert [column.name for column in own_contract(root).action] == ["x", "y"]
    read(root)


@pytest.mark.parametrize("names", [["x", "x"], {"arm": ["x", "x"]}, [["x"], ["x"]]], ids=str)
def test_rule_07_a_name_for_two_columns_is_refused(tmp_path, names):
    root = write_told(tmp_path / "set", info=named(names))
    with pytest.raises(UserError, match=r"info\.json: two columns of action are called (arm\.)?x; give each"):
        own_contract(root)
    assert any("two columns of action are called" in line for line in errors(root))


def test_rule_07_a_declared_name_for_two_columns_is_refused(tmp_path):
    root = write_told(tmp_path / "set")
    declare_dataset(root, own_contract(root))
    path = root / "meta/deas_vla.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"name": "b"', '"name": "a"'), encoding="utf-8")
    refused(root, r"deas_vla\.json: not a valid contract \(two action entries are called a\)")


def test_two_columns_of_one_camera_are_refused(tmp_path):
    """Their names differ in what is left out of a camera's name; one of the two would be dropped."""
    front = feature("image", (SIZE, SIZE, 3))
    root = write_told(tmp_path / "set", info=lambda info: info["features"].update({"observation.front": front}))
    with pytest.raises(UserError, match=rf"{FRONT} and observation\.front are both camera front; rename"):
        own_contract(root)
    assert any("both camera front" in line for line in errors(root))


# ---- instructions (A8) --------------------------------------------------------------------------------------------

TABLES = {
    "as LeRobot writes it": ({"task_index": [0, 1], "task": TASKS}, ["task"]),
    "a column": ({"task_index": [0, 1], "task": TASKS}, []),
    "a text column before it": ({"category": ["kitchen", "office"], "task_index": [0, 1], "task": TASKS}, ["task"]),
    "a number before it": ({"difficulty": [3, 4], "task_index": [0, 1], "task": TASKS}, []),
    "a column of empty entries": ({"note": [None, None], "task_index": [0, 1], "task": TASKS}, ["task"]),
    "an index of another name": ({"task_index": [0, 1], "sentence": TASKS}, ["sentence"]),
    "in another order": ({"task_index": [1, 0], "task": TASKS[::-1]}, ["task"]),
}


@pytest.mark.parametrize(("columns", "index"), TABLES.values(), ids=TABLES)
def test_the_instruction_is_the_task(tmp_path, columns, index):
    root = write_told(tmp_path / "set")
    write_tasks(root, columns, index)
    assert [episode.instruction for episode in read(root)] == [TASKS[0], TASKS[1], TASKS[0]]


def test_instructions_that_are_none_are_refused(tmp_path):
    root = write_told(tmp_path / "set")
    for columns, index, message in (
        ({"task_index": [0, 1], "task": [3, 4]}, ["task"], r"tasks\.parquet: no task_index or no instructions"),
        ({"task_index": [0, 1], "category": TASKS}, [], r"tasks\.parquet: no task_index or no instructions"),
        ({"task_index": [0, 1], "task": TASKS, "kind": ["a", "b"]}, ["kind"], "may be kind or task; keep one"),
        ({"task_index": [0, 0], "task": TASKS}, ["task"], "both have task_index 0; give each a number"),
        ({"task_index": [0, 0.5], "task": TASKS}, ["task"], "task_index holds no whole numbers"),
    ):
        write_tasks(root, columns, index)
        refused(root, message)


def test_two_instructions_of_one_number_are_refused_in_v2(tmp_path):
    root = write_told(tmp_path / "set", "v2.1")
    lines = [{"task_index": index, "task": text} for index, text in ((0, "a"), (0, "b"), (1, "c"))]
    write_lines(root / "meta/tasks.jsonl", lines)
    refused(root, r"tasks\.jsonl: 'a' and 'b' both have task_index 0; give each a number of its own")
    write_lines(root / "meta/tasks.jsonl", [*lines[::2], lines[0]])
    assert len(read(root)) == 3


# ---- the list of episodes (A1, A2) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_an_episode_that_is_listed_twice_is_refused(tmp_path, version):
    root = write_told(tmp_path / "set", version, listed=lambda rows: [*rows, rows[1] | {"length": 2}])
    refused(root, r"meta/episodes(\.jsonl)?: episode 1 is listed twice; remove the line that is wrong")
