"""A small chart: axes, lines, bands, dots, as an inline SVG that takes its colours from the page.

Colours are CSS variables of the page, so that charts follow its light and dark theme; nothing but text is made, so a
report needs no plotting package and comes out the same, byte for byte, for the same data.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np


class Chart:
    """One plot with linear axes (or a base-2 logarithmic x axis).

    Args:
        x: limits (low, high) of the x axis.
        y: limits of the y axis.
        x_label: what the x axis shows, with its unit.
        y_label: what the y axis shows, with its unit; stands on top of the axis.
        x_ticks: where to put ticks; chosen if not given.
        y_ticks: the same for y.
        log2: x axis is logarithmic.
        y_format: how to write the numbers of the y axis.
    """

    WIDTH, HEIGHT = 420, 262
    LEFT, RIGHT, TOP, BOTTOM = 48, 14, 26, 40

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        *,
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        log2: bool = False,
        y_format=None,
    ):
        self.log2 = log2
        self.x_limits, self.y_limits = _widened(x), _widened(y)
        self.below: list[str] = []
        self.marks: list[str] = []
        bottom, right = self.HEIGHT - self.BOTTOM, self.WIDTH - self.RIGHT
        y_format = y_format or number
        for tick in ticks(*self.y_limits) if y_ticks is None else y_ticks:
            at = self.py(tick)
            self.below.append(f'<line class="grid" x1="{self.LEFT}" x2="{right}" y1="{at}" y2="{at}"/>')
            self._text(self.LEFT - 6, at + 4, y_format(tick), "end")
        for tick in ticks(*self.x_limits) if x_ticks is None else x_ticks:
            at = self.px(tick)
            self.below.append(f'<line class="axis" x1="{at}" x2="{at}" y1="{bottom}" y2="{bottom + 4}"/>')
            self._text(at, bottom + 17, number(tick), "middle")
        self.below.append(f'<line class="axis" x1="{self.LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
        self._text((self.LEFT + right) / 2, self.HEIGHT - 5, x_label, "middle", "label")
        self._text(4, 13, y_label, "start", "label")

    def px(self, x: float) -> float:
        low, high = self.x_limits
        if self.log2:
            x, low, high = math.log2(x), math.log2(low), math.log2(high)
        return round(self.LEFT + (x - low) / (high - low) * (self.WIDTH - self.LEFT - self.RIGHT), 1)

    def py(self, y: float) -> float:
        low, high = self.y_limits
        return round(
            self.HEIGHT - self.BOTTOM - (y - low) / (high - low) * (self.HEIGHT - self.TOP - self.BOTTOM), 1
        )

    def line(self, xs, ys, color: str, kind: str = "line", tip: str = "") -> None:
        """A line through the finite points; `kind` is a CSS class: ``line``, ``dashed`` or ``faint``."""
        points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        path = "M" + "L".join(f"{self.px(x)},{self.py(y)}" for x, y in points)
        if points:
            self.marks.append(
                f'<path class="{kind}" style="--c:var(--{color})" d="{path}">{_tip(tip)}</path>'
            )

    def band(self, xs, low, high, color: str) -> None:
        """The area between two curves."""
        there = [(self.px(x), self.py(y)) for x, y in zip(xs, low, strict=True)]
        back = [(self.px(x), self.py(y)) for x, y in zip(xs, high, strict=True)][::-1]
        path = "L".join(f"{x},{y}" for x, y in there + back)
        if there:
            self.below.append(f'<path class="band" style="--c:var(--{color})" d="M{path}Z"/>')

    def dot(
        self, x: float, y: float, color: str, radius: float = 4, kind: str = "dot", tip: str = ""
    ) -> None:
        self.marks.append(
            f'<circle class="{kind}" style="--c:var(--{color})" cx="{self.px(x)}" cy="{self.py(y)}" r="{radius}">'
            f"{_tip(tip)}</circle>"
        )

    def whisker(self, x: float, low: float, high: float, color: str) -> None:
        """A vertical interval."""
        place = f'x1="{self.px(x)}" x2="{self.px(x)}" y1="{self.py(low)}" y2="{self.py(high)}"'
        self.marks.append(f'<line class="whisker" style="--c:var(--{color})" {place}/>')

    def column(self, left: float, right: float, height: float, color: str, tip: str = "") -> None:
        """A bar from 0 to `height`."""
        x, y = self.px(left) + 0.5, self.py(height)
        size = f'x="{x}" y="{y}" width="{round(self.px(right) - 0.5 - x, 1)}" height="{round(self.py(0) - y, 1)}"'
        self.marks.append(f'<rect class="column" style="--c:var(--{color})" {size} rx="2">{_tip(tip)}</rect>')

    def upright(self, x: float, color: str) -> None:
        """A vertical line over the whole height."""
        self.line([x, x], self.y_limits, color, "dashed")

    def svg(self, description: str) -> str:
        """The chart as markup; `description` is read out to those who do not see it."""
        return (
            f'<svg viewBox="0 0 {self.WIDTH} {self.HEIGHT}" role="img" aria-label="{escape(description)}">'
            f"{''.join(self.below)}{''.join(self.marks)}</svg>"
        )

    def _text(self, x: float, y: float, text: str, anchor: str, kind: str = "tick") -> None:
        self.below.append(
            f'<text class="{kind}" x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">{escape(text)}</text>'
        )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers inside [low, high], roughly `about` of them, 1, 2 or 5 times a power of ten apart."""
    step = 10 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step * about >= (high - low) * 0.85)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A number as short as it can be read: 1500, 12.5, 0.031, 2.1e-05."""
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text


def limits(*values: np.ndarray, margin: float = 0.06) -> tuple[float, float]:
    """Axis limits around all finite values, with a margin; (0, 1) if there are none."""
    flat = np.concatenate([np.ravel(np.asarray(v, np.float64)) for v in values]) if values else np.zeros(0)
    flat = flat[np.isfinite(flat)]
    if not len(flat):
        return 0.0, 1.0
    pad = margin * float(np.ptp(flat))
    return float(flat.min()) - pad, float(flat.max()) + pad


def _widened(limits_: tuple[float, float]) -> tuple[float, float]:
    low, high = map(float, limits_)
    if high > low:
        return low, high
    half = max(abs(low) * 0.5, 0.5)
    return low - half, high + half


def _tip(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""
