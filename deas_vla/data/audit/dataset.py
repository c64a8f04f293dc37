"""The audit of one data set: a single pass over its files, an episode at a time; faults are reported, not raised."""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.audit import columns, images, rows, tables
from deas_vla.data.audit.agreement import Reference, differences, unlike_reference
from deas_vla.data.audit.columns import ColumnFacts
from deas_vla.data.audit.findings import Finding, Findings, found, of_error
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot import SIDECAR
from deas_vla.data.lerobot.folder import EPISODES_WORTH_A_BAR, LerobotFolder, Rows, split_episodes
from deas_vla.data.lerobot.layout import KEYS, Layout, gather
from deas_vla.data.lerobot.reader import declared_labels, own_contract
from deas_vla.errors import UserError


@dataclass
class Audited:
    """One data set and what was found.

    Attributes:
        root: its folder, as it was given.
        findings: in the order in which they came.
        folder: the data set, or None if it is none.
        layout: its columns, or None if it does not say.
        lengths: rows of each episode, by number.
        successes: episodes that succeed, or None if nothing says so.
        rewards: smallest and largest reward of a step, or None.
        facts: of ``state`` and ``action``.
        instructions: the different ones.
        content: hash of states and actions to the first episode that has them.
    """

    root: Path
    findings: Findings = field(default_factory=Findings)
    folder: LerobotFolder | None = None
    layout: Layout | None = None
    lengths: dict[int, int] = field(default_factory=dict)
    successes: int | None = None
    rewards: tuple[float, float] | None = None
    facts: dict[str, ColumnFacts] = field(default_factory=dict)
    instructions: set[str] = field(default_factory=set)
    content: dict[bytes, int] = field(default_factory=dict)


def audit_dataset(root: Path, labels: LabelRules, reference: Reference | None) -> Audited:
    """Looks at everything in a data set.

    Args:
        root: its folder.
        labels: what counts as success and reward, if the data set does not say.
        reference: the policy or critic that it must fit to, or None.

    Returns:
        What was found; a fault never raises.
    """
    audited = Audited(Path(root))
    try:
        audited.folder = LerobotFolder(root)
    except UserError as error:
        audited.findings.add(of_error(error, "not-a-data-set"))
        return audited
    try:
        _audit(audited, audited.folder, labels, reference)
    except Exception as error:
        # Of a kind that no check foresees: the rest of the report is still worth having.
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        audited.findings.add(found("audit-stopped", f"it cannot be looked at to its end ({problem})"))
    return audited


def _audit(audited: Audited, folder: LerobotFolder, labels: LabelRules, reference: Reference | None) -> None:
    findings = audited.findings
    # All of them are asked for before one stops the audit.
    readable = [
        _readable(findings, "broken-modality", lambda: folder.modality),
        _readable(findings, "broken-sidecar", lambda: folder.sidecar),
        _readable(findings, "missing-episode-list", lambda: folder.episodes),
    ]
    has_tasks = _readable(findings, "missing-tasks", lambda: folder.tasks)
    if not all(readable):
        return
    try:
        audited.layout = layout = Layout.of(folder)
        labels = declared_labels(folder, labels)
        contract, declared = own_contract(folder, layout)
    except UserError as error:
        findings.add(of_error(error, "missing-column" if "is missing" in str(error) else "unclear-columns"))
        return
    for name in labels.columns:
        if name not in folder.features:
            flag = "--reward=success" if name == "next.reward" else "--success=done|reward|always|never"
            message = f"column {name} is missing: nothing says what it would"
            hint = f"record it, or declare what holds ({flag})"
            findings.add(found("missing-column", message, hint=hint, file="meta/info.json", column=name))
    for line in layout.misfits(folder, contract) if declared else ():
        message = f"info.json and {SIDECAR} do not fit together: {line}"
        findings.add(found("other-contract", message, file=SIDECAR))
    declared = declared and not layout.column_misfits(folder, contract)
    if declared:
        audited.layout = layout = layout.with_columns_of(contract)
    findings.extend(images.unused_cameras(folder, layout))

    passing = _Pass(audited, layout, labels, folder.tasks if has_tasks else None)
    passing.run()
    tables.counts(folder, audited.lengths, passing.rows, findings)
    findings.extend(columns.stored_statistics(folder, layout.keys, passing.parts))
    audited.facts = _facts(layout, passing.parts)
    findings.extend(_whole(audited, declared))
    for what, facts in audited.facts.items() if declared else ():
        whose = f"the contract in {SIDECAR}"
        findings.extend(columns.against_columns(facts, getattr(contract, what), what, whose))
    if reference is not None:
        findings.extend(differences(folder, layout, reference, statistics=True))
        wanted = reference.contract
        if wanted is not None and not layout.column_misfits(folder, wanted):
            facts = _facts(layout.with_columns_of(wanted), passing.parts)
            findings.extend(unlike_reference(facts, wanted, reference.name))


