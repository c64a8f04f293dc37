"""Faults in a part of the episodes, by their numbers: is one more like the others with the fault undone than as it is?

Each check gives every episode a score: the logarithm of how much worse it fits to the others as it is than with the
fault undone. Clean episodes lie far below 0, those with the fault far above. How often clean data raise an alarm is
measured by ``python benchmarks/audit_alarms.py``.

Shapes: E episodes, T steps, S and A columns of state and action, L lags.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deas_vla.data.audit.shifts import FEWEST, odd_ones, odd_shifts, reduced
from deas_vla.data.lerobot.findings import WARNING, Finding, found
from deas_vla.data.lerobot.layout import Layout

GRIPPER = re.compile("grip|finger|jaw|claw", re.IGNORECASE)
DEGREES = np.log(180 / np.pi)
# Steps by which the state is looked at after (or before) the action.
LAGS = np.arange(-4, 9)
# Steps from an action to the movements that it is taken to cause, and by how many actions may be off.
CAUSES, SHIFTS = np.arange(-1, 5), np.arange(-2, 3)
# What a recording program writes where nobody gave an instruction.
PLACEHOLDERS = {"", "none", "null", "nan", "n/a", "na", "unknown", "task", "todo", "tbd", "test", "default", "dummy"}


@dataclass(frozen=True)
class Played:
    """What is compared of an episode: its number, states (T + 1, S) or (T, S), actions (T, A), instruction, and whether
    it succeeded (None: nobody says).
    """

    number: int
    states: np.ndarray
    actions: np.ndarray
    instruction: str
    succeeded: bool | None


def compare(layout: Layout, played: list[Played]) -> Iterator[Finding]:
    """Grippers, units and timing that differ between episodes, actions that are states, permuted instructions."""
    finite = (each for each in played if np.isfinite(each.states).all() and np.isfinite(each.actions).all())
    played = [each for each in finite if len(each.actions) > 2 * len(LAGS)]
    names = {what: [position.name for position in getattr(layout, what)] for what in ("state", "action")}
    if len(played) >= FEWEST:
        mixed = list(units_mixed(names, played))
        yield from mixed
        if mixed:
            return  # the numbers of these episodes say nothing more
        yield from gripper_inverted(names, played)
        yield from instructions_permuted(played)
    yield from timing(names, played)


def _named(code: str, what: str, played: list[Played], which: np.ndarray, column: str, **more) -> Iterator[Finding]:
    """One finding about these episodes, if there are any."""
    episodes = tuple(sorted(played[i].number for i in which))
    if episodes:
        where = f"in episode {episodes[0]}" if len(episodes) == 1 else f"in {len(episodes)} of {len(played)} episodes"
        yield found(code, f"{what} {where}", column=column, episodes=episodes, **more)


def _correlation(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(A, S) of (T, A) and (T, S), 0 where a column does not move."""
    x, y = (each - each.mean(0) for each in (x.astype(np.float64), y.astype(np.float64)))
    size = np.sqrt((x**2).sum(0))[:, None] * np.sqrt((y**2).sum(0))
    return np.divide(x.T @ y, size, out=np.zeros_like(size), where=size > 1e-9)


# ---- the gripper --------------------------------------------------------------------------------------------------


def gripper_inverted(names: dict[str, list[str]], played: list[Played]) -> Iterator[Finding]:
    """Commands that move the gripper the other way than in most episodes; or command and state both the other way."""
    states, actions = ([i for i, name in enumerate(names[what]) if GRIPPER.search(name)] for what in names)
    which = np.array([], int)
    for i in actions if states else ():
        # A gripper takes its time to close: the delay after which its position says most of the command.
        after = [
            [
                _correlation(each.actions[:-lag, [i]], each.states[lag : len(each.actions)][:, states])[0]
                for each in played
            ]
            for lag in (1, 2, 4, 8)
        ]
        r = np.moveaxis(np.array(after), 1, 2).reshape(-1, len(played))
        r = r[np.median(np.abs(r), 1).argmax()].clip(-0.99, 0.99)
        r *= np.sign(np.median(r))
        which = odd_ones(np.log((1 - r) / (1 + r)), np.log(3), np.log(2))
        what = f"{names['action'][i]} moves the gripper the other way than in most,"
        yield from _named("gripper-inverted", what, played, which, names["action"][i])
    if len(which):
        return
    for group in _by_instruction(played):
        for j in states:
            column = [each.states[:, j] for each in group]
            low, high = np.percentile(np.concatenate(column), (1, 99))
            if high - low < 1e-6:
                continue
            profile = np.array([each[np.linspace(0, len(each) - 1, 12).astype(int)] for each in column])
            profile = ((profile - low) / (high - low)).clip(0, 1)
            usual = np.median(profile, 0)
            distance, mirrored = (np.sqrt(((p - usual) ** 2).mean(1)) + 0.05 for p in (profile, 1 - profile))
            what = f"{names['state'][j]} opens where it closes in most of the same instruction,"
            which = odd_ones(np.log(distance / mirrored), np.log(3), np.log(3))
            yield from _named("gripper-inverted", what, group, which, names["state"][j], severity=WARNING)


