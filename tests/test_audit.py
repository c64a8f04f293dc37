"""The audit: every planted fault is found and named, and a clean data set has none."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_example import example_contract, example_episode
from v2_example import (
    FRONT,
    INSTRUCTION,
    LENGTHS,
    REAL,
    data_file,
    edit_json,
    edit_lines,
    edit_rows,
    v2_contract,
    video_file,
    write_v2,
    write_video,
)

from deas_vla.cli import main
from deas_vla.data.audit.audit import audit, report_text
from deas_vla.data.audit.columns import ColumnFacts
from deas_vla.data.contract import Camera, Statistics
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot import IMAGES, SIDECAR
from deas_vla.data.lerobot.declare import declare_dataset
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2") / "dataset")


@pytest.fixture(scope="module")
def v3(tmp_path_factory):
    return write_v3(tmp_path_factory.mktemp("v3") / "dataset", example_contract())


@pytest.fixture(scope="module")
def v3_video(tmp_path_factory):
    contract = example_contract(cameras=(Camera("left", 64, 64), Camera("wrist", 64, 64)))
    return write_v3(tmp_path_factory.mktemp("video") / "dataset", contract, "video")


@pytest.fixture(scope="module")
def originals(v2, v3, v3_video):
    return {"v2": v2, "v3": v3, "v3_video": v3_video}


def write_v3(root, contract, storage="image", seed=0):
    rng = np.random.default_rng(seed)
    episodes = [example_episode(rng, 12 + 3 * i, i % 2 == 0, scene=i) for i in range(4)]
    side = contract.cameras[0].height
    for episode in episodes:
        shape = (len(episode.frame_steps), side, side, 3)
        episode.images = {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in ("left", "wrist")}
    write_dataset(root, episodes, contract, "local/toy", storage=storage)
    return root


def found(report, place=0):
    return {finding.code: finding for finding in report.datasets[place].findings.sorted()}


def errors(report):
    return [
        f"{f.code}: {f.message}"
        for audited in report.datasets
        for f in audited.findings.sorted()
        if f.severity == "error"
    ]


# ---- clean ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["v2", "v3", "v3_video"])
def test_a_clean_data_set_has_no_error(originals, kind):
    report = audit([originals[kind]])
    assert report.fit and errors(report) == []
    assert {f.severity for f in report.datasets[0].findings.sorted()} <= {"note"}
    assert report.datasets[0].successes == 2 and len(report.datasets[0].lengths) == 4


def test_a_declared_clean_data_set_has_no_error(v2, tmp_path):
    root = shutil.copytree(v2, tmp_path / "dataset")
    declare_dataset(root, v2_contract())
    report = audit([root])
    assert errors(report) == []
    assert [c["name"] for c in report.to_json()["datasets"][0]["columns"]["action"]][:2] == [
        "gripper_close.0", "arm.0",
    ]  # fmt: skip


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL.name} in {REAL.parent}: set DEAS_VLA_SHARED_DATA")
def test_the_real_one():
    assert not audit([REAL]).fit  # nothing says what success is
    report = audit([REAL], labels=LabelRules("done"))
    assert report.fit and report.datasets[0].successes == 5
    codes = found(report)
    assert "observation.images.egoview" in codes["camera-without-video"].message
    assert "0.05 s" in codes["timestamps-start-late"].message
    assert "25 of 44 action columns never move" in codes["constant-action"].message


# ---- planted faults ---------------------------------------------------------------------------------------------
# Each: a name, on which data set, what is done to it, the finding's code and what its message or place must name.


def info(change):
    return lambda root: edit_json(root / "meta/info.json", change)


def rows(number, change):
    return lambda root: edit_rows(root, number, change)


def cell(number, name, row, value, entry=None):
    def change(columns):
        if entry is None:
            columns[name][row] = value
        else:
            columns[name][row][entry] = value

    return rows(number, change)


def every_episode(change):
    def plant(root):
        for number in range(len(LENGTHS)):
            edit_rows(root, number, change)

    return plant


def truncated_parquet(root):
    file = data_file(root, 1)
    file.write_bytes(file.read_bytes()[:-100])


def half_a_video(root):
    file = video_file(root, 2)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def other_dtype(columns):
    columns["action"] = [[str(value) for value in row] for row in columns["action"]]


def duplicate(root):
    source = pq.read_table(data_file(root, 1)).to_pydict()
    edit_rows(root, 3, lambda c: c.update({k: source[k] for k in ("action", "observation.state")}))


def black_video(root):
    import av

    with av.open(str(video_file(root, 0)), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 32
        for _ in range(LENGTHS[0]):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def v3_table(change):
    def plant(root):
        file = next((root / "data").glob("*/*.parquet"))
        pq.write_table(change(pq.read_table(file, partitioning=None)), file)

    return plant


def v3_column(name, change):
    def replaced(table):
        place, field = table.column_names.index(name), table.schema.field(name)
        return table.set_column(place, field, pa.array(change(table[name].to_pylist()), field.type))

    return v3_table(replaced)


def at(row, value):
    def change(values):
        values[row] = value
        return values

    return change


def no_gripper_flag(values):
    return [[move, 0.5] for move, _ in values]


def too_far(values):
    return [[3 * move, flag] for move, flag in values]


def cut_picture(values):
    values[8]["bytes"] = values[8]["bytes"][:40]
    return values


def shorter_video_file(root):
    file = next((root / "videos" / f"{IMAGES}left").glob("*/*.mp4"))
    write_video(file, 20, size=64, rate=20)


FAULTS = [
    ("no folder", "v2", shutil.rmtree, "not-a-data-set", "info.json"),
    ("info.json cut off", "v2", lambda r: (r / "meta/info.json").write_text("{"), "not-a-data-set", "info.json"),
    ("other version", "v2", info(lambda i: i.update(codebase_version="v1.6")), "not-a-data-set", "v1.6"),
    ("column lost", "v2", rows(1, lambda c: c.pop("action")), "missing-column", "action"),
    ("no action at all", "v3", info(lambda i: i["features"].pop("action")), "missing-column", "action"),
    ("no next.success", "v2", info(lambda i: i["features"].pop("next.success")), "missing-column", "next.success"),
    ("no next.reward", "v3", info(lambda i: i["features"].pop("next.reward")), "missing-column", "next.reward"),
    ("NaN", "v2", cell(1, "observation.state", 4, float("nan"), 3), "not-finite", "gripper.0 is NaN at row 4"),
    ("infinite", "v2", cell(2, "action", 5, float("inf"), 1), "not-finite", "arm.1 is infinite at row 5"),
    ("NaN reward", "v3", v3_column("next.reward", at(5, float("nan"))), "not-finite", "next.reward is NaN"),
    ("empty entry", "v2", cell(0, "next.done", 3, None), "empty-entries", "next.done"),
    ("wrong rate", "v2", info(lambda i: i.update(fps=20)), "wrong-rate", "10 Hz, info.json says 20 Hz"),
    ("lost steps", "v2", rows(0, lambda c: c.update(timestamp=[t + (t > 0.5) for t in c["timestamp"]])),
     "timestamp-gap", "1100.0 ms between rows 5 and 6"),
    ("time goes back", "v2", cell(0, "timestamp", 6, 0.1), "timestamps-not-increasing", "row 5"),
    ("late start", "v2", every_episode(lambda c: c.update(timestamp=[t + 0.1 for t in c["timestamp"]])),
     "timestamps-start-late", "0.1 s"),
    ("index gap", "v2", cell(2, "frame_index", 7, 8), "index-gap", "frame_index is 8 at row 7, expected 7"),
    ("rows lost", "v3", v3_table(lambda t: pa.concat_tables([t.slice(0, 5), t.slice(7)])), "index-gap", "row 5"),
    ("rows lost at the end", "v3", v3_table(lambda t: t.slice(0, 20)), "wrong-count", "total_frames"),
    ("length in meta", "v2", lambda r: edit_lines(r / "meta/episodes.jsonl", lambda x: x[1].update(length=7)),
     "wrong-length", "episode 1 has 9 rows, the list of episodes says 7"),
    ("unlisted episode", "v2", lambda r: edit_lines(r / "meta/episodes.jsonl", lambda x: x.pop(3)),
     "unlisted-rows", "episode_000003.parquet"),
    ("no list of episodes", "v2", lambda r: (r / "meta/episodes.jsonl").unlink(), "missing-episode-list", "jsonl"),
    ("parquet cut off", "v2", truncated_parquet, "broken-rows", "episode_000001.parquet"),
    ("parquet missing", "v2", lambda r: data_file(r, 2).unlink(), "missing-rows", "episode_000002.parquet"),
    ("no parquet", "v3", lambda r: shutil.rmtree(r / "data"), "missing-rows", "data/"),
    ("wrong dtype", "v2", rows(1, other_dtype), "wrong-type", "action holds string, info.json says float64"),
    ("wrong width", "v2", rows(1, lambda c: c.update(action=[a[:3] for a in c["action"]])),
     "wrong-width", "action has [3] entries a row, info.json says 4"),
    ("short video", "v2", lambda r: write_video(video_file(r, 2), 10), "short-video", "14 rows, camera front has 10"),
    ("short shared video", "v3_video", shorter_video_file, "short-video", "camera left has"),
    ("long video", "v2", lambda r: write_video(video_file(r, 1), 13), "long-video", "13 frames"),
    ("missing video", "v2", lambda r: video_file(r, 3).unlink(), "missing-video", "episode_000003.mp4"),
    ("broken video", "v2", half_a_video, "broken-video", "episode_000002.mp4"),
    ("black video", "v2", black_video, "flat-camera", "front shows one colour in 1 of the 4"),
    ("wrong image size", "v2", lambda r: write_video(video_file(r, 0), 12, size=48), "wrong-image-size", "48x48"),
    ("video of another rate", "v2", lambda r: write_video(video_file(r, 0), 12, rate=30), "wrong-video-rate", "30"),
    ("picture cut off", "v3", v3_column(f"{IMAGES}wrist", cut_picture), "broken-image", "wrist at row 8"),
    ("picture lost", "v3", v3_column(f"{IMAGES}left", at(4, {"bytes": None, "path": ""})), "missing-image", "row 4"),
    ("camera without files", "v2", info(lambda i: i["features"].update(
        {f"{IMAGES}top": {"dtype": "video", "shape": [8, 8, 3]}})), "camera-without-video", "top"),
    ("success without reward", "v2", rows(0, lambda c: c.update({"next.reward": [0.0] * 12})),
     "success-without-reward", "episode 0: success at row 11"),
    ("reward after the end", "v2", rows(1, lambda c: c.update(
        {"next.done": [i == 5 for i in range(9)], "next.reward": [float(i == 7) for i in range(9)]})),
     "reward-after-end", "1 at row 7, the episode ended at row 5"),
    ("done too early", "v2", cell(1, "next.done", 3, True), "done-too-early", "next.done at row 3"),
    ("rows after the success", "v2", cell(0, "next.success", 4, True), "rows-after-success", "row 4, 7 rows follow"),
    ("success before the end", "v3", v3_column("next.success", at(4, True)), "rows-after-success", "row 4"),
    ("both ends", "v3", v3_column("next.truncated", at(11, True)), "both-ends", "episode 0"),
    ("no success anywhere", "v2", every_episode(lambda c: c.update(
        {"next.success": [False] * len(c["index"]), "next.reward": [0.0] * len(c["index"])})), "no-success", ""),
    ("constant reward", "v2", every_episode(lambda c: c.update({"next.reward": [1.0] * len(c["index"])})),
     "constant-reward", "1"),
    ("constant action", "v2", every_episode(lambda c: [row.__setitem__(1, 0.25) for row in c["action"]]),
     "constant-action", "1 of 4 action columns never move: arm.1"),
    ("binary column with halves", "v3", v3_column("action", no_gripper_flag), "not-binary", "gripper_close takes 0.5"),
    ("command beyond its limits", "v3", v3_column("action", too_far), "out-of-range", "allows -1 to 1"),
    ("no tasks", "v2", lambda r: (r / "meta/tasks.jsonl").unlink(), "missing-tasks", "tasks.jsonl"),
    ("missing instruction", "v2", lambda r: edit_lines(r / "meta/tasks.jsonl", lambda x: x.pop(1)),
     "missing-instruction", "instruction 1"),
    ("empty instruction", "v2", lambda r: edit_lines(r / "meta/tasks.jsonl", lambda x: x[0].update(task="")),
     "missing-instruction", "is empty"),
    ("instruction changes", "v2", cell(0, INSTRUCTION, 6, 1), "instruction-changes", "episode 0"),
    ("duplicated episode", "v2", duplicate, "duplicated-episode", "of episode 1"),
    ("episode number twice", "v2", rows(3, lambda c: c.update(episode_index=[2] * 9)), "episode-twice", "episode 2"),
    ("statistics of one episode", "v2", lambda r: edit_lines(r / "meta/episodes_stats.jsonl",
     lambda x: x[1]["stats"]["action"]["mean"].__setitem__(2, 0.9)), "wrong-statistics", "mean of motor_2 is 0.9"),
    ("statistics", "v3", lambda r: edit_json(r / "meta/stats.json",
     lambda s: s["observation.state"].update(std=[9.0, 1.0, 1.0])), "wrong-statistics", "std of position.x is 9"),
    ("statistics lost", "v3", lambda r: edit_json(r / "meta/stats.json", lambda s: s.pop("action")),
     "wrong-statistics", "action"),
    ("statistics cut off", "v3", lambda r: (r / "meta/stats.json").write_text("{"), "broken-statistics", "stats.json"),
    ("columns renamed", "v3", info(lambda i: i["features"]["action"].update(names=["gripper_close", "move.x"])),
     "other-contract", "gripper_close against move.x"),
    ("sidecar cut off", "v3", lambda r: (r / SIDECAR).write_text("{"), "broken-sidecar", "deas_vla.json"),
    ("modality.json", "v2", lambda r: edit_json(r / "meta/modality.json", lambda m: m["state"]["arm"].update(end=9)),
     "unclear-columns", "group arm goes from 0 to 9"),
]  # fmt: skip
# Faults that leave data which training can use, and know about.
HARMLESS = {
    "timestamps-start-late", "unlisted-rows", "long-video", "camera-without-video", "no-success",
    "constant-reward", "constant-action", "instruction-changes", "duplicated-episode",
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "plant", "code", "names"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_a_planted_fault_is_found(originals, tmp_path, name, kind, plant, code, names):
    root = shutil.copytree(originals[kind], tmp_path / "dataset")
    plant(root)
    report = audit([root])
    there = report.datasets[0].findings.sorted()
    named = [f for f in there if f.code == code and names in f"{f.file} {f.column} {f.message}"]
    assert named, (name, there)
    finding = named[0]
    harmless = code in HARMLESS or (code, kind) == ("rows-after-success", "v2")
    assert (finding.severity == "error") != harmless
    assert finding.hint and "\n" not in finding.message
    text = report_text(report)
    assert finding.message in text and finding.hint in text
    assert json.loads(json.dumps(report.to_json()))["fit"] == report.fit
    if report.fit:  # what the audit passes, the reader takes
        read_dataset(root)


def test_enough_faults_are_planted():
    assert len({fault[3] for fault in FAULTS}) >= 20


def test_the_same_fault_in_many_episodes_is_one_finding(v2, tmp_path):
    root = shutil.copytree(v2, tmp_path / "dataset")
    every_episode(lambda c: c["action"][1].__setitem__(0, float("nan")))(root)
    (finding,) = [f for f in audit([root]).datasets[0].findings.sorted() if f.code == "not-finite"]
    assert finding.episodes == (0, 1, 2, 3) and finding.column == "arm.0"


# ---- against a policy, a critic, another data set -----------------------------------------------------------------


def policy_folder(folder, contract):
    folder.mkdir()
    (folder / "contract.json").write_text(json.dumps(contract.to_json()))
    return folder


def test_rule_07_a_policy_of_the_same_contract_fits(v3, tmp_path):
    # The statistics of the example's contract are made up: as wide as the data, so that nothing looks shifted.
    contract = example_contract(statistics=None)
    report = audit([v3], policy_folder(tmp_path / "policy", contract))
    assert errors(report) == [] and report.against.startswith("policy ")


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"embodiment": "panda"}, "other-embodiment", "toy against panda"),
        ({"rate_hz": 10.0}, "other-rate", "20 Hz against 10 Hz"),
        ({"state": example_contract().state[::-1]}, "other-state", "'position.x' against 'position.z'"),
        ({"cameras": (Camera("left", 96, 96), Camera("wrist", 96, 96))}, "other-camera", "height 16 against 96"),
        ({"statistics": Statistics((9.0,) * 3, (1.0,) * 3, (0.0,) * 2, (1.0,) * 2)}, "other-statistic", "state_mean"),
    ],
)
def test_rule_07_another_policy_does_not_fit(v3, tmp_path, changes, code, names):
    report = audit([v3], policy_folder(tmp_path / "policy", example_contract(**changes)))
    lines = [line for line in errors(report) if line.startswith(code)]
    assert not report.fit and any(names in line for line in lines)


def test_rule_07_v2_against_a_policy(v2, tmp_path):
    """Names by groups; what the data set does not say, its units, is not held against it."""
    assert errors(audit([v2], policy_folder(tmp_path / "policy", v2_contract()))) == []
    other = v2_contract(cameras=(Camera("top", 32, 32),), action=v2_contract().action[:3], embodiment="panda")
    report = audit([v2], policy_folder(tmp_path / "other", other))
    text = "\n".join(errors(report))
    for part in ("group arm has 3 columns against 2", "camera top is missing", "embodiment: arm against panda"):
        assert part in text


def test_swapped_columns_are_seen_by_their_numbers(v2, tmp_path):
    """The names fit, the numbers do not: the gripper's flag lies where the policy has an angle."""
    statistics = Statistics((0.0,) * 5, (0.6,) * 5, action_mean=(0.5, 5.0, 0.0, 0.0), action_std=(0.5, 0.6, 0.6, 0.6))
    root = shutil.copytree(v2, tmp_path / "dataset")

    def swap(columns):  # in the files: arm.0, arm.1, arm.2, gripper_close
        for row in columns["action"]:
            row[0] += 5.0
            row[0], row[1] = row[1], row[0]

    wide = tuple(dataclasses.replace(c, low=-9.0, high=9.0) for c in v2_contract().action[1:])
    contract = v2_contract(statistics=statistics, action=(v2_contract().action[0], *wide))
    folder = policy_folder(tmp_path / "policy", contract)
    every_episode(swap)(root)
    message = found(audit([root], folder))["looks-swapped"].message
    assert "arm.shoulder looks like the policy's arm.elbow, and the other way round" in message
    # The flag where an angle was: not even the kind is right.
    every_episode(lambda c: [row.insert(0, row.pop()) for row in c["action"]])(root)
    assert "gripper_close.close takes many values" in found(audit([root], folder))["not-binary"].message


