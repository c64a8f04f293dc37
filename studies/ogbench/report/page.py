"""The OGBench results as a Markdown page: tables and figures of the numbers in the JSON file, and nothing else."""

from deas_vla.config import flat
from deas_vla.report.summary import counted
from studies.markdown import DASH, number, rate, table
from studies.ogbench.report.paper import DIFFERENCES, MAIN_TABLE
from studies.ogbench.report.summary import MAIN
from studies.ogbench.report.tables import (
    ablations_table,
    by_n_table,
    calibration_table,
    costs_table,
    curves_table,
    executed_table,
    selection_table,
    success_table,
)  # fmt: skip

# What results were computed with before they named it.
BOOTSTRAP = "a bootstrap that resamples training seeds and scenes, which over three seeds covers less than it says"


def page(results: dict, figures: dict[str, dict[str, str]]) -> str:
    """The whole page.

    Args:
        results: the content of ogbench.json.
        figures: data set to name to file of its figures.
    """
    data_sets = results["data_sets"]
    parts = ["# DEAS and its baselines on OGBench", *results["findings"], _targets(results), _what_was_run(results)]
    for name, data in data_sets.items():
        parts += _data_set(name, data, figures[name], results["options"])
    parts += [_paper(data_sets), _speed(results["speed"])]
    parts.append(
        "---\n\nThis page, its figures and [ogbench.json](ogbench.json) are written by "
        "`python -m studies.ogbench.results` from the run folders. A dash is what was not run."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _targets(results: dict) -> str:
    rows = [[row["data_set"], row["target"], row["measured"], f"**{row['verdict']}**"] for row in results["targets"]]
    return table(["data set", "target", "measured", ""], rows, "llll")


def _what_was_run(results: dict) -> str:
    names = list(results["data_sets"])
    rows: list[list] = []

    def row(title: str, value) -> None:
        rows.append([title, *(value(data) for data in results["data_sets"].values())])

    def settings(key: str):
        return lambda data: " / ".join(map(number, data["settings"][key])) or None

    row("transitions", lambda data: f"{data['data']['transitions']:,}" if data["data"] else None)
    row("trajectories", lambda data: f"{data['data']['trajectories']:,}" if data["data"] else None)
    row("SHA-256 of the data", lambda data: f"`{data['data']['sha256'][:12]}…`" if data["data"] else None)
    row("tasks", lambda data: ", ".join(map(str, data["tasks"])))
    row("training seeds", lambda data: ", ".join(map(str, data["seeds"])))
    row("episodes of each run and method", settings("episodes_per_run"))
    row("updates of an agent", settings("updates"))
    row("updates of the behaviour policy", settings("behaviour_updates"))
    row("batch", settings("batch_size"))
    row("width of the networks", settings("hidden_dim"))
    row("hidden layers", settings("num_layers"))
    machine = results["machine"]
    if machine:
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        about = f"Run on {machine['cpu']}, {counted(machine['cores'], 'core')}, {machine['system']}, with {versions}."
    else:
        about = f"Processor and versions: {DASH}."
    return (
        "## What was run\n\n"
        + table(["", *names], rows)
        + f"\n\n{about}\n\n"
        + "All agents of one seed share the data, the frozen behaviour policy of their chunk length, the scenes and "
        "the noise of every decision; filtered BC alone trains a policy of its own. Success is in per cent. Intervals "
        f"are 95 %: {results.get('intervals', BOOTSTRAP)}; tasks are taken as given. Differences are paired by task, "
        "seed and scene. With so many comparisons, some intervals will miss the truth; nothing is corrected for that."
        "\n\nWhat is called DEAS here is the preset `default`: a scalar value head and targets that follow at 0.02 an "
        "update, as all agents have. The published head, HL-Gauss, and pace are ablations below (`deas@head=hl_gauss`, "
        "`deas@head=hl_gauss+polyak=0.005`); the preset `published` as a whole was not run."
    )


def _data_set(name: str, data: dict, figures: dict[str, str], options: dict) -> list[str]:
    def picture(key: str, text: str) -> str:
        return f"![{text}]({figures[key]})" if key in figures else ""

    few, many = options["few"], options["many"]
    return [
        f"## {name}",
        "### Success of every agent",
        picture("agents", f"Mean success on {name} with 95 % intervals; rings are the training seeds"),
        success_table(data),
        "### Differences and training cost",
        costs_table(data, many),
        "### Success against N",
        picture("success-by-n", f"Success on {name} against the number of candidates"),
        picture("rules", f"Success on {name} against N for every selection rule"),
        by_n_table(data),
        "### Selection rules" if data["selection"] else "",
        selection_table(data, few, many),
        "### Ablations",
        ablations_table(data),
        "### Executed length",
        executed_table(data),
        "### Learning curves",
        picture("curves", f"Success on {name} during training"),
        curves_table(data),
        picture("losses", f"Training losses on {name}"),
        "### Calibration",
        picture("calibration", f"Q against the Monte-Carlo return on {name}"),
        calibration_table(data),
    ]


def _paper(data_sets: dict) -> str:
    rows = []
    for name in sorted({*MAIN_TABLE, *data_sets}):
        paper, data = MAIN_TABLE.get(name, {}), data_sets.get(name)
        if data is None:
            continue
        transitions = f"{data['data']['transitions']:,}" if data["data"] else DASH
        cells = []
        for agent in ("fql", "qc_fql", "deas_onestep"):
            ours = data["agents"].get(agent)
            mean = ours["mean"] if ours else None
            cells.append(f"{paper.get(agent, DASH)} / {rate(mean and mean['success'])}")
        best = data["agents"].get(MAIN)
        mean = best["mean"] if best else None
        rows.append([name, f"{paper.get('transitions', DASH)} / {transitions}", *cells, rate(mean and mean["success"])])
    header = ["data set", "transitions", "FQL", "QC-FQL", "DEAS, one-step policy", "DEAS best-of-N, ours only"]
    differs = "\n".join(f"- {sentence}" for sentence in DIFFERENCES)
    about = "## The paper's numbers beside ours\n\nPaper / ours, success in per cent."
    return f"{about}\n\n{table(header, rows)}\n\n{differs}"


def _speed(speed: dict | None) -> str:
    if not speed:
        return f"## Speed of a critic update\n\n{DASH}"
    rows = [
        [f"`{key}`", number(value) if isinstance(value, int | float) else value] for key, value in flat(speed).items()
    ]
    command = "python -m studies.ogbench.update_benchmark"
    return f"## Speed of a critic update\n\nPrinted by `{command}`.\n\n{table(['', 'value'], rows)}"
