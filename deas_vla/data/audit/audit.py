"""The compatibility report: is each data set fit for training, do they fit to each other, to a policy, to a critic?

Data sets are read as they are, v2 or v3, an episode at a time, and every fault is reported, not only the first. What
the reader would refuse is an error here: faults in rows are found by the very code with which it refuses them. So is
what it could not see and training would learn nonsense from: LeRobot's statistics, episodes that are unlike the others,
and what does not fit to others.
"""

import hashlib
import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.audit import columns, images
from deas_vla.data.audit.agreement import Reference, differences, reference_at
from deas_vla.data.audit.cameras import compare_films, sample_films
from deas_vla.data.audit.compared import Played, compare, placeholder
from deas_vla.data.contract import Contract
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot import SIDECAR, rows
from deas_vla.data.lerobot.columns import ColumnFacts
from deas_vla.data.lerobot.findings import ERROR, NAMED, SEVERITIES, Finding, Findings, found
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout, depth_cameras, gather
from deas_vla.data.lerobot.reader import declared_labels, own_contract
from deas_vla.data.lerobot.videos import misplaced, video_ends
from deas_vla.errors import UserError, is_out_of_memory, require

# Episodes whose images are looked at, of each camera: by the command, and before a training.
THOROUGH, QUICK = 200, 12


@dataclass
class Audited:
    """One data set and what was found."""

    root: Path
    findings: Findings = field(default_factory=Findings)
    folder: LerobotFolder | None = None  # None if it is none
    layout: Layout | None = None  # None if it does not say
    contract: Contract | None = None  # what it declares, else what it says of itself
    lengths: dict[int, int] = field(default_factory=dict)  # rows of each episode, by number
    successes: int | None = None  # episodes that succeed, or None if nothing says so
    rewards: tuple[float, float] | None = None  # smallest and largest of a step
    facts: dict[str, ColumnFacts] = field(default_factory=dict)  # of ``state`` and ``action``
    instructions: dict[int, str | None] = field(default_factory=dict)  # of each episode, by number
    content: dict[bytes, int] = field(default_factory=dict)  # hash of states and actions to their first episode


@dataclass
class Report:
    """What an audit found, of each data set, and with what they were compared: a policy, critic or reranker, or ""."""

    datasets: list[Audited]
    against: str

    @property
    def fit(self) -> bool:
        """Whether training may use the data: there is no error."""
        return all(finding.severity != ERROR for each in self.datasets for finding in each.findings.sorted())

    def to_json(self) -> dict:
        datasets = [_facts_of(each) | {"findings": list(map(asdict, each.findings.sorted()))} for each in self.datasets]
        return {"fit": self.fit, "against": self.against, "datasets": datasets}


def audit(
    roots: list[Path], against: Path | None = None, labels: LabelRules = RECORDED, *, thorough: bool = True
) -> Report:
    """Audits data sets, against a policy, a critic or a reranker if one is given; their faults are findings.

    Args:
        roots: their folders.
        against: the folder of a policy, a critic or a reranker.
        labels: what counts as success and reward in those that do not say.
        thorough: look at every video and every stored image, and at the films of up to `THOROUGH` episodes; otherwise
            only at those of `QUICK`, which takes seconds whatever the size of the images.

    Raises:
        UserError: if `against` holds nothing to compare with.
    """
    require("pyarrow", "lerobot")
    reference = None if against is None else reference_at(Path(against))
    datasets = [Audited(Path(root)) for root in roots]
    for number, each in enumerate(datasets):
        try:
            for finding in _dataset(each, labels, reference, thorough):
                each.findings.add(finding)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            # Of a kind that no check foresees: the rest of the report is still worth having.
            problem = " ".join(f"{type(error).__name__}: {error}".split())
            each.findings.add(found("audit-stopped", f"it cannot be looked at to its end ({problem})"))
        for finding in _between(datasets[:number], each):
            each.findings.add(finding)
    return Report(datasets, "" if reference is None else reference.name)


