"""Meta-World's 50 tasks as we play them: the instruction, the time limit, the robot's columns, the cameras."""

from dataclasses import dataclass, field

from deas_vla.data.contract import Column, Contract
from deas_vla.envs.protocol import EnvSettings
from deas_vla.errors import UserError, unknown

RATE_HZ = 80.0  # 5 physics steps of 2.5 ms, as in Meta-World


@dataclass
class MetaworldSettings(EnvSettings):
    """How Meta-World's tasks are seen and played."""

    # Cameras that the policy sees, in order: of workspace_right, workspace_left, gripper and corner2.
    cameras: list[str] = field(default_factory=lambda: ["workspace_right", "gripper"])
    expert_noise: float = 0.2  # Standard deviation of the scripted expert's action noise, in units of a full command.
    # Standard deviation in metres, per horizontal axis, of where the expert wrongly believes the object to be; drawn
    # anew every half second. With both defaults it fails in one scene in ten to four.
    expert_grasp_bias: float = 0.006


@dataclass(frozen=True)
class View:
    """A camera of ours: one of Meta-World's, put somewhere else."""

    camera: str  # Meta-World's name of it
    look_at: tuple[float, float, float] | None = None  # in the world, metres; None leaves it where Meta-World has it
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # from there: x to the robot's right, y away from it, z up
    field_of_view: float = 0.0  # vertical, degrees


# Meta-World's own outer cameras show a 4 cm puck as two pixels of 64; these two look at the workspace only.
# `corner2` is what LeRobot's environment shows: there the camera is moved, and its image turned by 180 degrees.
VIEWS = {
    "workspace_right": View("corner3", (0.0, 0.66, 0.1), (0.45, -0.6, 0.6), 38.0),
    "workspace_left": View("corner4", (0.0, 0.66, 0.1), (-0.5, -0.45, 0.6), 40.0),
    "gripper": View("gripperPOV"),
    "corner2": View("corner2"),
}


@dataclass(frozen=True)
class Task:
    """One of Meta-World's tasks."""

    instruction: str  # no two tasks have the same
    horizon: int  # control steps, a multiple of 16: some 1.5 times what the scripted expert takes


TASKS = {
    "assembly-v3": Task("put the wrench onto the peg", 144),
    "basketball-v3": Task("drop the ball through the basket", 160),
    "bin-picking-v3": Task("move the puck from one bin to the other", 208),
    "box-close-v3": Task("put the lid on the box", 192),
    "button-press-topdown-v3": Task("press the button from the top", 112),
    "button-press-topdown-wall-v3": Task("reach over the wall and press the button from the top", 96),
    "button-press-v3": Task("press the button from the front", 96),
    "button-press-wall-v3": Task("reach over the wall and press the button from the front", 112),
    "coffee-button-v3": Task("press the button of the coffee machine", 64),
    "coffee-pull-v3": Task("pull the mug away from the coffee machine", 128),
    "coffee-push-v3": Task("push the mug under the coffee machine", 96),
    "dial-turn-v3": Task("turn the dial", 128),
    "disassemble-v3": Task("take the wrench off the peg", 256),
    "door-close-v3": Task("close the door", 112),
    "door-lock-v3": Task("lock the door", 192),
    "door-open-v3": Task("open the door", 160),
    "door-unlock-v3": Task("unlock the door", 80),
    "drawer-close-v3": Task("close the drawer", 128),
    "drawer-open-v3": Task("open the drawer", 144),
    "faucet-close-v3": Task("close the faucet", 112),
    "faucet-open-v3": Task("open the faucet", 96),
    "hammer-v3": Task("drive the nail in with the hammer", 112),
    "hand-insert-v3": Task("put the hand into the hole", 112),
    "handle-press-side-v3": Task("press the handle down from the side", 80),
    "handle-press-v3": Task("press the handle down", 64),
    "handle-pull-side-v3": Task("pull the handle up from the side", 160),
    "handle-pull-v3": Task("pull the handle up", 192),
    "lever-pull-v3": Task("pull the lever", 128),
    "peg-insert-side-v3": Task("put the peg into the hole of the box", 256),
    "peg-unplug-side-v3": Task("pull the peg out of the box", 208),
    "pick-out-of-hole-v3": Task("lift the puck out of the hole", 192),
    "pick-place-v3": Task("pick up the puck and hold it at the blue ball", 96),
    "pick-place-wall-v3": Task("lift the puck over the wall and hold it at the ball", 176),
    "plate-slide-back-side-v3": Task("slide the plate sideways out of the goal", 96),
    "plate-slide-back-v3": Task("slide the plate out of the goal towards the robot", 128),
    "plate-slide-side-v3": Task("slide the plate sideways into the goal", 80),
    "plate-slide-v3": Task("slide the plate forward into the goal", 80),
    "push-back-v3": Task("pull the puck back to the green ball", 352),
    "push-v3": Task("push the puck to the green ball", 112),
    "push-wall-v3": Task("push the puck around the wall to the ball", 128),
    "reach-v3": Task("move the hand to the red ball", 80),
    "reach-wall-v3": Task("move the hand over the wall to the red ball", 80),
    "shelf-place-v3": Task("put the cube on the shelf", 176),
    "soccer-v3": Task("push the ball into the goal", 176),
    "stick-pull-v3": Task("pull the thermos with the stick", 256),
    "stick-push-v3": Task("push the thermos with the stick", 128),
    "sweep-into-v3": Task("sweep the cube into the hole", 96),
    "sweep-v3": Task("sweep the cube off the table", 160),
    "window-close-v3": Task("slide the window shut", 128),
    "window-open-v3": Task("slide the window open", 144),
}
# The ten of Meta-World's MT10. Goals that move are in sight: a red, green or blue ball.
MT10 = (
    "reach-v3",
    "push-v3",
    "pick-place-v3",
    "door-open-v3",
    "drawer-open-v3",
    "drawer-close-v3",
    "button-press-topdown-v3",
    "peg-insert-side-v3",
    "window-open-v3",
    "window-close-v3",
)

STATE = (
    *(Column(f"hand_position.{axis}", "m") for axis in "xyz"),
    Column("gripper.opening", "fraction"),  # 1: fingers 10 cm apart
)
ACTION = (
    # 1 moves the hand's goal by 1 cm.
    *(Column(f"hand_motion.{axis}", "command", "continuous", -1.0, 1.0) for axis in "xyz"),
    Column("gripper.close", "command", "continuous", -1.0, 1.0),
)


def task_of(name: str) -> Task:
    """The task of that name, or a `UserError` with the nearest."""
    if name not in TASKS:
        raise UserError(unknown("Meta-World task", name, TASKS))
    return TASKS[name]


def metaworld_contract(settings: MetaworldSettings, task: str) -> Contract:
    """The contract of Meta-World's Sawyer arm: 4 state columns, 4 action columns, 80 Hz; imports no simulator."""
    task_of(task)
    return Contract("metaworld_sawyer", RATE_HZ, STATE, ACTION, settings.require_cameras(VIEWS))
