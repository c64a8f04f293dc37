"""What an audit finds: where, what, and how to fix it; one fault in many episodes is one finding."""

from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from deas_vla.errors import UserError

NAMED = 8  # episodes that are named; the rest is counted
ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

COPY, RECORD = "copy the data set again", "record it again or leave it out"
LEAVE = "leave these episodes out, or the camera out of the contract"
STATISTICS = "compute the statistics anew"
COUNT = "copy the data set again, or correct the number"
# Code of each kind of fault: how severe it is, and what to do about it. Of any other: an error, and COPY.
KINDS = {
    "action-is-next-state": (WARNING, "record what was commanded: a gripper that only got there would not squeeze"),
    "action-is-state": (ERROR, "record what was commanded: a policy of these would stand still"),
    "action-late": (WARNING, "shift the actions a row up, or look in which order state and action were recorded"),
    "action-shifted": (WARNING, "shift them by a row in these episodes, or leave these out"),
    "audit-stopped": (ERROR, "fix what was found besides this; if nothing was, report this as a bug"),
    "blank-instruction": (WARNING, "write what the robot is to do into the list of tasks"),
    "both-ends": (ERROR, RECORD),
    "broken-image": (ERROR, "copy the data set again, or record the episode again"),
    "broken-statistics": (ERROR, STATISTICS),
    "camera-late": (WARNING, "shift its images against the rows, or leave these episodes or the camera out"),
    "camera-without-video": (WARNING, "remove it from info.json: LeRobot's own reader stops there"),
    "cameras-swapped": (ERROR, "exchange their images in these episodes, or leave these out"),
    "constant-action": (WARNING, "leave them out of the contract, or look whether they were recorded"),
    "constant-reward": (WARNING, "train with success_minus_one, or look how rewards were recorded"),
    "constant-state": (NOTE, "leave them out of the contract, or look whether they were recorded"),
    "depth-left-out": (NOTE, ""),
    "depth-map": (ERROR, "mark it in info.json as LeRobot does (info: is_depth_map), and it is left out"),
    "done-too-early": (ERROR, RECORD),
    "duplicated-episode": (WARNING, "leave one out: it would be trained on and validated with"),
    "empty-entries": (ERROR, "record the episodes again or leave them out"),
    "end-not-marked": (NOTE, RECORD),
    "episode-twice": (ERROR, RECORD),
    "flat-camera": (ERROR, f"look at its images: was it covered, or never rendered? {LEAVE}"),
    "frozen-camera": (ERROR, f"look at its images: did it stop? {LEAVE}"),
    "gripper-inverted": (ERROR, "invert the gripper's columns in these episodes, or leave these out"),
    "index-elsewhere": (WARNING, "number the rows anew"),
    "index-gap": (ERROR, "rows were lost or copied: record it again or leave it out"),
    "instruction-changes": (WARNING, "cut the episode where it changes"),
    "long-video": (WARNING, "look whether frames and rows belong together: frame n is taken for row n"),
    "instruction-of-another": (WARNING, "look at the film, and give it its own instruction"),
    "looks-binary": (NOTE, "declare them binary, or candidates between the two will be scored"),
    "looks-swapped": (ERROR, "look at the order in which the columns were recorded"),
    "missing-column": (ERROR, "record the data set again, or take the column out of info.json"),
    "missing-image": (ERROR, "copy the data set again, or record the episode again"),
    "missing-instruction": (ERROR, "write it into the list of tasks in meta/"),
    "no-failure": (NOTE, ""),
    "no-rows": (ERROR, "leave it out"),
    "no-statistics": (WARNING, "this project computes its own; LeRobot's tools need it"),
    "no-success": (WARNING, "add data with successes, or look whether success was recorded"),
    "not-a-flag": (ERROR, "record success as a flag, or declare what succeeds (--success of `deas-vla declare`)"),
    "not-binary": (ERROR, "look whether columns were swapped or scaled; threshold it when recording"),
    "not-finite": (ERROR, RECORD),
    "other-contract": (ERROR, "correct the one that is wrong"),
    "other-precision": (NOTE, ""),
    "out-of-range": (ERROR, "look whether columns were swapped or have another unit; correct data or limits"),
    "reward-after-end": (ERROR, "set rewards after the end to 0, or leave those rows out"),
    "rows-after-success": (WARNING, "cut the episode at its success"),
    "short-video": (ERROR, RECORD),
    "success-without-reward": (ERROR, "correct next.reward, or declare the reward as --reward=success"),
    "timestamp-gap": (WARNING, "steps were lost: sample the episode anew or leave it out"),
    "timestamps-not-increasing": (ERROR, RECORD),
    "timestamps-start-late": (WARNING, "subtract the start: tools that look frames up by time show others"),
    "too-short": (WARNING, "leave it out"),
    "unclear-columns": (ERROR, "correct info.json or modality.json"),
    "units-mixed": (ERROR, "degrees beside radians: convert these episodes, or leave them out"),
    "unlike-policy": (WARNING, "look whether its unit, sign or zero is another"),
    "unlisted-rows": (WARNING, "add the episode to meta/episodes.jsonl, or delete the file"),
    "video-times": (ERROR, "encode the video anew with a frame at the time of each row"),
    "wrong-count": (ERROR, COUNT),
    "wrong-image-size": (ERROR, "correct info.json, or scale the images"),
    "wrong-length": (ERROR, COUNT),
    "wrong-number": (ERROR, "give the file the name of its episode, or copy the data set again"),
    "wrong-rate": (ERROR, "say the right one (deas-vla declare DATASET --rate=HZ), or sample the episode anew"),
    "wrong-statistics": (WARNING, f"{STATISTICS}: policies would be trained with a wrong normalisation"),
    "wrong-type": (ERROR, "write the column with the type of info.json"),
    "wrong-video-rate": (ERROR, "encode the video at the rate of the rows"),
    "wrong-width": (ERROR, "record the data set again, or correct info.json"),
}


