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
    """Two cameras with noise that the seed chooses; the state counts; every command is written down."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}
    task_description = task = "lift the red cube"
    _max_episode_steps = 7

    def __init__(self, size=16, render_mode="rgb_array"):
        self.size, self.render_mode = size, render_mode
        pixels = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.observation_space = gym.spaces.Dict({
            "pixels": gym.spaces.Dict({"left": pixels, "wrist": pixels}),
            "agent_pos": gym.spaces.Box(-np.inf, np.inf, (3,), np.float64),
        })
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def _look(self):
        draw = lambda: self.np_random.integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        state = np.array([self.seed_, self.steps, 0.5], np.float64)
        self.seen = {"pixels": {"left": draw(), "wrist": draw()}, "agent_pos": state}
        return self.seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed_, self.steps = (seed or 0) / 1000, 0
        return self._look(), {"is_success": False}

    def step(self, action):
        with open(os.environ["DOT_LOG"], "a") as log:
            state, images = self.seen["agent_pos"].tolist(), self.seen["pixels"]
            sums = [int(images[name].sum()) for name in ("left", "wrist")]
            log.write(json.dumps({"state": state, "sums": sums, "action": [float(a) for a in action]}) + "\\n")
        self.steps += 1
        done = self.steps >= self._max_episode_steps
        return self._look(), 0.0, False, done, {"is_success": bool(action[0] > 0)}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)


gym.register("dot/Dot-v0", entry_point=Dot, max_episode_steps=7)


@EnvConfig.register_subclass("dot")
@dataclass
class DotConfig(EnvConfig):
    task: str = "Dot-v0"
    fps: int = 20
    size: int = 16

    def __post_init__(self):
        picture = PolicyFeature(FeatureType.VISUAL, (self.size, self.size, 3))
        self.features = {
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
            "pixels/left": picture,
            "pixels/wrist": picture,
        }
        self.features_map = {
            "action": "action",
            "agent_pos": "observation.state",
            "pixels/left": "observation.images.left",
            "pixels/wrist": "observation.images.wrist",
        }

    @property
    def gym_id(self):
        return "dot/Dot-v0"

    @property
    def gym_kwargs(self):
        return {"size": self.size}
'''


def write_environment(place: Path) -> Path:
    """A distribution on disk whose name LeRobot looks for; the folder goes on the search path."""
    package, told = place / "lerobot_env_dot", place / "lerobot_env_dot-0.1.dist-info"
    package.mkdir(parents=True)
    told.mkdir()
    (package / "__init__.py").write_text(ENVIRONMENT)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: lerobot_env_dot\nVersion: 0.1\n")
    return place