def test_another_unit_is_seen_by_its_numbers(v2, tmp_path):
    statistics = Statistics((0.0,) * 5, (0.01,) * 5, (0.0,) * 4, (1.0,) * 4)
    report = audit([v2], policy_folder(tmp_path / "policy", v2_contract(statistics=statistics)))
    assert report.fit and found(report)["unlike-policy"].severity == "warning"
    assert "unlike-policy: gripper.left has mean" in report_text(report)


def test_against_a_policy_of_lerobot(v2, tmp_path):
    """It knows sizes only; LeRobot itself would feed it pictures of any."""
    folder = tmp_path / "policy"
    folder.mkdir()

    def write(side):
        features = {FRONT: {"type": "VISUAL", "shape": [3, side, side]}}
        output = {"action": {"type": "ACTION", "shape": [4]}}
        (folder / "config.json").write_text(json.dumps({"input_features": features, "output_features": output}))

    write(32)
    assert audit([v2], folder).fit
    write(96)
    report = audit([v2], folder)
    assert f"{FRONT} is (3, 32, 32) against (3, 96, 96)" in found(report)["other-size"].message


def test_against_nothing_is_refused(v2, tmp_path):
    with pytest.raises(UserError, match="give the folder of one as --against"):
        audit([v2], tmp_path)


