"""A figure of several charts as one SVG file that stands by itself: it carries its colours, for light and dark."""

from html import escape

from deas_vla.report.svg import Chart

WIDTH, GAP, TITLE, MARGIN = 880, 11, 22, 12
# Name, colour on white, colour on dark.
COLORS = {
    "card": ("#ffffff", "#19212b"),
    "ink": ("#1b2430", "#e8edf3"),
    "soft": ("#5c6877", "#9aa7b6"),
    "rule": ("#e1e5ea", "#2b3643"),
    "control": ("#929dab", "#76838f"),
    "blue": ("#2563c9", "#6ea3ff"),
    "teal": ("#0b8793", "#45c4cf"),
    "purple": ("#7a55c7", "#b196f5"),
    "red": ("#c2413f", "#f08080"),
    "ochre": ("#b7791f", "#e0aa4e"),
    "brown": ("#7d5a3c", "#c69c7b"),
    "green": ("#12805c", "#3fc394"),
    "lime": ("#6a9a1f", "#a8d45c"),
    "pink": ("#b8458f", "#ee8fca"),
    "slate": ("#3d4856", "#c6d0dc"),
}
_RULES = """\
text { fill: var(--soft); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, Arial, sans-serif;
  font-variant-numeric: tabular-nums; }
text.title { fill: var(--ink); font-weight: 600; font-size: 13px; }
text.end { fill: var(--c); font-weight: 600; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--control); stroke-width: 1; }
path { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
path.dashed { stroke-dasharray: 5 5; stroke-width: 1.5; }
path.faint { stroke-width: 1; opacity: .5; }
path.band { stroke: none; fill: var(--c); opacity: .15; }
.whisker { stroke: var(--c); stroke-width: 2; opacity: .5; }
.bar { stroke: var(--c); stroke-width: 8; stroke-linecap: round; opacity: .3; }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.ring { fill: none; stroke: var(--c); stroke-width: 1.2; opacity: .8; }
.swatch { stroke: var(--c); stroke-width: 4; stroke-linecap: round; }
"""


class Small(Chart):
    """A chart of which three stand in a row."""

    WIDTH, HEIGHT = 278, 196
    LEFT, RIGHT, TOP, BOTTOM = 46, 12, 22, 38


class Wide(Chart):
    """A chart over the whole width, with room at the right for the names of its lines."""

    WIDTH, HEIGHT = WIDTH - 2 * MARGIN, 330
    RIGHT = 210

    def names(self, lines: list[tuple[float, float, str, str]]) -> None:
        """Writes (x, y, color, text) beside the end of each line, moved apart where they would touch."""
        right = self.WIDTH - self.RIGHT
        lines = sorted(lines, key=lambda line: (self.py(line[1]), line[3]))
        places = spread([self.py(y) for _, y, _, _ in lines], 15, self.HEIGHT - self.BOTTOM)
        for (x, y, color, text), place in zip(lines, places, strict=True):
            leader = f"M{self.px(x)},{self.py(y)}L{right + 4},{self.py(y)}L{right + 14},{round(place, 1)}"
            self.marks.append(f'<path class="faint" style="--c:var(--{color})" d="{leader}"/>')
            self.marks.append(
                f'<text class="end" style="--c:var(--{color})" x="{right + 18}" y="{round(place + 4, 1)}">'
                f"{escape(text)}</text>"
            )


def spread(places: list[float], apart: float, highest: float) -> list[float]:
    """Ascending numbers moved as little as possible (least squares) to be `apart` and not above `highest`."""
    groups: list[list[float]] = []  # mean of (place − position · apart), and how many
    for i, place in enumerate(places):
        groups.append([place - i * apart, 1])
        while len(groups) > 1 and groups[-1][0] < groups[-2][0]:
            (mean, count), (before, many) = groups.pop(), groups.pop()
            groups.append([(mean * count + before * many) / (count + many), count + many])
    start = [mean for mean, count in groups for _ in range(int(count))]
    limit = highest - (len(places) - 1) * apart
    return [min(mean, limit) + i * apart for i, mean in enumerate(start)]


def figure(description: str, panels: list[tuple[str, Chart]], legend: list[tuple[str, str]] = ()) -> str:
    """Charts in rows, each under its title, below a legend of (color, text).

    Args:
        description: read out to those who do not see it.
        panels: (title or "", chart); charts of one width fill a row.
        legend: of all charts together.
    """
    body, y = _legend(list(legend))
    x, row_height = MARGIN, 0
    for title, chart in panels:
        if x + chart.WIDTH > WIDTH:
            x, y, row_height = MARGIN, y + row_height + GAP, 0
        above = TITLE if title else 0
        if title:
            body.append(f'<text class="title" x="{x + 4}" y="{y + 15}">{escape(title)}</text>')
        body.append(f'<g transform="translate({x},{y + above})">{"".join(chart.below + chart.marks)}</g>')
        row_height = max(row_height, chart.HEIGHT + above)
        x += chart.WIDTH + GAP
    return sheet(description, body, y + row_height + MARGIN)


def sheet(description: str, body: list[str], height: float) -> str:
    """Markup on a card of its own colour, so that it can be read on a page of any colour."""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in COLORS.items()) for i in (0, 1))
    style = f"svg{{color-scheme:light dark;{light}}}\n@media (prefers-color-scheme:dark){{svg{{{dark}}}}}\n{_RULES}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(description)}">\n<style>\n{style}</style>\n'
        f'<rect width="{WIDTH}" height="{height}" rx="10" style="fill:var(--card)"/>\n'
        + "\n".join(body)
        + "\n</svg>\n"
    )


def _legend(names: list[tuple[str, str]]) -> tuple[list[str], int]:
    """Markup of the legend, and where what follows begins."""
    body, x, y = [], MARGIN + 6, MARGIN + 12
    for color, text in names:
        width = 30 + 6.7 * len(text)
        if x + width > WIDTH - MARGIN and x > MARGIN + 6:
            x, y = MARGIN + 6, y + 20
        body.append(
            f'<line class="swatch" style="--c:var(--{color})" x1="{x:.0f}" x2="{x + 12:.0f}" y1="{y}" y2="{y}"/>'
            f'<text x="{x + 20:.0f}" y="{y + 4}">{escape(text)}</text>'
        )
        x += width + 14
    return body, y + 18 if names else MARGIN
