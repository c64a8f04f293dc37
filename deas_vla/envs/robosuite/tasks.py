"""robosuite's tasks as we play them: its environment, the instruction, the time limit, where the cameras look."""

import contextlib
import ctypes
import gc
import logging
import warnings
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from unittest import mock

import numpy as np

from deas_vla.envs.panda_omron import PandaOmronSettings
from deas_vla.envs.rendering import choose_gl, look_back
from deas_vla.errors import UserError, require, unknown

CAMERA_BODY = "mobilebase0_support"
COLLISION_GROUP, VISUAL_GROUP = 0, 1  # robosuite's groups of geometry


@dataclass
class RobosuiteSettings(PandaOmronSettings):
    """How robosuite's tasks are seen and played."""

    # Seconds of one physics step, which must divide the 0.05 s of a control step: robosuite's own 0.002, or twice as
    # fast.
    simulation_timestep: float = 0.005
    # Of Lift: the cube starts within this many metres of the middle of the table in x and y (robosuite's own: 0.03),
    # turned by up to 45 degrees.
    spawn_range: float = 0.12
    # Standard deviation of the scripted expert's action noise, in units of a full arm command: it leaves states to
    # recover from, as a person's demonstrations do.
    expert_noise: float = 0.2
    # Standard deviation in metres, per horizontal axis, of where the expert wrongly believes the grasp to be; drawn
    # anew at every attempt. 0.012 makes one try in five fail.
    expert_grasp_bias: float = 0.012


@dataclass(frozen=True)
class Task:
    """One of robosuite's tasks.

    The outer cameras carry RoboCasa's names and are mounted on the base as there, but nearer: RoboCasa's own places
    show a 4 cm cube on a table as two pixels of 64, and the arm hides it.
    """

    environment: str  # robosuite's class name
    instruction: str
    horizon: int  # control steps, a multiple of 16
    colors: dict[str, tuple[float, float, float]]  # of bodies' collision geometry, which is what a policy sees
    look_at: tuple[float, float, float]  # what the two outer cameras look at, metres in the world
    left: tuple[float, float, float]  # where they stand from there: x forward, y left of the robot
    right: tuple[float, float, float]
    field_of_view: float  # vertical, degrees
    base_start: tuple[float, float] = (0.0, 0.0)  # where the robot starts, metres forward and left of robosuite's place

    @property
    def cameras(self) -> dict[str, tuple[float, float, float]]:
        return {"robot0_agentview_left": self.left, "robot0_agentview_right": self.right}


RED, GREEN, BLUE, BROWN, YELLOW = ((0.8, 0.0, 0.0), (0.0, 0.6, 0.0), (0.1, 0.2, 0.6), (0.3, 0.2, 0.1), (0.9, 0.8, 0.0))
TABLE = {"look_at": (-0.02, 0.0, 0.9), "left": (0.25, 0.65, 0.5), "right": (0.25, -0.65, 0.5), "field_of_view": 38.0}
BINS = {"look_at": (0.1, 0.02, 0.86), "left": (0.8, 0.25, 0.75), "right": (0.8, -0.25, 0.75), "field_of_view": 52.0}
DOOR = {"look_at": (-0.12, -0.28, 1.05), "left": (0.75, 0.65, 0.3), "right": (0.2, 0.75, 0.6), "field_of_view": 40.0}
CUBES, CAN = {"cubeA_main": RED, "cubeB_main": GREEN}, {"Can_main": RED, "bin2": BLUE}
TASKS = {
    "lift": Task("Lift", "lift the red cube", 96, {"cube_main": RED}, **TABLE),
    "stack": Task("Stack", "put the red cube on the green cube", 128, CUBES, **TABLE),
    # Where robosuite puts the robot, the arm does not reach the far corners of the bins.
    "pick_place_can": Task("PickPlaceCan", "put the can into its bin", 192, CAN, **BINS, base_start=(0.13, 0.1)),
    "door": Task("Door", "open the door", 128, {"Door_frame": BROWN, "Door_door": BROWN, "Door_latch": YELLOW}, **DOOR),
}


def task_of(name: str) -> Task:
    """The task of that name, or a `UserError` with the known ones and the nearest."""
    if name not in TASKS:
        raise UserError(f"{unknown('robosuite task', name, TASKS)}; another simulator is named by --env=FILE.py:NAME")
    return TASKS[name]


def build_simulator(settings: RobosuiteSettings, task: str):
    """robosuite's environment for a task, with the outer cameras, built quietly; the same in every process."""
    spec = task_of(task)
    choose_gl()  # before robosuite makes its own choice
    with _quiet(), contextlib.ExitStack() as stack:
        base = require("robosuite", "sim").environments.REGISTERED_ENVS[spec.environment]
        robot = require("robosuite.models.robots.robot_model", "sim").RobotModel
        # It compiles the robot also by itself, for inverse kinematics that we do not use: 1 s and 280 MB.
        stack.enter_context(mock.patch.object(robot, "set_mujoco_model", lambda self: None))

        def edit_model_xml(self, xml: str) -> str:
            root = ElementTree.fromstring(base.edit_model_xml(self, xml))
            mount = root.find(f".//body[@name='{CAMERA_BODY}']")
            for name in spec.cameras:
                ElementTree.SubElement(mount, "camera", name=name, fovy=str(spec.field_of_view))
            return ElementTree.tostring(root, encoding="unicode")

        simulator = type(f"Seeing{spec.environment}", (base,), {"edit_model_xml": edit_model_xml})(
            robots="PandaOmron",
            has_renderer=False,
            has_offscreen_renderer=False,
            use_camera_obs=False,
            use_object_obs=False,
            ignore_done=True,
            hard_reset=False,
            # The size of Lift's cube is drawn when the model is made: it must be the same in every process.
            seed=0,
        )
    gc.collect()  # compiling meshes leaves hundreds of megabytes of freed memory with the process
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    model = simulator.sim.model._model
    _aim_cameras(model, simulator.sim.data._data, spec)
    for body, color in spec.colors.items():
        geoms = (model.geom_bodyid == model.body(body).id) & (model.geom_group == COLLISION_GROUP)
        model.geom_matid[geoms] = -1
        model.geom_rgba[geoms] = (*color, 1.0)
    if spec.environment == "Lift":
        simulator.placement_initializer.x_range = (-settings.spawn_range, settings.spawn_range)
        simulator.placement_initializer.y_range = (-settings.spawn_range, settings.spawn_range)
        simulator.placement_initializer.rotation = (-np.pi / 4, np.pi / 4)
    return simulator


def _aim_cameras(model, data, spec: Task) -> None:
    import mujoco

    mount = model.body(CAMERA_BODY).id
    mounted = data.xpos[mount] + (*spec.base_start, 0.0)
    to_mount = data.xmat[mount].reshape(3, 3).T
    for name, offset in spec.cameras.items():
        camera = model.camera(name)
        camera.pos[:] = to_mount @ (np.array(spec.look_at) + offset - mounted)
        mujoco.mju_mat2Quat(camera.quat, np.ascontiguousarray(to_mount @ look_back(offset)).ravel())


@contextlib.contextmanager
def _quiet():
    """robosuite warns five times on import and logs where it reads a file from: none of it concerns our users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)
