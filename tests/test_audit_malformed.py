"""Descriptions that are not what they should be: a sentence, never a traceback; and odd ones that are right."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_example import example_contract, example_episode
from v2_example import FRONT, edit_json, edit_rows, write_v2

from deas_vla.cli import main
from deas_vla.data.audit.audit import audit, report_text
from deas_vla.data.lerobot import rows
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    place, rng = tmp_path_factory.mktemp("originals"), np.random.default_rng(0)
    episodes = [example_episode(rng, 8 + i, i % 2 == 0) for i in range(4)]
    write_dataset(place / "v3", episodes, example_contract(), "local/example")
    return {"v2": write_v2(place / "v2"), "v3": place / "v3"}


@pytest.fixture
def copy(originals, tmp_path):
    return lambda kind: shutil.copytree(originals[kind], tmp_path / kind)


def errors(report) -> list[str]:
    found = [finding for part in report.datasets for finding in part.findings.sorted()]
    return [f"{f.code}: {f.message}" for f in found if f.severity == "error"]


def info(**changes):
    return lambda root: edit_json(root / "meta/info.json", lambda value: value.update(changes))


def feature(name, **changes):
    return lambda root: edit_json(
        root / "meta/info.json", lambda value: value["features"].setdefault(name, {}).update(changes)
    )


def modality(**changes):
    return lambda root: edit_json(root / "meta/modality.json", lambda value: value.update(changes))


def lines(name, text):
    return lambda root: (root / "meta" / name).write_text(text + "\n")


def without_video_path(root):
    edit_json(root / "meta/info.json", lambda value: value.pop("video_path"))


V3_VIDEOS = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# On which data set, what is done to it, and what the message must name.
MALFORMED = {
    "fps 0": ("v2", info(fps=0), "info.json: fps is not a number above 0"),
    "fps null": ("v3", info(fps=None), "info.json: fps is not a number"),
    "fps text": ("v2", info(fps="ten"), "info.json: fps is not a number"),
    "features a list": ("v2", info(features=[]), "info.json: features is not an object of columns"),
    "a feature a number": ("v3", info(features={"action": 3}), "features.action is not an object"),
    "shape null": ("v3", feature("action", shape=None), "features.action.shape is not a list of whole"),
    "shape text": ("v2", feature(FRONT, shape=["32", 32, 3]), f"features.{FRONT}.shape is not a list"),
    "shape of no picture": ("v2", feature(FRONT, shape=[32, 32]), f"features.{FRONT}.shape is not that of"),
    "names a number": ("v3", feature("action", names=7), "features.action.names is not a list or an object"),
    "names of no order": ("v3", feature("action", names={"x": 0, "y": 2}), "features.action.names is not"),
    "chunks of size 0": ("v2", info(chunks_size=0), "chunks_size is not a whole number above 0"),
    "video_path null": ("v2", info(video_path=None), "video_path is not a path of {video_key}, {episode_"),
    "video_path missing": ("v2", without_video_path, "video_path is not a path of {video_key}, {episode_"),
    "video_path of v3": ("v2", info(video_path=V3_VIDEOS), "video_path is not a path of {video_key}, {ep"),
    "data_path of v3": ("v2", info(data_path="data/{file_index}"), "data_path is not a path of {episode_chunk}"),
    "no total_frames": ("v3", info(total_frames=None), "total_frames is not a whole number"),
    "group a list": ("v2", modality(state={"arm": [0, 3]}), "modality.json: state is not an object of objects"),
    "groups a list": ("v2", modality(action=[3]), "modality.json: action is not an object of objects"),
    "start text": ("v2", modality(state={"a": {"start": "0", "end": 3}}), "group a goes from 0 to 3"),
    "cameras null": ("v2", modality(video=None), "modality.json: video is not an object of objects"),
    "camera in no column": ("v2", modality(video={"top": {"original_key": [1]}}), "camera top is in column [1]"),
    "camera of numbers": ("v2", modality(video={"top": {"original_key": "action"}}), "holds no images"),
    "annotation in no column": ("v2", modality(annotation={"task_description": {}}), "which info.json does not"),
    "an episode a number": ("v2", lines("episodes.jsonl", "7"), "episodes.jsonl, line 1: not an object"),
    "a length null": ("v2", lines("episodes.jsonl", '{"episode_index": 0, "length": null}'), "length is None"),
    "a task a number": ("v2", lines("tasks.jsonl", "7"), "tasks.jsonl, line 1: not an object"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "plant", "told"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_description_is_a_sentence(copy, capsys, kind, plant, told):
    root = copy(kind)
    plant(root)
    with pytest.raises(UserError) as error:
        read_dataset(root)
    assert told in str(error.value) and "\n" not in str(error.value)
    report = audit([root])
    assert any(told in line for line in errors(report)) and told in report_text(report)
    assert not any(line.startswith("audit-stopped") for line in errors(report))
    assert main(["audit", str(root), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["fit"]


def test_what_nobody_foresaw_is_a_finding(originals, monkeypatch, capsys):
    def fail(*_):
        raise ZeroDivisionError("of a kind\nthat no check knows")

    monkeypatch.setattr(rows, "times", fail)
    assert main(["audit", str(originals["v2"]), str(originals["v3"]), "--json"]) == 1
    for each in json.loads(capsys.readouterr().out)["datasets"]:
        (finding,) = [f for f in each["findings"] if f["code"] == "audit-stopped"]
        assert "ZeroDivisionError: of a kind that no check knows" in finding["message"]


# ---- empty entries ----------------------------------------------------------------------------------------------


def test_rule_09_an_empty_success_is_no_failure(copy):
    """A demonstration would become a timeout without a word."""
    root = copy("v2")
    edit_rows(root, 0, lambda columns: columns["next.success"].__setitem__(11, None))
    with pytest.raises(UserError, match=r"episode_000000\.parquet: column next\.success has 1 empty entries"):
        read_dataset(root)
    root = copy("v3")
    file = next((root / "data").glob("*/*.parquet"))
    table = pq.read_table(file, partitioning=None)
    values = table["next.success"].to_pylist()
    place, values[7] = table.column_names.index("next.success"), None
    pq.write_table(table.set_column(place, "next.success", pa.array(values)), file)
    with pytest.raises(UserError, match=r"file-000\.parquet: column next\.success has 1 empty entries"):
        read_dataset(root)


# ---- odd, and right ---------------------------------------------------------------------------------------------


def test_names_with_their_places_are_names(copy):
    """As LeRobot's gamepad and keyboard have them; here not in the order of the columns."""
    root = copy("v3")
    feature("action", names={"gripper_close": 1, "move.x": 0})(root)
    assert errors(audit([root])) == []
    assert [column.name for column in read_dataset(root)[1].action] == ["move.x", "gripper_close"]


