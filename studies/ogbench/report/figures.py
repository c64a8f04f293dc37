"""The figures of the OGBench results, each from the numbers in the results' JSON file."""

from itertools import cycle

from matplotlib.figure import Figure

from studies.figure import C, counts_axis, legend, new_panels, points, svg
from studies.markdown import number
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
WIDE = {"columns": 1, "height": 4.2}


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
    return {name: svg(figure) for name, figure in made.items() if figure}


def _agents(data: dict) -> Figure | None:
    """Mean success of every agent with its interval, and the means of the seeds."""
    rows = [(name, entry) for name, entry in data["agents"].items() if entry["mean"]]
    if not rows:
        return None
    figure, (axis,) = new_panels(
        [""], x="success, % · bar: 95 % interval · rings: seeds", height=0.8 + 0.32 * len(rows)
    )
    for place, (name, entry) in enumerate(rows):
        color, level = C[_agent_color(name)], entry["mean"]
        axis.hlines(place, *(100 * end for end in level["ci95"]), color=color, lw=7, alpha=0.3)
        seeds = [100 * value for value in entry["per_seed"].values() if value is not None]
        axis.plot(seeds, [place] * len(seeds), "o", color=color, mfc="none", ms=5, mew=1)
        axis.plot(100 * level["success"], place, "o", color=color, ms=7)
        axis.annotate(
            f"{100 * level['success']:.1f} %",
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            color=color,
        )
    axis.set(xlim=(-1, 101), ylim=(len(rows) - 0.5, -0.5))
    axis.set_yticks(range(len(rows)), [f"{entry['title']}  {entry['method']}" for _, entry in rows])
    return figure


def _success_by_n(data: dict) -> Figure | None:
    """Success against N by the rule an agent is compared in; agents that play alone are level lines."""
    lines = {}
    for agent, by_rule in data["success_by_n"].items():
        rule = (data["agents"][agent]["method"] or "").rpartition("-")[0]
        lines[agent] = _fullest(by_rule[rule] if rule in by_rule else next(iter(by_rule.values())))
    numbers = sorted({n for by_n in lines.values() for n in by_n})
    if len(numbers) < 2:
        return None
    figure, (axis,) = new_panels([""], x="candidates N", y="success, %", **WIDE)
    for agent, by_n in lines.items():
        if list(by_n) == [1]:
            axis.axhline(100 * by_n[1]["success"], color=C[_agent_color(agent)], ls="--", lw=1.5)
        else:
            _line(axis, dict(sorted(by_n.items())), agent)
    counts_axis(axis, numbers)
    legend(figure, [(_agent_color(agent), data["agents"][agent]["title"]) for agent in lines])
    return figure


def _rules(data: dict) -> Figure | None:
    """Success against N for every selection rule, a panel an agent, with intervals."""
    chosen = {
        agent: rules for agent, rules in data["success_by_n"].items() if any(len(by_n) > 1 for by_n in rules.values())
    }
    if not chosen:
        return None
    names = {rule for rules in chosen.values() for rule in rules}
    names, spare = sorted(names, key=lambda rule: (rule != "best", rule)), cycle(SPARE)
    colors = {rule: RULE_COLORS.get(rule) or next(spare) for rule in names}
    titles = [data["agents"][agent]["title"] for agent in chosen]
    figure, axes = new_panels(titles, x="candidates N", y="success, %", columns=2, height=3.2)
    for axis, rules in zip(axes, chosen.values(), strict=True):
        lines = {rule: dict(sorted(_fullest(rules[rule]).items())) for rule in names if rule in rules}
        for place, (rule, by_n) in enumerate(lines.items()):
            shift = 1.025 ** (place - (len(lines) - 1) / 2)
            points(axis, list(by_n), list(by_n.values()), colors[rule], shift=shift)
        counts_axis(axis, sorted({n for by_n in lines.values() for n in by_n}))
    legend(figure, [(colors[rule], rule) for rule in names])
    return figure


def _curves(data: dict) -> Figure | None:
    if not data["curves"]:
        return None
    figure, (axis,) = new_panels([""], x="updates", y="success, %", **WIDE)
    for agent, curve in data["curves"].items():
        _line(axis, {int(update): curve["points"][update] for update in sorted(curve["points"], key=int)}, agent)
    legend(figure, [(_agent_color(agent), data["agents"][agent]["title"]) for agent in data["curves"]])
    return figure


def _losses(data: dict) -> Figure | None:
    """The parts of each agent's loss; their sum where it has no parts."""
    shown = {}
    for agent, entry in data["losses"].items():
        parts = {name: values for name, values in entry["losses"].items() if name != "loss"} or entry["losses"]
        if parts and len(entry["updates"]) > 1:
            shown[agent] = (entry["updates"], parts)
    if not shown:
        return None
    names = sorted({name for _, parts in shown.values() for name in parts})
    colors = dict(zip(names, cycle(("blue", *SPARE)), strict=False))
    figure, axes = new_panels([data["agents"][agent]["title"] for agent in shown], x="updates", y="loss")
    for axis, (updates, parts) in zip(axes, shown.values(), strict=True):
        for name, values in parts.items():
            axis.plot(updates, values, color=C[colors[name]], lw=1.2)
        axis.locator_params(axis="x", nbins=3)
    legend(figure, [(color, name.replace("_", " ")) for name, color in colors.items()])
    return figure


def _calibration(data: dict) -> Figure | None:
    found = data["calibration"]
    if not found:
        return None
    titles = [f"{data['agents'][agent]['title']} (bias {number(entry['bias'])})" for agent, entry in found.items()]
    figure, axes = new_panels(titles, x="Q, predicted", y="return that followed")
    for axis, (agent, entry) in zip(axes, found.items(), strict=True):
        axis.axline(entry["bins"][0][:1] * 2, slope=1, color=C["control"], ls="--", lw=1)
        axis.plot(*zip(*entry["bins"], strict=True), color=C[_agent_color(agent)], marker="o", ms=4)
    return figure


def _line(axis, by_x: dict[int, dict], agent: str) -> None:
    """A line of success rates; the main agent's has its interval as a band."""
    color, levels = C[_agent_color(agent)], list(by_x.values())
    if agent == MAIN:
        ends = [[100 * level["ci95"][i] for level in levels] for i in (0, 1)]
        axis.fill_between(list(by_x), *ends, color=color, alpha=0.15, lw=0)
    axis.plot(list(by_x), [100 * level["success"] for level in levels], color=color, marker="o", ms=4)


def _fullest(by_n: dict[str, dict]) -> dict[int, dict]:
    """The points that rest on as many runs as any: others would bend the line by what is missing."""
    most = max(level["runs"] for level in by_n.values())
    return {int(n): level for n, level in by_n.items() if level["runs"] == most}


def _agent_color(agent: str) -> str:
    return AGENT_COLORS.get(agent, "pink")
