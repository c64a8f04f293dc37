"""How often the audit's comparisons of episodes raise an alarm: on clean data, and with each fault planted.

    python benchmarks/audit_alarms.py outputs/lift/demonstrations/dataset outputs/lift/rollouts/dataset --draws=100

Of each data set, which is taken to be clean, random halves of the episodes are compared as they are, and again with a
fault planted in a fifth of them (in all, where the fault is of that kind). Printed for each fault: in how many draws it
was found, and of the episodes that were named, and had the fault, how many were both.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from deas_vla.data.audit import audit as audits
from deas_vla.data.audit.cameras import Film, compare_films, sample_films
from deas_vla.data.audit.compared import GRIPPER, Played, compare
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot import rows
from deas_vla.data.lerobot.findings import refuse
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout
from deas_vla.data.lerobot.reader import declared_labels

Films = dict[str, list[Film]]


def load(root: Path, labels: LabelRules) -> tuple[Layout, list[Played], Films, float]:
    """What the audit compares of a data set, all of its episodes."""
    data = audits.Audited(root, folder=LerobotFolder(root))
    data.layout, labels = Layout.of(data.folder), declared_labels(data.folder, labels)
    parts = refuse(root, rows.read_rows(data.folder, data.layout, labels))
    for part in parts:
        data.instructions[part.number] = rows.instruction_of(part, data.layout.instruction, data.folder.tasks)
    played = [audits._played(data, part, labels) for part in parts]
    shown = [(part, audits._shown(part, labels)) for part in parts]
    return data.layout, played, sample_films(data.folder, data.layout, shown, len(parts)), data.folder.rate_hz


def inverted(layout: Layout, each: Played) -> Played:
    actions = each.actions.copy()
    for i, position in enumerate(layout.action):
        if GRIPPER.search(position.name):
            actions[:, i] = actions[:, i].max() + actions[:, i].min() - actions[:, i]
    return replace(each, actions=actions)


def in_degrees(layout: Layout, each: Played) -> Played:
    return replace(each, states=each.states * np.float32(180 / np.pi))


def a_step_late(layout: Layout, each: Played) -> Played:
    return replace(each, actions=np.concatenate([each.actions[:1], each.actions[:-1]]))


def covered(film: Film) -> Film:
    return replace(film, images=np.zeros_like(film.images), flat=True)


def frozen(film: Film) -> Film:
    return replace(film, images=np.repeat(film.images[:1], len(film.images), 0))


def late(film: Film) -> Film:
    return replace(film, images=film.images[:-3], rows=film.rows[3:])


# Finding to how it is planted in one episode.
IN_ROWS: dict[str, Callable[[Layout, Played], Played]] = {
    "gripper-inverted": inverted,
    "units-mixed": in_degrees,
    "action-shifted": a_step_late,
}
IN_FILMS: dict[str, Callable[[Film], Film]] = {"flat-camera": covered, "frozen-camera": frozen, "camera-late": late}


def planted(code: str, layout: Layout, played: list[Played], films: Films, which: set[int]) -> tuple[list, Films]:
    """The episodes with a fault in those whose numbers are in `which`."""
    if code in IN_ROWS:
        played = [IN_ROWS[code](layout, each) if each.number in which else each for each in played]
    if code in IN_FILMS:
        first = next(iter(films))
        changed = [IN_FILMS[code](film) if film.number in which else film for film in films[first]]
        films = films | {first: changed}
    if code == "cameras-swapped" and len(films) > 1:
        one, other = list(films)[:2]
        pairs = list(zip(films[one], films[other], strict=True))
        pairs = [pair[::-1] if pair[0].number in which else pair for pair in pairs]
        films = films | {one: [a for a, _ in pairs], other: [b for _, b in pairs]}
    if code == "instruction-of-another":
        texts = sorted({each.instruction for each in played})
        after = dict(zip(texts, [*texts[1:], texts[0]], strict=True))
        played = [replace(p, instruction=after[p.instruction]) if p.number in which else p for p in played]
    return played, films


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--success", default="column", help="what counts as success in sets that do not say")
    arguments = parser.parse_args()
    codes = ["", *IN_ROWS, *IN_FILMS, "cameras-swapped", "instruction-of-another"]
    for root in arguments.datasets:
        layout, everyone, all_films, rate_hz = load(root, LabelRules(arguments.success))
        few = len(everyone) < 12  # of which no halves are taken
        print(f"{root}: {len(everyone)} episodes, {arguments.draws} draws")
        for code in codes:
            rng, alarms, right, named, faulty = np.random.default_rng(0), Counter(), 0, 0, 0
            for _ in range(arguments.draws):
                kept = rng.choice(len(everyone), len(everyone) if few else len(everyone) // 2, replace=False)
                played = [everyone[i] for i in sorted(kept)]
                numbers = [each.number for each in played]
                films = {name: [film for film in of if film.number in numbers] for name, of in all_films.items()}
                which = set(rng.choice(numbers, max(1, len(numbers) // 5), replace=False).tolist()) if code else set()
                played, films = planted(code, layout, played, films, which)
                findings = [*compare(layout, played), *compare_films(films, rate_hz)]
                alarms.update({each.code for each in findings})
                told = {number for each in findings if each.code == code for number in each.episodes}
                right, named, faulty = right + len(told & which), named + len(told), faulty + len(which)
            found, others = alarms.pop(code, 0), dict(alarms)
            detail = f"found in {found}; {right} of the {named} named have it, of {faulty} that do" if code else ""
            print(f"  {code or 'clean':<24}{detail}{'; also: ' if detail and others else ''}{others or ''}", flush=True)


if __name__ == "__main__":
    main()
