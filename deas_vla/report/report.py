"""Writes a report: report.json, and from it and the plots report.html."""

import base64
import json
import math
from pathlib import Path

from deas_vla.errors import require
from deas_vla.files import atomic_path
from deas_vla.report import plots, summary
from deas_vla.report.data import ReportData


def write_report(folder: str | Path, data: ReportData) -> dict:
    """Writes ``report.json`` and ``report.html`` into a folder; the same data gives the same bytes.

    Returns:
        The content of report.json. What is not a finite number (the loss of a run that diverged) is null in it.

    Raises:
        UserError: as `ReportData.validate`, or if matplotlib or jinja2 is not installed.
    """
    found = _finite(summary.summarize(data))
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("report.html", render(data, found)), ("report.json", text)):
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return found


def render(data: ReportData, found: dict) -> str:
    """The report as one HTML document that refers to nothing outside it; every number in words is of `found`."""
    jinja2 = require("jinja2", "report")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    words = "percent points point_range signed counted lowered p_value duration scene_runs method_meaning"
    environment.globals |= {name: getattr(summary, name) for name in words.split()}
    environment.globals |= {"METHOD_COLORS": plots.METHOD_COLORS}
    template = environment.from_string(Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    text = template.render(
        found,
        data=data,
        colors=plots.COLORS,
        plots=_plots(data, found["critic"]),
        curves=[(title, _embedded(svg.encode(), "image/svg+xml")) for title, svg in plots.curve_plots(data.curves)],
        video=_embedded(data.video.read_bytes(), "video/mp4") if data.video else None,
        title_of=lambda name: summary.method_title(name, data.candidates),
        reach=_reach(found["paired"]),
        dump=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    return text.replace(" %", "\u00a0%")  # no line break between a number and its per cent sign


def _plots(data: ReportData, critic: dict) -> dict[str, str]:
    made = {}
    if data.success_by_n:
        made["by_n"] = plots.success_by_n_plot(data)
    if critic["ranking"] and critic["ranking"]["informative_decisions"]:
        made["ranking"] = plots.ranking_plot(critic["ranking"]["spearman_per_decision"])
    if critic["values"]:
        made["values"] = plots.value_plot(data.value_traces)
    if critic["calibration"]:
        made["calibration"] = plots.calibration_plot(data.calibration)
    return {name: _embedded(svg.encode(), "image/svg+xml") for name, svg in made.items()}


def _reach(paired: dict) -> float:
    """Half the width of the axis of differences: the first round number that holds all intervals."""
    ends = [abs(end) for result in paired.values() for end in result["ci95"]]
    return next((r for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if r >= max([0.1, *ends]) - 1e-9), 1.0)


def _embedded(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
