"""Episodes against each other: a fault in some of them is found and those are named, clean ones raise no alarm."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from accelerate import Accelerator
from data_example import example_contract, example_episode
from v2_example import REAL, edit_json

from deas_vla.config import parse
from deas_vla.data.audit.audit import audit, report_text
from deas_vla.data.audit.cameras import Film, compare_films
from deas_vla.data.audit.compared import Played, compare, placeholder
from deas_vla.data.contract import Camera, Column
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot.layout import Layout, Position
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError
from deas_vla.training.data_check import audit_data
from recipes import finetune_policy

NAMES = ("shoulder.pos", "elbow.pos", "wrist.pos", "gripper.pos")
GOALS = {"put the cup on the shelf": 0.8, "put the cup into the sink": -0.8}


def layout(names=NAMES):
    """Commands are targets of the joints of these names, or have names of their own."""
    state = tuple(Position(name, "observation.state", i) for i, name in enumerate(NAMES))
    action = tuple(Position(name, "action", i) for i, name in enumerate(names))
    return Layout(state, action, {"top": "observation.images.top", "wrist": "observation.images.wrist"})


def played(number, rng, targets=True, steps=80):
    """An arm that comes to its targets with a lag, or moves as it is told; the gripper closes on the way."""
    text = list(GOALS)[number % 2]
    time = np.linspace(0, 1, steps)[:, None]
    goal = np.array([GOALS[text], 0.5, -0.6]) + rng.normal(0, 0.05, 3)
    wave = sum(rng.normal(0, 0.1, 3) * np.sin(k * np.pi * time + rng.uniform(0, 6, 3)) for k in (3, 7, 13))
    arm = goal * time + wave + rng.normal(0, 0.02 if targets else 0.3, (steps, 3))
    grip = (time[:, 0] > rng.uniform(0.4, 0.6)).astype(float)
    actions, state, states = np.column_stack([arm, grip]), np.zeros(4), []
    for row in range(steps):
        states.append(state)
        if targets:
            state = state + (0.5, 0.5, 0.5, 0.3) * (actions[row] - state)
        else:
            state = state + np.append(0.1 * actions[row, :3], 0.3 * (actions[row, 3] - state[3]))
    return Played(number, np.array(states, np.float32), actions.astype(np.float32), text, True)


def everyone(targets=True, count=20, seed=0):
    rng = np.random.default_rng(seed)
    return [played(number, rng, targets) for number in range(count)]


def film(each, camera, rng, back=0):
    """A camera with a background of its own, in which what the arm does can be seen; `back` images late."""
    spread = np.random.default_rng(camera).normal(0, 30, (4, 192))
    rows = np.arange(10, 58)
    images = 128 + 60 * np.sin(np.arange(192) * (camera + 1)) + each.states[rows - back] @ spread
    images += rng.normal(0, 1, (48, 192))
    return Film(each.number, images.astype(np.float32), rows, each.states, flat=False)


def films(back=0):
    rng = np.random.default_rng(1)
    return {
        name: [film(each, camera, rng, back * camera) for each in everyone()]
        for camera, name in enumerate(("top", "wrist"))
    }


def planted(change, which, of):
    return [change(each) if each.number in which else each for each in of]


def inverted(each):
    return replace(each, actions=np.column_stack([each.actions[:, :3], 1 - each.actions[:, 3]]))


def turned_round(each):
    states = np.column_stack([each.states[:, :3], 1 - each.states[:, 3]])
    return replace(inverted(each), states=states)


def in_degrees(each):
    return replace(each, states=each.states * 57.29578, actions=each.actions * 57.29578)


def late(each):
    return replace(each, actions=np.concatenate([each.actions[:1], each.actions[:-1]]))


def reached(each):
    return replace(each, actions=np.concatenate([each.states[1:], each.states[-1:]]))


def other_text(each):
    return replace(each, instruction=next(text for text in GOALS if text != each.instruction))


SOME, ALL = (3, 8, 13), tuple(range(20))
FAULTS = [
    ("gripper-inverted", inverted, SOME, True, "gripper.pos moves the gripper the other way"),
    ("gripper-inverted", turned_round, SOME, True, "gripper.pos opens where it closes"),
    ("units-mixed", in_degrees, SOME, True, "shoulder.pos, elbow.pos, wrist.pos, gripper.pos are 57 times larger"),
    ("action-shifted", late, SOME, True, "a step late against most"),
    ("action-shifted", late, SOME, False, "a step late against most"),
    ("action-late", late, ALL, False, "has moved before"),
    ("action-is-state", lambda each: replace(each, actions=each.states), SOME, True, "the state of the same row"),
    ("action-is-next-state", reached, ALL, True, "the state of the next row"),
    ("instruction-of-another", other_text, SOME, True, "under another instruction (episode 3: 'put the cup into"),
]


@pytest.mark.unit
@pytest.mark.parametrize(("code", "change", "which", "targets", "says"), FAULTS)
def test_a_fault_of_some_episodes_names_them(code, change, which, targets, says):
    names = NAMES if targets else tuple(f"{name}.speed" for name in NAMES)
    findings = list(compare(layout(names), planted(change, which, everyone(targets))))
    assert {each.code for each in findings} == {code} and says in findings[0].message and findings[0].hint
    named = {number for each in findings for number in each.episodes}
    assert named <= set(which) and len(named) > len(which) / 2


@pytest.mark.unit
def test_clean_episodes_raise_no_alarm():
    """Arms that come to targets, arms that move as told, and numbers without any structure."""
    rng, speeds = np.random.default_rng(0), tuple(f"{name}.speed" for name in NAMES)
    for seed in range(8):
        assert not list(compare(layout(), everyone(seed=seed, count=10)))
        assert not list(compare(layout(speeds), everyone(False, seed=seed, count=10)))
        noise = [rng.normal(size=(2, 80, 4)) for _ in range(10)]
        unrelated = [Played(i, *each, list(GOALS)[i % 2], True) for i, each in enumerate(noise)]
        assert not list(compare(layout(), unrelated))


@pytest.mark.unit
@pytest.mark.parametrize("some", [SOME, ALL])
def test_cameras_that_show_nothing_or_stand_still(some):
    """An error where it is so in some episodes; in all it may be meant."""
    stopped = planted(lambda each: replace(each, images=np.repeat(each.images[:1], 48, 0)), some, films()["top"])
    covered = planted(lambda each: replace(each, images=0 * each.images, flat=True), some, films()["top"])
    for code, changed in (("frozen-camera", stopped), ("flat-camera", covered)):
        found = {each.code: each for each in compare_films(films() | {"top": changed}, 20)}[code]
        assert found.column == "top" and found.episodes == some
        assert found.severity == ("error" if some == SOME else "warning")


@pytest.mark.unit
def test_cameras_swapped_and_late():
    clean = films()
    assert not list(compare_films(clean, 20))
    top, wrist = (list(clean[name]) for name in clean)
    for i in SOME:
        top[i], wrist[i] = wrist[i], top[i]
    found = {each.code: each for each in compare_films({"top": top, "wrist": wrist}, 20)}
    assert found["cameras-swapped"].episodes == SOME
    (found,) = compare_films(films(back=4), 20)
    assert found.code == "camera-late" and found.message == "camera wrist is 0.2 s later than top"
    mixed = [films(back=4)["wrist"][i] if i in SOME else each for i, each in enumerate(clean["wrist"])]
    found = list(compare_films({"wrist": mixed}, 20))
    assert {each.code for each in found} == {"camera-late"}
    assert {number for each in found for number in each.episodes} == set(SOME)
    assert "0.2 s later than in most episodes" in found[0].message


@pytest.mark.unit
def test_words_of_recording_programs_are_no_instructions():
    assert all(map(placeholder, ("", "None", " n/a ", "TODO.", "task"))) and not placeholder("task the robot")


# ---- in a folder, and before a training ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Twelve episodes as they are on disk: the gripper of one is inverted, and two show each other's cameras."""
    root, rng, episodes = tmp_path_factory.mktemp("recorded") / "dataset", np.random.default_rng(0), []
    columns = tuple(Column(name, "rad") for name in NAMES)
    gripper = Column("gripper.pos", "flag", "binary", 0.0, 1.0)
    contract = example_contract(
        state=columns, action=(*columns[:3], gripper), cameras=(Camera("left", 16, 16), Camera("wrist", 16, 16)),
        statistics=None,
    )  # fmt: skip
    back = {name: rng.integers(0, 200, (16, 16, 3), dtype=np.uint8) for name in ("left", "wrist")}
    for each in everyone(count=12):
        steps = 40
        source, success = "demonstration", each.number % 3 > 0
        episode = example_episode(rng, steps, success, every=8, source=source, instruction=each.instruction)
        actions = (inverted(each) if each.number == 4 else each).actions
        episode.states, episode.actions = each.states[20 : steps + 21], actions[20 : steps + 20]
        names = ("wrist", "left") if each.number in (5, 6) else ("left", "wrist")
        moves = (np.arange(len(episode.frame_steps)) * 9 % 50).astype(np.uint8)[:, None, None, None]
        episode.images = {name: back[other] + moves for name, other in zip(("left", "wrist"), names, strict=True)}
        episodes.append(episode)
    write_dataset(root, episodes, contract, "local/recorded")
    return root


