"""Scripted experts: they read the simulator's true state, and can be made imperfect on purpose.

An expert is a small state machine. Its memory is plain data, so that it is saved and restored with the simulator. The
imperfections are like a person's: commands are noisy (`expert_noise`), and each attempt at a grasp is a little beside
the object (`expert_grasp_bias`), is noticed when the hand comes up empty, and is tried again.
"""

import math
from itertools import pairwise

import numpy as np

from deas_vla.envs.mujoco_env import ExpertMemory
from deas_vla.envs.robosuite.control import POSITION_STEP, ROTATION_STEP

POSITION_GAIN, ROTATION_GAIN = 1.0, 1.0  # share of the remaining way that a command asks for
UP = np.array([0.0, 0.0, 1.0])
HOVER = 0.09  # metres above the grasp before going down
CLOSE_STEPS, OPEN_STEPS = 6, 5
PLACE_TOLERANCE = 0.008  # metres, horizontally
LATCH_FREE = 1.1  # radians
DOOR_TILT = 0.6  # radians


Way = tuple[np.ndarray, float, bool]  # where the hand should go (world, metres), its turn about its approach, close


class Expert:
    """What all experts share: sensing, and commands from wanted poses."""

    def __init__(self, env):
        self.env = env
        self.model, self.data, self.control = env.model, env.data, env.control
        self.noise, self.grasp_bias = env.settings.expert_noise, env.settings.expert_grasp_bias
        self._fingers = [self.model.body(f"gripper0_right_{side}finger").id for side in ("left", "right")]
        self.memory = ExpertMemory()

    def command(self, noise: np.random.Generator) -> np.ndarray:
        """(12,) the next command, imperfections included, in the contract's columns."""
        if self.memory.phase == "start":
            self.attempt(noise)
        target, turn, close = self.decide(noise)
        self.memory.steps += 1
        to_base = self.data.site_xmat[self.control.base_site].reshape(3, 3).T
        command = np.zeros(12)
        command[5:8] = POSITION_GAIN / POSITION_STEP * (to_base @ (target - self.hand))
        command[8:11] = ROTATION_GAIN / ROTATION_STEP * (to_base @ self.rotation(turn))
        command[5:11] += self.noise * noise.standard_normal(6)
        command[11] = float(close)
        return command

    def decide(self, noise: np.random.Generator) -> Way:
        raise NotImplementedError

    def approach(self) -> np.ndarray:
        """(3,) the direction in which the hand should point, in the world."""
        return -UP

    @property
    def hand(self) -> np.ndarray:
        return self.data.site_xpos[self.control.hand_site]

    def rotation(self, turn: float) -> np.ndarray:
        """(3,) small rotation in the world that makes the hand point along `approach`, turned by `turn` about it."""
        pointing = self.hand - self.data.xpos[self.control.hand_body]
        wanted = self.approach()
        return np.cross(pointing / np.linalg.norm(pointing), wanted) + turn * wanted

    def turn_to(self, axis: np.ndarray, symmetry: float) -> float:
        """The smallest turn about `approach` (rad) of the fingers to an axis that repeats every `symmetry`."""
        left, right = (self.data.xpos[finger] for finger in self._fingers)
        about, fingers = self.approach(), left - right
        turn = math.atan2(about @ np.cross(fingers, axis), fingers @ axis) % symmetry
        return turn - symmetry if turn > symmetry / 2 else turn

    def enter(self, phase: str) -> None:
        self.memory.phase, self.memory.steps = phase, 0

    def attempt(self, noise: np.random.Generator) -> None:
        self.memory.bias = self.grasp_bias * noise.standard_normal(2)
        self.enter("hover")

    def first_unfinished(self, *phases: tuple[str, bool, float, Way]) -> Way | None:
        """Of successive phases, the present one or the next that is still to do: name, whether it is, most steps, way.

        With all done, the last is entered: it has a name only.
        """
        for (name, to_do, most_steps, way), (following, *_) in pairwise(phases):
            if self.memory.phase == name:
                if to_do and self.memory.steps < most_steps:
                    return way
                self.enter(following)
        return None


class PickExpert(Expert):
    """Hovers over a body, goes down, closes, comes up; tries again if the hand is empty.

    The object looks the same after a turn of `symmetry` about z (rad; None: a round one); `grasp_height`: metres of the
    grasp above its centre.
    """

    def __init__(self, env, body: str, symmetry: float | None = None, grasp_height: float = 0.0):
        super().__init__(env)
        self.body = self.model.body(body).id
        self.symmetry, self.grasp_height = symmetry, grasp_height

    @property
    def grasp(self) -> np.ndarray:
        """Where the hand should close, as this attempt believes."""
        point = self.data.xpos[self.body] + self.grasp_height * UP
        point[:2] += self.memory.bias
        return point

    def holds(self) -> bool:
        away = self.data.xpos[self.body] + self.grasp_height * UP - self.hand
        return abs(away[2]) < 0.03 and math.hypot(away[0], away[1]) < 0.05

    def turn(self) -> float:
        if self.symmetry is None:
            return 0.0
        return self.turn_to(self.data.xmat[self.body].reshape(3, 3)[:, 0], self.symmetry)

    def decide(self, noise: np.random.Generator) -> Way:
        hand, grasp, turn = self.hand, self.grasp, self.turn()
        aside = math.hypot(*(grasp - hand)[:2])
        above = grasp + HOVER * UP, turn, False
        to_hover = aside >= 0.012 or abs(turn) >= 0.12 or hand[2] >= grasp[2] + HOVER + 0.03
        if aside > 0.03 and hand[2] < grasp[2] + 0.06:
            # Up first if low and not yet over the object, so as not to push it.
            above = np.array([hand[0], hand[1], grasp[2] + HOVER]), 0.0, False
        way = self.first_unfinished(
            ("hover", to_hover, math.inf, above),
            ("lower", abs(hand[2] - grasp[2]) >= 0.01, 26, (grasp, turn, False)),
            ("close", True, CLOSE_STEPS, (grasp, 0.0, True)),
            ("raise",),
        )
        if way is not None:
            return way
        phase, steps = self.memory.phase, self.memory.steps
        if (phase == "carry" or (phase == "raise" and steps > 8)) and not self.holds():
            self.attempt(noise)
            return hand + 0.05 * UP, 0.0, False
        return self.after_grasp()

    def after_grasp(self) -> Way:
        """What to do with the object in hand: here, raise it."""
        return self.hand + 0.05 * UP, 0.0, True


