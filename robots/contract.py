"""What a robot is, as a contract, and whether a policy fits it: asked before anything is opened or moves.

LeRobot calls columns by name, so their order is not compared: the policy's counts. Everything else is: names, units,
rate, cameras and their sizes.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.errors import ContractMismatch, UserError

# What LeRobot's scales of a motor are called as units.
UNITS = {"degrees": "deg", "range_0_100": "range_0_100", "range_m100_100": "range_m100_100"}
POSITION = ".pos"
# LeRobot's own default of a recording.
DEFAULT_RATE_HZ = 30.0


def contract_of(robot: Any, rate_hz: float | None) -> Contract:
    """The contract of a robot of LeRobot's; it need not be connected.

    Limits of an arm's joints are those of its calibration.

    Args:
        robot: the simulator, or an arm with one serial servo bus.
        rate_hz: at which it is to be played; None: its own rate.

    Raises:
        UserError: if the robot does not tell its units, or is not calibrated.
    """
    if hasattr(robot, "contract"):
        return robot.contract if rate_hz is None else replace(robot.contract, rate_hz=rate_hz)
    scalars = {name for name, size in robot.observation_features.items() if not isinstance(size, tuple)}
    motors = getattr(getattr(robot, "bus", None), "motors", {})
    if not hasattr(getattr(robot, "bus", None), "port_handler") or not (
        scalars == set(robot.action_features) == {name + POSITION for name in motors}
    ):
        raise UserError(
            f"{robot.name} does not tell in which units its columns are, and could not be left safe; "
            "robots/ drives the simulator and arms that are nothing but joints on one serial servo bus"
        )
    if set(robot.calibration) != set(robot.bus.motors):
        raise UserError(
            f"{robot.calibration_fpath} does not hold the calibration of this arm; make it with lerobot-calibrate "
            f"--robot.type={robot.config.type} --robot.port={robot.config.port} --robot.id={robot.id}"
        )
    joints = [_joint(robot, name) for name in robot.bus.motors]
    sizes = {name: size for name, size in robot.observation_features.items() if isinstance(size, tuple)}
    return Contract(
        embodiment=robot.config.type,
        rate_hz=DEFAULT_RATE_HZ if rate_hz is None else rate_hz,
        state=tuple(replace(joint, low=None, high=None) for joint in joints),
        action=tuple(joints),
        cameras=tuple(Camera(name, height, width) for name, (height, width, _) in sizes.items()),
    )


def agreed(policy: Contract, robot: Contract, aliases: Iterable[str] = ()) -> Contract:
    """The policy's contract with the limits of this robot, where they are narrower.

    Args:
        policy: what the policy was trained under.
        robot: what `contract_of` says.
        aliases: other names of the embodiment: LeRobot's data sets carry the driver's, not the type's.

    Raises:
        ContractMismatch: with every difference.
    """
    lines = []
    if policy.embodiment not in (robot.embodiment, *aliases):
        lines.append(f"embodiment: {policy.embodiment} against {robot.embodiment}")
    if policy.rate_hz != robot.rate_hz:
        lines.append(f"rate: {policy.rate_hz:g} Hz against {robot.rate_hz:g} Hz")
    for what in ("state", "action", "cameras"):
        ours = {entry.name: entry for entry in getattr(policy, what)}
        theirs = {entry.name: entry for entry in getattr(robot, what)}
        lines += [f"{what} {name}: the robot has none" for name in ours if name not in theirs]
        lines += [f"{what} {name}: the policy knows none" for name in theirs if name not in ours]
        for name in [name for name in ours if name in theirs]:
            a, b = _told(ours[name]), _told(theirs[name])
            if a != b:
                lines.append(f"{what} {name}: {a} against {b}")
    if not lines:
        limits = {column.name: column for column in robot.action}
        action = tuple(_narrower(column, limits[column.name]) for column in policy.action)
        lines = [
            f"action {c.name}: no place is within the limits of both"
            for c in action
            if c.low is not None and c.high is not None and c.low >= c.high
        ]
    if lines:
        raise ContractMismatch(f"the policy and the robot do not fit together: {'; '.join(lines)}")
    return replace(policy, action=action)


def slow_cameras(robot: Any, rate_hz: float) -> list[str]:
    """Cameras with fewer frames a second than the robot has ticks: a policy would be shown old pictures."""
    cameras = getattr(robot, "cameras", {})
    return [
        f"camera {name}: {camera.fps} frames a second against {rate_hz:g} Hz"
        for name, camera in cameras.items()
        if camera.fps < rate_hz
    ]


def _joint(robot: Any, name: str) -> Column:
    """A joint with the limits of its calibration, in the scale of LeRobot's driver."""
    bus, calibration = robot.bus, robot.calibration[name]
    scale = bus.motors[name].norm_mode.value
    if scale == "degrees":
        turn = bus.model_resolution_table[bus.motors[name].model] - 1
        high = (calibration.range_max - calibration.range_min) / 2 * 360 / turn
        low = -high
    else:
        low, high = (0.0 if scale == "range_0_100" else -100.0), 100.0
    return Column(name + POSITION, UNITS[scale], "continuous", low, high)


def _told(entry: Column | Camera) -> str:
    return f"{entry.height} × {entry.width}" if isinstance(entry, Camera) else entry.unit


def _narrower(column: Column, robot: Column) -> Column:
    lows = [limit for limit in (column.low, robot.low) if limit is not None]
    highs = [limit for limit in (column.high, robot.high) if limit is not None]
    return replace(column, low=max(lows, default=None), high=min(highs, default=None))