@pytest.mark.parametrize("thorough", [True, False])
def test_the_audit_finds_them_in_a_folder(recorded, thorough):
    report = audit([recorded], thorough=thorough)
    errors = {each.code: each for each in report.datasets[0].findings.sorted() if each.severity == "error"}
    assert errors.keys() == {"gripper-inverted", "cameras-swapped"}, report_text(report)
    assert errors["gripper-inverted"].episodes == (4,) and errors["cameras-swapped"].episodes == (5, 6)
    assert "episodes 5, 6" in report_text(report)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no {REAL.name} in {REAL.parent}: set DEAS_VLA_SHARED_DATA")
def test_a_real_data_set_raises_no_alarm():
    (data,) = audit([REAL], labels=LabelRules("done"), thorough=False).datasets
    codes = {each.code for each in data.findings.sorted() if each.severity != "note"}
    assert codes == {"camera-without-video", "timestamps-start-late", "constant-action"}


def test_the_same_film_under_another_text_is_an_error(recorded, tmp_path):
    rng = np.random.default_rng(0)
    one = example_episode(rng, 12, True, instruction="pick the pear")
    other = replace(one, instruction="open the drawer")
    write_dataset(tmp_path / "dataset", [one, other], example_contract(), "local/x")
    (data,) = audit([tmp_path / "dataset"]).datasets
    found = next(each for each in data.findings.sorted() if each.code == "instruction-of-another")
    assert found.severity == "error" and "whose instruction is 'pick the pear', not 'open the drawer'" in found.message