def test_data_sets_are_compared_with_each_other(v2, v3, tmp_path):
    report = audit([v2, v3])
    text = "\n".join(errors(report))
    assert not report.fit and found(report, 0).get("other-rate") is None
    for part in ("rate: 20 Hz against 10 Hz", "embodiment: toy against arm", "state"):
        assert part in text
    other = write_v3(tmp_path / "other", example_contract(statistics=None), seed=1)
    assert errors(audit([v3, other])) == []
    same = found(audit([v3, shutil.copytree(v3, tmp_path / "same")]), 1)["duplicated-episode"]
    assert same.message.startswith("4 episodes have the states and actions of episodes in")


# ---- the command ------------------------------------------------------------------------------------------------


def test_the_command_says_whether_it_is_fit(v2, v3, tmp_path, capsys):
    assert main(["audit", str(v2)]) == 0
    out = capsys.readouterr().out
    assert "arm.0" in out and out.rstrip().splitlines()[-1].startswith("fit for training: 0 errors")
    assert main(["audit", str(v2), str(v3), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert not value["fit"] and len(value["datasets"]) == 2
    assert value["datasets"][1]["columns"]["action"][1]["signature"] == "binary"
    assert main(["audit", str(v2), "--success=guess"]) == 2
    assert "choose one of" in capsys.readouterr().err
    assert main(["audit", str(v2), f"--against={tmp_path / 'nothing'}"]) == 2


# ---- numbers ----------------------------------------------------------------------------------------------------


def test_facts_of_columns_leave_out_rows_that_are_not_finite():
    rng = np.random.default_rng(0)
    rows = rng.normal(1000, 0.01, (500, 3))
    rows[:, 1], rows[:, 2] = rows[:, 1] > 1000, 4.0
    facts = ColumnFacts.of(np.append(rows, [[np.nan, 0, 0]], 0))
    assert np.allclose(facts.mean, rows.mean(0)) and np.allclose(facts.std, rows.std(0), rtol=1e-6)
    assert np.array_equal(facts.low, rows.min(0)) and np.array_equal(facts.high, rows.max(0))
    assert [facts.signature(i) for i in range(3)] == ["range", "binary", "constant"]


def test_places_are_named_below_the_data_set(v2, tmp_path, monkeypatch):
    """Also where the data set's own folder has the name of one inside it, and is given by a relative path."""
    root = shutil.copytree(v2, tmp_path / "data")
    edit_rows(root, 0, lambda c: c["action"][1].__setitem__(0, float("nan")))
    video_file(root, 3).unlink()
    monkeypatch.chdir(tmp_path)
    faults = found(audit(["data"]))
    assert faults["not-finite"].file == "data/chunk-000/episode_000000.parquet"
    assert faults["missing-video"].file.startswith("videos/chunk-000/")
