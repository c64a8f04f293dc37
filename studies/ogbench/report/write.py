"""Writes the OGBench results: a JSON file of all numbers, and from it a Markdown page with its figures."""

import json
import math
from pathlib import Path

from deas_vla.files import atomic_path
from studies.ogbench.report.figures import figures
from studies.ogbench.report.findings import paragraph, targets
from studies.ogbench.report.page import page
from studies.ogbench.report.runs import read_object, read_runs
from studies.ogbench.report.summary import ResultsOptions, summarize

DIGITS = 5  # of every number: what is written is the same on every machine


def write_ogbench_results(runs: Path, output: Path, options: ResultsOptions | None = None) -> dict:
    """Writes ``ogbench.md``, ``ogbench.json`` and ``ogbench-*.svg``; the same runs give the same bytes.

    Figures of an earlier call that no longer have data are removed.

    Args:
        runs: folder of the runs, see `studies.ogbench.report.runs`.
        output: folder of the results.
        options: what is compared.

    Returns:
        The content of ogbench.json.

    Raises:
        UserError: as `read_runs`.
    """
    options = options or ResultsOptions()
    results = {
        "options": vars(options),
        "data_sets": {name: summarize(data, name, options) for name, data in read_runs(runs, options.seeds).items()},
        "intervals": "a t interval over the means of training seeds, of one seed a bootstrap over scenes",
        "machine": read_object(runs / "machine.json", optional=True) or None,
        "speed": read_object(runs / "critic_update.json", optional=True) or None,
    }
    # Through JSON before anything is written, so that the page cannot say what the file does not.
    results = json.loads(json.dumps(_rounded(results)))
    results["targets"] = targets(results)
    results["findings"] = [paragraph(name, data, results) for name, data in results["data_sets"].items()]

    drawn = {name: figures(data) for name, data in results["data_sets"].items()}
    files = {name: {key: f"ogbench-{name}-{key}.svg" for key in svgs} for name, svgs in drawn.items()}
    contents = {files[name][key]: svg for name, svgs in drawn.items() for key, svg in svgs.items()}
    for left_over in set(output.glob("ogbench-*.svg")) - {output / file for file in contents}:
        left_over.unlink()
    contents["ogbench.json"] = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    contents["ogbench.md"] = page(results, files)
    for file, text in contents.items():
        with atomic_path(output / file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return results


def _rounded(value):
    """Numbers to a few digits; what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value
