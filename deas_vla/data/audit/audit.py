"""The compatibility report: is each data set fit for training, do they fit to each other, to a policy, to a critic?

Data sets are read as they are, v2 or v3, one episode at a time, and every fault is told, not only the first. What
the reader would refuse is an error here; so is what it could not see and training would learn nonsense from.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deas_vla.data.audit.agreement import Reference, differences, reference_at
from deas_vla.data.audit.dataset import Audited, audit_dataset
from deas_vla.data.audit.findings import WARNING, Finding, as_json
from deas_vla.data.contract import Contract
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot.reader import own_contract
from deas_vla.errors import UserError, require


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
        return {
            "fit": self.fit,
            "against": self.against,
            "datasets": [
                facts_of(audited) | {"findings": as_json(audited.findings.sorted())}
                for audited in self.datasets
            ],
        }


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
    for place, later in enumerate(datasets):
        for earlier in datasets[:place]:
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
    return facts | {
        "cameras": [
            {"name": camera.name, "height": camera.height, "width": camera.width}
            for camera in (contract.cameras if contract is not None else ())
        ],
        "columns": {
            what: audited.facts[what].as_json([place.name for place in getattr(audited.layout, what)])
            for what in audited.facts
        },
    }


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
    twice = [number for digest, number in later.content.items() if digest in earlier.content]
    if twice:
        yield Finding(
            WARNING,
            "duplicated-episode",
            f"{len(twice)} episodes have the states and actions of episodes in {earlier.root}",
            "leave one of the two out: it would be trained on and validated with",
            file=str(earlier.root),
            episodes=tuple(sorted(twice)),
        )
