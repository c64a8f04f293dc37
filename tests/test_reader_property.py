"""Random small data sets, legal and not: the audit and the reader refuse the same, and what both take is LeRobot's.

Every change below is one that other people's tools, copies and edits make; which of them are legal is not written down.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from PIL import Image
from told_example import FRONT, SIZE, TASKS, encoded, feature, own_contract, picture, write_tasks, write_told

from deas_vla.data.audit.audit import audit
from deas_vla.data.episodes import Episode
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import ContractMismatch, UserError


@dataclass
class Plan:
    """A data set before it is written."""

    version: str
    lengths: list[int]
    successes: list[bool]
    files: list[list[int]]
    changes: list[str] = field(default_factory=list)  # by name, for whoever reads a failure
    labels: LabelRules = RECORDED
    columns: list[Callable[[int, dict], None]] = field(default_factory=list, repr=False)
    info: list[Callable[[dict], None]] = field(default_factory=list, repr=False)
    listed: list[Callable[[list], None]] = field(default_factory=list, repr=False)
    after: list[Callable[[Path], None]] = field(default_factory=list, repr=False)  # on the written folder

    def write(self, root: Path) -> Path:
        def every(changes):
            def change(*given):
                for one in changes:
                    one(*given)

            return change

        write_told(
            root,
            self.version,
            lengths=self.lengths,
            successes=self.successes,
            files=self.files,
            columns=every(self.columns),
            info=every(self.info),
            listed=every(self.listed),
        )
        every(self.after)(root)
        return root


# ---- changes; each takes the plan and three small numbers that choose the place and the kind -----------------------

COLUMNS = (
    "observation.state", "action", "timestamp", "frame_index", "episode_index", "index", "task_index", "next.reward",
    "next.done", "next.success",
)  # fmt: skip


def in_episode(change):
    """A change of one episode's columns: `change(columns, row, b, c)`, of which `a` chooses episode and row."""

    def planned(plan, a, b, c):
        def apply(number, columns):
            if number == a % len(plan.lengths):
                change(columns, (a + b) % len(columns["index"]), b, c)

        plan.columns.append(apply)

    planned.__name__ = change.__name__
    return planned


@in_episode
def a_cell(columns, row, b, c):
    name = COLUMNS[b % len(COLUMNS)]
    values = np.array(columns[name], np.float64)
    values.reshape(len(values), -1)[row, -1] = (np.nan, np.inf, -1, 0.5, 1, 7)[c % 6]
    columns[name] = values


@in_episode
def an_empty_cell(columns, row, b, c):
    values = np.array(columns[COLUMNS[b % len(COLUMNS)]]).tolist()
    values[row] = None if c % 2 or not isinstance(values[row], list) else [None, 1.0]
    columns[COLUMNS[b % len(COLUMNS)]] = values


@in_episode
def a_moved_number(columns, row, b, c):
    name = ("frame_index", "index", "timestamp", "task_index", "episode_index")[b % 5]
    values = np.array(columns[name])
    values[row:] += (1, 2, -1)[c % 3]
    columns[name] = values


@in_episode
def a_flag(columns, row, b, c):
    name = ("next.success", "next.done")[b % 2]
    values = np.array(columns[name])
    values[row : None if c % 2 else row + 1] ^= True
    columns[name] = values


@in_episode
def a_reward(columns, row, b, c):
    values = np.array(columns["next.reward"])
    values[row] = (1, 0, -1)[c % 3]
    columns["next.reward"] = values


@in_episode
def another_type(columns, row, b, c):
    name = COLUMNS[b % len(COLUMNS)]
    columns[name] = np.array(columns[name]).astype(("float64", "float16", "int64", "uint8", "bool", "str")[c % 6])


@in_episode
def another_width(columns, row, b, c):
    name = ("observation.state", "action")[b % 2]
    values = np.array(columns[name])
    columns[name] = (values[:, :1], np.repeat(values, 2, 1), values[:, 0], values[:, :, None])[c % 4]


@in_episode
def a_lost_column(columns, row, b, c):
    del columns[(*COLUMNS, FRONT)[b % (len(COLUMNS) + 1)]]


@in_episode
def swapped_rows(columns, row, b, c):
    order = np.arange(len(columns["index"]))
    order[[row, c % len(order)]] = order[[c % len(order), row]]
    for name in (tuple(columns), (FRONT,), ("observation.state", "action"))[b % 3]:
        values = [columns[name][place] for place in order]
        columns[name] = values if name == FRONT else np.array(values)


