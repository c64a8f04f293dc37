"""Markdown tables."""

DASH = "–"


def table(header: list[str], rows: list[list], align: str = "") -> str:
    """A Markdown table; `align` has one letter a column, l or r (missing: r after the first)."""
    align = align or "l" + "r" * (len(header) - 1)
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in (header, rule, *rows))


def _cell(value) -> str:
    return DASH if value is None else str(value).replace("|", "\\|")