def _facts(layout: Layout, parts: list[Rows]) -> dict[str, ColumnFacts]:
    """Facts of ``state`` and ``action``, in the order of a layout, as far as the episodes have them."""
    whole = {key: np.concatenate([part.columns[key] for part in parts]) for key in layout.keys if parts}
    facts = {what: whole and ColumnFacts.of(gather(getattr(layout, what), whole)) for what in KEYS}
    return {what: each for what, each in facts.items() if each}


def _readable(findings: Findings, code: str, read: Callable[[], object]) -> bool:
    try:
        read()
    except (UserError, KeyError) as error:
        findings.add(of_error(error if isinstance(error, UserError) else UserError(f"{error!r}"), code))
        return False
    return True


class _Pass:
    """One pass over the rows of a data set; of each episode, in `parts`, states and actions are kept."""

    def __init__(self, audited: Audited, layout: Layout, labels: LabelRules, tasks: dict[int, str] | None):
        self.audited, self.layout, self.labels, self.tasks = audited, layout, labels, tasks
        self.folder, self.rows, self.parts = audited.folder, 0, []
        self.ours = "frame.is_final" in self.folder.features

    def run(self) -> None:
        folder, episodes, findings = self.folder, self.folder.episodes, self.audited.findings
        ends = itertools.accumulate((row["length"] for row in episodes.values()), initial=0)
        first_index = dict(zip(episodes, ends, strict=False))
        few = len(episodes) < EPISODES_WORTH_A_BAR
        name = f"audit {folder.root.name}"
        with tqdm(total=len(episodes), desc=name, disable=few, dynamic_ncols=True) as bar:
            for file, table in tables.tables(folder, findings):
                if "episode_index" in table:
                    for part in split_episodes(file.relative_to(folder.root), table):
                        findings.extend(self._episode(part, first_index.get(part.number)))
                        bar.update()
                    numbers = table["episode_index"].ravel()
                    findings.extend(images.stored_images(folder, self.layout, file, numbers))
                self.rows += len(next(iter(table.values())))

    def _episode(self, part: Rows, first_index: int | None) -> Iterator[Finding]:
        audited, number = self.audited, part.number
        if number in audited.lengths:
            yield rows.fault(part, "episode-twice", f"it begins again in {part.file.name}", "episode_index")
        audited.lengths[number] = audited.lengths.get(number, 0) + len(part)
        yield from rows.numbering(part, first_index)
        yield from rows.times(part, self.folder.rate_hz)
        yield from rows.finite(part, self.layout)
        yield from rows.rewards_and_end(part, self.labels, self.ours)
        yield from images.episode_videos(self.folder, self.layout, number, len(part))
        yield from self._instruction(part)
        self._labels(part)
        if all(key in part.columns for key in self.layout.keys):
            kept = {key: np.ascontiguousarray(part.columns[key]) for key in self.layout.keys}
            self.parts.append(replace(part, columns=kept))
            digest = hashlib.sha256(b"".join(values.tobytes() for values in kept.values())).digest()
            before = audited.content.setdefault(digest, number)
            if before != number:
                message = f"it has the states and actions of episode {before}"
                yield rows.fault(part, "duplicated-episode", message)

    def _instruction(self, part: Rows) -> Iterator[Finding]:
        tasks, key = rows.flat(part, self.layout.instruction), self.layout.instruction
        if tasks is None or self.tasks is None:
            return
        text = self.tasks.get(int(tasks[0]))
        if text:
            self.audited.instructions.add(text)
        else:
            problem = "is not in the list of tasks" if text is None else "is empty"
            yield rows.fault(part, "missing-instruction", f"its instruction {int(tasks[0])} {problem}", key)
        if (tasks != tasks[0]).any():
            message = "its instruction changes; only the first is used"
            yield rows.fault(part, "instruction-changes", message, key)

    def _labels(self, part: Rows) -> None:
        steps = rows.steps_of(part)
        if any(name not in part.columns for name in self.labels.columns) or not steps:
            return
        success, rewards = (values[:steps] for values in self.labels.of(part.columns, len(part)))
        self.audited.successes = (self.audited.successes or 0) + int(success.any())
        if np.isfinite(rewards).all():
            low, high = self.audited.rewards or (np.inf, -np.inf)
            self.audited.rewards = (min(low, float(rewards.min())), max(high, float(rewards.max())))


def _whole(audited: Audited, declared: bool) -> Iterator[Finding]:
    """What only the whole data set shows."""
    for what, facts in audited.facts.items():
        yield from columns.signatures(facts, getattr(audited.layout, what), what, declared)
    if audited.rewards is not None and audited.rewards[0] == audited.rewards[1]:
        message = f"every next.reward is {audited.rewards[0]:g}"
        yield found("constant-reward", message, column="next.reward")
    if audited.successes == 0:
        message = "no episode succeeds: a critic cannot learn from it alone what success is"
        yield found("no-success", message)
    elif audited.successes == len(audited.lengths):
        yield found("no-failure", "every episode succeeds: rollouts that fail teach a critic more")
