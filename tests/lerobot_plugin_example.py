"""Observations as LeRobot gives them, and an environment that LeRobot finds by its name."""

from pathlib import Path

import torch
from torch import Tensor

from deas_vla.data.observation import Observation


def batch_of(observation: Observation) -> dict:
    """What a policy of LeRobot's gets: images in [0, 1], channels first."""
    batch: dict[str, Tensor | list[str]] = {
        f"observation.images.{name}": image.permute(0, 3, 1, 2).float() / 255
        for name, image in observation.images.items()
    }
    return batch | {"observation.state": observation.state, "task": list(observation.instruction)}


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two computations of one thing agree, whatever the processor rounds."""
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)


ENVIRONMENT = '''
import json, os
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig


class Dot(gym.Env):
    """Cameras with noise that the seed chooses; the state counts; every command is written down."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    task_description = task = "lift the red cube"
    _max_episode_steps = 7

    def __init__(self, height=HEIGHT, width=WIDTH, render_mode="rgb_array"):
        self.shape, self.render_mode = (height, width, 3), render_mode
        pixels = gym.spaces.Box(0, 255, self.shape, np.uint8)
        self.observation_space = gym.spaces.Dict({
            "pixels": gym.spaces.Dict(dict.fromkeys(CAMERAS, pixels)),
            "agent_pos": gym.spaces.Box(-np.inf, np.inf, (STATE,), np.float64),
        })
        self.action_space = gym.spaces.Box(-1, 1, (ACTION,), np.float32)

    def _look(self):
        draw = lambda: self.np_random.integers(0, 256, self.shape, dtype=np.uint8)
        state = np.resize(np.array([self.seed_, self.steps, 0.5], np.float64), STATE)
        self.seen = {"pixels": {name: draw() for name in CAMERAS}, "agent_pos": state}
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed_, self.steps = (seed or 0) / 1000, 0
        return self._look(), {"is_success": False}

    def step(self, action):
        with open(os.environ["DOT_LOG"], "a") as log:
            state, images = self.seen["agent_pos"].tolist(), self.seen["pixels"]
            sums = [int(images[name].sum()) for name in CAMERAS]
            log.write(json.dumps({"state": state, "sums": sums, "action": [float(a) for a in action]}) + "\\n")
        self.steps += 1
        done = self.steps >= self._max_episode_steps
        return self._look(), 0.0, False, done, {"is_success": bool(action[0] > 0)}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


gym.register(NAME + "/Dot-v0", entry_point=Dot, max_episode_steps=7)


@EnvConfig.register_subclass(NAME)
@dataclass
class DotConfig(EnvConfig):
    task: str = "Dot-v0"
    fps: int = 20
    height: int = HEIGHT
    width: int = WIDTH

    def __post_init__(self):
        picture = PolicyFeature(FeatureType.VISUAL, (self.height, self.width, 3))
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (ACTION,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (STATE,)),
        }
        self.features_map = {"action": "action", "agent_pos": "observation.state"}
        for name in CAMERAS:
            self.features["pixels/" + name] = picture
            self.features_map["pixels/" + name] = "observation.images." + name

    @property
    def gym_id(self):
        return NAME + "/Dot-v0"

    @property
    def gym_kwargs(self):
        return {"height": self.height, "width": self.width}
'''


def write_environment(
    place: Path,
    name: str = "dot",
    cameras: tuple[str, ...] = ("left", "wrist"),
    state: int = 3,
    action: int = 2,
    size: tuple[int, int] = (16, 16),
) -> Path:
    """A distribution on disk whose name LeRobot looks for; the folder goes on the search path."""
    package, told = place / f"lerobot_env_{name}", place / f"lerobot_env_{name}-0.1.dist-info"
    package.mkdir(parents=True)
    told.mkdir()
    facts = {"NAME": name, "CAMERAS": cameras, "STATE": state, "ACTION": action, "HEIGHT": size[0], "WIDTH": size[1]}
    lines = "".join(f"{fact} = {value!r}\n" for fact, value in facts.items())
    (package / "__init__.py").write_text(lines + ENVIRONMENT)
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lerobot_env_{name}\nVersion: 0.1\n")
    return place
