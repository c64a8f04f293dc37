"""Our Meta-World as an environment of LeRobot: the same scenes, images, time limits and success as in our recipes.

    lerobot-eval --policy.path=FOLDER --env.type=metaworld_small --env.task=drawer-open-v3,door-open-v3 \\
        --eval.n_episodes=50 --eval.batch_size=10 --seed=2010000

LeRobot resets episode i with seed + i, and the seed is the number of the scene: 2,010,000 is the first one on which
recipes/evaluate.py evaluates with --seed=1. LeRobot's own environment of these tasks draws 480 pixels with shadows at
every step, which takes most of its time. Imported by the plug-in of LeRobot in plugins/, and by nothing else.
"""

from dataclasses import dataclass, field
from functools import partial

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig as LeRobotEnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE

from deas_vla.envs.metaworld.tasks import RATE_HZ, task_of
from deas_vla.envs.registry import EnvConfig, contract_of, env_config
from deas_vla.envs.vector import EnvWorkers


class MetaworldSmallEnv(gym.Env):
    """One running episode; those of one task share a simulator, which is built at the first reset.

    Args:
        simulators: of the task.
        slot: which of their episodes this is.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(RATE_HZ)}  # noqa: RUF012 (gymnasium's own form)
    render_mode = "rgb_array"

    def __init__(self, simulators: EnvWorkers, slot: int):
        config, contract, spec = simulators.config, simulators.contract, task_of(simulators.config.task)
        self.task, self.task_description = config.task, spec.instruction
        self._max_episode_steps = config.settings.horizon or spec.horizon
        self._simulators, self._slot = simulators, slot
        pixels = {
            camera.name: spaces.Box(0, 255, (camera.height, camera.width, 3), np.uint8) for camera in contract.cameras
        }
        self.observation_space = spaces.Dict(
            {"pixels": spaces.Dict(pixels), "agent_pos": spaces.Box(-np.inf, np.inf, (contract.state_dim,), np.float32)}
        )
        self.action_space = spaces.Box(-1, 1, (contract.action_dim,), np.float32)
        self._seen: dict = {}

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Starts the scene of that number; without one, any scene."""
        super().reset(seed=seed)
        scene = int(self.np_random.integers(2**31)) if seed is None else seed
        frame = self._simulators.reset([self._slot], [scene])[0]
        self._seen = {"pixels": frame["images"], "agent_pos": frame["state"]}
        return self._seen, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        """Plays one command; the reward is 1 at success, which ends the episode, and 0 before."""
        played = self._simulators.play([self._slot], [action[None]])[0]
        self._seen = {
            "pixels": {name: image[-1] for name, image in played.images.items()},
            "agent_pos": played.states[-1],
        }
        success = bool(played.success[-1])
        info = {"is_success": success}
        if played.done:
            info["final_info"] = {"is_success": success}
        return self._seen, float(played.rewards[-1]), success, played.truncated, info

    def render(self) -> np.ndarray:
        """(h, cameras * w, 3) uint8: what the policy sees."""
        return np.concatenate(list(self._seen["pixels"].values()), axis=1)

    def close(self) -> None:
        self._simulators.close()


@LeRobotEnvConfig.register_subclass("metaworld_small")
@dataclass
class MetaworldSmallConfig(LeRobotEnvConfig):
    """Settings of ``--env.type=metaworld_small``.

    Attributes:
        task: tasks of Meta-World, separated by commas.
        fps: control steps a second, as in Meta-World.
        episode_length: time limit in control steps; 0 takes each task's own.
        cameras: what the policy sees, in order: of workspace_right, workspace_left, gripper and corner2.
        camera_size: height and width of each image in pixels.
    """

    task: str = "drawer-open-v3"
    fps: int = int(RATE_HZ)
    episode_length: int = 0
    cameras: list[str] = field(default_factory=lambda: ["workspace_right", "gripper"])
    camera_size: int = 64

    def __post_init__(self) -> None:
        contract = contract_of(self._of_task(self._tasks()[0]))
        self.features = {
            ACTION: PolicyFeature(FeatureType.ACTION, (contract.action_dim,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (contract.state_dim,)),
        }
        # Under the name that they have in data sets: LeRobot records the rollouts of an evaluation only then.
        for camera in contract.cameras:
            shape = (camera.height, camera.width, 3)
            self.features[f"{OBS_IMAGES}.{camera.name}"] = PolicyFeature(FeatureType.VISUAL, shape)
        self.features_map = {name: name for name in self.features} | {"agent_pos": OBS_STATE}

    @property
    def gym_kwargs(self) -> dict:
        return {}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict:
        """LeRobot's {group: {number: vector environment}}, one group a task."""
        make = gym.vector.AsyncVectorEnv if use_async_envs and n_envs > 1 else gym.vector.SyncVectorEnv
        envs = {}
        for task in self._tasks():
            simulators = EnvWorkers(self._of_task(task), workers=0)
            # An episode that has ended costs nothing while others of the batch go on.
            envs[task] = {
                0: make(
                    [freeze_after_episode_end(partial(MetaworldSmallEnv, simulators, slot)) for slot in range(n_envs)]
                )
            }
        return envs

    def _tasks(self) -> list[str]:
        return [task.strip() for task in self.task.split(",")]

    def _of_task(self, task: str) -> EnvConfig:
        return env_config(
            "metaworld", task, cameras=self.cameras, camera_size=self.camera_size, horizon=self.episode_length
        )