def _by_instruction(played: list[Played]) -> Iterator[list[Played]]:
    """Groups of episodes that are meant to do the same, and as far as anybody says did."""
    done = [each for each in played if each.succeeded is not False]
    for text in dict.fromkeys(each.instruction for each in done):
        group = [each for each in done if each.instruction == text]
        if len(group) >= FEWEST:
            yield group


# ---- units --------------------------------------------------------------------------------------------------------


def units_mixed(names: dict[str, list[str]], played: list[Played]) -> Iterator[Finding]:
    """Two columns or more that are 57 times larger, or smaller, in the same episodes, and nothing between.

    A factor of 2 either way is allowed to the movement of an episode; of the others, none may be 4 times off.
    """
    for what, key in (("state", "states"), ("action", "actions")):
        rms = np.array([np.sqrt((getattr(each, key).astype(np.float64) ** 2).mean(0)) for each in played])
        size = np.log(np.maximum(rms, 1e-9))
        # Of an even number of episodes not the mean of two, which may be a degree and a radian.
        size -= np.percentile(size, 50, axis=0, method="lower")
        far = np.abs(np.abs(size) - DEGREES) < np.log(2)
        clear = (far | (np.abs(size) < np.log(4))).all(0) & (rms.max(0) > 1e-3)
        for sign, word in ((1, "larger"), (-1, "smaller")):
            hit = far & clear & (sign * size > 0)
            which = np.flatnonzero(hit.sum(1) >= 2)
            columns = [names[what][i] for i in np.flatnonzero(hit.any(0))]
            text = f"{what} {', '.join(columns[:4])} are {np.exp(DEGREES):.0f} times {word} than in most,"
            yield from _named("units-mixed", text, played, which, columns[0] if columns else "")


# ---- timing -------------------------------------------------------------------------------------------------------


def timing(names: dict[str, list[str]], played: list[Played]) -> Iterator[Finding]:
    """Actions that are states, and actions that come after what they caused, in all episodes or in some."""
    pairs = [(i, names["state"].index(name)) for i, name in enumerate(names["action"]) if name in names["state"]]
    copied = {lag: np.array([_is_state(each, pairs, lag) for each in played], bool) for lag in (0, 1)}
    same, following = (np.flatnonzero(copied[lag]) for lag in (0, 1))
    yield from _named("action-is-state", "actions are the state of the same row", played, same, "action")
    yield from _named("action-is-next-state", "actions are the state of the next row", played, following, "action")
    if len(played) < FEWEST or len(same) or len(following):
        return
    if pairs:
        yield from _all_late_targets(played, pairs)
    else:
        yield from _all_late(names, played)
    yield from _shifted(played, bool(pairs))


def _is_state(each: Played, pairs: list[tuple[int, int]], lag: int) -> bool:
    """Whether most columns that move are, number for number, the state of the same name `lag` rows later."""
    rows = min(len(each.actions), len(each.states) - lag)
    actions = each.actions[:rows, [i for i, _ in pairs]]
    states = each.states[lag : lag + rows, [j for _, j in pairs]]
    span = np.ptp(states, 0)
    moves = span > 1e-4
    copied = np.abs(actions - states).max(0) <= 1e-5 * np.maximum(span, np.abs(states).max(0))
    return bool(moves.any() and (moves & copied).sum() > moves.sum() / 2)


