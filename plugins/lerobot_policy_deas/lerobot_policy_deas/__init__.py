"""LeRobot imports this because of the name of its distribution; the policy itself is in deas_vla.lerobot_plugin."""

from deas_vla.lerobot_plugin.configuration_deas import DeasConfig

__all__ = ["DeasConfig"]
