"""Data sets as other people's tools leave them: read right, or refused in one line by the reader and by the audit."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_example import example_contract, example_episode
from PIL import Image
from told_example import (
    FRONT,
    RATE,
    SIZE,
    TASKS,
    VIDEO_SIZE,
    encoded,
    feature,
    own_contract,
    told,
    write_frames,
    write_lines,
    write_tasks,
    write_told,
    write_told_video,
)

from deas_vla.data.audit.audit import audit, report_text
from deas_vla.data.contract import Camera
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.data.mixture import MixtureConfig, read_mixture
from deas_vla.errors import ContractMismatch, UserError

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


@pytest.mark.parametrize("files", [[[1, 0, 2]], [[2], [0, 1]], [[1], [2], [0]]], ids=str)
def test_episodes_are_found_by_their_numbers(tmp_path, files):
    """Whatever the order in which they lie, and in which files: as a resumed or a merged recording leaves them."""
    episodes = read(write_told(tmp_path / "set", lengths=(5, 5, 5), files=files))
    assert [int(episode.states[0, 0]) for episode in episodes] == [0, 1, 2] == [episode.scene for episode in episodes]


def test_a_thousandth_file_comes_after_the_others(tmp_path):
    root = write_told(tmp_path / "set", files=[[0], [1], [2]])
    data = root / "data/chunk-000"
    for number, name in ((1, 999), (2, 1000)):
        (data / f"file-{number:03d}.parquet").rename(data / f"file-{name}.parquet")
    names = [path.name for path in LerobotFolder(root).data_files()]
    assert names == ["file-000.parquet", "file-999.parquet", "file-1000.parquet"] and len(read(root)) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_gaps_in_the_numbers_are_none_in_the_data(tmp_path, version):
    episodes = read(write_told(tmp_path / "set", version, numbers=(0, 2, 5)))
    assert [episode.scene for episode in episodes] == [0, 2, 5]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (lambda rows: rows[1:], r"episode 0 has 5 rows, the list of episodes says nothing"),
        (lambda rows: [*rows, rows[0] | {"episode_index": 7}], r"episode 7 has no readable rows, the list .* says 5"),
        (lambda rows: [*rows[:2], rows[2] | {"length": 4}], r"episode 2 has 6 rows, the list of episodes says 4"),
        (lambda rows: [*rows[:2], rows[2] | {"episode_index": 3}], r"episode [23] has "),
    ],
    ids=["lacks one", "has one more", "another length", "another number"],
)
def test_a_list_of_other_episodes_is_refused(tmp_path, version, listed, message):
    """The counts agree, so that nothing but the comparison by number and length shows it."""
    root = write_told(tmp_path / "set", version, listed=listed)
    if version == "v2.1":
        # There the list says which files are read.
        message = r"episode_\d+\.parquet is missing|info\.json says total|" + message
    refused(root, message)


def test_episodes_without_rows_are_refused(tmp_path):
    root = write_told(tmp_path / "one", listed=lambda rows: [*rows, {"episode_index": 3, "length": 0}])
    refused(root, "episode 3 has no readable rows, the list of episodes says 0")
    root = write_told(tmp_path / "all", info=lambda info: info.update(total_frames=0, total_episodes=0))
    file = root / "data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(file, partitioning=None).slice(0, 0), file)
    refused(root, "episode 0 has no readable rows, the list of episodes says 5")


def test_rows_of_another_order_are_refused(tmp_path):
    """Frame n of a video is taken for row n: rows that were shuffled would each show another's."""

    def shuffled(number, columns):
        return {name: np.asarray(values)[[1, 0, *range(2, len(values))]] for name, values in columns.items()}

    root = write_told(tmp_path / "set", columns=shuffled)
    refused(root, r"file-000\.parquet: episode 0: frame_index is 1 at row 0, expected 0; rows were lost or copied")


# ---- types (B3, A17) -----------------------------------------------------------------------------------------------


def typed(name, dtype, number=1):
    def change(episode, columns):
        if number in (episode, None):
            columns[name] = np.asarray(columns[name]).astype(dtype)

    return change