@in_episode
def lost_rows(columns, row, b, c):
    for name, values in list(columns.items()):
        keep = [place for place in range(len(values)) if place != row] if len(values) > 1 else [0]
        columns[name] = [values[place] for place in keep] if name == FRONT else np.array(values)[keep]


@in_episode
def another_image(columns, row, b, c):
    shown, grey = picture(1, 1), Image.fromarray(picture(1, 1)).convert("L")
    columns[FRONT][row] = (
        encoded(shown)[: -10 * (1 + c)],
        encoded(np.repeat(np.repeat(shown, 2, 0), 2, 1)),
        encoded(shown, "JPEG")[: -40 * (c % 2) or None],
        encoded(grey),
        encoded(Image.fromarray(shown).convert("RGBA")),
        encoded(Image.fromarray(shown).convert("P")),
        encoded(Image.fromarray(np.full((SIZE, SIZE), 1450, np.uint16))),
        encoded(Image.fromarray(np.full((SIZE, SIZE), 0.5, np.float32)), "TIFF"),
        None,
        b"",
        encoded(shown, "BMP"),
    )[b % 11]


def another_column(plan, a, b, c):
    """A column that this project has, too, or that nobody knows."""
    name = ("scene", "frame.is_final", "frame.is_fresh", "next.truncated", "note")[a % 5]
    dtype, value = (("string", "word"), ("int64", 3), ("bool", True), ("bool", False), ("float32", 0.5))[b % 5]
    stored = value if c % 3 else "word"
    plan.columns.append(lambda number, columns: columns.update({name: [stored] * len(columns["index"])}))
    plan.info.append(lambda info: info["features"].update({name: feature(dtype)}))


def other_names(plan, a, b, c):
    named = (
        ["x", "y"],
        ["x", "x"],
        ["x"],
        [["x", "y"]],
        None,
        {"g": ["x", "y"]},
        {"g": ["x"], "h": ["x"]},
        {"x": 1, "y": 0},
        {"x": 0, "y": 2},
        {"g": ["x", "x"]},
        "xy",
        [{"g": "x"}, "y"],
        [1, 2],
    )
    names = named[a % len(named)]
    plan.info.append(lambda info: info["features"][COLUMNS[c % 2]].update(names=names))


def other_description(plan, a, b, c):
    def change(info):
        name = (*COLUMNS, FRONT)[b % (len(COLUMNS) + 1)]
        if a % 6 == 0:
            info["features"].pop(name)
        elif a % 6 == 1:
            info["features"][name]["dtype"] = ("float32", "float64", "int64", "bool", "string", "image")[c % 6]
        elif a % 6 == 2:
            info["features"][name]["shape"] = ([2], [1], [SIZE, SIZE, 3], [3, SIZE, SIZE], [4, 4, 3])[c % 5]
        elif a % 6 == 3:
            key = ("total_frames", "total_episodes", "fps", "chunks_size", "total_tasks")[b % 5]
            info[key] += (1, -1)[c % 2]
        elif a % 6 == 4:
            key = ("robot_type", "total_episodes", "splits", "data_path", "fps", "chunks_size")[b % 6]
            info.pop(key)
        else:
            marks = ({"is_depth_map": True}, {"video.is_depth_map": False}, {"video.pix_fmt": "gray12le"}, {})
            info["features"][FRONT]["info"] = marks[c % 4]

    plan.info.append(change)


def a_second_camera(plan, a, b, c):
    name = ("observation.front", "observation.images.wrist", "observation.image")[a % 3]
    dtype = ("image", "image", "video")[b % 3]
    plan.info.append(lambda info: info["features"].update({name: feature(dtype, (SIZE, SIZE, 3))}))
    if c % 2:
        plan.columns.append(lambda number, columns: columns.update({name: columns.get(FRONT, [])}))


def another_list(plan, a, b, c):
    def change(rows):
        if not rows:
            return
        row = rows[a % len(rows)]
        if b % 5 == 0:
            rows.remove(row)
        elif b % 5 == 1:
            rows.append(dict(row))
        elif b % 5 == 2:
            row["length"] += (1, -1)[c % 2]
        elif b % 5 == 3:
            row["episode_index"] = c
        else:
            rows.reverse()

    plan.listed.append(change)


