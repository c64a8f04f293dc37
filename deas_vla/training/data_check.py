"""The audit at the start of a training: data with errors are not trained on, unless it is asked for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Literal

from accelerate import Accelerator

from deas_vla.data.audit.audit import audit
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.findings import ERROR, WARNING, Finding
from deas_vla.errors import UserError
from deas_vla.files import folder_identity

# Named, because the help of the command line is read from the source and sees no quotes in an annotation.
AuditMode = Literal["stop", "warn"]
_SHOWN: set[str] = set()  # lines that this process has printed


def audit_data(accelerator: Accelerator, datasets: Mapping[str, LabelRules], mode: AuditMode) -> dict:
    """Audits the data sets of a training, without looking into every video, and shows each finding once.

    `datasets`: folder to what counts as success and reward in it, if it does not say. Returns what to note of a stage:
    ``audit``, with the mode and the lines of errors and warnings. Raises UserError if a data set has errors that the
    mode stops at, with the first; all of them are printed before.
    """
    if not accelerator.is_main_process:
        return {}
    found = [
        (Path(root), each)
        for root, labels in datasets.items()
        for each in _findings(root, labels, folder_identity(Path(root)))
    ]
    lines = [f"{each.severity}: {each.line(root)}" for root, each in found]
    for line in lines:
        if line not in _SHOWN:
            accelerator.print(line)
    _SHOWN.update(lines)
    errors = [each.line(root) for root, each in found if each.severity == ERROR]
    if errors and mode == "stop":
        more = f"; {len(errors)} errors in all, listed above" if len(errors) > 1 else ""
        raise UserError(f"{errors[0]}{more}; to train on the data as they are: --audit=warn")
    if errors:
        accelerator.print(f"--audit=warn: trains in spite of {len(errors)} errors in the data")
    return {"audit": {"mode": mode, "findings": lines}}


@lru_cache(maxsize=64)
def _findings(root: str, labels: LabelRules, state: str) -> list[Finding]:
    """Errors and warnings of a data set in this state: the stages of one recipe read the same ones."""
    (data,) = audit([Path(root)], labels=labels, thorough=False).datasets
    return [each for each in data.findings.sorted() if each.severity in (ERROR, WARNING)]