@dataclass(frozen=True)
class Finding:
    """An ``error`` (training would refuse the data, or silently learn nonsense), a ``warning`` (look before you train)
    or a ``note``.
    """

    severity: str
    code: str  # short name of the kind of fault, for programs, for example ``missing-video``
    message: str
    hint: str = ""  # what to do about it
    file: str = ""  # below the data set's folder; "" for all of it
    column: str = ""  # or camera
    episodes: tuple[int, ...] = ()

    @property
    def among(self) -> str:
        """``episodes 1, 2, 3``; "" of one episode, which the message names, and of all of the data set."""
        if len(self.episodes) < 2:
            return ""
        named, more = ", ".join(map(str, self.episodes[:NAMED])), len(self.episodes) - NAMED
        return f"episodes {named}{f' and {more} more' if more > 0 else ''}"

    def line(self, root: Path) -> str:
        """All of it in one line: where (below `root`), what, and what to do about it."""
        where = str(root / self.file)
        message = self.message if where in self.message else f"{where}: {self.message}"
        return f"{message}{f' ({self.among})' if self.among else ''}; {self.hint}"


def found(code: str, what: str | UserError, *, severity: str = "", hint: str = "", **position) -> Finding:
    """A finding; `position` is file, column and episodes. A UserError ends with its fix, after the last semicolon."""
    usual, fix = KINDS.get(code, (ERROR, COPY))
    if isinstance(what, UserError):
        what, *end = str(what).rsplit("; ", 1)
        hint = "".join(end)
    return Finding(severity or usual, code, what, hint or fix, **position)


def refuse[T](root: Path, findings: Generator[Finding, None, T]) -> T:
    """What a check returns in the end; the first error that it finds is a UserError with its file and its fix."""
    while True:
        try:
            finding = next(findings)
        except StopIteration as end:
            return end.value
        if finding.severity == ERROR:
            raise UserError(finding.line(root))


class Findings:
    """The findings of one data set; of equal faults of one column, the first gives the details."""

    def __init__(self):
        self._found: dict[tuple, tuple[Finding, dict[int, None]]] = {}

    def add(self, finding: Finding) -> None:
        # A fault of a file as a whole is one for each file.
        key = (finding.severity, finding.code, finding.column)
        key += () if finding.episodes else (finding.file, finding.message)
        _, episodes = self._found.setdefault(key, (finding, {}))
        episodes.update(dict.fromkeys(finding.episodes))

    def sorted(self) -> list[Finding]:
        """The worst first, otherwise in the order in which they were found."""
        findings = [replace(finding, episodes=tuple(episodes)) for finding, episodes in self._found.values()]
        return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
