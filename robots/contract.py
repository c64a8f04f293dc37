"""Whether a policy fits a robot: asked before anything is opened or moves.

Robots call columns by name, so their order is not compared: the policy's counts. Everything else is: names, units,
rate, cameras and their sizes.
"""

from collections.abc import Iterator
from dataclasses import replace

from deas_vla.data.contract import Camera, Column, Contract
from deas_vla.data.lerobot.layout import UNKNOWN
from deas_vla.errors import ContractMismatch
from robots.robot import Robot

# Units between which one setting of LeRobot's drivers chooses.
DRIVER_SCALES = ("deg", "range_m100_100")


def fitting_contract(policy: Contract, robot: Robot, rate_hz: float | None) -> Contract:
    """What policy and robot agree on.

    Args:
        policy: what the policy was trained under.
        robot: not opened yet.
        rate_hz: at which it is to be played; None: its own rate.

    Raises:
        ContractMismatch: with every difference.
        UserError: if the robot is not one that can be driven, or is not calibrated.
    """
    its = robot.contract if rate_hz is None else replace(robot.contract, rate_hz=rate_hz)
    contract = agreed(policy, its, robot.aliases)
    problems = robot.problems(contract.rate_hz)
    if problems:
        raise ContractMismatch(f"the policy and the robot do not fit together: {'; '.join(problems)}")
    return contract


def agreed(policy: Contract, robot: Contract, aliases: tuple[str, ...] = ()) -> Contract:
    """The policy's contract with the limits of this robot, where they are narrower.

    Args:
        policy: what the policy was trained under.
        robot: the robot's own.
        aliases: other names of the robot's embodiment.

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
        if what != "cameras":  # a policy need not see all that there are
            lines += [f"{what} {name}: the policy knows none" for name in theirs if name not in ours]
        for name in [name for name in ours if name in theirs]:
            a, b = _size_or_unit(ours[name]), _size_or_unit(theirs[name])
            if a != b:
                lines.append(f"{what} {name}: {a} against {b}")
    if not lines:
        limits = {column.name: column for column in robot.action}
        action = tuple(_narrower(column, limits[column.name]) for column in policy.action)
        lines = [
            f"action {c.name}: no position is within the limits of both"
            for c in action
            if c.low is not None and c.high is not None and c.low >= c.high
        ]
    if lines:
        told = "; ".join([*lines, *_fixes(policy, robot, lines)])
        raise ContractMismatch(f"the policy and the robot do not fit together: {told}")
    return replace(policy, action=action)


def _fixes(policy: Contract, robot: Contract, lines: list[str]) -> Iterator[str]:
    """The flags that mend differences, if that is all that is wrong."""
    anew = "then train or adopt the policy again"
    if any(column.unit == UNKNOWN for column in (*policy.state, *policy.action)):
        yield f"units: deas-vla declare DATASET --units=…, {anew}"
    elif any(line.endswith(tuple(f" against {scale}" for scale in DRIVER_SCALES)) for line in lines):
        yield "another scale of LeRobot's driver: --robot.use_degrees=true or false"
    if any(line.startswith("embodiment") for line in lines):
        yield f"if it is the same arm: deas-vla declare DATASET --robot={robot.embodiment}, {anew}"
    if policy.rate_hz != robot.rate_hz:
        wrong = f"if the policy's is wrong, deas-vla declare DATASET --rate={robot.rate_hz:g}, {anew}"
        yield f"rate: --rate_hz={policy.rate_hz:g}; {wrong}"
    if any(line.startswith("cameras") for line in lines):
        named = ", ".join(f"{c.name}: {{…, width: {c.width}, height: {c.height}}}" for c in policy.cameras)
        yield f'cameras by the policy\'s names: --robot.cameras="{{{named}}}"'


def _size_or_unit(entry: Column | Camera) -> str:
    return f"{entry.height} × {entry.width}" if isinstance(entry, Camera) else entry.unit


def _narrower(column: Column, robot: Column) -> Column:
    lows = [limit for limit in (column.low, robot.low) if limit is not None]
    highs = [limit for limit in (column.high, robot.high) if limit is not None]
    return replace(column, low=max(lows, default=None), high=min(highs, default=None))