def _dataset(data: Audited, labels: LabelRules, reference: Reference | None, thorough: bool) -> Iterator[Finding]:
    try:
        data.folder = folder = LerobotFolder(data.root)
    except UserError as error:
        yield found("not-a-data-set", error)
        return
    # All of them are asked for before one stops the audit.
    modality = yield from _readable("broken-modality", lambda: folder.modality)
    sidecar = yield from _readable("broken-sidecar", lambda: folder.sidecar)
    episodes = yield from _readable("missing-episode-list", lambda: folder.episodes)
    if not (modality and sidecar and episodes):
        return
    try:
        data.layout = Layout.of(folder)
        data.contract, declared = own_contract(folder, data.layout)
        labels = declared_labels(folder, labels)
    except UserError as error:
        yield found("missing-column" if "is missing" in str(error) else "unclear-columns", error)
        return
    for name in labels.columns:
        if name not in folder.features:
            flag = "--reward=success" if name == "next.reward" else "--success=done|reward|always|never"
            message = f"column {name} is missing: nothing says what it would"
            hint = f"record it, or declare what holds ({flag})"
            yield found("missing-column", message, hint=hint, file="meta/info.json", column=name)
    for line in data.layout.misfits(folder, data.contract) if declared else ():
        yield found("other-contract", f"info.json and {SIDECAR} do not fit together: {line}", file=SIDECAR)
    declared = declared and not data.layout.column_misfits(folder, data.contract)
    if declared:
        data.layout = data.layout.with_columns_of(data.contract)
    yield from images.unused_cameras(folder, data.layout)
    for camera in sorted(depth_cameras(folder)):
        yield found("depth-left-out", f"camera {camera} holds depth maps: it is left out", column=camera)
    parts = yield from _episodes(data, labels, thorough)
    yield from columns.stored_statistics(folder, data.layout.keys, parts)
    data.facts = rows.column_facts(data.layout, parts)
    yield from _whole(data, declared)
    if declared:
        yield from rows.beyond_contract(data.facts, data.contract, f"the contract in {SIDECAR}")
    if reference is not None:
        yield from differences(folder, data.layout, reference)
        wanted = reference.contract
        if wanted is not None and not data.layout.column_misfits(folder, wanted):
            seen = rows.column_facts(data.layout.with_columns_of(wanted), parts)
            yield from rows.beyond_contract(seen, wanted, reference.name)
            for what, facts in seen.items() if wanted.statistics is not None else ():
                yield from columns.unlike(facts, getattr(wanted, what), what, wanted.statistics)


def _readable(code: str, read: Callable[[], object]) -> Generator[Finding, None, bool]:
    try:
        read()
    except (UserError, KeyError) as error:
        yield found(code, error if isinstance(error, UserError) else UserError(f"{error!r}"))
        return False
    return True


def _episodes(data: Audited, labels: LabelRules, thorough: bool) -> Generator[Finding, None, list[Rows]]:
    """The one pass over the rows, and the images of each episode; returns the episodes."""
    folder, layout = data.folder, data.layout
    parts = yield from rows.read_rows(folder, layout, labels, others=True, desc=f"audit {folder.root.name}")
    tasks = {}
    with suppress(UserError):  # found with the rows, if they are read by it
        tasks = folder.tasks
    yield from misplaced(folder, layout, parts)
    for part in parts:
        yield from _episode(data, part, labels, tasks)
    if thorough:
        yield from _files(data, parts, labels)
    parts = [part for part in parts if all(key in part.columns for key in layout.keys)]
    yield from compare(layout, [_played(data, part, labels) for part in parts])
    shown = [(part, _shown(part, labels)) for part in parts]
    yield from compare_films(sample_films(folder, layout, shown, THOROUGH if thorough else QUICK), folder.rate_hz)
    return parts


