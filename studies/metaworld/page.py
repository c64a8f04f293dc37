"""The results of runs over many tasks with one critic, task by task: a JSON file, and a Markdown page of it."""

from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.report.summary import METHODS, counted, lowered, method_title
from studies.markdown import gap, rate, table
from studies.metaworld.lerobot_section import lerobot_table, read_lerobot_run, with_summary
from studies.runs import (
    by_task,
    gain_over,
    gap_in,
    level_of,
    method_grids,
    new_records,
    rate_in,
    read_records,
    run_of,
    run_record,
    without_seed,
    write_page,
)

BASE, CHOSEN = "policy", "best_of_n"
# What best of N is compared with besides: one of its candidates, and no noise at all.
CONTROLS = ("best_of_1", "zero_noise")
# Records of the loop are called by their seed; the others are LeRobot's.
LOOP = "seed-"
EPISODES = 50  # a method must have played on every task before anything is said


def write_metaworld_results(runs: list[Path], output: Path, lerobot_runs: list[Path], commit: str) -> dict:
    """Keeps a record of every run and writes ``metaworld.md`` and ``metaworld.json`` from all that are kept.

    The records lie in ``metaworld/`` beside the page and are to be committed. The same records give the same bytes.
    Nothing is written unless all is well.

    Args:
        runs: folders of recipes/finetune_metaworld.py with the same settings and different seeds.
        output: folder of the results.
        lerobot_runs: folders of studies.metaworld.finetune_lerobot, for a section of their own.
        commit: what fixed the settings before the evaluation scenes were used; only new records need it.

    Returns:
        The content of metaworld.json.

    Raises:
        UserError: if there is no run, one is not finished or differs from its record, or two cannot be one result.
    """
    folder = output / "metaworld"
    kept = read_records(folder)
    made, source = {}, {}
    for run in runs:
        record = run_record(run, commit)
        name = f"{LOOP}{record['settings']['evaluation']['seed']}"
        if name in made:
            raise UserError(f"{run} and {source[name]} have the same seed; runs of one page differ in it")
        made[name], source[name] = record, run
    for run in lerobot_runs:
        made[run.resolve().name], source[run.resolve().name] = read_lerobot_run(run), run
    new = new_records(folder, kept, made, source)
    new_loops = [name for name in new if name.startswith(LOOP)]
    if new_loops and not commit:
        raise UserError(f"say with --commit which commit fixed the settings of {', '.join(new_loops)}")
    known = made | kept
    loops = [run_of(known[name]) for name in sorted(known) if name.startswith(LOOP)]
    if not loops:
        raise UserError(f"{folder} has no run yet: name folders of recipes/finetune_metaworld.py with --runs")
    results = summarize(loops)
    results["lerobot"] = [with_summary(known[name]) for name in sorted(known) if not name.startswith(LOOP)]
    for name in new:
        write_json(folder / f"{name}.json", known[name])
    write_page(output, "metaworld", results, page(results))
    return results


def summarize(runs: list[dict]) -> dict:
    """All numbers of the page, as JSON values: rates and differences are fractions.

    Args:
        runs: at least one, as `run_of` gives them.

    Raises:
        UserError: if a run has other settings than another.
    """
    seeds = [run["settings"]["evaluation"]["seed"] for run in runs]
    plain = [without_seed(run["settings"]) for run in runs]
    if any(settings != plain[0] for settings in plain):
        raise UserError(f"runs of one page differ in their seeds and in nothing else; these have {seeds}")
    tasks = plain[0]["evaluation"]["tasks"]
    grids = method_grids(runs, tasks)
    known = [method for method in METHODS if method in grids] + sorted(set(grids) - set(METHODS))
    levels = {method: by_task(grids[method], tasks, lambda grid: level_of(grid, shared=True)) for method in known}
    gains = {
        method: by_task(grids[method], tasks, lambda grid: gain_over(grid, grids[BASE], shared=True))
        for method in known
        if method != BASE
    }
    played = [records for run in runs for method, records in run["methods"].items() if method != "oracle"]
    fewest = min(len(records) for of_tasks in played for records in of_tasks.values())
    worse = [task for task in tasks if gains[CHOSEN]["per_task"][task]["ci95"][1] < 0]
    mean = gains[CHOSEN]["mean"]
    return {
        "tasks": tasks,
        "seeds": seeds,
        "candidates": plain[0]["evaluation"]["evaluation"]["num_candidates"],
        "episodes_per_task": fewest,
        "success": levels,
        "gain_over_policy": gains,
        "gain_over_control": {
            method: by_task(grids[CHOSEN], tasks, lambda grid, base=grids[method]: gain_over(grid, base, shared=True))
            for method in CONTROLS
            if method in grids
        },
        "worse_tasks": worse,
        "shown": {"episodes": fewest >= EPISODES, "average_gain": mean["ci95"][0] > 0, "no_task_worse": not worse},
        "commits": list(dict.fromkeys(run["commit"] for run in runs)),
        "processes": [run["processes"] for run in runs],
        "peak_memory_bytes": max(run["peak_memory_bytes"] for run in runs),
        "seconds": [run["seconds"] for run in runs],
        "settings": plain[0],
    }