@pytest.mark.parametrize("number", [1, None], ids=["one file", "all files"])
@pytest.mark.parametrize("dtype", ["float64", "float16", "int64"])
def test_numbers_of_another_type_are_cast(tmp_path, dtype, number):
    """As LeRobot casts them: to the type of info.json."""
    root = write_told(tmp_path / "set", files=[[0], [1], [2]], columns=typed("observation.state", dtype, number))
    episodes = read(root)
    assert {episode.states.dtype for episode in episodes} == {np.dtype("float32")}
    assert episodes[1].states[:3].tolist() == [[1, 0], [1, 1], [1, 2]]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("next.success", "int64"),
        ("next.success", "float64"),
        ("next.reward", "bool"),
        ("task_index", "float64"),
        ("episode_index", "uint8"),
    ],
)
def test_flags_and_counters_of_another_type_are_cast(tmp_path, name, dtype):
    episodes = read(write_told(tmp_path / "set", files=[[0], [1], [2]], columns=typed(name, dtype)))
    assert [episode.terminated for episode in episodes] == [True, True, False]
    assert episodes[1].instruction == TASKS[1]


def success_of(dtype, values, declared=None):
    """Success of the second episode as these values; info.json says `declared`."""

    def columns(number, made):
        made["next.success"] = np.asarray(made["next.success"]).astype(dtype)
        if number == 1:
            made["next.success"] = np.asarray(values)

    return {"columns": columns, "info": lambda info: info["features"]["next.success"].update(dtype=declared or dtype)}


@pytest.mark.parametrize("declared", ["float32", "bool"])
def test_rule_09_a_probability_is_no_success(tmp_path, declared):
    """Anything above 0 would be one: at the first row."""
    root = write_told(tmp_path / "set", **success_of("float32", np.float32([0.1, 0.2, 0.3, 0.9]), declared))
    refused(root, r"next\.success (is 0\.1 at row 0, neither 0 nor 1|holds float, info\.json says bool)")


def test_rule_09_a_success_in_words_is_none(tmp_path):
    root = write_told(tmp_path / "set", **success_of("<U5", ["false"] * 4, "string"))
    refused(root, r"column next\.success holds string, info\.json says string")


def test_flags_as_numbers_are_flags(tmp_path):
    root = write_told(tmp_path / "set", **success_of("int64", [0, 0, 0, 1]))
    assert read(root)[1].terminated


@pytest.mark.parametrize("name", ["action", "task_index", "next.reward"])
def test_words_for_numbers_are_refused(tmp_path, name):
    def words(number, columns):
        columns[name] = np.asarray(columns[name]).astype(str)

    refused(write_told(tmp_path / "set", columns=words), rf"column {name} holds string, info\.json says \w+")


def test_a_half_instruction_is_refused(tmp_path):
    def half(number, columns):
        columns["task_index"] = np.asarray(columns["task_index"]) + 0.5

    refused(write_told(tmp_path / "set", columns=half), "column task_index holds double, info.json says int64")


# ---- columns of others (B7) ----------------------------------------------------------------------------------------


def with_column(name, dtype, value):
    return {
        "columns": lambda number, columns: columns.update({name: [value] * len(columns["index"])}),
        "info": lambda info: info["features"].update({name: feature(dtype)}),
    }


@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [
        ("scene", "string", "kitchen 1"),
        ("scene", "float32", 0.5),
        ("frame.is_final", "string", "no"),
        ("next.truncated", "string", "no"),
        ("note", "string", "a word"),
        ("note", "int64", 1.5),
        ("note", "float32", None),
    ],
)
def test_columns_of_others_are_left_alone(tmp_path, name, dtype, value):
    episodes = read(write_told(tmp_path / "set", **with_column(name, dtype, value)))
    assert [episode.scene for episode in episodes] == [0, 1, 2]


@pytest.mark.parametrize("name", ["frame.is_final", "frame.is_fresh"])
def test_one_mark_of_frames_alone_is_somebody_elses(tmp_path, name):
    """The last row is the step that succeeds: taken for this project's mark, it was cut off with the success."""

    def last(number, columns):
        columns[name] = np.asarray(columns["next.done"])

    info = {"info": lambda info: info["features"].update({name: feature("bool")})}
    episodes = read(write_told(tmp_path / "set", columns=last, **info))
    assert [episode.terminated for episode in episodes] == [True, True, False]
    assert len(episodes[0].frame_steps) == 5


