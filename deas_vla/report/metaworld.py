"""The results of runs over many tasks with one critic, task by task: a JSON file, and a Markdown page of it."""

from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.report.lerobot import lerobot_table, read_lerobot_runs
from deas_vla.report.loop_runs import (
    arm_grids,
    by_task,
    gain_over,
    gap_in,
    level_of,
    rate_in,
    read_run,
    without_seed,
    write_page,
)
from deas_vla.report.markdown import table
from deas_vla.report.ogbench_findings import gap, rate
from deas_vla.report.summary import ARMS, arm_title, counted

BASE, CHOSEN = "policy", "best_of_n"
EPISODES = 50  # an arm must have played on every task before anything is said


def write_metaworld_results(runs: list[Path], output: Path, lerobot_runs: list[Path] | None = None) -> dict:
    """Writes ``metaworld.md`` and ``metaworld.json``; the same runs give the same bytes.

    Args:
        runs: folders of recipes/finetune_metaworld.py with the same settings and different seeds.
        output: folder of the results.
        lerobot_runs: folders of recipes/finetune_lerobot.py, for a section of their own.

    Returns:
        The content of metaworld.json.

    Raises:
        UserError: if a run is not finished, or two of them cannot be one result.
    """
    results = summarize([read_run(run) for run in runs])
    results["lerobot"] = read_lerobot_runs(lerobot_runs or [])
    write_page(output, "metaworld", results, page(results))
    return results


def summarize(runs: list[dict]) -> dict:
    """All numbers of the page, as JSON values: rates and differences are fractions.

    Raises:
        UserError: if two runs have the same seed or other settings than each other.
    """
    seeds = [run["settings"]["evaluation"]["seed"] for run in runs]
    plain = [without_seed(run["settings"]) for run in runs]
    if len(set(seeds)) < len(seeds) or any(settings != plain[0] for settings in plain):
        raise UserError(f"runs of one page differ in their seeds and in nothing else; these have {seeds}")
    tasks = plain[0]["evaluation"]["tasks"]
    grids = arm_grids(runs, tasks)
    known = [arm for arm in ARMS if arm in grids] + sorted(set(grids) - set(ARMS))
    levels = {arm: by_task(grids[arm], tasks, level_of) for arm in known}
    gains = {
        arm: by_task(grids[arm], tasks, lambda grid: gain_over(grid, grids[BASE]))
        for arm in known
        if arm != BASE
    }
    played = [records for run in runs for arm, records in run["arms"].items() if arm != "oracle"]
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
        "worse_tasks": worse,
        "shown": {
            "episodes": fewest >= EPISODES,
            "average_gain": mean["ci95"][0] > 0,
            "no_task_worse": not worse,
        },
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
            f"at least {EPISODES} episodes a task and arm",
            f"{results['episodes_per_task']} a seed",
            verdict[shown["episodes"]],
        ],
        [
            f"best of {n} gains over the policy, on average",
            gap(mean),
            verdict[shown["average_gain"]],
        ],
        ["no task worse beyond its interval", ", ".join(worse) or "none is", verdict[shown["no_task_worse"]]],
    ]
    arms = [arm for arm in results["success"] if arm != "oracle"]
    rows = [
        [name, *(rate_in(results["success"][arm], name) for arm in arms)] for name in [*tasks, "**average**"]
    ]
    others = [arm for arm in arms if arm != BASE]
    gain_rows = [[name, *(gap_in(gains[arm], name) for arm in others)] for name in [*tasks, "**average**"]]
    seconds = [sum(stages.values()) / 60 for stages in results["seconds"]]
    parts = [
        f"# One policy and one critic for {counted(len(tasks), 'task')} of Meta-World",
        _in_words(results),
        table(["what it should show", "measured", ""], targets, "lll"),
        "## Success of every arm",
        table(["task", *(arm_title(arm, n) for arm in arms)], rows),
        "## Differences from the policy",
        table(["task", *(arm_title(arm, n) for arm in others)], gain_rows),
        "In per cent and percentage points; in brackets 95 % intervals: a bootstrap over scenes and, where there are "
        "several, training seeds. Every arm plays the same scenes with the same noise. With so many tasks and arms "
        "some intervals miss the truth; nothing is corrected for that.",
        _oracle(results),
        *_lerobot(results["lerobot"]),
        "## How it was made",
        _made(results, seconds),
        "---\n\nThis page and [metaworld.json](metaworld.json) are written by `python recipes/metaworld_results.py` "
        "from the folders of recipes/finetune_metaworld.py and recipes/finetune_lerobot.py.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


# ---- words ------------------------------------------------------------------------------------------------------


def _in_words(results: dict) -> str:
    base, chosen = (results["success"][arm]["mean"]["success"] for arm in (BASE, CHOSEN))
    gain = results["gain_over_policy"][CHOSEN]["mean"]
    found = "gains" if results["shown"]["average_gain"] else "is not shown to gain"
    return (
        f"Best of {results['candidates']} by one language-conditioned critic {found} over the policy: "
        f"{rate(chosen)} against {rate(base)} per cent on average over the tasks, {gap(gain)} points; "
        f"{gain['wins']} scenes better and {gain['losses']} worse of {gain['pairs']}, "
        f"{counted(len(results['seeds']), 'training seed')}."
    )


def _oracle(results: dict) -> str:
    if "oracle" not in results["gain_over_policy"]:
        return ""
    oracle = results["gain_over_policy"]["oracle"]["mean"]
    return (
        f"An oracle that tries all {results['candidates']} candidates out in the simulator gains {gap(oracle)} points "
        f"in the first {counted(oracle['pairs'], 'scene')}: what choosing better could be worth."
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
        [
            "experts",
            f"noise {views['expert_noise']:g}, misjudgement {1000 * views['expert_grasp_bias']:g} mm",
        ],
        ["demonstrations", f"{demos['episodes']} attempts a task"],
        ["rollouts", f"{rollouts['episodes']} a task"],
        ["policy", f"{settings['policy']['training']['steps']} updates"],
        ["critic", f"{settings['critic']['training']['steps']} updates, all tasks together"],
        ["evaluation", f"{plan['scenes']} scenes with {plan['draws']} noise draws each"],
        ["training seeds", ", ".join(map(str, results["seeds"]))],
        ["time", f"{max(minutes):.0f} minutes a seed at most"],
    ]
    return table(["", ""], rows, "ll")
