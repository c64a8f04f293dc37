"""LeRobot imports this because of the name of its distribution."""

from lerobot_env_metaworld_small.env import MetaworldSmallConfig

__all__ = ["MetaworldSmallConfig"]