def _files(data: Audited, parts: list[Rows], labels: LabelRules) -> Iterator[Finding]:
    """What is wrong with videos and stored images, each of which is looked into."""
    folder, layout = data.folder, data.layout
    ends = {key: video_ends(folder, key) for key in layout.cameras.values() if folder.features[key]["dtype"] == "video"}
    total, desc = sum(map(len, parts)) * len(layout.cameras), f"audit {folder.root.name}: files"
    with tqdm(total=total, desc=desc, unit="image", unit_scale=True, delay=2, dynamic_ncols=True) as bar:
        for part in parts:
            yield from images.episode_videos(folder, layout, part, ends)
            bar.update(len(part) * len(ends))
        for file, group in itertools.groupby(parts, key=lambda part: part.file):
            shown = [(part, _shown(part, labels)) for part in group]
            yield from images.stored_images(folder, layout, file, shown, bar.update)


def _played(data: Audited, part: Rows, labels: LabelRules) -> Played:
    labelled, actions = rows.step_labels(part, labels), gather(data.layout.action, part.columns)
    return Played(
        number=part.number,
        states=gather(data.layout.state, part.columns),
        actions=actions[: len(part) - rows.has_final(part)],
        instruction=data.instructions.get(part.number) or "",
        succeeded=None if labelled is None else bool(labelled[0].any()),
    )


def _episode(data: Audited, part: Rows, labels: LabelRules, tasks: dict[int, str]) -> Iterator[Finding]:
    """What the reader does not look at, of one episode."""
    layout, number = data.layout, part.number
    data.lengths[number] = data.lengths.get(number, 0) + len(part)
    if (labelled := rows.step_labels(part, labels)) is not None:
        success, rewards = labelled
        data.successes = (data.successes or 0) + int(success.any())
        if np.isfinite(rewards).all():
            low, high = data.rewards or (np.inf, -np.inf)
            data.rewards = (min(low, float(rewards.min())), max(high, float(rewards.max())))
    if layout.instruction in part.columns:
        data.instructions[number] = text = rows.instruction_of(part, layout.instruction, tasks)
        if text and placeholder(text):
            yield rows.fault(part, "blank-instruction", f"its instruction is {text!r}", layout.instruction)
    if any(key not in part.columns for key in layout.keys):
        return
    digest = hashlib.sha256(b"".join(part.columns[key].tobytes() for key in layout.keys)).digest()
    if (before := data.content.setdefault(digest, number)) != number:
        text, other = data.instructions.get(number), data.instructions.get(before)
        what = f"it has the states and actions of episode {before}"
        if text == other:
            yield rows.fault(part, "duplicated-episode", what)
        else:
            what += f", whose instruction is {other!r}, not {text!r}"
            yield rows.fault(part, "instruction-of-another", what, severity=ERROR)


def _shown(part: Rows, labels: LabelRules) -> np.ndarray:
    """(F,) the rows of an episode whose images the reader would show; all, if nothing says where it ends."""
    if any(name not in part.columns for name in labels.columns):
        return np.arange(len(part))
    return rows.frames_of(part, labels.of(part.columns, len(part))[0])


def _whole(data: Audited, declared: bool) -> Iterator[Finding]:
    """What only the whole data set shows."""
    for what, facts in data.facts.items():
        yield from columns.signatures(facts, getattr(data.layout, what), what, declared)
    if data.rewards is not None and data.rewards[0] == data.rewards[1]:
        yield found("constant-reward", f"every next.reward is {data.rewards[0]:g}", column="next.reward")
    if data.successes == 0:
        yield found("no-success", "no episode succeeds: a critic cannot learn from it alone what success is")
    elif data.successes == len(data.lengths):
        yield found("no-failure", "every episode succeeds: rollouts that fail teach a critic more")


def _between(earlier: list[Audited], later: Audited) -> Iterator[Finding]:
    """What keeps a data set from being one with the first that says what its columns are, and what it repeats."""
    first = next((each for each in earlier if each.contract is not None), None)
    if first is not None and later.contract is not None:
        reference = Reference(f"data set {first.root}", first.contract.with_statistics(None))
        yield from differences(later.folder, later.layout, reference)
    for each in earlier:
        if twice := sorted(later.content[digest] for digest in later.content.keys() & each.content.keys()):
            message = f"{len(twice)} episodes have the states and actions of episodes in {each.root}"
            yield found("duplicated-episode", message, file=str(each.root), episodes=tuple(twice))