def test_a_number_of_the_scene_is_read(tmp_path):
    root = write_told(tmp_path / "set", **with_column("scene", "int64", 7))
    assert {episode.scene for episode in read(root)} == {7}


ANNOTATION = "annotation.human.task_description"
GROUPS = {
    "state": {"all": {"start": 0, "end": 2}},
    "action": {"all": {"start": 0, "end": 2}},
    "video": {"front": {"original_key": FRONT}},
    "annotation": {"human.task_description": {}},
}


@pytest.mark.parametrize(("dtype", "value", "text"), [("string", "pick it up", "pick it up"), ("int64", 1, TASKS[1])])
def test_an_annotation_holds_instructions_or_their_numbers(tmp_path, dtype, value, text):
    root = write_told(tmp_path / "set", "v2.1", **with_column(ANNOTATION, dtype, value))
    (root / "meta/modality.json").write_text(json.dumps(GROUPS), encoding="utf-8")
    assert {episode.instruction for episode in read(root)} == {text}
    (data,) = audit([root]).datasets
    assert set(data.instructions.values()) == {text}


def test_a_blank_instruction_is_refused(tmp_path):
    refused(write_told(tmp_path / "set", tasks=("  ", "open")), "episode 0: its instruction 0 is empty")


# ---- outcomes (A5, C6) ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["always", "never", "done", "reward"])
def test_rule_09_a_recorded_outcome_is_kept(tmp_path, rule):
    """A flag is meant for other data sets of the same mixture, which do not say."""
    root = write_told(tmp_path / "set")
    recorded = [episode.terminated for episode in read(root)]
    assert [episode.terminated for episode in read(root, LabelRules(rule))] == recorded == [True, True, False]
    assert audit([root], labels=LabelRules(rule)).datasets[0].successes == 2
    # The reward may be another: many data sets have none that means anything.
    assert read(root, LabelRules(rule, "success"))[0].rewards.tolist() == [0, 0, 0, 0, 1]


def test_rule_09_what_this_project_recorded_keeps_its_outcome_and_reward(tmp_path):
    rng = np.random.default_rng(0)
    made = [example_episode(rng, 6, success) for success in (True, False)]
    made[1].rewards[2] = 0.5
    write_dataset(tmp_path / "set", made, example_contract(), "local/toy")
    for labels in (RECORDED, LabelRules("always"), LabelRules("done", "success"), LabelRules("never", "success")):
        back, _, _ = read_dataset(tmp_path / "set", labels=labels)
        assert [episode.terminated for episode in back] == [True, False]
        assert back[1].rewards.tolist() == made[1].rewards.tolist()
        assert audit([tmp_path / "set"], labels=labels).datasets[0].successes == 1


def test_rule_09_a_rule_for_one_data_set_of_a_mixture_leaves_the_others_alone(tmp_path):
    """Demonstrations that do not say are all successes; rollouts beside them keep their failure."""
    says = write_told(tmp_path / "says")

    def silent(number, columns):
        del columns["next.success"], columns["next.reward"]

    def undescribed(info):
        del info["features"]["next.success"], info["features"]["next.reward"]

    silent = write_told(tmp_path / "silent", columns=silent, info=undescribed)
    config = MixtureConfig([str(says), str(silent)], image_every=1, labels=LabelRules("always", "success"))
    parts, _ = read_mixture(config, own_contract(says))
    outcomes = [[episode.terminated for episode in part] for part in parts]
    assert outcomes == [[True, True, False], [True, True, True]]


@pytest.mark.parametrize("row", [0, 2])
def test_a_success_that_goes_away_again_is_the_end_and_needs_its_reward(tmp_path, row):
    def flicker(number, columns):
        columns["next.success"] = np.arange(len(columns["index"])) == row

    root = write_told(tmp_path / "set", columns=flicker)
    refused(root, f"episode 0: success at row {row}, but every next.reward up to there is 0")

    def rewarded(number, columns):
        flicker(number, columns)
        columns["next.reward"] = np.asarray(columns["next.success"], np.float32)

    assert [len(e.actions) for e in read(write_told(tmp_path / "rewarded", columns=rewarded))] == [row + 1] * 3


