"""Pages by jinja2 in the style of a report."""

from pathlib import Path

from deas_vla.errors import require
from deas_vla.report.plots import COLORS


def rendered(template: Path, **values: object) -> str:
    """A template, which may include ``style.html.j2``, as HTML, with `values` escaped."""
    jinja2 = require("jinja2", "report")
    loader = jinja2.FileSystemLoader([template.parent, Path(__file__).parent], encoding="utf-8")
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(loader=loader, **options)
    return environment.get_template(template.name).render(values, colors=COLORS)
