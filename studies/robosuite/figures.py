"""The figures of robosuite's results, each from the numbers in the results' JSON file."""

from html import escape

from deas_vla.report.summary import method_title
from studies.figure import MARGIN, WIDTH, Small, figure, sheet
from studies.robosuite.summary import by_count

# Methods by what they are: the policy alone, the controls, other people's methods, ours. Others are not drawn.
COLORS = {
    "policy": "slate",
    "zero_noise": "control",
    "best_of_1": "control",
    "filtered_bc": "ochre",
    "iql": "ochre",
    "qc": "ochre",
    "best_of_n": "blue",
    "advantage_weighted": "blue",
    "advantage_weighted + best_of_n": "blue",
    "second_iteration": "teal",
    "second_iteration + best_of_n": "teal",
    "oracle": "purple",
}
LEFT, ROW, GAP, HEAD = 246, 26, 26, 44
HALVES = (0, 0.5, 1)


def figures(results: dict) -> dict[str, str]:
    """Name to SVG, of what `summarize` returns."""
    return {"methods": _methods(results), "success-by-n": _success_by_n(results)}


def _methods(results: dict) -> str:
    """A row for every method and a column for every task: success with its interval; the policy's goes through all."""
    methods = [method for method in COLORS if method in results["success"]]
    columns = ["mean", *results["tasks"]]
    width = (WIDTH - MARGIN - LEFT - GAP * len(columns)) / len(columns)
    bottom = HEAD + ROW * len(methods)
    body = []
    for number, task in enumerate(columns):
        start = LEFT + number * (width + GAP)
        title = "average" if task == "mean" else task
        body.append(
            f'<text class="title" x="{start + width / 2:.1f}" y="{HEAD - 14}" text-anchor="middle">{title}</text>'
        )
        for tick in HALVES:
            x = f"{start + tick * width:.1f}"
            body.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{HEAD}" y2="{bottom}"/>')
            body.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{100 * tick:g}</text>')
        mark = _level(results, "policy", task)["success"]
        x = f"{start + mark * width:.1f}"
        body.append(
            f'<path class="dashed" style="--c:var(--{COLORS["policy"]})" d="M{x},{HEAD}L{x},{bottom}"/>'
        )
        for place, method in enumerate(methods):
            level = _level(results, method, task)
            low, high, at = (start + value * width for value in (*level["ci95"], level["success"]))
            y, color = HEAD + ROW * (place + 0.5), f'style="--c:var(--{COLORS[method]})"'
            body.append(
                f'<line class="bar" {color} x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>'
                f'<circle class="dot" {color} cx="{at:.1f}" cy="{y}" r="5"/>'
            )
    for place, method in enumerate(methods):
        y = HEAD + ROW * (place + 0.5) + 4
        name = escape(method_title(method, results["candidates"]))
        color = f'style="--c:var(--{COLORS[method]})"'
        body.append(f'<text class="end" {color} x="{LEFT - 18}" y="{y}" text-anchor="end">{name}</text>')
    body.append(f'<text x="{MARGIN + 6}" y="{bottom + 16}">success, %; bar: 95 % interval</text>')
    return sheet("success of every method on every task, with its 95 % interval", body, bottom + 30)


def _success_by_n(results: dict) -> str:
    """Success against the number of candidates, a panel a task; the policy and no noise are level lines."""
    methods = by_count(results)
    reach = (min(methods) / 1.2, max(methods) * 1.2)
    panels = []
    for task in ["mean", *results["tasks"]]:
        chart = Small(reach, (0, 100), "candidates N", "success, %", x_ticks=list(methods), log2=True)
        for alone in ("policy", "zero_noise"):
            if alone in results["success"]:
                level = 100 * _level(results, alone, task)["success"]
                chart.line(reach, (level, level), COLORS[alone], "dashed")
        levels = {n: _level(results, method, task) for n, method in methods.items()}
        chart.line(list(levels), [100 * level["success"] for level in levels.values()], "blue")
        for n, level in levels.items():
            chart.whisker(n, *(100 * end for end in level["ci95"]), "blue")
            chart.dot(n, 100 * level["success"], "blue", 3.5)
        panels.append(("average" if task == "mean" else task, chart))
    legend = [
        ("blue", "best of N"),
        (COLORS["policy"], "policy"),
        (COLORS["zero_noise"], "policy without noise"),
    ]
    return figure("success against the number of candidates, task by task", panels, legend)


def _level(results: dict, method: str, task: str) -> dict:
    """A task's success rate with its interval, or that of all."""
    level = results["success"][method]
    return level["mean"] if task == "mean" else level["per_task"][task]