def test_one_row_without_success_is_refused(tmp_path):
    root = write_told(tmp_path / "set", lengths=(1, 4, 6), successes=(False, True, True))
    refused(root, "episode 0: it has no steps: 1 rows without success; leave it out")


def test_one_row_with_success_is_one_step(tmp_path):
    assert read(write_told(tmp_path / "set", lengths=(1, 4, 6)))[0].length == 1


# ---- cameras (A7, C2) ----------------------------------------------------------------------------------------------

DEPTH = "observation.images.depth"
MARKS = (
    {"info": {"is_depth_map": True}},
    {"info": {"video.is_depth_map": True}},
    {"video_info": {"video.is_depth_map": True}},
    {"info": {"video.pix_fmt": "gray12le"}},
)


def with_depth(mark):
    image = encoded(Image.fromarray(np.full((SIZE, SIZE), 1450, np.uint16)))
    return {
        "columns": lambda number, columns: columns.update({DEPTH: [image] * len(columns["index"])}),
        "info": lambda info: info["features"].update({DEPTH: feature("image", (SIZE, SIZE, 1)) | mark}),
    }


@pytest.mark.parametrize("mark", MARKS, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_depth_maps_are_left_out(tmp_path, version, mark):
    """8 bits have no room for them: 1450 mm would be white, as would be all beyond 255."""
    root = write_told(tmp_path / "set", version, **with_depth(mark))
    assert [camera.name for camera in own_contract(root).cameras] == ["front"] and len(read(root)) == 3
    contract = own_contract(root)
    contract = dataclasses.replace(contract, cameras=(*contract.cameras, Camera("depth", SIZE, SIZE)))
    with pytest.raises(ContractMismatch, match="camera depth holds depth maps, which are not read: leave it out"):
        read_dataset(root, contract)
    assert "camera depth holds depth maps: it is left out" in report_text(audit([root]))
    declare_dataset(root, contract)
    assert any("camera depth holds depth maps" in line for line in errors(root))


def test_depth_maps_of_a_group_are_left_out(tmp_path):
    root = write_told(tmp_path / "set", "v2.1", **with_depth(MARKS[0]))
    video = GROUPS["video"] | {"far": {"original_key": DEPTH}}
    (root / "meta/modality.json").write_text(json.dumps(GROUPS | {"video": video, "annotation": {}}), encoding="utf-8")
    assert [camera.name for camera in own_contract(root).cameras] == ["front"] and len(read(root)) == 3


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("PNG", Image.fromarray(np.full((SIZE, SIZE), 1450, np.uint16))),
        ("TIFF", Image.fromarray(np.full((SIZE, SIZE), 1450, np.uint16))),
        ("TIFF", Image.fromarray(np.full((SIZE, SIZE), 0.4, np.float32))),
    ],
    ids=["16 bits", "16 bits, TIFF", "float"],
)
def test_a_depth_map_that_nobody_marked_is_refused(tmp_path, kind, image):
    depth = {FRONT: encoded(image, kind)}
    root = write_told(tmp_path / "set", columns=lambda number, columns: spoil_images(columns, 1, depth[FRONT]))
    refused(root, r"front, row 1: a depth map \((I;16|F)\), no colours; mark it in info\.json as LeRobot does")


def spoil_images(columns, row, image):
    columns[FRONT][row] = image


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_that_was_cut_off_is_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    half = encoded(noise, kind)[:-60]
    root = write_told(tmp_path / "set", columns=lambda number, columns: spoil_images(columns, 1, half))
    refused(root, r"front, row 1: not an image")


def test_images_that_nothing_shows_may_be_spoiled(tmp_path):
    """Rows after a success are not used."""

    def early(number, columns):
        columns["next.success"] = np.arange(len(columns["index"])) >= 2
        columns["next.reward"] = columns["next.success"].astype(np.float32)
        spoil_images(columns, -1, b"no image")

    assert [episode.length for episode in read(write_told(tmp_path / "set", columns=early))] == [3, 3, 3]


# ---- videos (A1, C1, C2, C3) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_of_videos_are_those_of_their_rows(tmp_path, version):
    """In v3 the rows lie in another order than the videos, which lie in two files."""
    options = {"files": [[2], [1, 0]], "video_files": [0, 1, 0]} if version == "v3.0" else {}
    assert len(read(write_told_video(tmp_path / "set", version, **options))) == 3