def _shifted(played: list[Played], targets: bool) -> Iterator[Finding]:
    """Actions, or their changes if they are targets, that come some steps later or earlier than in most episodes."""
    moved = [np.diff(each.states, axis=0) for each in played]
    told = [np.diff(each.actions, axis=0, prepend=each.actions[:1]) if targets else each.actions for each in played]
    moved, told = (reduced(parts, 8, scaled=True) for parts in (moved, told))
    rows = [np.arange(CAUSES[-1] - SHIFTS[0], len(each) + CAUSES[0] - SHIFTS[-1]) for each in told]

    def design(i: int, shift: int | None) -> np.ndarray:
        actions = np.hstack([told[i][rows[i] + (shift or 0) - step] for step in CAUSES])
        return np.hstack([actions * (shift is not None), moved[i][rows[i] - 1], np.ones((len(rows[i]), 1))])

    _, odd = odd_shifts(design, [each[now] for each, now in zip(moved, rows, strict=True)], 0, SHIFTS, 1)
    for shift in sorted(set(odd.values())):
        steps = "a step" if abs(shift) == 1 else f"{abs(shift)} steps"
        what = f"actions are {steps} {'late' if shift > 0 else 'early'} against most"
        yield from _named("action-shifted", what, played, [i for i in odd if odd[i] == shift], "action")


def _all_late(names: dict[str, list[str]], played: list[Played]) -> Iterator[Finding]:
    """Commands of a movement that is over in their own row: nothing moves before it is told to."""
    profiles = []
    for each in played:
        change = np.diff(each.states, axis=0)
        rows = np.arange(-LAGS[0], len(change) - LAGS[-1])
        profiles.append([_correlation(each.actions[rows], change[rows + lag]) for lag in LAGS])
    usual = np.median(profiles, 0)  # (L, A, S)
    # Each with the column that follows it best.
    pairs = enumerate(np.abs(usual).max(0).argmax(1).tolist())
    before, now, after = usual[-LAGS[0] - 1], usual[-LAGS[0]], usual[-LAGS[0] + 1]
    sign = np.sign(now + after)
    for i, j in pairs:
        gain = sign[i, j] * (before - now)[i, j]
        if gain > 0.15 and sign[i, j] * before[i, j] > 0.5 and not GRIPPER.search(names["action"][i]):
            what = f"{names['state'][j]} has moved before {names['action'][i]} says so"
            yield from _named("action-late", what, played, np.arange(len(played)), names["action"][i])
            return


def _all_late_targets(played: list[Played], pairs: list[tuple[int, int]]) -> Iterator[Finding]:
    """Targets that the state is nearest to in their own row, or in earlier ones: it should come to them after."""
    columns = [i for i, _ in pairs], [j for _, j in pairs]
    gaps = []
    for each in played:
        rows = np.arange(-LAGS[0], min(len(each.actions), len(each.states)) - LAGS[-1])
        actions, states = each.actions[:, columns[0]], each.states[:, columns[1]]
        size = actions.std(0)
        moves = size > 1e-4
        if moves.any():
            gaps.append([((actions[rows] - states[rows + lag]).std(0)[moves] / size[moves]).mean() for lag in LAGS])
    gap = np.median(gaps, 0) if gaps else np.ones(1)
    # Numbers that have nothing to do with each other are 1.4 standard deviations apart, whatever the lag.
    if gap.min() < 0.8 and LAGS[gap.argmin()] <= 0:
        what = "the state is nearest to the actions in their own row or before it"
        yield from _named("action-late", what, played, np.arange(len(played)), "action")


# ---- instructions -------------------------------------------------------------------------------------------------


def instructions_permuted(played: list[Played]) -> Iterator[Finding]:
    """Episodes that go where those of another instruction go: by the mean state and the last one."""
    groups = list(_by_instruction(played))
    if len(groups) < 2:
        return
    done = [each for group in groups for each in group]
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    ways = np.array([np.concatenate([each.states.mean(0), each.states[-1]]) for each in done])
    usual = np.array([np.median(ways[owner == k], 0) for k in range(len(groups))])
    scale = np.median(np.abs(ways - usual[owner]), 0) + 1e-3 * ways.std(0) + 1e-9
    distance = np.minimum(np.abs(ways[:, None] - usual) / scale, 10)  # of one column no more than this
    distance = np.sqrt((distance**2).mean(2)) + 1e-9  # (E, groups)
    own = distance[np.arange(len(owner)), owner]
    distance[np.arange(len(owner)), owner] = np.inf
    which = odd_ones(np.log(own / distance.min(1)), np.log(2), np.log(2))
    if len(which):
        first = done[which[0]]
        likely = groups[int(distance[which[0]].argmin())][0].instruction
        what = f"the robot goes where it goes under another instruction (episode {first.number}: {likely!r})"
        yield from _named("instruction-of-another", what, done, which, "")


def placeholder(text: str) -> bool:
    """Whether an instruction is what a recording program writes where nobody gave one."""
    return text.strip().strip(".").lower() in PLACEHOLDERS
