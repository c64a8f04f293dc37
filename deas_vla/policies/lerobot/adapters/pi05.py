"""LeRobot's π0.5: π0 with the state among the text tokens."""

from deas_vla.policies.lerobot.adapters.pi0 import Pi0
from deas_vla.policies.lerobot.base import register_adapter


@register_adapter("pi05")
class Pi05(Pi0):
    """Tokens as π0's; the state is among them, as text that the preprocessor writes."""

    reads_state = False