# ---- the report -------------------------------------------------------------------------------------------------


def _facts_of(data: Audited) -> dict:
    """What a data set holds, as JSON values."""
    folder, lengths = data.folder, data.lengths.values()
    if folder is None:
        return {"root": str(data.root)}
    columns = {
        what: [
            {"name": position.name, "signature": facts.signature(i)}
            | {name: float(values[i]) for name, values in facts.numbers.items()}
            for i, position in enumerate(getattr(data.layout, what))
        ]
        for what, facts in data.facts.items()
    }
    return {
        "root": str(data.root),
        "version": folder.version,
        "embodiment": str(folder.info.get("robot_type")),
        "rate_hz": folder.rate_hz,
        "episodes": len(lengths),
        "rows": sum(lengths),
        "minutes": round(sum(lengths) / folder.rate_hz / 60, 2),
        "lengths": [min(lengths), max(lengths)] if lengths else None,
        "successes": data.successes,
        "rewards": data.rewards and list(data.rewards),
        "instructions": sorted({text for text in data.instructions.values() if text}),
        "cameras": [] if data.contract is None else [asdict(camera) for camera in data.contract.cameras],
        "columns": columns,
    }


def report_text(report: Report) -> str:
    """Facts, columns and findings of each data set, and whether training may use them."""
    lines, severities = [], []
    for data in report.datasets:
        findings = data.findings.sorted()
        lines += [*_summary(_facts_of(data)), ""]
        lines += [line for finding in findings for line in _finding(finding)] + [""] * bool(findings)
        severities += [finding.severity for finding in findings]
    numbers = [(severity, severities.count(severity)) for severity in SEVERITIES]
    counted = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in numbers)
    verdict = "fit for training" if report.fit else "NOT fit for training"
    against = f" with {report.against}" if report.against else ""
    return "\n".join([*lines, f"{verdict}{against}: {counted}"])


def _summary(facts: dict) -> list[str]:
    if "version" not in facts:
        return [facts["root"]]
    cameras = [f"{camera['name']} {camera['height']}x{camera['width']}" for camera in facts["cameras"]]
    lines = [
        f"{facts['root']}: LeRobot {facts['version']}, {facts['embodiment']}, {facts['rate_hz']:g} Hz, "
        f"{facts['episodes']} episodes, {facts['rows']} rows ({facts['minutes']} min)",
        f"  cameras: {', '.join(cameras) or 'none'}",
    ]
    if facts["lengths"]:
        lines.append("  rows an episode: {} to {}".format(*facts["lengths"]))
    success = "nothing says" if facts["successes"] is None else f"{facts['successes']} of {facts['episodes']}"
    rewards = "none" if facts["rewards"] is None else "{:g} to {:g}".format(*facts["rewards"])
    lines.append(f"  success: {success}; rewards: {rewards}; instructions: {len(facts['instructions'])}")
    lines += [f"    {text}" for text in facts["instructions"][:NAMED]]
    every = [(what, column) for what, columns in facts["columns"].items() for column in columns]
    # Those that never move are a finding, with their names.
    rows = [(what, column) for what, column in every if column["signature"] != "constant"]
    width = max((len(column["name"]) for _, column in rows), default=0)
    if rows:
        lines.append(f"  {'':<7}{'column':<{width}}  signature        min        max       mean        std")
    for what, column in rows:
        numbers = "".join(f" {column[key]:>10.4g}" for key in ("min", "max", "mean", "std"))
        lines.append(f"  {what:<7}{column['name']:<{width}}  {column['signature']:<9}{numbers}")
    if still := len(every) - len(rows):
        lines.append(f"  {still} more columns never move")
    return lines


def _finding(finding: Finding) -> list[str]:
    position = [where for where in (finding.file, finding.among) if where]
    lines = [f"{finding.severity:<8}{finding.code}: {finding.message}"]
    if position:
        lines.append(f"        in {'; '.join(position)}")
    if finding.hint:
        lines.append(f"        → {finding.hint}")
    return lines