def page(results: dict) -> str:
    """The Markdown page of `summarize`'s result."""
    n, tasks = results["candidates"], results["tasks"]
    gains, shown = results["gain_over_policy"], results["shown"]
    mean, worse = gains[CHOSEN]["mean"], results["worse_tasks"]
    verdict = {True: "shown", False: "**not shown**"}
    targets = [
        [
            f"at least {EPISODES} episodes a task and method",
            f"{results['episodes_per_task']} a seed",
            verdict[shown["episodes"]],
        ],
        [f"best of {n} gains over the policy, on average", gap(mean), verdict[shown["average_gain"]]],
        ["no task worse beyond its interval", ", ".join(worse) or "none is", verdict[shown["no_task_worse"]]],
    ]
    methods = [method for method in results["success"] if method != "oracle"]
    rows = [
        [name, *(rate_in(results["success"][method], name) for method in methods)] for name in [*tasks, "**average**"]
    ]
    others = [method for method in methods if method != BASE]
    gain_rows = [[name, *(gap_in(gains[method], name) for method in others)] for name in [*tasks, "**average**"]]
    controls = results["gain_over_control"]
    control_rows = [[name, *(gap_in(gain, name) for gain in controls.values())] for name in [*tasks, "**average**"]]
    seconds = [sum(stages.values()) / 60 for stages in results["seconds"]]
    parts = [
        f"# One policy and one critic for {counted(len(tasks), 'task')} of Meta-World",
        _in_words(results),
        table(["what it should show", "measured", ""], targets, "lll"),
        "## Success of every method",
        table(["task", *(method_title(method, n) for method in methods)], rows),
        "## Differences from the policy",
        table(["task", *(method_title(method, n) for method in others)], gain_rows),
        "## What the critic's choice adds",
        f"Best of {n} chooses among candidates that are made of less noise than the policy plays with. Its difference:",
        table(["task", *(f"from {lowered(method_title(method, n))}" for method in controls)], control_rows),
        "In per cent and percentage points; in brackets 95 % intervals: a t interval over training seeds; of one seed "
        "a bootstrap over scenes, which says nothing of another training. All methods play the same scenes with the "
        "same noise. With so many tasks and methods some intervals miss the truth; nothing is corrected for that.",
        _oracle(results),
        *_lerobot(results["lerobot"]),
        "## How it was made",
        _made(results, seconds),
        f"Commit {', '.join(f'`{commit}`' for commit in results['commits'])} fixed the settings; the evaluation scenes "
        "were played once, after it. An earlier critic, without an image encoder of its own: "
        "[metaworld_earlier.md](metaworld_earlier.md).",
        "---\n\nThis page and [metaworld.json](metaworld.json) are written by `python -m studies.metaworld.results` "
        "from the records in [metaworld/](metaworld/), which it makes from the folders of "
        "recipes/finetune_metaworld.py and studies/metaworld/finetune_lerobot.py.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- words ------------------------------------------------------------------------------------------------------


def _in_words(results: dict) -> str:
    base, chosen = (results["success"][method]["mean"]["success"] for method in (BASE, CHOSEN))
    gain = results["gain_over_policy"][CHOSEN]["mean"]
    found = "gains" if results["shown"]["average_gain"] else "is not shown to gain"
    return (
        f"Best of {results['candidates']} by one language-conditioned critic {found} over the policy: "
        f"{rate(chosen)} against {rate(base)} per cent on average over the tasks, {gap(gain)} points; "
        f"{gain['wins']} scenes better and {gain['losses']} worse of {gain['pairs']}, "
        f"{counted(len(results['seeds']), 'training seed')}."
        + "".join(
            f" Over the {lowered(method_title(method, results['candidates']))} it gains {gap(control['mean'])}."
            for method, control in results["gain_over_control"].items()
        )
    )


def _oracle(results: dict) -> str:
    if "oracle" not in results["gain_over_policy"]:
        return ""
    oracle = results["gain_over_policy"]["oracle"]["mean"]
    return (
        f"An oracle that tries all {results['candidates']} candidates out in the simulator gains {gap(oracle)} points "
        f"in the first {counted(oracle['pairs'], 'scene')}."
    )


def _lerobot(runs: list[dict]) -> list[str]:
    if not runs:
        return []
    return [
        "## LeRobot's policies in LeRobot's tools",
        lerobot_table(runs),
        "Trained by stock `lerobot-train`; policy and exported reranker played by stock `lerobot-eval`, on the same "
        "scenes and each with its own noise; the reranker's episodes once more by `recipes/evaluate.py`, with the same "
        "noise. Small policies from new weights, one training seed each.",
    ]


def _made(results: dict, minutes: list[float]) -> str:
    settings = results["settings"]
    evaluation, demos, rollouts = (
        settings["evaluation"],
        settings["demonstrations"]["demos"],
        settings["rollouts"]["rollouts"],
    )
    plan, views = evaluation["evaluation"], evaluation["simulator"]
    rows = [
        ["images", f"{', '.join(views['cameras'])}; {views['camera_size']} pixels"],
        ["experts", f"noise {views['expert_noise']:g}, misjudgement {1000 * views['expert_grasp_bias']:g} mm"],
        ["demonstrations", f"{demos['episodes']} attempts a task"],
        ["rollouts", f"{rollouts['episodes']} a task"],
        ["policy", f"{settings['policy']['training']['steps']} updates"],
        ["critic", f"{settings['critic']['training']['steps']} updates, all tasks together"],
        ["evaluation", f"{plan['scenes']} scenes with {plan['samples']} noise samples each"],
        ["training seeds", ", ".join(f"number {seed}" for seed in results["seeds"])],
        ["time", f"{max(minutes):.0f} minutes a seed at most; processes: {min(results['processes'])}"],
        ["peak memory", f"{results['peak_memory_bytes'] / 1e9:.1f} GB"],
    ]
    return table(["", ""], rows, "ll")