def test_frames_of_a_discarded_take_are_told(tmp_path):
    root = write_told_video(tmp_path / "set", extra=2)
    read(root)
    (finding,) = [f for f in audit([root]).datasets[0].findings.sorted() if f.code == "long-video"]
    assert "episode 0 has 5 rows, camera front has 7 frames" in finding.message and finding.episodes == (0, 1, 2)


def moved(number, seconds):
    def change(rows):
        rows[number][f"videos/{FRONT}/from_timestamp"] += seconds

    return change


def test_an_episode_that_shows_the_next_ones_frames_is_refused(tmp_path):
    """The list gives two episodes one part of the video: each frame is there, and is another's."""
    root = write_told_video(tmp_path / "set", listed=moved(1, -0.2))
    refused(root, r"meta/episodes: episode 0 has 5 rows, camera front has 3 frames up to the next episode in file-000")


@pytest.mark.parametrize("version", VERSIONS)
def test_a_video_whose_times_do_not_fit_is_refused_in_one_line(tmp_path, version):
    root = write_told_video(tmp_path / "set", version, times=lambda frames: 0.35 + np.arange(frames) / RATE)
    refused(
        root, r"\.mp4: its times do not fit its rows, at seconds 0 to 0\.4 a frame is over half a step away; encode"
    )
    assert errors(root)[0] == (
        "video-times: episode 0: camera front has no frame at 0 s, where row 0 is: the nearest is 350 ms away"
    )


CLOCKS = {
    "slow": lambda frames: np.arange(frames) * 1.2 / RATE,
    "paused": lambda frames: np.arange(frames) / RATE + 0.3 * (np.arange(frames) > frames // 2),
    "lost frames": lambda frames: np.arange(frames) * 1.5 / RATE,
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("times", CLOCKS.values(), ids=CLOCKS)
def test_a_video_of_another_clock_is_refused(tmp_path, version, times):
    """Never read as the neighbouring frames."""
    refused(
        write_told_video(tmp_path / "set", version, times=times), r"a second, info\.json says 10|do not fit its rows"
    )


def test_a_video_of_a_real_clock_is_read(tmp_path):
    """A frame is up to a fifth of a step late, so that the decoder's own count of the rate is wrong."""
    late = np.random.default_rng(0).uniform(0, 0.02, 20)
    root = write_told_video(tmp_path / "set", "v2.1", times=lambda frames: np.arange(frames) / RATE + late[:frames])
    read(root)


def test_surplus_frames_of_another_rate_are_refused(tmp_path):
    """By its seconds row 4 shows frame 4, and by their rate frame 5: nothing says which is meant."""
    root = write_told_video(tmp_path / "set", "v2.1", extra=3, times=lambda frames: np.arange(frames) * 0.9 / RATE)
    refused(root, r"episode 0 has 5 rows, camera front has 8 frames, 1\d\.\d+ a second, info\.json says 10; encode")


def with_camera(info):
    info["features"]["observation.images.wrist"] = feature("video", (VIDEO_SIZE, VIDEO_SIZE, 3))


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_cameras_of_the_contract_need_videos(tmp_path, version):
    root = write_told_video(tmp_path / "set", version, info=with_camera)
    both = own_contract(root)
    refused(root, "has no videos/observation.images.wrist/chunk_index|episode_000000.mp4 is missing")
    front = dataclasses.replace(both, cameras=both.cameras[:1])
    assert len(read_dataset(root, front)[0]) == 3
    declare_dataset(root, front)
    assert errors(root) == [] and len(read_dataset(root)[0]) == 3


def test_a_video_of_deep_grey_pixels_is_a_depth_map(tmp_path):
    root = write_told_video(tmp_path / "set", lengths=(5,), successes=(True,))
    frames = [np.full((VIDEO_SIZE, VIDEO_SIZE), 9000 * row, np.uint16) for row in range(5)]
    path = next((root / "videos").rglob("*.mp4"))
    path.unlink()
    write_frames(path, frames, name="libx265", format="gray12le")
    refused(root, r"\.mp4 holds depth maps \(gray12le\), no colours; mark it in info\.json as LeRobot does")
    assert errors(root) == ["depth-map: camera front has pixels of format gray12le"]
