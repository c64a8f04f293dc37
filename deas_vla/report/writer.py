"""Writes report.json and report.html."""

import json
import math
from pathlib import Path

from deas_vla.files import atomic_path
from deas_vla.report.data import ReportData
from deas_vla.report.page import render_page
from deas_vla.report.summary import summarize


def write_report(folder: str | Path, data: ReportData) -> dict:
    """Writes ``report.json`` and ``report.html`` into a folder; the same data gives the same bytes.

    Args:
        folder: is made if need be.
        data: what to report.

    Returns:
        The content of report.json. What is not a finite number (the loss of a run that diverged) is null in it.

    Raises:
        UserError: as `ReportData.validate`.
    """
    folder = Path(folder)
    summary = _finite(summarize(data))
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    page = render_page(data, summary)
    for name, content in (("report.html", page), ("report.json", text)):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return summary


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
