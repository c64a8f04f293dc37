"""The simulated arm in real time, and from an exported reranker to a critic."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from policy_example import SENTENCES, shake, small_config
from so101_example import random_reranker

from deas_vla.config import parse
from deas_vla.data.contract import Statistics
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.observation import Observation, episode_ids
from deas_vla.envs.registry import contract_of, env_config, make_env
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.export.reranker import Reranker
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import NoiseKey
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.training.loop import make_accelerator
from robots import sim
from robots.config import make_robot, settings_of
from robots.rollout import main

pytestmark = pytest.mark.sim

ENV = env_config("robosuite", "lift", camera_size=16)
PERIOD = 0.05


def contract_with_statistics():
    contract = contract_of(ENV)
    spread = lambda columns: ((0.0,) * len(columns), (1.0,) * len(columns))  # noqa: E731
    return contract.with_statistics(Statistics(*spread(contract.state), *spread(contract.action)))


@pytest.fixture(scope="module")
def reranker(tmp_path_factory) -> Path:
    return random_reranker(tmp_path_factory.mktemp("sim") / "reranker", contract_with_statistics())


def settings(folder: Path, reranker: Path, *more: str):
    flags = ["--robot.simulator.camera_size=16", f"--policy.path={reranker}", f"--output={folder}", *more]
    return parse(settings_of(flags), flags)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when somebody sleeps or a test says so."""
    clock = SimpleNamespace(now=50.0)
    clock.perf_counter = lambda: clock.now
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(sim, "time", clock)
    return clock


@pytest.fixture(scope="module")
def arm():
    robot = make_robot(settings_of([]).__dataclass_fields__["robot"].type(simulator=ENV.settings))
    assert isinstance(robot, sim.Sim)
    robot.connect()
    yield robot
    robot.disconnect()


def commands(count: int) -> np.ndarray:
    columns = contract_of(ENV).action
    flags = np.array([column.kind == "binary" for column in columns])
    out = np.random.default_rng(0).uniform(-1, 1, (count, len(columns))).astype(np.float32)
    return np.where(flags, (np.arange(count) % 2)[:, None], out).astype(np.float32)


def send(robot: sim.Sim, command: np.ndarray) -> None:
    robot.send(dict(zip([c.name for c in robot.contract.action], command.tolist(), strict=True)))


def vector(robot: sim.Sim) -> np.ndarray:
    return np.array(list(robot.read(images=False).values()), np.float32)


# ---- real time -------------------------------------------------------------------------------------------------


def test_on_time_it_is_the_environment(arm, clock):
    env = make_env(ENV)
    first, played = env.reset(5), env.play(commands(6))
    arm.reset(5)
    np.testing.assert_allclose(vector(arm), first["state"], rtol=1e-5, atol=1e-6)
    for number, command in enumerate(commands(6)):
        clock.now = 50 + number * PERIOD + 0.02  # within its period
        send(arm, command)
        np.testing.assert_allclose(vector(arm), played.states[number], rtol=1e-5, atol=1e-6)
        assert clock.now == pytest.approx(50 + (number + 1) * PERIOD), "it cannot be seen before its time"
    seen = arm.read(images=True)
    for camera, images in played.images.items():
        np.testing.assert_array_equal(seen[camera], images[-1])
    assert arm.held == 0 and arm.instruction == first["instruction"]
    env.close()


def test_while_no_command_comes_it_holds_its_place(arm, clock):
    env = make_env(ENV)
    env.reset(5)
    one, two = commands(2)
    still = np.where([c.kind == "binary" for c in arm.contract.action], one, 0)
    expected = env.play(np.stack([one, still, still, still, two]))
    arm.reset(5)
    send(arm, one)
    clock.now += 4.5 * PERIOD
    send(arm, two)
    assert arm.held == 3
    np.testing.assert_allclose(vector(arm), expected.states[-1], rtol=1e-5, atol=1e-6)
    clock.now += 1000.0
    send(arm, two)
    assert arm.held <= 3 + sim.MOST_HELD_S / PERIOD, "a day's pause is not made up for"
    before = clock.now
    send(arm, two)
    vector(arm)
    assert clock.now < before + 3 * PERIOD, "and it is back on the clock"
    env.close()


