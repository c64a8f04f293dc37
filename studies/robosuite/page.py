"""The Markdown page of robosuite's results."""

from deas_vla.report.summary import counted, method_meaning, method_title
from studies.ablations.critic_table import ablation_table
from studies.ablations.policy_table import policy_ablation_table
from studies.ablations.second_iteration_table import second_iteration_tables
from studies.markdown import rate, rate_range, table
from studies.robosuite.summary import (
    BASE,
    BOTH,
    CHOSEN,
    CLONED,
    COMPARED,
    COMPARED_WITHOUT_NOISE,
    SECOND,
    SECOND_BOTH,
    WEIGHTED,
    by_count,
)
from studies.runs import WITHOUT_NOISE, gap_in, rate_in

# Said of every table of ingredients.
LUCK = "Intervals are over scenes, not trainings; where all variants are alike, one in twenty still seems to differ."

PRESET = (
    "The critic is the preset `default`: DEAS with a scalar value head, an auxiliary loss that predicts the "
    "observation after the chunk, and an image encoder of its own. HL-Gauss, the published head, is a row of the "
    "critic's ingredients below; the preset `published` as a whole was not run. Filtered BC is handicapped: "
    "demonstrations store every step and rollouts every eighth, so that an estimated 60 to 75 % of what it imitates is "
    "the noisy expert; part of every difference from it is that."
)


def page(results: dict) -> str:
    """The Markdown page of `summarize`'s result."""
    n, tasks = results["candidates"], [*results["tasks"], "**average**"]
    words = {True: "shown", False: "**not shown**", None: "not measured"}
    counts = by_count(results)
    methods = [
        method for method in results["success"] if method not in counts.values() or method in (counts.get(1), CHOSEN)
    ]
    success, gains = results["success"], results["gain_over_policy"]
    parts = [
        f"# A critic that sees: {counted(len(results['tasks']), 'task')} of robosuite, "
        f"{counted(len(results['seeds']), 'training seed')}",
        _in_words(results),
        *_missing(results),
        table(
            ["what it should show", "measured", ""],
            [[row["target"], row["measured"], words[row["met"]]] for row in results["targets"]],
            "lll",
        ),
        PRESET,
        "## Success",
        "![Success of every method on every task, with its interval](robosuite-methods.svg)",
        table(
            ["method", *tasks, "what it is"],
            [
                [method_title(method, n), *(rate_in(success[method], task) for task in tasks), method_meaning(method)]
                for method in methods
            ],
            "l" + "r" * len(tasks) + "l",
        ),
        "## Differences from the policy",
        table(
            ["method", *tasks],
            [
                [method_title(method, n), *(gap_in(gains[method], task) for task in tasks)]
                for method in methods
                if method != BASE
            ],
        ),
        "## Other differences",
        _differences(results["compared"], COMPARED, n, tasks),
        "## Success by the number of candidates",
        "![Success against the number of candidates, task by task](robosuite-success-by-n.svg)",
        table(
            ["candidates", *tasks],
            [[count, *(rate_in(success[method], task) for task in tasks)] for count, method in counts.items()],
        ),
        "In per cent and percentage points; in brackets 95 % intervals: a t interval over trainings; of one training "
        "a bootstrap over scenes. Every method plays the same scenes with the same noise; the oracle plays "
        "fewer, and is compared in those.",
        "## The oracle's headroom",
        table(
            ["task", "share that best-of-N gets"],
            [[task, _share(entry)] for task, entry in results["headroom"]["per_task"].items()],
        ),
    ]
    parts += _without_noise(results, tasks)
    for name, ablation in results["second_iteration_ablations"].items():
        parts += [
            f"## Two iterations where a critic chooses: {name}",
            f"Every pairing of the iterations' policies and critics plays {ablation['scenes']} scenes a run that no "
            f"run evaluates on, with best of 8 at half the noise unless it says otherwise. "
            f"{len(ablation['runs'])} runs: {_listed('seed', ablation['seeds'])} of each task. No setting was "
            "chosen by it.",
            second_iteration_tables(ablation),
        ]
    for name, ablation in results["critic_ablations"].items():
        parts += [
            f"## Ingredients of the critic: {name}",
            f"{ablation['decisions']} decisions in {ablation['scenes']} scenes that no run evaluates on, all "
            "candidates played out; what choosing by a critic gains in one decision. " + LUCK,
            ablation_table(ablation),
        ]
    for name, ablation in results["policy_ablations"].items():
        parts += [
            f"## Ingredients of advantage weighting: {name}",
            f"Each plays {ablation['scenes']} scenes that no run evaluates on: alone, without its noise, and "
            f"with best of {ablation['candidates']} by the critic that weighted its chunks. " + LUCK,
            policy_ablation_table(ablation),
        ]
    commits = [f"`{commit}`" for commit in results["commits"]]
    parts += [
        "## Runs",
        table(
            ["task", "seeds", "minutes of one loop", "processes", "attempts", "peak memory"],
            [
                [
                    task,
                    *(
                        ", ".join(f"{each:.0f}" for each in one[what])
                        for what in ("seeds", "minutes", "processes", "attempts")
                    ),
                    _gigabytes(one),
                ]
                for task, one in results["runs"].items()
            ],
        ),
        "## How it was made",
        f"Settings were chosen on training seed 0 and its scenes. {_listed('Commit', commits)} fixed them; the "
        f"evaluation scenes of {_listed('seed', results['seeds'])} were played once, after it. The minutes are those "
        "of the first iteration and the evaluation of all methods; a run of one process had one core, another beside "
        "it; where a stage took several attempts, they are those of the last. The one-step critic (IQL) has a fifth "
        "more rollouts, with an image of every step, without which its steps would not join.",
        "---\n\nThis page and [robosuite.json](robosuite.json) are written by `python -m studies.robosuite.results` "
        "from the records in [robosuite/](robosuite/), which it makes from the folders of "
        "studies/robosuite/suite.py, studies/ablations/critic.py, studies/ablations/policy.py and "
        "studies/ablations/second_iteration.py.",
    ]
    return "\n\n".join(parts) + "\n"


