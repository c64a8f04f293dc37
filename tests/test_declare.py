"""`deas-vla declare`: what a data set does not say is asked for once, stored beside it, and known from then on."""

import shutil

import pytest
from data_example import example_contract
from v2_example import edit_json, write_v2

from deas_vla.cli import main
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout
from deas_vla.data.lerobot.reader import own_contract, read_dataset
from deas_vla.errors import UserError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_v2(tmp_path_factory.mktemp("v2") / "dataset")


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "dataset")


def contract_at(root):
    folder = LerobotFolder(root)
    return own_contract(folder, Layout.of(folder))


def test_units_and_limits_are_given_once(root, capsys):
    assert contract_at(root)[0].action[0].unit == "unknown"
    given = ["--units=gripper*=flag,*=deg", "--limits=gripper_close.0=0:1,arm.*=-90:90", "--binary=gripper_close.*"]
    assert main(["declare", str(root), *given, "--source=rollout", "--success=reward"]) == 0
    assert "deas-vla audit" in capsys.readouterr().out
    contract, declared = contract_at(root)
    assert declared and [column.unit for column in contract.state] == ["deg"] * 3 + ["flag"] * 2
    arm, gripper = contract.action[0], contract.action[3]
    assert (arm.unit, arm.kind, arm.low, arm.high) == ("deg", "continuous", -90.0, 90.0)
    assert (gripper.unit, gripper.kind, gripper.low, gripper.high) == ("flag", "binary", 0.0, 1.0)
    assert contract.state[0].low is None
    episodes, read, _ = read_dataset(root)
    assert read == contract and [episode.group for episode in episodes] == ["success", "failure"] * 2
    # Never otherwise.
    assert main(["declare", str(root), "--units=rad"]) == 2
    assert "has --units=gripper*=flag,*=deg already; leave the flag out, or delete" in capsys.readouterr().err


def test_one_fact_at_a_time(root, capsys):
    """Each is asked for by its flag where it is missing, and what was said before stays."""
    edit_json(root / "meta/info.json", lambda info: [info.pop("fps"), info.pop("robot_type", None)])
    (root / "meta/modality.json").unlink()

    def declared(*facts: str) -> None:
        assert main(["declare", str(root), *facts]) == 0

    def asked(flag: str) -> None:
        with pytest.raises(UserError, match=rf"deas-vla declare .*--{flag}"):
            read_dataset(root)

    asked("rate")
    declared("--rate=10")
    asked("units")
    declared("--success=never", "--reward=success")
    asked("units")
    declared("--units=deg")
    episodes, contract, _ = read_dataset(root)
    assert not any(episode.terminated for episode in episodes) and contract.rate_hz == 10.0
    declared("--robot=so101_follower", "--cameras=front=top", "--source=rollout")
    episodes, contract, _ = read_dataset(root)
    assert contract.embodiment == "so101_follower" and {episode.group for episode in episodes} == {"failure"}
    assert [camera.name for camera in contract.cameras] == ["top"] == list(episodes[0].images)
    # By these names it is checked, too.
    assert main(["audit", str(root)]) == 0
    for wrong, words in (
        ("--rate=20", "has --rate=10 already"),
        ("--cameras=top=front", "has --cameras=front=top already"),
        ("--source=dream", "has --source=rollout already"),
    ):
        assert main(["declare", str(root), wrong]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--rate=0", "--rate=0 is not a number of steps a second above 0"),
        ("--cameras=hand=top", "--cameras: no camera is called hand; they are front"),
        ("--cameras=front", "--cameras: front is not NAME=OTHER"),
        ("--source=dream", "--source=dream is none of demonstration, rollout"),
    ],
)
def test_a_fact_that_does_not_fit_is_refused(root, capsys, flag, words):
    assert main(["declare", str(root), flag]) == 2
    assert words in capsys.readouterr().err and not (root / "meta/deas_vla.json").exists()


def test_one_unit_for_all_columns(root):
    assert main(["declare", str(root), "--units=rad"]) == 0
    assert {column.unit for column in (*contract_at(root)[0].state, *contract_at(root)[0].action)} == {"rad"}


def test_a_data_set_without_modality_is_read_once_declared(root):
    (root / "meta/modality.json").unlink()
    assert main(["declare", str(root), "--units=motor_*=m"]) == 0
    assert [column.name for column in read_dataset(root)[1].action] == [f"motor_{i}" for i in range(4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--units=arm.*=deg"], "the unit of gripper.0, gripper.1, gripper_close.0 is not given; add --units="),
        (["--units=unknown"], "the unit of arm.0"),
        (["--units=wrist=deg,*=m"], "--units: no column is called wrist; they are arm.0"),
        (["--units=m", "--limits=arm.0=1"], "--limits: arm.0=1 is not LOW:HIGH, for example arm.0=-1:1"),
        (["--units=m", "--limits=arm.0=2:1"], "the lower limit must be below"),
        (["--units=m", "--limits=gripper.0=0:1"], "--limits: no column is called gripper.0"),
        (["--units=m", "--binary=arm.0"], "--binary: arm.0 has no limits; add --limits=arm.0=0:1"),
        (["--units=m", "--success=guess"], "the rule for success is 'guess'"),
    ],
)
def test_what_is_not_given_is_refused(root, capsys, arguments, message):
    assert main(["declare", str(root), *arguments]) == 2
    assert message in capsys.readouterr().err and not (root / "meta/deas_vla.json").exists()


def test_rule_07_a_declared_policy_fits_the_robot(root):
    """A policy's contract is its data set's: with units it fits a robot that has them, without it does not."""
    from deas_vla.data.contract import Column
    from deas_vla.errors import ContractMismatch
    from robots.contract import agreed

    names = ["shoulder.pos", "elbow.pos", "wrist.pos", "gripper.pos"]
    (root / "meta/modality.json").unlink()
    edit_json(root / "meta/info.json", lambda info: [
        info["features"][key].update(names=[*names, "extra.pos"][: info["features"][key]["shape"][0]])
        for key in ("observation.state", "action")
    ])  # fmt: skip
    units = {name: "range_0_100" if name == "gripper.pos" else "deg" for name in [*names, "extra.pos"]}
    robot = example_contract(
        embodiment="arm", rate_hz=10.0, statistics=None, cameras=contract_at(root)[0].cameras,
        state=tuple(Column(name, units[name]) for name in units),
        action=tuple(Column(name, units[name], low=0.0, high=90.0) for name in names),
    )  # fmt: skip
    with pytest.raises(ContractMismatch, match="unknown against deg"):
        agreed(contract_at(root)[0], robot)
    assert main(["declare", str(root), "--units=gripper.pos=range_0_100,*.pos=deg"]) == 0
    assert agreed(contract_at(root)[0], robot).action[0].high == 90.0