def test_while_meta_worlds_arm_holds_its_place_it_holds_what_is_in_its_gripper(clock):
    pytest.importorskip("metaworld")
    settings = env_config("metaworld", "reach-v3", cameras=["gripper"], camera_size=16).settings
    robot = sim.Sim(sim.SimConfig(env="metaworld", task="reach-v3", simulator=settings))
    robot.connect()
    robot.reset(0)
    played = []
    step = robot._env.step
    robot._env.step = lambda command: played.append(command.tolist()) or step(command)
    send(robot, np.array([1.0, 0.5, 0.0, 0.75]))
    # More periods of holding than Meta-World's own 500 steps: a slow computer must not end an episode by an error.
    while robot.held < 501:
        clock.now += sim.MOST_HELD_S
        send(robot, np.array([0.0, 0.0, 0.0, 0.75]))
    assert played[0] == [1, 0.5, 0, 0.75] and played[1:] == [[0, 0, 0, 0.75]] * (len(played) - 1)
    robot.disconnect()


# ---- from a reranker to a critic -------------------------------------------------------------------------------


def test_what_is_recorded_trains_a_critic(reranker, tmp_path, monkeypatch, capsys):
    from deas_vla.critic.critic import CriticConfig
    from deas_vla.features.features import FeatureConfig
    from deas_vla.features.image_encoder import ImageEncoderConfig

    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "recipes"))
    from train_critic import TrainCriticConfig, train_critic

    config = settings(tmp_path / "robot", reranker, "--episodes=3", "--seconds=0.6", f"--task={SENTENCES[0]}")
    main(config)
    told = capsys.readouterr().out
    assert told.count(" deadlines missed") == 4 and "3 episodes, 0 succeeded" in told

    episodes, contract, metadata = read_dataset(tmp_path / "robot" / "dataset", contract_with_statistics())
    assert [episode.length for episode in episodes] == [12] * 3
    assert all(episode.truncated and episode.instruction == SENTENCES[0] for episode in episodes)
    assert episodes[0].frame_steps.tolist() == [0, 3, 6, 8, 9, 12]  # decisions, every 8th step, the end
    assert len({episode.states[0].tobytes() for episode in episodes}) == 3, "three scenes"
    assert [fact["seconds"] >= 0.59 for fact in metadata["played"]] == [True] * 3, "in real time"
    assert metadata["settings"]["robot"]["type"] == "sim"

    # Rule 8: the first actions of the chunk that was chosen are what was played.
    frame = {"images": {name: images[0] for name, images in episodes[2].images.items()}}
    frame |= {"state": episodes[2].states[0], "instruction": SENTENCES[0]}
    first = Observation.stack([frame])
    key = NoiseKey(seed=1, scene=episode_ids(first)[0], sample=0, decision=0)
    chosen = Reranker.load(reranker).choose(first, [key])
    np.testing.assert_allclose(episodes[2].actions[:3], chosen.commands[0, :3].numpy(), atol=1e-5)

    policy = shake(SmallVLAPolicy(small_config(), contract, SENTENCES)).eval()
    policy.save(tmp_path / "policy" / "policy")
    write_json(tmp_path / "policy" / "stage.json", {"fingerprint": "policy", "settings": {}})
    critic = TrainCriticConfig(
        output=str(tmp_path / "critic"),
        demonstrations="",
        rollouts=[str(tmp_path / "robot")],
        policy=str(tmp_path / "policy"),
        held_out=0.0,
        features=FeatureConfig(grid=2, dim=4),
        image_encoder=ImageEncoderConfig(dim=4),
        critic=CriticConfig(horizon=3, hidden_dim=16, num_layers=2),  # the distance of the decisions
    )
    critic.image_encoder_training.steps = critic.training.steps = critic.training.log_every = 3
    train_critic(make_accelerator(), critic)
    assert (tmp_path / "critic" / "critic" / "scorer.safetensors").is_file()


def test_success_ends_an_episode_and_quitting_keeps_what_there_is(reranker, tmp_path, monkeypatch, capsys):
    from robots.arm import Arm
    from robots.outcome import Judge

    begun, begin = [], Arm.begin
    monkeypatch.setattr(Arm, "begin", lambda self, scene: begun.append(scene) or begin(self, scene))
    verdicts = iter([None] * 4 + ["success"] + [None] * 2 + ["again"] + [None] * 3 + ["failure"] + ["quit"])
    monkeypatch.setattr(Judge, "now", lambda self: next(verdicts))
    main(settings(tmp_path / "robot", reranker, "--episodes=9", f"--task={SENTENCES[0]}"))
    episodes, _, metadata = read_dataset(tmp_path / "robot" / "dataset")
    assert [episode.group for episode in episodes] == ["success", "failure"]
    assert [episode.length for episode in episodes] == [5, 4]
    assert [fact["outcome"] for fact in metadata["played"]] == ["success", "failure"]
    assert "2 episodes, 1 succeeded" in capsys.readouterr().out
    assert len(begun) == 8, "twice for each of four recordings: it does not go back for who quits"


