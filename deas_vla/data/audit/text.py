"""An audit, for people."""

from deas_vla.data.audit.audit import Report, facts_of
from deas_vla.data.audit.dataset import Audited
from deas_vla.data.audit.findings import SEVERITIES, Finding

# Episodes that are named in a finding; the rest is counted.
NAMED = 8


def report_text(report: Report) -> str:
    """Facts, columns and findings of each data set, and whether training may use them."""
    lines = []
    for audited in report.datasets:
        lines += [*_facts(audited), *_columns(audited), ""]
        for finding in audited.findings.sorted():
            lines += _finding(finding)
        lines += [] if not audited.findings.found else [""]
    found = [finding for audited in report.datasets for finding in audited.findings.found.values()]
    numbers = [(severity, sum(f.severity == severity for f in found)) for severity in SEVERITIES]
    counted = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for severity, count in numbers)
    verdict = "fit for training" if report.fit else "NOT fit for training"
    against = f" with {report.against}" if report.against else ""
    return "\n".join([*lines, f"{verdict}{against}: {counted}"])


def _facts(audited: Audited) -> list[str]:
    facts = facts_of(audited)
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
    spoken = facts["instructions"]
    lines.append(f"  success: {success}; rewards: {rewards}; instructions: {len(spoken)}")
    lines += [f"    {text}" for text in spoken[:NAMED]]
    return lines


def _columns(audited: Audited) -> list[str]:
    columns = facts_of(audited).get("columns", {})
    rows = [(what, column) for what in columns for column in columns[what]]
    if not rows:
        return []
    width = max(len(column["name"]) for _, column in rows)
    lines = [f"  {'':<7}{'column':<{width}}  signature        min        max       mean        std"]
    for what, column in rows:
        numbers = "".join(f" {column[key]:>10.4g}" for key in ("min", "max", "mean", "std"))
        lines.append(f"  {what:<7}{column['name']:<{width}}  {column['signature']:<9}{numbers}")
    return lines


def _finding(finding: Finding) -> list[str]:
    place = [finding.file] if finding.file else []
    if len(finding.episodes) > 1:
        named = ", ".join(str(number) for number in finding.episodes[:NAMED])
        more = len(finding.episodes) - NAMED
        place.append(f"episodes {named}{f' and {more} more' if more > 0 else ''}")
    lines = [f"{finding.severity:<8}{finding.code}: {finding.message}"]
    if place:
        lines.append(f"        in {'; '.join(place)}")
    if finding.mend:
        lines.append(f"        → {finding.mend}")
    return lines
