"""LeRobot imports this because of the name of its distribution; the environment is deas_vla.envs.metaworld.env."""

from deas_vla.envs.metaworld.lerobot import MetaworldSmallConfig

__all__ = ["MetaworldSmallConfig"]
