"""Figures of several plots, by matplotlib, each one SVG file that carries its colours for light and dark."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from deas_vla.report import plots

# Name, colour on white, colour on dark: those of the report, and more lines than it has.
COLORS = plots.COLORS | {
    "blue": ("#2563ca", "#6ea3ff"),
    "teal": ("#0b8793", "#45c4cf"),
    "purple": ("#7a55c8", "#b196f5"),
    "red": ("#c2413f", "#f08080"),
    "ochre": ("#b7791e", "#e0aa4e"),
    "brown": ("#7d5a3c", "#c69c7b"),
    "green": ("#12805d", "#3fc394"),
    "lime": ("#6a9a1f", "#a8d45c"),
    "pink": ("#b8458f", "#ee8fca"),
    "slate": ("#3d4857", "#c6d0dc"),
}
C = {name: light for name, (light, _) in COLORS.items()}


def new_panels(titles: list[str], *, x: str = "", y: str = "", columns: int = 3, width: float = 9.6, height=2.7):
    """A figure with one plot for each title.

    Returns:
        The figure, and the list of its axes.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure, grid = plots.new_figure(width, rows * height, rows, columns)
    figure.set_facecolor(C["card"])
    axes = list(grid.ravel())
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=10, fontweight="bold", color=C["ink"])
        axis.set_xlabel(x)
        axis.set_ylabel(y)
    for axis in axes[len(titles) :]:
        axis.set_visible(False)
    return figure, axes[: len(titles)]


def counts_axis(axis, numbers: list[int]) -> None:
    """A logarithmic axis of candidates N, with a tick at each number."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(numbers, map(str, numbers))
    axis.minorticks_off()


def points(axis, xs, levels: list[dict], color: str, *, label: str = "", shift: float = 1.0) -> None:
    """A line through success rates in per cent, with their intervals.

    Args:
        axis: of matplotlib.
        xs: where each level stands.
        levels: each with ``success`` and ``ci95``, as fractions.
        color: name of the line's colour.
        label: of the line.
        shift: factor that sets intervals of several lines side by side.
    """
    rates = [100 * level["success"] for level in levels]
    spans = [
        [max(100 * (level["success"] - level["ci95"][0]), 0) for level in levels],
        [max(100 * (level["ci95"][1] - level["success"]), 0) for level in levels],
    ]
    xs = [x * shift if x > 1 else x for x in xs]
    axis.errorbar(xs, rates, spans, color=C[color], marker="o", ms=4, lw=1.6, elinewidth=1, label=label)


def legend(figure: Figure, names: list[tuple[str, str]]) -> None:
    """One legend of (colour, text) for all plots."""
    handles = [Line2D([], [], color=C[color], lw=3) for color, _ in names]
    figure.legend(
        handles,
        [text for _, text in names],
        loc="outside upper left",
        ncols=6,
        frameon=False,
        fontsize=9,
        labelcolor=C["soft"],
    )


def svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same bytes."""
    return plots.themed_svg(figure, COLORS)
