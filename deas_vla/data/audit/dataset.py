"""The audit of one data set: a single pass over its files, an episode at a time."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.audit import columns, pictures, rows, statistics, tables
from deas_vla.data.audit.agreement import Reference, differences, unlike_reference
from deas_vla.data.audit.columns import ColumnFacts
from deas_vla.data.audit.findings import ERROR, NOTE, WARNING, Finding, Findings, of_error
from deas_vla.data.audit.rows import Rows
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot import SIDECAR
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.layout import Layout, gather
from deas_vla.data.lerobot.reader import declared_labels, own_contract
from deas_vla.errors import UserError

EPISODES_WORTH_A_BAR = 50


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
        instructions: the different sentences.
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
        told = " ".join(f"{type(error).__name__}: {error}".split())
        audited.findings.add(
            Finding(ERROR, "audit-stopped", f"it cannot be looked at to its end ({told})",
                    "mend what was found besides this; if nothing was, report this as a bug")
        )  # fmt: skip
    return audited


def _audit(audited: Audited, folder: LerobotFolder, labels: LabelRules, reference: Reference | None) -> None:
    findings = audited.findings
    readable = [_readable(findings, code, read) for code, read in (
        ("broken-modality", lambda: folder.modality),
        ("broken-sidecar", lambda: folder.sidecar),
        ("missing-episode-list", lambda: folder.episodes),
    )]  # fmt: skip
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
    findings.extend(_undeclared(folder, labels))
    for line in layout.misfits(folder, contract) if declared else ():
        findings.add(
            Finding(ERROR, "other-contract", f"info.json and {SIDECAR} do not fit together: {line}",
                    "correct the one that is wrong", SIDECAR)
        )  # fmt: skip
    declared = declared and not layout.column_misfits(folder, contract)
    if declared:
        audited.layout = layout = layout.with_columns_of(contract)
    findings.extend(pictures.unused_cameras(folder, layout))

    passing = _Pass(audited, layout, labels, declared, reference, folder.tasks if has_tasks else None)
    passing.run()
    tables.counts(folder, audited.lengths, passing.rows, findings)
    findings.extend(passing.whole())
    if declared:
        for what in ("state", "action"):
            whose = f"the contract in {SIDECAR}"
            findings.extend(
                columns.against_columns(audited.facts[what], getattr(contract, what), what, whose)
            )
    if reference is not None:
        findings.extend(differences(folder, audited.layout, reference, statistics=True))
        findings.extend(unlike_reference(passing.reference_facts, reference))


def _readable(findings: Findings, code: str, read: Callable[[], object]) -> bool:
    try:
        read()
    except (UserError, KeyError) as error:
        findings.add(of_error(error if isinstance(error, UserError) else UserError(f"{error!r}"), code))
        return False
    return True


def _undeclared(folder: LerobotFolder, labels: LabelRules) -> Iterator[Finding]:
    """Columns of success and reward that the rules need and nobody recorded."""
    for name in labels.columns:
        if name not in folder.features:
            flag = "--reward=success" if name == "next.reward" else "--success=done|reward|always|never"
            yield Finding(
                ERROR, "missing-column", f"column {name} is missing: nothing says what it would",
                f"record it, or declare what holds ({flag})", "meta/info.json", name,
            )  # fmt: skip


class _Pass:
    """One pass over the rows of a data set."""

    def __init__(
        self,
        audited: Audited,
        layout: Layout,
        labels: LabelRules,
        declared: bool,
        reference: Reference | None,
        tasks: dict[int, str] | None,
    ):
        self.audited, self.layout, self.labels, self.declared = audited, layout, labels, declared
        self.folder, self.findings, self.tasks = audited.folder, audited.findings, tasks
        self.rows = 0
        self.ours = "frame.is_final" in self.folder.features
        audited.facts |= {"state": ColumnFacts(), "action": ColumnFacts()}
        self.reference_layout = None
        contract = None if reference is None else reference.contract
        if contract is not None and not audited.layout.column_misfits(self.folder, contract):
            self.reference_layout = audited.layout.with_columns_of(contract)
        self.reference_facts = (
            {} if self.reference_layout is None else {"state": ColumnFacts(), "action": ColumnFacts()}
        )
        self.statistics = statistics.Stored(self.folder, layout.keys, self.findings)

    def run(self) -> None:
        total, first_rows = len(self.folder.episodes), tables.first_rows(self.folder)
        name = f"audit {self.folder.root.name}"
        with tqdm(total=total, desc=name, disable=total < EPISODES_WORTH_A_BAR, dynamic_ncols=True) as bar:
            for file, table in tables.tables(self.folder, self.findings):
                for part in tables.episodes_of(self.folder, file, table, first_rows):
                    self._episode(part)
                    bar.update()
                if "episode_index" in table:
                    numbers = table["episode_index"].reshape(-1)
                    self.findings.extend(pictures.stored_pictures(self.folder, self.layout, file, numbers))
                self.rows += len(next(iter(table.values())))

    def _episode(self, part: Rows) -> None:
        audited, number = self.audited, part.number
        if number in audited.lengths:
            self.findings.add(
                part.finding(
                    ERROR, "episode-twice", f"it begins again in {part.file}", column="episode_index"
                )
            )
        audited.lengths[number] = audited.lengths.get(number, 0) + len(part)
        self.findings.extend(rows.numbering(part))
        self.findings.extend(rows.times(part, self.folder.rate_hz))
        self.findings.extend(rows.finite(part, self.layout))
        self.findings.extend(rows.rewards_and_end(part, self.labels, self.ours))
        self.findings.extend(pictures.episode_videos(self.folder, self.layout, number, len(part)))
        self._instruction(part)
        self._labels(part)
        self.statistics.add(part)
        for facts, layout in (
            (audited.facts, self.layout),
            (self.reference_facts, self.reference_layout),
        ):
            if layout is not None and all(key in part.columns for key in layout.keys):
                for what in facts:
                    facts[what].add(gather(getattr(layout, what), part.columns))
        self._content(part)

    def _instruction(self, part: Rows) -> None:
        sentences = part.flat(self.layout.instruction)
        if sentences is None or self.tasks is None:
            return
        text = self.tasks.get(int(sentences[0]))
        if not text:
            problem = "is not in the list of tasks" if text is None else "is empty"
            self.findings.add(
                part.finding(
                    ERROR, "missing-instruction", f"its sentence {int(sentences[0])} {problem}",
                    "write it into the list of tasks in meta/", self.layout.instruction,
                )
            )  # fmt: skip
        else:
            self.audited.instructions.add(text)
        if (sentences != sentences[0]).any():
            self.findings.add(
                part.finding(
                    WARNING, "instruction-changes", "its sentence changes; only the first is used",
                    "cut the episode where it changes", self.layout.instruction,
                )
            )  # fmt: skip

    def _labels(self, part: Rows) -> None:
        if any(name not in part.columns for name in self.labels.columns) or not part.steps:
            return
        success, rewards = (values[: part.steps] for values in self.labels.of(part.columns, len(part)))
        self.audited.successes = (self.audited.successes or 0) + int(success.any())
        if np.isfinite(rewards).all():
            low, high = self.audited.rewards or (np.inf, -np.inf)
            self.audited.rewards = (min(low, float(rewards.min())), max(high, float(rewards.max())))

    def _content(self, part: Rows) -> None:
        keys = [key for key in self.layout.keys if key in part.columns]
        if len(keys) < len(self.layout.keys):
            return
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(part.columns[key]).tobytes() for key in keys))
        before = self.audited.content.setdefault(digest.digest(), part.number)
        if before != part.number:
            self.findings.add(
                part.finding(
                    WARNING, "duplicated-episode", f"it has the states and actions of episode {before}",
                    "leave one out: it would be trained on and validated with",
                )
            )  # fmt: skip

    def whole(self) -> Iterator[Finding]:
        """What only the whole data set shows."""
        audited = self.audited
        self.statistics.compare_all()
        for what in ("state", "action"):
            yield from columns.signatures(
                audited.facts[what], getattr(self.layout, what), what, self.declared
            )
        if audited.rewards is not None and audited.rewards[0] == audited.rewards[1]:
            yield Finding(
                WARNING, "constant-reward", f"every next.reward is {audited.rewards[0]:g}",
                "train with the reward success_minus_one, or look how rewards were recorded",
                column="next.reward",
            )  # fmt: skip
        if audited.successes == 0:
            yield Finding(
                WARNING, "no-success", "no episode succeeds: a critic cannot learn from it alone what success is",
                "add data with successes, or look whether success was recorded",
            )  # fmt: skip
        elif audited.successes == len(audited.lengths):
            yield Finding(
                NOTE, "no-failure", "every episode succeeds: rollouts that fail teach a critic more"
            )
