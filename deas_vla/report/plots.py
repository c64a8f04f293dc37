"""The plots of a report, by matplotlib: SVG with the report's colours, which follow a light or dark screen."""

import io
import re

import numpy as np

from deas_vla.errors import require
from deas_vla.report.data import Calibration, Curve, ReportData, ValueTrace
from deas_vla.report.summary import lowered, method_title, percent
from deas_vla.rollouts.statistics import wilson_interval

# Name to colour on a light and on a dark screen.
COLORS = {
    "card": ("#ffffff", "#19212b"),
    "ink": ("#1b2430", "#e8edf3"),
    "soft": ("#5c6877", "#9aa7b6"),
    "rule": ("#e1e5ea", "#2b3643"),
    "main": ("#2563c9", "#6ea3ff"),
    "base": ("#3d4856", "#c6d0dc"),
    "control": ("#929dab", "#76838f"),
    "oracle": ("#b7791f", "#e0aa4e"),
    "good": ("#12805c", "#3fc394"),
    "bad": ("#c2502e", "#f08a66"),
    "demo": ("#7a55c7", "#b196f5"),
}
C = {name: light for name, (light, _) in COLORS.items()}
METHOD_COLORS = dict.fromkeys(("random_candidate", "zero_noise", "worst_of_n"), "control")
METHOD_COLORS |= {"policy": "base", "oracle": "oracle"}
GROUP_COLORS = {"success": "good", "failure": "bad", "demonstration": "demo"}
STYLE = {
    "svg.hashsalt": "deas_vla",  # the same data gives the same bytes
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": C["soft"],
    "axes.edgecolor": C["rule"],
    "axes.facecolor": "none",
    "axes.labelcolor": C["soft"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": C["rule"],
    "xtick.color": C["soft"],
    "ytick.color": C["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": "none",
}
DOTS = 500  # of a scatter plot; more hide each other
MIN_TRACES = 3  # a quantile of fewer traces is noise


def new_figure(width: float = 5.6, height: float = 3.6, rows: int = 1, columns: int = 1):
    """A matplotlib figure and its (rows, columns) array of axes, in the report's style; sizes in inches."""
    matplotlib = require("matplotlib", "report")
    with matplotlib.rc_context(STYLE):
        figure = require("matplotlib.figure", "report").Figure((width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


def themed_svg(figure, colors: dict[str, tuple[str, str]] = COLORS) -> str:
    """A figure from `new_figure` as SVG without dates and random names, which carries the light and dark `colors`."""
    buffer = io.StringIO()
    with require("matplotlib", "report").rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"font: ([\d. a-z]*)px [^;\"]*", r"font: \1px system-ui, 'Segoe UI', Roboto, sans-serif", svg)
    for name, (light, _) in colors.items():
        svg = svg.replace(light, f"var(--{name})")
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in colors.items()) for i in (0, 1))
    style = f"svg{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
    return re.sub(r"(<svg[^>]*>)", rf"\1\n<style>{style}</style>", svg, count=1)


def plots(data: ReportData, critic: dict) -> dict[str, str]:
    """The plots of a report by name, except those of training; `critic` is that part of report.json."""
    made = {}
    if data.success_by_n:
        made["by_n"] = success_by_n_plot(data)
    if critic["ranking"] and critic["ranking"]["informative_decisions"]:
        made["ranking"] = ranking_plot(critic["ranking"]["spearman_per_decision"])
    if critic["values"]:
        made["values"] = value_plot(data.value_traces)
    if critic["calibration"]:
        made["calibration"] = calibration_plot(data.calibration)
    return made


def success_by_n_plot(data: ReportData) -> str:
    """Best-of-N success against N, with Wilson intervals, the policy and a random candidate for comparison."""
    axis, numbers = _new_axis(), sorted(data.success_by_n)
    rates = np.array([data.success_by_n[n].success.mean() for n in numbers])
    bounds = np.array([wilson_interval(o.successes, o.episodes) for n in numbers for o in [data.success_by_n[n]]])
    for name, color in (("policy", "base"), ("random_candidate", "control")):
        if name in data.methods:
            title = lowered(method_title(name, data.candidates))
            axis.axhline(data.methods[name].success.mean(), color=C[color], ls="--", lw=1.5, label=title)
    spans = [np.maximum(rates - bounds[:, 0], 0), np.maximum(bounds[:, 1] - rates, 0)]
    axis.errorbar(numbers, rates, spans, color=C["main"], marker="o", lw=2, label="best of N")
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, map(str, numbers))
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: percent(value))
    return _finished(axis, "candidates N", "success")


