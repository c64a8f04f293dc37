"""LeRobot imports this because of the name of its distribution; the policy is in deas_vla.export.lerobot_plugin."""

from deas_vla.export.lerobot_plugin.configuration_deas import DeasConfig

__all__ = ["DeasConfig"]
