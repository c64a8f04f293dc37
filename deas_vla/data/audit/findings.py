"""What an audit finds: the place, the fault, the mend; one fault in many episodes is one finding."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from deas_vla.errors import UserError

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One fault, or one thing to know.

    Attributes:
        severity: ``error``: training would refuse the data, or silently learn nonsense from it; ``warning``: look
            before you train; ``note``: good to know.
        code: short name of the kind of fault, for programs, for example ``missing-video``.
        message: what is wrong.
        mend: what to do about it.
        file: where, below the data set's folder; "" for all of it.
        column: which column or camera, or "".
        episodes: which episodes, as far as it is about single ones.
    """

    severity: str
    code: str
    message: str
    mend: str = ""
    file: str = ""
    column: str = ""
    episodes: tuple[int, ...] = ()


@dataclass
class Findings:
    """The findings of one data set; equal faults of the same column are gathered, the first one tells the details."""

    found: dict[tuple, Finding] = field(default_factory=dict)

    def add(self, finding: Finding) -> None:
        # A fault of a file as a whole is one for each file.
        key = (finding.severity, finding.code, finding.column, "" if finding.episodes else finding.file)
        key += ("",) if finding.episodes else (finding.message,)
        before = self.found.get(key)
        if before is None:
            self.found[key] = finding
        elif finding.episodes:
            episodes = tuple(dict.fromkeys(before.episodes + finding.episodes))
            self.found[key] = replace(before, episodes=episodes)

    def extend(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(finding)

    def sorted(self) -> list[Finding]:
        """The worst first, otherwise in the order in which they were found."""
        return sorted(self.found.values(), key=lambda finding: SEVERITIES.index(finding.severity))

    @property
    def errors(self) -> int:
        return sum(finding.severity == ERROR for finding in self.found.values())


def of_error(error: UserError, code: str, **place) -> Finding:
    """The finding of something that could not be read; its line ends with the mend after the last semicolon."""
    message, semicolon, mend = str(error).rpartition("; ")
    return Finding(ERROR, code, message if semicolon else mend, mend if semicolon else "", **place)


def as_json(findings: list[Finding]) -> list[dict]:
    return [asdict(finding) | {"episodes": list(finding.episodes)} for finding in findings]
