"""The charts of a report: each takes raw data, gives markup, and says in its caption what it shows."""

import numpy as np

from deas_vla.report.data import Calibration, Curve, ReportData, ValueTrace
from deas_vla.report.summary import lowered, method_meaning, method_title, percent, point_range, points
from deas_vla.report.svg import Chart, limits, number, ticks
from deas_vla.rollouts.statistics import wilson_interval

METHOD_COLORS = {
    "policy": "base",
    "random_candidate": "control",
    "zero_noise": "control",
    "worst_of_n": "control",
    "oracle": "oracle",
}
GROUP_COLORS = {"success": "good", "failure": "bad", "demonstration": "demo"}
# More dots than this hide each other; they are thinned evenly.
DOTS = 500
# A quantile of fewer traces than this is noise.
MIN_TRACES = 3


def methods_chart(data: ReportData, summary: dict) -> str:
    """Success rate of every method with its Wilson interval, the policy's as a line through all of them."""
    mark = summary["methods"].get("policy", {}).get("success_rate")
    rows = []
    for name, method in summary["methods"].items():
        low, high = method["ci95"]
        rows.append(
            _row(
                title=method_title(name, data.candidates),
                note=method_meaning(name),
                value=percent(method["success_rate"]),
                detail=f"{method['successes']} of {method['episodes']} · {percent(low)} to {percent(high)}",
                color=METHOD_COLORS.get(name, "main"),
                position=method["success_rate"],
                span=(low, high),
                mark=mark,
            )
        )
    return f'<div class="rows">{"".join(rows)}{_scale(["0 %", "25 %", "50 %", "75 %", "100 %"])}</div>'


def differences_chart(data: ReportData, summary: dict) -> str:
    """Paired differences with their bootstrap intervals, around zero."""
    paired = summary["paired"]
    reach = max([0.1, *(abs(end) for result in paired.values() for end in result["ci95"])])
    reach = next(r for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0) if r >= min(reach, 1.0) - 1e-9)
    rows = []
    for name, result in paired.items():
        low, high = result["ci95"]
        a, b = name.split(" - ")
        title = f"{method_title(a, data.candidates)} − {lowered(method_title(b, data.candidates))}"
        rows.append(
            _row(
                title=title,
                note="the comparison of the headline" if name == summary["headline"]["comparison"] else "",
                value=points(result["difference"]),
                detail=f"{point_range(result['ci95'])} · won {result['wins']}, lost {result['losses']} "
                f"of {result['pairs']} · p {p_value(result['p_value'])}, by scene {p_value(result['p_value_scenes'])}",
                color={"gain": "good", "worse": "bad", "no_gain": "control"}[result["verdict"]],
                position=(result["difference"] / reach + 1) / 2,
                span=((low / reach + 1) / 2, (high / reach + 1) / 2),
                mark=0.5,
            )
        )
    return (
        f'<div class="rows">{"".join(rows)}{_scale([points(x * reach) for x in (-1, -0.5, 0, 0.5, 1)])}</div>'
    )


def stages_chart(seconds: dict[str, float]) -> str:
    """Wall-clock time of every stage."""
    longest = max([*seconds.values(), 1e-9])
    rows = [
        f'<div class="bar"><span>{_escape(name)}</span><span class="num">{duration(value)}</span>'
        f'<i style="width:{max(100 * value / longest, 0.4):.1f}%"></i></div>'
        for name, value in seconds.items()
    ]
    return f'<div class="bars">{"".join(rows)}</div>'


def success_by_n_chart(data: ReportData) -> str:
    """Best-of-N success against N, with Wilson intervals, the policy and a random candidate for comparison."""
    numbers = sorted(data.success_by_n)
    rates = [data.success_by_n[n].success.mean() for n in numbers]
    bounds = [wilson_interval(data.success_by_n[n].successes, data.success_by_n[n].episodes) for n in numbers]
    lines = [
        (method, color)
        for method, color in (("policy", "base"), ("random_candidate", "control"))
        if method in data.methods
    ]
    levels = [data.methods[method].success.mean() for method, _ in lines]
    low, high = limits(np.array(bounds), np.array(levels), margin=0.1)
    low, high = max(0.0, low), min(1.0, high)
    widest = max(numbers[-1], 2 * numbers[0])
    chart = Chart(
        (numbers[0] * 0.85, widest * 1.18),
        (low, high),
        "candidates N",
        "success",
        x_ticks=numbers,
        log2=True,
        y_format=percent,
    )
    for (method, color), level in zip(lines, levels, strict=True):
        tip = f"{method_title(method, data.candidates)}: {percent(level)}"
        chart.line(chart.x_limits, [level, level], color, "dashed", tip)
    chart.line(numbers, rates, "main")
    for n, rate, (below, above) in zip(numbers, rates, bounds, strict=True):
        chart.whisker(n, below, above, "main")
        chart.dot(n, rate, "main", 4.5, tip=f"N = {n}: {percent(rate)}, {percent(below)} to {percent(above)}")
    names = [("main", "best of N")] + [
        (color, lowered(method_title(method, data.candidates))) for method, color in lines
    ]
    return chart.svg("success rate against the number of candidates") + _legend(names)


