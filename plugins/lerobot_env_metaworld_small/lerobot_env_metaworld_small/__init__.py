"""LeRobot imports this because of the name of its distribution; the environment is deas_vla.envs.metaworld."""

from deas_vla.envs.metaworld_lerobot import MetaworldSmallConfig

__all__ = ["MetaworldSmallConfig"]
