"""The figures of the OGBench results, each from the numbers in the results' JSON file."""

from html import escape
from itertools import cycle

from deas_vla.report.svg import limits, number, ticks
from studies.figure import MARGIN, WIDTH, Small, Wide, figure, sheet
from studies.ogbench.report.summary import MAIN

AGENT_COLORS = {
    "deas": "blue",
    "deas_onestep": "teal",
    "dqc": "purple",
    "qc": "red",
    "qc_fql": "ochre",
    "fql": "brown",
    "nstep_iql": "green",
    "iql": "lime",
    "filtered_bc": "slate",
    "bc": "soft",
}
RULE_COLORS = {"best": "blue", "worst": "soft", "random": "slate", "first": "control"}
SPARE = ("green", "red", "purple", "ochre", "teal", "pink", "brown", "lime")  # for the other rules, by name
CROWD = 4  # rules of one agent that fill a wide chart


def figures(data: dict) -> dict[str, str]:
    """Name to SVG; a figure without data is left out."""
    made = {
        "agents": _agents(data),
        "success-by-n": _success_by_n(data),
        "rules": _rules(data),
        "curves": _curves(data),
        "losses": _losses(data),
        "calibration": _calibration(data),
    }
    return {name: svg for name, svg in made.items() if svg}


def _agents(data: dict) -> str | None:
    """Mean success of every agent with its interval, and the means of the seeds."""
    rows = [(name, entry) for name, entry in data["agents"].items() if entry["mean"]]
    if not rows:
        return None
    left, right, top, height = 250, WIDTH - 80, MARGIN + 10, 32
    bottom = top + height * len(rows)
    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x = round(left + tick * (right - left), 1)
        body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{bottom}"/>')
        body.append(f'<text x="{x}" y="{bottom + 18}" text-anchor="middle">{100 * tick:g} %</text>')
    for i, (name, entry) in enumerate(rows):
        y = top + height * i + height / 2
        color = f'style="--c:var(--{_agent_color(name)})"'
        low, high, mean = (
            round(left + value * (right - left), 1)
            for value in (*entry["mean"]["ci95"], entry["mean"]["success"])
        )
        body.append(
            f'<text class="title" x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(entry["title"])}'
            f'<tspan style="font-weight:400;fill:var(--soft)"> {entry["method"]}</tspan></text>'
            f'<line class="bar" {color} x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        )
        for value in entry["per_seed"].values():
            if value is not None:
                x = round(left + value * (right - left), 1)
                body.append(f'<circle class="ring" {color} cx="{x}" cy="{y}" r="3"/>')
        body.append(
            f'<circle class="dot" {color} cx="{mean}" cy="{y}" r="5.5"/>'
            f'<text class="end" {color} x="{right + 18}" y="{y + 4}">{100 * entry["mean"]["success"]:.1f} %</text>'
        )
    body.append(f'<text x="{MARGIN + 6}" y="{bottom + 18}">bar: 95 % interval · rings: seeds</text>')
    return sheet("mean success of every agent with its 95 % interval", body, bottom + 32)


def _success_by_n(data: dict) -> str | None:
    """Success against N by the rule an agent is compared in; agents that play alone are level lines."""
    lines = {}
    for agent, by_rule in data["success_by_n"].items():
        method = data["agents"][agent]["method"] or ""
        rule = method.rpartition("-")[0]
        by_n = _fullest(by_rule[rule] if rule in by_rule else next(iter(by_rule.values())))
        lines[agent] = by_n
    numbers = sorted({n for by_n in lines.values() for n in by_n})
    if len(numbers) < 2:
        return None
    values = [100 * level["success"] for by_n in lines.values() for level in by_n.values()]
    chart = Wide(
        (numbers[0], numbers[-1]),
        _percent_axis(values),
        "candidates N",
        "success, %",
        x_ticks=numbers,
        log2=True,
    )
    ends = []
    for agent, by_n in reversed(list(lines.items())):
        color, ns = _agent_color(agent), sorted(by_n)
        ys = [100 * by_n[n]["success"] for n in ns]
        if ns == [1]:
            chart.line((numbers[0], numbers[-1]), ys * 2, color, "dashed")
        else:
            if agent == MAIN:
                chart.band(ns, *([100 * by_n[n]["ci95"][i] for n in ns] for i in (0, 1)), color)
            chart.line(ns, ys, color)
            for n, y in zip(ns, ys, strict=True):
                chart.dot(n, y, color, 4)
        end = numbers[-1] if ns == [1] else ns[-1]
        ends.append((end, ys[-1], color, data["agents"][agent]["title"]))
    chart.names(ends)
    return figure("success against the number of candidates, every agent", [("", chart)])


def _rules(data: dict) -> str | None:
    """Success against N for every selection rule, a panel an agent, with intervals."""
    chosen = {
        agent: rules
        for agent, rules in data["success_by_n"].items()
        if any(len(by_n) > 1 for by_n in rules.values())
    }
    if not chosen:
        return None
    names = sorted(
        {rule for rules in chosen.values() for rule in rules}, key=lambda rule: (rule != "best", rule)
    )
    spare = cycle(SPARE)
    colors = {rule: RULE_COLORS.get(rule) or next(spare) for rule in names}
    lines = {agent: {rule: _fullest(by_n) for rule, by_n in rules.items()} for agent, rules in chosen.items()}
    levels = [level for by_rule in lines.values() for by_n in by_rule.values() for level in by_n.values()]
    axis = _percent_axis([100 * end for level in levels for end in level["ci95"]])
    panels = []
    # Many lines need room, and their names beside them.
    for agent, by_rule in sorted(lines.items(), key=lambda entry: len(entry[1]) < CROWD):
        numbers = sorted({n for by_n in by_rule.values() for n in by_n})
        crowded = len(by_rule) >= CROWD
        margin = 1.1 if crowded else 1.25
        reach = (numbers[0] / margin, numbers[-1] * margin)
        kind = Wide if crowded else Small
        chart = kind(reach, axis, "candidates N", "success, %", x_ticks=numbers, log2=True)
        ends = []
        for place, rule in enumerate(name for name in names if name in by_rule):
            by_n, color = by_rule[rule], colors[rule]
            # Intervals of several rules stand side by side; with one candidate all rules are one.
            shift = 1.025 ** (place - (len(by_rule) - 1) / 2)
            xs = [n * shift if n > 1 else n for n in sorted(by_n)]
            ys = [100 * by_n[n]["success"] for n in sorted(by_n)]
            chart.line(xs, ys, color)
            for x, y, n in zip(xs, ys, sorted(by_n), strict=True):
                chart.whisker(x, *(100 * end for end in by_n[n]["ci95"]), color)
                chart.dot(x, y, color, 3)
            ends.append((xs[-1], ys[-1], color, rule))
        if crowded:
            chart.names(ends)
        panels.append((data["agents"][agent]["title"], chart))
    return figure("success against N by selection rule", panels, [(colors[rule], rule) for rule in names])


def _curves(data: dict) -> str | None:
    if not data["curves"]:
        return None
    points = {agent: curve["points"] for agent, curve in data["curves"].items()}
    updates = sorted({int(update) for curve in points.values() for update in curve})
    values = [100 * level["success"] for curve in points.values() for level in curve.values()]
    chart = Wide((0, updates[-1]), _percent_axis(values), "updates", "success, %")
    ends = []
    for agent, curve in reversed(list(points.items())):
        xs = sorted(map(int, curve))
        ys = [100 * curve[str(x)]["success"] for x in xs]
        color = _agent_color(agent)
        if agent == MAIN:
            chart.band(xs, *([100 * curve[str(x)]["ci95"][i] for x in xs] for i in (0, 1)), color)
        chart.line(xs, ys, color)
        for x, y in zip(xs, ys, strict=True):
            chart.dot(x, y, color, 3.5)
        ends.append((xs[-1], ys[-1], color, data["agents"][agent]["title"]))
    chart.names(ends)
    return figure("success during training", [("", chart)])


def _losses(data: dict) -> str | None:
    """The parts of each agent's loss; their sum where it has no parts."""
    shown = {}
    for agent, entry in data["losses"].items():
        parts = {name: values for name, values in entry["losses"].items() if name != "loss"} or entry[
            "losses"
        ]
        if parts and len(entry["updates"]) > 1:
            shown[agent] = (entry["updates"], parts)
    if not shown:
        return None
    names = sorted({name for _, parts in shown.values() for name in parts})
    wheel = ("blue", "red", "green", "ochre", "purple", "teal", "pink", "brown")
    colors = {name: wheel[i % len(wheel)] for i, name in enumerate(names)}
    panels = []
    for agent, (updates, parts) in shown.items():
        x = (0, updates[-1])
        chart = Small(x, limits(*parts.values()), "updates", "loss", x_ticks=ticks(*x, about=3))
        for name, values in parts.items():
            chart.line(updates, values, colors[name])
        panels.append((data["agents"][agent]["title"], chart))
    legend = [(colors[name], name.replace("_", " ")) for name in names]
    return figure("training losses of every agent", panels, legend)


def _calibration(data: dict) -> str | None:
    panels = []
    for agent, entry in data["calibration"].items():
        qs, returns = zip(*entry["bins"], strict=True)
        both = limits([*qs, *returns])
        at = ticks(*both)
        chart = Small(both, both, "Q, predicted", "return that followed", x_ticks=at, y_ticks=at)
        chart.line(chart.x_limits, chart.x_limits, "control", "dashed")
        color = _agent_color(agent)
        chart.line(qs, returns, color)
        for q, value in entry["bins"]:
            chart.dot(q, value, color, 3.5)
        panels.append((f"{data['agents'][agent]['title']} (bias {number(entry['bias'])})", chart))
    return figure("Q against the Monte-Carlo return, tenths of the decisions", panels) if panels else None


def _fullest(by_n: dict[str, dict]) -> dict[int, dict]:
    """The points that rest on as many runs as any: others would bend the line by what is missing."""
    most = max(level["runs"] for level in by_n.values())
    return {int(n): level for n, level in by_n.items() if level["runs"] == most}


def _percent_axis(values: list[float]) -> tuple[float, float]:
    low, high = limits(values, margin=0.08)
    return max(0.0, low), min(100.0, high) if high > max(low, 0.0) else 100.0


def _agent_color(agent: str) -> str:
    return AGENT_COLORS.get(agent, "pink")