def value_plot(traces: list[ValueTrace]) -> str:
    """V against time: median and middle half of successes and of failures that are still running."""
    axis = _new_axis()
    for success, color in ((False, "bad"), (True, "good")):
        mine = [trace for trace in traces if bool(trace.success) is success]
        for trace in mine[:12]:
            axis.plot(trace.steps, trace.values, color=C[color], lw=0.8, alpha=0.3)
        steps, values = np.concatenate([np.zeros((2, 0)), *([trace.steps, trace.values] for trace in mine)], axis=1)
        common = [step for step in np.unique(steps) if (steps == step).sum() >= min(MIN_TRACES, len(mine))]
        middle = np.array([np.quantile(values[steps == step], [0.25, 0.5, 0.75]) for step in common]).reshape(-1, 3)
        axis.fill_between(common, middle[:, 0], middle[:, 2], color=C[color], alpha=0.15, lw=0)
        axis.plot(common, middle[:, 1], color=C[color], lw=2, label="successes" if success else "failures")
    return _finished(axis, "control steps since the start", "value V")


def calibration_plot(calibration: Calibration) -> str:
    """Predicted Q against the return that followed: dots by group, means of ten equal bins, the diagonal."""
    q, returns = np.asarray(calibration.q, np.float64), np.asarray(calibration.returns, np.float64)
    axis = _new_axis()
    axis.axline((q.mean(), q.mean()), slope=1, color=C["control"], ls="--", lw=1.5, label="perfect")
    shown = np.unique(np.linspace(0, len(q) - 1, min(DOTS, len(q))).round().astype(int))
    for name in dict.fromkeys(map(str, calibration.group)):
        here = shown[np.asarray(calibration.group)[shown].astype(str) == name]
        color = C[GROUP_COLORS.get(name, "main")]
        axis.scatter(q[here], returns[here], s=6, color=color, alpha=0.45, lw=0, label=name.replace("$", r"\$"))
    bins = [b for b in np.array_split(np.argsort(q, kind="stable"), 10) if len(b)]
    means = np.array([(q[b].mean(), returns[b].mean()) for b in bins])
    axis.plot(*means.T, color=C["ink"], marker="o", ms=4, lw=2, label="mean of a tenth")
    return _finished(axis, "Q, predicted", "return that followed")


def ranking_plot(correlations: list[float]) -> str:
    """Histogram of the rank correlation between scores and Monte-Carlo returns, one count a decision."""
    axis = _new_axis()
    counts, edges = np.histogram(correlations, np.linspace(-1, 1, 11))
    colors = [C["good"] if left >= -1e-9 else C["bad"] for left in edges[:-1]]
    axis.bar(edges[:-1], counts, 0.18, align="edge", color=colors)
    axis.axvline(float(np.mean(correlations)), color=C["ink"], lw=2, label="mean")
    axis.yaxis.get_major_locator().set_params(integer=True)
    return _finished(axis, "rank correlation of scores and Monte-Carlo returns", "decisions")


def curve_plots(curves: dict[str, Curve]) -> list[tuple[str, str]]:
    """(title, SVG) for each group of training curves."""
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        if len(curve.values):
            group, _, rest = name.rpartition("/")
            groups.setdefault(group or name, {})[rest.replace("_", " ")] = curve
    plots = []
    for group, members in groups.items():
        axis = _new_axis()
        for (name, curve), color in zip(members.items(), ("main", "oracle", "good", "demo", "bad") * 9, strict=False):
            values = np.asarray(curve.values, np.float64)
            marker = "o" if np.isfinite(values).sum() == 1 else None
            label = f"{name}, {values[-1]:.3g} at the end"
            axis.plot(curve.steps, values, color=C[color], lw=1.5, marker=marker, label=label)
        plots.append((group.replace("_", " "), _finished(axis, "update", "")))
    return plots


def _new_axis():
    return new_figure()[1][0, 0]


def _finished(axis, x: str, y: str) -> str:
    """The plot with its labels and legend, as SVG."""
    axis.set(xlabel=x, ylabel=y)
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=4, frameon=False, fontsize=9, labelcolor=C["soft"]
    )
    return themed_svg(axis.figure)
