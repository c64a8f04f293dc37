"""A robot is one class in one file: what it has to do, and the names under which robots are found.

    @register_robot("my_arm")
    class MyArm(Robot):
        config_class = MyArmConfig      # a dataclass: its fields are --robot.NAME=VALUE
        ...

    python -m robots.rollout --robot.type=my_arm.py:my_arm --robot.port=/dev/ttyUSB0

A distribution may bring one too: an entry point ``my_arm = my_module`` in the group ``deas_vla.robots``. Arms that
LeRobot knows need no file of their own (lerobot_arm.py), and the simulated one is sim.py.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from deas_vla.data.contract import Contract
from deas_vla.registry import Registry

ROBOTS: Registry[type["Robot"]] = Registry("robot", "deas_vla.robots", {"sim": "robots.sim"})
register_robot = ROBOTS.register


class Robot(ABC):
    """A robot under a contract. Columns and cameras are called by their names, so their order is never assumed.

    What goes wrong with the device is raised as OSError or RuntimeError; `explain` puts it into words. Before the
    first command nothing moves, and `connect` switches the torque on only where every joint's goal is its position.

    Attributes:
        config_class: dataclass of its settings; the robot is made from one, and opens nothing yet.
        name: for messages.
        contract: columns with units and limits, cameras and rate; no statistics. Known before `connect`.
        aliases: other names of the embodiment that a policy's contract may carry.
        simulated: nothing has to be left safe: in the end it is only disconnected.
        torque_off_at_end: False: it goes on holding after the end.
        is_connected: whether it has to be left safe; True from where `connect` switches anything on.
        succeeded: whether the task is done; None: the robot does not know.
        instruction: the task's own words; empty: the user gives them.
        limit: the task's time limit in steps; None: there is none.
    """

    config_class: ClassVar[type]
    name: str
    contract: Contract
    aliases: tuple[str, ...] = ()
    simulated = False
    torque_off_at_end = True
    is_connected = False
    succeeded: bool | None = None
    instruction = ""
    limit: int | None = None

    @abstractmethod
    def connect(self) -> None:
        """Opens it; nobody is asked anything."""

    @abstractmethod
    def read(self, images: bool) -> dict[str, Any]:
        """The state by column name and, if asked for, (height, width, 3) uint8 images by camera name."""

    @abstractmethod
    def send(self, command: dict[str, float]) -> dict[str, float]:
        """Plays a command, by column name, for one tick; returns what was really sent. It does not wait."""

    @abstractmethod
    def hold(self) -> list[str]:
        """Makes every joint's position its goal; returns the names of those that do not answer, and never raises."""

    @abstractmethod
    def torque_off(self) -> list[str]:
        """Takes every joint's torque off; returns the names of those of which that is not sure, and never raises."""

    @abstractmethod
    def disconnect(self) -> None:
        """Closes what is open, if anything is, and switches nothing: `hold` and `torque_off` were called before."""

    def reset(self, scene: int) -> None:  # noqa: B027
        """Starts a scene; a real arm has none."""

    def rescue(self) -> dict | None:
        """How another process leaves it safe after this one was killed, as JSON (robots/watchdog.py).

        ``port`` is the device that one program at a time may open. ``modules`` are imported beforehand; the first one
        has ``open_device(description)``, which returns an object with `hold` and `torque_off`.

        Returns:
            The description; None only where the robot holds or lets go by itself when its connection is gone.
        """
        return None

    def problems(self, rate_hz: float) -> list[str]:
        """What is wrong with its settings at that rate, one line each; asked before it is opened."""
        return []

    def explain(self, doing: str, error: Exception) -> str:
        """What went wrong while it was asked to ``connect``, ``read`` or ``move``, in one line."""
        return f"{self.name} does not {doing}: {' '.join(str(error).split())}"