def value_chart(traces: list[ValueTrace]) -> str:
    """V against time: median and middle half of successes and of failures that are still running."""
    chart = Chart(
        limits(*[trace.steps for trace in traces], margin=0.01),
        limits(*[trace.values for trace in traces]),
        "control steps since the start",
        "value V",
    )
    for success, color in ((False, "bad"), (True, "good")):
        mine = [trace for trace in traces if bool(trace.success) is success]
        for trace in mine[:12]:
            chart.line(trace.steps, trace.values, color, "faint")
        by_step: dict[int, list[float]] = {}
        for trace in mine:
            for step, value in zip(trace.steps, trace.values, strict=True):
                by_step.setdefault(int(step), []).append(float(value))
        steps = [step for step in sorted(by_step) if len(by_step[step]) >= min(MIN_TRACES, len(mine))]
        quantiles = np.array([np.quantile(by_step[step], [0.25, 0.5, 0.75]) for step in steps]).reshape(-1, 3)
        chart.band(steps, quantiles[:, 0], quantiles[:, 2], color)
        chart.line(steps, quantiles[:, 1], color)
    return chart.svg("value against time") + _legend([("good", "successes"), ("bad", "failures")])


def calibration_chart(calibration: Calibration) -> str:
    """Predicted Q against the return that followed: dots by group, means of ten equal bins, the diagonal."""
    q, returns = np.asarray(calibration.q, np.float64), np.asarray(calibration.returns, np.float64)
    group = np.asarray(calibration.group)
    both = limits(q, returns)
    chart = Chart(both, both, "Q, predicted", "return that followed")
    chart.line(chart.x_limits, chart.x_limits, "control", "dashed", "perfect calibration")
    shown = np.unique(np.linspace(0, len(q) - 1, min(DOTS, len(q))).round().astype(int))
    for i in shown:
        chart.dot(q[i], returns[i], GROUP_COLORS.get(str(group[i]), "main"), 2, "speck")
    bins = [b for b in np.array_split(np.argsort(q, kind="stable"), 10) if len(b)]
    centres, means = [q[b].mean() for b in bins], [returns[b].mean() for b in bins]
    chart.line(centres, means, "ink")
    for b, x, y in zip(bins, centres, means, strict=True):
        chart.dot(x, y, "ink", 4, tip=f"{len(b)} options: Q {number(x)}, return {number(y)}")
    names = [(GROUP_COLORS.get(name, "main"), name) for name in dict.fromkeys(map(str, group))]
    return chart.svg("predicted Q against the return that followed") + _legend(
        [*names, ("ink", "mean of a tenth")]
    )


def ranking_chart(correlations: list[float]) -> str:
    """Histogram of the rank correlation between scores and Monte-Carlo returns, one count a decision."""
    edges = np.linspace(-1, 1, 11)
    counts, _ = np.histogram(correlations, edges)
    top = max(int(counts.max()), 1)
    whole = [tick for tick in ticks(0, top) if tick == int(tick)]
    chart = Chart(
        (-1, 1), (0, top), "rank correlation of scores and Monte-Carlo returns", "decisions", y_ticks=whole
    )
    for left, right, count in zip(edges[:-1], edges[1:], counts, strict=True):
        if count:
            color = "good" if left >= -1e-9 else "bad"
            chart.column(
                left, right, int(count), color, f"{count} decisions: {number(left)} to {number(right)}"
            )
    if len(correlations):
        chart.upright(float(np.mean(correlations)), "ink")
    return chart.svg("histogram of rank correlations") + _legend([("ink", "mean")])


def curve_charts(curves: dict[str, Curve]) -> list[tuple[str, str]]:
    """(title, chart) for each group of training curves."""
    groups: dict[str, dict[str, Curve]] = {}
    for name, curve in curves.items():
        if len(curve.values):
            group, _, rest = name.rpartition("/")
            groups.setdefault(group or name, {})[rest] = curve
    return [(group.replace("_", " "), _curves(members)) for group, members in groups.items()]


def _curves(members: dict[str, Curve]) -> str:
    colors = ("main", "oracle", "good", "demo", "bad")
    chart = Chart(
        limits(*[curve.steps for curve in members.values()], margin=0),
        limits(*[curve.values for curve in members.values()]),
        "update",
        "",
    )
    names = []
    for i, (name, curve) in enumerate(members.items()):
        color = colors[i % len(colors)]
        keep = np.unique(
            np.linspace(0, len(curve.values) - 1, min(300, len(curve.values))).round().astype(int)
        )
        values = np.asarray(curve.values, np.float64)
        chart.line(np.asarray(curve.steps)[keep], values[keep], color, tip=name)
        names.append((color, f"{name.replace('_', ' ')}, {number(values[-1])} at the end"))
    return chart.svg("training curves: " + ", ".join(members)) + _legend(names)


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _row(title, note, value, detail, color, position, span, mark) -> str:
    left, right = (100 * min(max(end, 0.0), 1.0) for end in span)
    line = "" if mark is None else f'<b style="left:{100 * mark:.2f}%"></b>'
    note = f" <small>{_escape(note)}</small>" if note else ""
    return (
        f'<div class="row" style="--c:var(--{color})"><div class="name">{_escape(title)}{note}</div>'
        f'<div class="value">{value}</div>'
        f'<div class="track">{line}<i style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'
        f'<u style="left:{100 * position:.2f}%"></u></div><div class="detail">{_escape(detail)}</div></div>'
    )


def _scale(labels: list[str]) -> str:
    spans = [
        f'<span style="left:{100 * i / (len(labels) - 1):g}%">{label}</span>'
        for i, label in enumerate(labels)
    ]
    return f'<div class="scale">{"".join(spans)}</div>'


def _legend(names: list[tuple[str, str]]) -> str:
    items = "".join(
        f'<span><i style="background:var(--{color})"></i>{_escape(name)}</span>' for color, name in names
    )
    return f'<div class="legend">{items}</div>'


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