def test_a_training_stops_at_errors_of_the_data_or_goes_on_and_notes_it(recorded, tmp_path, capsys):
    tiny = ["--training.steps=1", "--training.batch_size=4", "--policy.horizon=4", "--policy.layers=1"]

    def finetune(*flags):
        given = ["--demonstrations=", f"--more.folders={recorded}", f"--output={tmp_path}/policy", *tiny, *flags]
        finetune_policy.finetune_policy(Accelerator(cpu=True), parse(finetune_policy.FinetunePolicyConfig, given))

    with pytest.raises(UserError, match=r"2 errors in all, listed above; to train on .* --audit=warn"):
        finetune()
    out = capsys.readouterr().out
    assert out.count("error: ") == 2 and "(episodes 5, 6); exchange their images in these episodes" in out
    assert not (tmp_path / "policy").exists()
    finetune("--audit=warn")
    out = capsys.readouterr().out
    assert "trains in spite of 2 errors in the data" in out and "gripper-inverted" not in out and "error: " not in out
    noted = json.loads((tmp_path / "policy" / "stage.json").read_text())["facts"]["audit"]
    assert noted["mode"] == "warn" and len([line for line in noted["findings"] if line.startswith("error: ")]) == 2


def test_what_the_reader_passes_and_the_audit_does_not_stops_too(recorded, tmp_path, capsys):
    """Statistics that are not those of the numbers, and rows at another rate than info.json says."""
    root = shutil.copytree(recorded, tmp_path / "dataset")
    edit_json(root / "meta" / "stats.json", lambda stats: stats["action"].update(mean=[9.0] * 4))
    edit_json(root / "meta" / "info.json", lambda info: info.update(fps=10))
    with pytest.raises(UserError, match="errors in all"):
        audit_data(Accelerator(cpu=True), {str(root): RECORDED}, "stop")
    out = capsys.readouterr().out
    assert "mean of shoulder.pos is 9" in out and "its rows come at 20 Hz, info.json says 10 Hz" in out
