"""The figures of robosuite's results, each from the numbers in the results' JSON file."""

from matplotlib.figure import Figure

from deas_vla.report.summary import method_title
from studies.figure import C, counts_axis, legend, new_panels, points, svg
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


def figures(results: dict) -> dict[str, str]:
    """Name to SVG, of what `summarize` returns."""
    return {name: svg(figure) for name, figure in drawn(results).items()}


def drawn(results: dict) -> dict[str, Figure]:
    return {"methods": _methods(results), "success-by-n": _success_by_n(results)}


def _methods(results: dict) -> Figure:
    """A row for every method and a column for every task: success with its interval; the policy's goes through all."""
    methods = [method for method in COLORS if method in results["success"]]
    columns = ["mean", *results["tasks"]]
    figure, axes = new_panels(
        ["average", *results["tasks"]], x="success, %", columns=len(columns), height=0.8 + 0.27 * len(methods)
    )
    for axis, task in zip(axes, columns, strict=True):
        axis.axvline(100 * _level(results, "policy", task)["success"], color=C["slate"], ls="--", lw=1)
        for place, method in enumerate(methods):
            level, color = _level(results, method, task), C[COLORS[method]]
            axis.hlines(place, *(100 * end for end in level["ci95"]), color=color, lw=6, alpha=0.3)
            axis.plot(100 * level["success"], place, color=color, marker="o", ms=5, gid=method)
        axis.set(xlim=(-4, 104), ylim=(len(methods) - 0.5, -0.5), xticks=(0, 50, 100), yticks=[])
    axes[0].set_yticks(range(len(methods)), [method_title(m, results["candidates"]) for m in methods])
    return figure


def _success_by_n(results: dict) -> Figure:
    """Success against the number of candidates, a panel a task; the policy and no noise are level lines."""
    methods = by_count(results)
    columns = ["mean", *results["tasks"]]
    figure, axes = new_panels(["average", *results["tasks"]], x="candidates N", y="success, %")
    for axis, task in zip(axes, columns, strict=True):
        for alone in ("policy", "zero_noise"):
            if alone in results["success"]:
                level = 100 * _level(results, alone, task)["success"]
                axis.axhline(level, color=C[COLORS[alone]], ls="--", lw=1.5)
        points(axis, list(methods), [_level(results, method, task) for method in methods.values()], "blue")
        counts_axis(axis, list(methods))
        axis.set_ylim(0, 100)
    legend(figure, [("blue", "best of N"), ("slate", "policy"), ("control", "policy without noise")])
    return figure


def _level(results: dict, method: str, task: str) -> dict:
    """A task's success rate with its interval, or that of all."""
    level = results["success"][method]
    return level["mean"] if task == "mean" else level["per_task"][task]
