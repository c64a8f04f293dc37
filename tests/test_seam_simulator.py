"""A simulator from outside the package: one file, one registration; everything that plays takes it by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import ExampleEncoder

from deas_vla.config import parse
from deas_vla.data.contract import Statistics
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.observation import Context
from deas_vla.envs import vector
from deas_vla.envs.protocol import Simulator
from deas_vla.envs.registry import contract_of, env_config, make_env
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.report.video import film
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.oracle import play_branches
from deas_vla.rollouts.play import Job, play_episodes
from deas_vla.training.loop import make_accelerator
from recipes.collect_demos import CollectDemosConfig, collect_demos
from robots.sim import Sim, SimConfig

HORIZON, EXECUTE = 4, 3
# Written to the protocol `Simulator` alone: no base class of the package, no attribute that the protocol lacks.
POINT_MASS = '''
from dataclasses import dataclass, field

import numpy as np

from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.envs.protocol import ChunkResult, EnvSettings
from deas_vla.envs.registry import register_simulator
from deas_vla.errors import UserError, unknown


@dataclass
class PointMassSettings(EnvSettings):
    """How the point is seen.

    Attributes:
        drag: share of the velocity that is lost in a step.
    """

    cameras: list[str] = field(default_factory=lambda: ["top"])
    camera_size: int = 16
    drag: float = 0.5


@register_simulator("point_mass")
class PointMass:
    """A mass in a plane, of which x is kept; the task is to move it past 1."""

    settings_class = PointMassSettings
    restores_any_scene = RESTORES

    def __init__(self, settings, task):
        self.settings, self.task, self.horizon = settings, task, settings.horizon or 12
        self.contract = self.contract_for(settings, task)

    @classmethod
    def contract_for(cls, settings, task):
        if task != "reach":
            raise UserError(unknown("task of the point mass", task, ["reach"]))
        settings.require_cameras(["top"])
        size = settings.camera_size
        return Contract(
            embodiment="point_mass",
            rate_hz=10.0,
            state=(Column("point.x", "m"), Column("point.v", "m/s")),
            action=tuple(Column(f"force.{axis}", "command", "continuous", -1.0, 1.0) for axis in "xy"),
            cameras=(Camera("top", size, size),),
        )

    def _state(self):
        return np.array([self.x, self.v], np.float32)

    def _images(self):
        image = np.zeros((self.settings.camera_size,) * 2 + (3,), np.uint8)
        image[:, int(np.clip(8 + 6 * self.x, 0, 15))] = 255
        return {"top": image}

    def reset(self, scene):
        self.x, self.v, self.steps = -0.5 + 0.1 * (scene % 5), 0.0, 0
        return {"images": self._images(), "state": self._state(), "instruction": "go right"}

    def _play(self, command, count, frame_every):
        states, actions, success, frames, images = [], [], [], [], []
        for number in range(1, min(count, self.horizon - self.steps) + 1):
            actions.append(np.clip(command(), -1, 1).astype(np.float32))
            self.v = (1 - self.settings.drag) * self.v + 0.4 * float(actions[-1][0])
            self.x, self.steps = self.x + self.v, self.steps + 1
            states.append(self._state())
            success.append(self.x > 1)
            last = success[-1] or number == count or self.steps == self.horizon
            if last or (frame_every and self.steps % frame_every == 0):
                frames.append(number)
                images.append(self._images()["top"])
            if last:
                break
        return ChunkResult(
            states=np.stack(states),
            actions=np.stack(actions),
            rewards=np.array(success, np.float32),
            success=np.array(success),
            truncated=self.steps == self.horizon and not success[-1],
            frames=np.array(frames),
            images={"top": np.stack(images)},
        )

    def play(self, actions, frame_every=0):
        commands = iter(actions)
        return self._play(lambda: next(commands), len(actions), frame_every)

    def play_expert(self, steps, noise, frame_every=0):
        return self._play(lambda: 0.8 + 0.1 * noise.standard_normal(2), steps, frame_every)

    def save(self):
        return self.x, self.v, self.steps

    def restore(self, state):
        self.x, self.v, self.steps = state

    def render(self, height, width):
        return np.resize(self._images()["top"], (height, width, 3))

    def close(self):
        pass
'''


class Pusher(ChunkPolicy):
    """Pushes to the right, with noise."""

    def __init__(self, contract):
        super().__init__()
        zero, one = (0.0, 0.0), (1.0, 1.0)
        self.contract = contract.with_statistics(Statistics(zero, one, zero, one))
        self.horizon, self.encoder = HORIZON, ExampleEncoder(self.contract)

    def encode(self, observation) -> Context:
        return self.encoder.encode(observation)

    def sample(self, context, noise):
        return 0.2 + 0.5 * noise

    def loss(self, *_):
        raise NotImplementedError

    @property
    def encoder_fingerprint(self):
        return self.encoder.encoder_fingerprint

    def save(self, folder):
        raise NotImplementedError


@pytest.fixture(scope="module", params=[True, False], ids=["one_env_a_worker", "one_env_a_slot"])
def simulator(request, tmp_path_factory) -> str:
    """What a user types; the file lies where nothing of the package does."""
    name = f"point_{'restores' if request.param else 'replays'}"
    file = tmp_path_factory.mktemp("elsewhere") / f"{name}.py"
    file.write_text(POINT_MASS.replace("RESTORES", str(request.param)).replace('"point_mass")', f'"{name}")'))
    return f"{file}:{name}"


@pytest.mark.unit
def test_its_settings_are_flags_and_those_of_others_are_not(simulator):
    argv = [f"--env={simulator}", "--tasks=reach", "--simulator.drag=0.25"]
    config = parse(CollectDemosConfig, argv)
    assert config.simulator.drag == 0.25 and config.simulator.cameras == ["top"]
    assert config.env_config("reach").settings is config.simulator
    with pytest.raises(UserError, match=r"unknown flag --simulator\.spawn_range"):
        parse(CollectDemosConfig, [*argv, "--simulator.spawn_range=1"])
    with pytest.raises(UserError, match="did you mean 'reach'"):
        contract_of(env_config(simulator, "reech"))


@pytest.mark.unit
@pytest.mark.parametrize("workers", [0, 1])
def test_it_plays_is_evaluated_branched_and_filmed(simulator, workers, tmp_path):
    config = env_config(simulator, "reach")
    decider = BestOfN(Pusher(contract_of(config)), 3, "random")
    play = {"seed": 0, "execute_steps": EXECUTE}
    with EnvWorkers(config, workers) as source:
        rollouts = play_episodes(source, decider, [Job(s) for s in range(6)], parallel=3, **play)
        for rollout in rollouts:
            rollout.episode.validate(source.contract, "toy")
        jobs = paired_jobs([0, 1], samples=2)
        records = evaluate_method("toy", source, decider, jobs, tmp_path, parallel=2, **play)
        assert [(r["scene"], r["sample"]) for r in records] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert json.loads((tmp_path / "toy.json").read_text()) == json.loads(json.dumps(records))
        frame = source.reset([0], [3])[0]
        candidates = np.stack([np.full((EXECUTE, 2), force, np.float32) for force in (-1.0, 1.0)])
        state = source.save([0])[0]
        lost, won = play_branches(
            source, BestOfN(decider.policy), state, frame, candidates, [-1, -1], episode_id=9, **play
        )
        assert won[-1] and (not lost[-1] or len(lost) > len(won))
        # Whatever was tried, the slot goes on from where it was.
        source.restore([0], [state])
        assert source.play([0], candidates[1:])[0].states[0, 0] == pytest.approx(-0.2 + 0.4)
    frames, filmed = film(make_env(config), decider, 4, side=24, **play)
    assert len(frames) == filmed.episode.length + 1 and frames[0].shape == (24, 24, 3)
    same = rollouts[4].episode
    assert np.array_equal(filmed.episode.states, same.states)
    assert [(d.step, d.index) for d in filmed.decisions] == [(d.step, d.index) for d in rollouts[4].decisions]
    assert np.array_equal(filmed.episode.images["top"], same.images["top"])


@pytest.mark.unit
def test_nothing_is_asked_of_a_simulator_that_the_protocol_does_not_name(simulator, monkeypatch):
    """`restores_any_scene` was read and not in the protocol: what was written to the protocol died of it (defect)."""
    named = {*Simulator.__annotations__, *(name for name in vars(Simulator) if not name.startswith("_"))}

    class Named:
        def __init__(self, config):
            self.env = make_env(config)

        def __getattribute__(self, name):
            if name in named:
                return getattr(object.__getattribute__(self, "env"), name)
            raise AttributeError(f"a simulator need not have {name}")

    monkeypatch.setattr(vector, "make_env", Named)
    config = env_config(simulator, "reach")
    decider, play = BestOfN(Pusher(contract_of(config)), 2), {"seed": 0, "execute_steps": EXECUTE}
    with EnvWorkers(config, 0) as source:
        assert len(list(source.expert_episodes([0, 1], [0, 1], 2))) == 2 and source.horizon == 12
        # Two under way at once, so that slots are switched.
        assert len(play_episodes(source, decider, [Job(s) for s in range(3)], parallel=2, **play)) == 3
        frame, candidates = source.reset([0], [3])[0], np.zeros((2, EXECUTE, 2), np.float32)
        state = source.save([0])[0]
        play_branches(source, BestOfN(decider.policy), state, frame, candidates, [-1, -2], episode_id=9, **play)
    assert film(Named(config), decider, 1, side=24, **play)[0]


@pytest.mark.unit
def test_the_simulated_arm_says_what_it_needs_beside_the_protocol(simulator):
    """It plays single steps; a simulator that plays whole chunks only was started and died at the first (defect)."""
    arm = Sim(SimConfig(simulator, "reach"))
    with pytest.raises(UserError, match=r"lacks step, state, images.*SteppedEnv"):
        arm.connect()
    assert not arm.is_connected


@pytest.mark.slow
def test_a_recipe_collects_its_demonstrations(simulator, tmp_path):
    pytest.importorskip("lerobot")
    output = tmp_path / "demonstrations"
    flags = [f"--env={simulator}", "--tasks=reach", "--demos.episodes=4", "--workers=1", f"--output={output}"]
    collect_demos(make_accelerator(), parse(CollectDemosConfig, flags))
    episodes, contract, _ = read_dataset(Path(output) / "dataset")
    assert contract.embodiment == "point_mass" and len(episodes) > 0
    assert all(torch.from_numpy(episode.success[-1:]).all() for episode in episodes)