def add_columns(root, columns, declared):
    for number in range(4):
        edit_rows(root, number, lambda rows: rows.update(columns(len(rows["index"]))))
    edit_json(root / "meta/info.json", lambda value: value["features"].update(declared))


def test_sentences_at_rows_are_no_fault(copy):
    """What lerobot-annotate writes: lists of any length, of objects."""
    root = copy("v2")
    said = [{"role": "user", "content": "now the drawer", "style": "interjection"}]
    names = ("language_persistent", "language_events")
    language = {"dtype": "language", "shape": [1], "names": None}
    add_columns(
        root,
        lambda rows: {name: [said * (row % 3) for row in range(rows)] for name in names},
        dict.fromkeys(names, language),
    )
    assert errors(audit([root])) == [] and len(read_dataset(root)[0]) == 4


def test_a_table_of_numbers_a_row_is_no_fault(copy):
    root = copy("v2")
    shape = {"dtype": "float64", "shape": [2, 3], "names": None}
    add_columns(root, lambda rows: {"touch": [[[0.0, 1.0, 2.0]] * 2] * rows}, {"touch": shape})
    assert errors(audit([root])) == [] and len(read_dataset(root)[0]) == 4
    feature("touch", shape=[2, 4])(root)
    # Nothing here reads it.
    report = audit([root])
    assert "column touch has [2] by [3] entries a row, info.json says 8" in report_text(report) and report.fit
    assert len(read_dataset(root)[0]) == 4


def test_a_table_of_numbers_as_lerobot_writes_it(copy):
    """With a type of its own, of the library `datasets`."""
    from datasets import Array2D, Features

    root = copy("v3")
    file = next((root / "data").glob("*/*.parquet"))
    table = pq.read_table(file, partitioning=None)
    kind = Features({"touch": Array2D((2, 3), "float32")}).arrow_schema.field("touch").type
    stored = pa.array([[[0.0, 1.0, 2.0]] * 2] * len(table), kind.storage_type)
    pq.write_table(table.append_column("touch", pa.ExtensionArray.from_storage(kind, stored)), file)
    feature("touch", dtype="float32", shape=[2, 3], names=None)(root)
    assert errors(audit([root])) == []


def test_a_camera_that_lerobot_fills_in_is_not_missing(originals, tmp_path):
    seen = {
        "observation.images.front": {"type": "VISUAL", "shape": [3, 32, 32]},
        "observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 480, 640]},
    }
    (tmp_path / "config.json").write_text(json.dumps({"input_features": seen}))
    assert errors(audit([originals["v2"]], tmp_path)) == []
