"""The report of an evaluation: report.json for programs, report.html for people, and a video."""

from deas_vla.report.data import Calibration, Curve, OracleDecisions, Outcomes, ReportData, ValueTrace
from deas_vla.report.report import write_report
from deas_vla.report.video import Panel, write_video
from deas_vla.rollouts.play import Decision

__all__ = [
    "Calibration",
    "Curve",
    "Decision",
    "OracleDecisions",
    "Outcomes",
    "Panel",
    "ReportData",
    "ValueTrace",
    "write_report",
    "write_video",
]