class PlaceExpert(PickExpert):
    """Picks an object, carries it `travel_height` metres above a place, lowers it, lets go and backs off.

    Its centre is let go `offset` (3,) in the world from the body `beside`.
    """

    def __init__(self, env, body: str, beside: str, offset: tuple, travel_height: float, **grasp):
        super().__init__(env, body, **grasp)
        self.beside, self.offset, self.travel_height = self.model.body(beside).id, offset, travel_height

    def after_grasp(self) -> Way:
        hand, high = self.hand, self.travel_height
        # The object, not the hand, must arrive: it may sit beside the middle of the fingers.
        way = self.data.xpos[self.beside] + self.offset - self.data.xpos[self.body]
        next_way = self.first_unfinished(
            ("raise", -way[2] < high - 0.02, math.inf, (hand + (way[2] + high) * UP, 0.0, True)),
            ("carry", math.hypot(way[0], way[1]) > PLACE_TOLERANCE, 60, (hand + way + high * UP, 0.0, True)),
            ("place", -way[2] > 0.006, 25, (hand + way, 0.0, True)),
            ("open", True, OPEN_STEPS, (hand.copy(), 0.0, False)),
            ("leave",),
        )
        if next_way is not None:
            return next_way
        if self.memory.steps > 12:
            self.enter("start")  # still no success: look again
        return hand + 0.05 * UP, 0.0, False


class DoorExpert(Expert):
    """Takes the handle from above, presses it down until the latch is free, and pulls the door open."""

    def __init__(self, env):
        super().__init__(env)
        self.handle = self.model.site("Door_handle").id
        self.hinge, self.latch = self.model.joint("Door_hinge"), self.model.joint("Door_latch_joint")

    def approach(self) -> np.ndarray:
        """Down and towards the door: straight down, the wide hand meets the door before the fingers meet the bar."""
        return -math.sin(DOOR_TILT) * self._motion(self.hinge) - math.cos(DOOR_TILT) * UP

    def decide(self, noise: np.random.Generator) -> Way:
        hand, outward, down = self.hand, self._motion(self.hinge), self._motion(self.latch)
        down *= -math.copysign(1.0, down[2])
        handle = self.data.site_xpos[self.handle] + (*self.memory.bias, 0.0)
        across = math.cos(DOOR_TILT) * outward - math.sin(DOOR_TILT) * UP  # one finger behind the bar
        turn = self.turn_to(across, math.pi)
        before, away = handle - HOVER * self.approach(), np.linalg.norm(handle - hand)
        to_hover = np.linalg.norm(before - hand) > 0.015 or np.linalg.norm(self.rotation(turn)) > 0.15
        way = self.first_unfinished(
            ("hover", to_hover, math.inf, (before, turn, False)),
            ("lower", away > 0.012, 25, (handle, turn, False)),
            ("close", True, CLOSE_STEPS, (handle, turn, True)),
            ("press",),
        )
        if way is not None:
            return way
        if away > 0.07 or self.memory.steps > 80:
            self.enter("start")  # slipped off: open, and try again
            return hand - 0.05 * self.approach(), turn, False
        latched = abs(self.data.qpos[self.latch.qposadr[0]]) < LATCH_FREE
        pressing = self.first_unfinished(("press", latched, math.inf, (handle + 0.05 * down, turn, True)), ("pull",))
        return pressing or (handle + 0.06 * outward + 0.01 * down, turn, True)

    def _motion(self, joint) -> np.ndarray:
        """(3,) direction in which the handle moves when a joint turns forward."""
        arm = self.data.site_xpos[self.handle] - self.data.xanchor[joint.id]
        way = np.cross(self.data.xaxis[joint.id], arm)
        return way / np.linalg.norm(way)


def make_expert(env) -> Expert:
    """The expert of the environment's task."""
    square = {"symmetry": math.pi / 2}
    if env.task == "lift":
        return PickExpert(env, "cube_main", **square)
    if env.task == "stack":
        return PlaceExpert(env, "cubeA_main", "cubeB_main", (0.0, 0.0, 0.046), travel_height=0.07, **square)
    if env.task == "pick_place_can":
        middle = (-0.055, -0.06, 0.03)  # of the bin: at the end of the arm's reach
        return PlaceExpert(env, "Can_main", "VisualCan_main", middle, travel_height=0.12, grasp_height=0.01)
    return DoorExpert(env)