def other_tasks(plan, a, b, c):
    tables = (
        ({"task_index": [0, 1], "task": ["", "x"]}, ["task"]),
        ({"task_index": [0, 0], "task": TASKS}, ["task"]),
        ({"task_index": [0], "task": TASKS[:1]}, ["task"]),
        ({"task_index": [0, 1], "task": [3, 4]}, ["task"]),
        ({"task_index": [0, 1], "task": TASKS, "kind": ["a", "b"]}, []),
        ({"task_index": [0, 1], "text": TASKS}, []),
        ({"task_index": [0, 1.5], "task": TASKS}, ["task"]),
    )

    def change(root):
        if plan.version == "v3.0":
            write_tasks(root, *tables[a % len(tables)])
            return
        columns = tables[a % len(tables)][0]
        rows = [dict(zip(columns, each, strict=True)) for each in zip(*columns.values(), strict=True)]
        (root / "meta/tasks.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    plan.after.append(change)


def other_files(plan, a, b, c):
    def change(root):
        if not (files := sorted((root / "data").rglob("*.parquet"))):
            return
        file = files[a % len(files)]
        if b % 6 == 0:
            file.write_bytes(file.read_bytes()[: -20 * (1 + c)])
        elif b % 6 == 1:
            file.unlink()
        elif b % 6 == 2:
            file.rename(file.with_name("file-1000.parquet"))
        elif b % 6 == 3:
            shutil.copy(file, file.with_name("file-077.parquet"))
        elif b % 6 == 4:
            pq.write_table(pq.read_table(file, partitioning=None).slice(0, 0), file.with_name("file-077.parquet"))
        else:
            path = root / ("meta/info.json", "meta/tasks.jsonl", "meta/episodes.jsonl", "meta/tasks.parquet")[c % 4]
            if path.is_file():
                path.write_bytes(path.read_bytes()[:-5])

    plan.after.append(change)


def bare_images(plan, a, b, c):
    """Images without their names, which LeRobot reads as well."""

    def change(root):
        for file in (root / "data").rglob("*.parquet"):
            table = pq.read_table(file, partitioning=None)
            if FRONT in table.column_names:
                values = [value and value["bytes"] for value in table[FRONT].to_pylist()]
                place = table.column_names.index(FRONT)
                pq.write_table(table.set_column(place, FRONT, pa.array(values, pa.binary())), file)

    plan.after.append(change)


def a_declaration(plan, a, b, c):
    """Beside the data, with limits that they may break."""

    def change(root):
        try:
            contract = own_contract(root)
        except UserError:
            return
        (root / "meta/deas_vla.json").unlink(missing_ok=True)
        first = replace(contract.action[0], low=0.0, high=(0.5, 0.05, 1.0)[b % 3], kind=("continuous", "binary")[c % 2])
        labels = LabelRules(("column", "always", "done")[a % 3])
        declare_dataset(root, replace(contract, action=(first, *contract.action[1:])), labels=labels)

    plan.after.append(change)


def groups(plan, a, b, c):
    """GR00T's description of the columns, and of where the instruction is."""
    note = ("task_index", "human.task_description")[a % 2]
    modality = {
        "state": {"all": {"start": 0, "end": 2}},
        "action": {"one": {"start": 1, "end": 2}, "other": {"start": 0, "end": (1, 2, 3)[b % 3]}},
        "video": {"front": {"original_key": (FRONT, FRONT, "action")[c % 3]}},
        "annotation": {note: {}} if a % 2 else {},
    }
    value, dtype = (("pick it up", "string"), (1, "int64"), (" ", "string"), (5, "int64"))[c % 4]
    if a % 2:
        key = f"annotation.{note}"
        plan.columns.append(lambda number, columns: columns.update({key: [value] * len(columns["index"])}))
        plan.info.append(lambda info: info["features"].update({key: feature(dtype)}))
    plan.after.append(lambda root: (root / "meta/modality.json").write_text(json.dumps(modality), encoding="utf-8"))


def other_rules(plan, a, b, c):
    plan.labels = LabelRules(("done", "reward", "always", "never")[a % 4], ("column", "success")[b % 2])


CHANGES = (
    a_cell, an_empty_cell, a_moved_number, a_flag, a_reward, another_type, another_width, a_lost_column, swapped_rows,
    lost_rows, another_image, another_column, other_names, other_description, a_second_camera, another_list,
    other_tasks, other_files, bare_images, a_declaration, groups, other_rules,
)  # fmt: skip


@st.composite
def plans(draw, changes=3, versions=("v3.0", "v2.1"), kinds=CHANGES):
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    # Another order, in one file or in one each.
    order = draw(st.permutations(range(len(lengths))))
    files = [[place] for place in order] if draw(st.booleans()) else [order]
    successes = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    plan = Plan(draw(st.sampled_from(versions)), lengths, successes, files)
    number = st.integers(0, 12)
    for change, a, b, c in draw(st.lists(st.tuples(st.sampled_from(kinds), number, number, number), max_size=changes)):
        change(plan, a, b, c)
        plan.changes.append(f"{change.__name__} {a} {b} {c}")
    return plan


# ---- what is demanded ---------------------------------------------------------------------------------------------

# LeRobot's own tools read these statistics, and only the audit compares episodes and looks at what images show.
NOT_READ = ("wrong-statistics", "broken-statistics", "flat-camera", "frozen-camera", "instruction-of-another")


def taken(root: Path, labels: LabelRules) -> list[Episode] | None:
    """The episodes that the reader reads, or None if it refuses; the audit does the same."""
    report = audit([root], labels=labels)
    findings = [f for f in report.datasets[0].findings.sorted() if f.severity == "error" and f.code not in NOT_READ]
    assert not [f.message for f in findings if f.code == "audit-stopped"]
    try:
        declared = (root / "meta/deas_vla.json").is_file()
        episodes, _, _ = read_dataset(root, None if declared else own_contract(root), labels=labels)
    except UserError as error:
        message = str(error)
        assert "\n" not in message and (";" in message or isinstance(error, ContractMismatch)), message
        assert findings, f"the reader alone refuses: {message}"
        return None
    assert not findings, f"the audit alone refuses: {findings[0]}"
    return episodes


def written(plan: Plan, folder: str) -> Path | None:
    """The data set, or None where no tool could have written it: a column of two types in one file."""
    try:
        return plan.write(Path(folder) / "set")
    except (pa.ArrowException, KeyError, ValueError, IndexError, TypeError, OSError):
        return None


@pytest.mark.unit
@settings(max_examples=60)
@given(plans())
def test_audit_and_reader_refuse_the_same(plan):
    with tempfile.TemporaryDirectory() as folder:
        if (root := written(plan, folder)) is not None:
            event("refused" if taken(root, plan.labels) is None else "taken")


def rows_of_lerobot(root: Path) -> list[dict] | None:
    """What LeRobot's own reader makes of each row, or None if it refuses what is read here."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    try:
        data = LeRobotDataset("local/told", root=root)
        return [data[row] for row in range(len(data.hf_dataset))]
    except Exception:  # of any kind: it asks the hub for what it misses
        return None


def assert_as_lerobot(episodes: list[Episode], rows: list[dict]) -> None:
    """Each number and each image that an episode has is that of LeRobot's row with its episode and frame number."""
    numbers = sorted({int(row["episode_index"]) for row in rows})
    seen = 0
    for row in rows:
        episode, step = episodes[numbers.index(int(row["episode_index"]))], int(row["frame_index"])
        if step < episode.length:
            assert np.array_equal(episode.states[step], np.float32(row["observation.state"]))
            assert np.array_equal(episode.actions[step], np.float32(row["action"]))
            assert episode.rewards[step] == np.float32(row["next.reward"])
            assert episode.success[step] == bool(row["next.success"])
            # Where it changes, which the audit warns of, the first row's is the episode's.
            assert step or episode.instruction == row["task"]
        image, frames = row[FRONT], episode.images.get("front")  # a depth map is left out
        for shown in np.flatnonzero(episode.frame_steps == step) if len(image) == 3 and frames is not None else ():
            told = (image * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
            assert np.array_equal(frames[shown], told)
        seen += 1
    assert seen >= sum(episode.length for episode in episodes)


def test_what_is_read_is_what_lerobot_reads(tmp_path, monkeypatch):
    """LeRobot counts a row's frame in a video, and finds its instruction, by the same numbers."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    compared = []
    kinds = [kind for kind in CHANGES if kind not in (groups, other_rules, other_tasks, a_declaration)]

    @settings(max_examples=40)
    @given(plans(changes=2, versions=["v3.0"], kinds=kinds))
    def check(plan):
        with tempfile.TemporaryDirectory() as folder:
            root = written(plan, folder)
            episodes = root and taken(root, plan.labels)
            if episodes and (rows := rows_of_lerobot(root)):
                assert_as_lerobot(episodes, rows)
                compared.append(plan)

    check()
    assert len(compared) >= 10
