"""Markdown tables, and how numbers are written in them."""

from deas_vla.report.summary import point_range, points

DASH = "–"


def table(header: list[str], rows: list[list], align: str = "") -> str:
    """A Markdown table; `align` has one letter a column, l or r (missing: r after the first)."""
    align = align or "l" + "r" * (len(header) - 1)
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (header, rule, *rows))


def _cell(value) -> str:
    return DASH if value is None else str(value).replace("|", "\\|")


def gap(result: dict | None) -> str:
    """A difference with its interval: ``+3.2 (−1.0 to +7.4)``; a dash for what is missing."""
    return "–" if result is None else f"{points(result['difference'], 1)} ({point_range(result['ci95'])})"


def rate(value: float | None, decimals: int = 1) -> str:
    """A fraction in per cent without the sign; a dash for what is missing."""
    return "–" if value is None else f"{100 * value:.{decimals}f}"


def rate_range(interval) -> str:
    return f"{rate(interval[0])} to {rate(interval[1])}"


def number(value: float) -> str:
    """A number as short as it can be read: 1500, 12.5, 0.031, 2.1e-05."""
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "−", 1) if text.startswith("-") else text
