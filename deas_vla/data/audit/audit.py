"""The compatibility report: is each data set fit for training, do they fit to each other, to a policy, to a critic?

Data sets are read as they are, v2 or v3, one episode at a time, and every fault is reported, not only the first. What
the reader would refuse is an error here; so is what it could not see and training would learn nonsense from.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from deas_vla.data.audit.agreement import Reference, differences, reference_at
from deas_vla.data.audit.dataset import Audited, audit_dataset
from deas_vla.data.audit.findings import SEVERITIES, Finding, found
from deas_vla.data.contract import Contract
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot.reader import own_contract
from deas_vla.errors import UserError, require

# Episodes that are named in a finding, and instructions of a data set; the rest is counted.
NAMED = 8


@dataclass
class Report:
    """What an audit found.

    Attributes:
        datasets: in the order in which they were given.
        against: the policy, critic or reranker that they were compared with, or "".
    """

    datasets: list[Audited]
    against: str

    @property
    def fit(self) -> bool:
        """Whether training may use the data: there is no error."""
        return not any(audited.findings.errors for audited in self.datasets)

    def to_json(self) -> dict:
        datasets = [
            facts_of(audited) | {"findings": [asdict(finding) for finding in audited.findings.sorted()]}
            for audited in self.datasets
        ]
        return {"fit": self.fit, "against": self.against, "datasets": datasets}


def audit(roots: list[Path], against: Path | None = None, labels: LabelRules = RECORDED) -> Report:
    """Audits data sets.

    Args:
        roots: their folders.
        against: folder of a policy, a critic or a reranker, or None.
        labels: what counts as success and reward in those that do not say.

    Raises:
        UserError: if `against` holds nothing to compare with. Faults of the data sets are findings.
    """
    require("pyarrow", "lerobot")
    reference = None if against is None else reference_at(Path(against))
    datasets = [audit_dataset(Path(root), labels, reference) for root in roots]
    for number, later in enumerate(datasets):
        for earlier in datasets[:number]:
            later.findings.extend(_between(earlier, later, compare=earlier is _first(datasets)))
    return Report(datasets, "" if reference is None else reference.name)


def facts_of(audited: Audited) -> dict:
    """What a data set holds, as JSON values."""
    folder, layout = audited.folder, audited.layout
    if folder is None:
        return {"root": str(audited.root)}
    rows, lengths = sum(audited.lengths.values()), audited.lengths.values()
    facts = {
        "root": str(audited.root),
        "version": folder.version,
        "embodiment": str(folder.info.get("robot_type")),
        "rate_hz": folder.rate_hz,
        "episodes": len(audited.lengths),
        "rows": rows,
        "minutes": round(rows / folder.rate_hz / 60, 2) if folder.rate_hz > 0 else None,
        "lengths": [min(lengths), max(lengths)] if rows else None,
        "successes": audited.successes,
        "rewards": audited.rewards and list(audited.rewards),
        "instructions": sorted(audited.instructions),
    }
    if layout is None:
        return facts
    contract = _contract(audited)
    columns = {
        what: each.as_json([position.name for position in getattr(layout, what)])
        for what, each in audited.facts.items()
    }
    cameras = [] if contract is None else [asdict(camera) for camera in contract.cameras]
    return facts | {"cameras": cameras, "columns": columns}


def _contract(audited: Audited) -> Contract | None:
    try:
        return own_contract(audited.folder, audited.layout)[0]
    except UserError:
        return None


def _first(datasets: list[Audited]) -> Audited | None:
    """The data set that the others are compared with: the first that says what its columns are."""
    return next((audited for audited in datasets if audited.layout is not None), None)


def _between(earlier: Audited, later: Audited, *, compare: bool) -> Iterator[Finding]:
    """What keeps two data sets from being one."""
    if earlier.layout is None or later.layout is None:
        return
    contract = _contract(earlier)
    if compare and contract is not None and _contract(later) is not None:
        reference = Reference(f"data set {earlier.root}", contract)
        yield from differences(later.folder, later.layout, reference, statistics=False)
    twice = sorted(number for digest, number in later.content.items() if digest in earlier.content)
    if twice:
        message = f"{len(twice)} episodes have the states and actions of episodes in {earlier.root}"
        yield found("duplicated-episode", message, file=str(earlier.root), episodes=tuple(twice))


def report_text(report: Report) -> str:
    """Facts, columns and findings of each data set, and whether training may use them."""
    lines, severities = [], []
    for audited in report.datasets:
        facts, findings = facts_of(audited), audited.findings.sorted()
        lines += [*_facts(facts), *_columns(facts), ""]
        lines += [line for finding in findings for line in _finding(finding)] + [""] * bool(findings)
        severities += [finding.severity for finding in findings]
    numbers = [(severity, severities.count(severity)) for severity in SEVERITIES]
    counted = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in numbers)
    verdict = "fit for training" if report.fit else "NOT fit for training"
    against = f" with {report.against}" if report.against else ""
    return "\n".join([*lines, f"{verdict}{against}: {counted}"])


def _facts(facts: dict) -> list[str]:
    if "version" not in facts:
        return [f"{facts['root']}"]
    cameras = [f"{c['name']} {c['height']}x{c['width']}" for c in facts.get("cameras", ())]
    lines = [
        f"{facts['root']}: LeRobot {facts['version']}, {facts['embodiment']}, {facts['rate_hz']:g} Hz, "
        f"{facts['episodes']} episodes, {facts['rows']} rows ({facts['minutes']} min)",
        f"  cameras: {', '.join(cameras) or 'none'}",
    ]
    if facts["lengths"]:
        lines.append(f"  rows an episode: {facts['lengths'][0]} to {facts['lengths'][1]}")
    success = "nothing says" if facts["successes"] is None else f"{facts['successes']} of {facts['episodes']}"
    rewards = "none" if facts["rewards"] is None else "{:g} to {:g}".format(*facts["rewards"])
    lines.append(f"  success: {success}; rewards: {rewards}; instructions: {len(facts['instructions'])}")
    lines += [f"    {text}" for text in facts["instructions"][:NAMED]]
    return lines


def _columns(facts: dict) -> list[str]:
    rows = [(what, column) for what, columns in facts.get("columns", {}).items() for column in columns]
    if not rows:
        return []
    width = max(len(column["name"]) for _, column in rows)
    lines = [f"  {'':<7}{'column':<{width}}  signature        min        max       mean        std"]
    for what, column in rows:
        numbers = "".join(f" {column[key]:>10.4g}" for key in ("min", "max", "mean", "std"))
        lines.append(f"  {what:<7}{column['name']:<{width}}  {column['signature']:<9}{numbers}")
    return lines


def _finding(finding: Finding) -> list[str]:
    position = [finding.file] if finding.file else []
    if len(finding.episodes) > 1:
        named = ", ".join(str(number) for number in finding.episodes[:NAMED])
        more = len(finding.episodes) - NAMED
        position.append(f"episodes {named}{f' and {more} more' if more > 0 else ''}")
    lines = [f"{finding.severity:<8}{finding.code}: {finding.message}"]
    if position:
        lines.append(f"        in {'; '.join(position)}")
    if finding.hint:
        lines.append(f"        → {finding.hint}")
    return lines