def _in_words(results: dict) -> str:
    n, success = results["candidates"], results["success"]
    methods = [method for method in (BASE, CHOSEN, CLONED, WEIGHTED, BOTH, SECOND, SECOND_BOTH) if method in success]
    told = [f"{method_title(method, n)} {rate(success[method]['mean']['success'])}" for method in methods]
    return f"Success in per cent, mean over tasks and seeds: {', '.join(told)}."


def _missing(results: dict) -> list[str]:
    if not results["missing"]:
        return []
    return [
        f"Runs that are not made yet: {', '.join(results['missing'])}. Averages are over those that are there, and "
        "nothing counts as shown before all are."
    ]


def _differences(compared: dict, pairs: dict[str, tuple[str, str]], n: int, tasks: list[str]) -> str:
    rows = [
        [f"{method_title(one, n)} − {method_title(other, n)}", *(gap_in(compared[name], task) for task in tasks)]
        for name, (one, other) in pairs.items()
        if name in compared
    ]
    return table(["", *tasks], rows)


def _without_noise(results: dict, tasks: list[str]) -> list[str]:
    if WITHOUT_NOISE not in results:
        return []
    n, played = results["candidates"], results[WITHOUT_NOISE]
    rows = [
        [method_title(method, n), *(rate_in(level, task) for task in tasks)]
        for method, level in played["success"].items()
    ]
    return [
        "## What is learnt besides less noise",
        "Fine-tuning on chosen chunks also makes a policy less noisy, which no critic is needed for. So every policy "
        "plays without its noise too, in scenes of their own that no evaluation uses; this was added when half of "
        "the runs were made, and no setting was chosen by it.",
        table(["without noise", *tasks], rows),
        _differences(played["compared"], COMPARED_WITHOUT_NOISE, n, tasks),
    ]


def _listed(noun: str, entries: list) -> str:
    return f"{noun}{'s' if len(entries) > 1 else ''} {', '.join(map(str, entries))}"


def _gigabytes(cost: dict) -> str:
    return f"{cost['peak_memory_bytes'] / 1e9:.1f} GB"


def _share(entry: dict) -> str:
    if entry["share"] is None:
        return "–"
    interval = f" ({rate_range(entry['ci95'])})" if entry["ci95"] else ""
    return f"{100 * entry['share']:.0f} %{interval}"