# ---- refusals --------------------------------------------------------------------------------------------------


def test_rule_07_another_camera_size_is_refused_before_the_simulator_starts(reranker, tmp_path, monkeypatch):
    monkeypatch.setattr(sim, "make_env", lambda config: pytest.fail("it was started"))
    with pytest.raises(ContractMismatch, match="16 × 16 against 64 × 64"):
        main(settings(tmp_path / "robot", reranker, "--robot.simulator.camera_size=64"))
    with pytest.raises(ContractMismatch, match="rate: 20 Hz against 15 Hz"):
        main(settings(tmp_path / "robot", reranker, "--rate_hz=15"))
    with pytest.raises(UserError, match="unknown robosuite task 'lfit'"):
        main(settings(tmp_path / "robot", reranker, "--robot.task=lfit"))
    assert not (tmp_path / "robot").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--robot.type=so101_folower"], "unknown robot 'so101_folower'; did you mean 'so101_follower'"),
        (["--robot.type", "so101_follower"], "--robot.port STR (required)"),
        (["--robot.use_degrees=true"], "unknown flag --robot.use_degrees"),
        (["--episodes=0"], "episodes must be at least 1"),
        (["--seconds=0"], "seconds must be above 0"),
        (["--seconds=inf"], "seconds must be above 0 and finite"),
        (["--safety.max_step=0"], "safety.max_step must be above 0"),
        (["--safety.max_step=inf"], "safety.max_step must be above 0"),
        (["--safety.hold_s=inf"], "safety.hold_s at least 0; both finite"),
        (["--safety.max_step=10", "--safety.max_lag=9"], "safety.max_lag must be finite and at least"),
        (["--safety.home_speed=0"], "safety.home_speed above 0 and at most 1"),
        (["--robot.type=sim", "--robot.type=so101_follower"], "--robot.port STR (required)"),
        (["--outcome=luck"], "('auto', 'keys', 'sim', 'success', 'failure')"),
    ],
)
def test_mistakes_in_settings_are_one_line(flags, words):
    with pytest.raises(UserError) as caught:
        parse(settings_of(flags), flags)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_cannot_name_the_robot(tmp_path):
    file = tmp_path / "arm.yaml"
    file.write_text("robot: {type: so101_follower, port: /dev/arm}")
    with pytest.raises(UserError) as caught:
        settings_of([f"--config={file}"])
    assert str(file) in str(caught.value) and "give --robot.type=so101_follower on the command" in str(caught.value)
    flags = [f"--config={file}", "--robot.type=so101_follower"]
    assert parse(settings_of(flags), flags).robot.port == "/dev/arm"
    file.write_text("robot: {type: sim}")
    assert parse(settings_of(flags[:1]), flags[:1]).robot.type == "sim"


def test_what_dynamixels_servos_need_is_named(monkeypatch):
    def make(config):
        raise ImportError("'dynamixel-sdk' is required but not installed")

    monkeypatch.setattr("robots.lerobot_arm.make_robot_from_config", make)
    with pytest.raises(UserError) as caught:
        make_robot(SimpleNamespace(type="koch_follower"))
    assert str(caught.value).endswith("pip install 'lerobot[dynamixel]'") and "Feetech" not in str(caught.value)


def test_a_changed_reranker_is_not_played(reranker, tmp_path):
    (tmp_path / "reranker").mkdir()
    for path in reranker.rglob("*"):
        if path.is_file():
            copy = tmp_path / "reranker" / path.relative_to(reranker)
            copy.parent.mkdir(exist_ok=True, parents=True)
            copy.write_bytes(path.read_bytes() + (b" " if path.name == "manifest.json" else b""))
    with pytest.raises(UserError, match=r"manifest\.json was changed"):
        main(settings(tmp_path / "robot", tmp_path / "reranker"))
