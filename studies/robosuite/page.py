"""The Markdown page of robosuite's results."""

from deas_vla.report.summary import arm_meaning, arm_title, counted
from studies.ablations.critic_table import bench_table
from studies.ablations.policy_table import policy_bench_table
from studies.ablations.second_round_table import second_round_tables
from studies.loop_runs import WITHOUT_NOISE, gap_in, rate_in
from studies.markdown import table
from studies.ogbench.report.findings import rate, rate_range
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

# Said of every table of ingredients.
LUCK = "Intervals are over scenes, not trainings; where all variants are alike, one in twenty still seems to differ."


def page(results: dict) -> str:
    """The Markdown page of `summarize`'s result."""
    n, tasks = results["candidates"], [*results["tasks"], "**average**"]
    words = {True: "shown", False: "**not shown**", None: "not measured"}
    counts = by_count(results)
    arms = [arm for arm in results["success"] if arm not in counts.values() or arm in (counts.get(1), CHOSEN)]
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
        "## Success",
        "![Success of every arm on every task, with its interval](robosuite-arms.svg)",
        table(
            ["arm", *tasks, "what it is"],
            [
                [arm_title(arm, n), *(rate_in(success[arm], task) for task in tasks), arm_meaning(arm)]
                for arm in arms
            ],
            "l" + "r" * len(tasks) + "l",
        ),
        "## Differences from the policy",
        table(
            ["arm", *tasks],
            [
                [arm_title(arm, n), *(gap_in(gains[arm], task) for task in tasks)]
                for arm in arms
                if arm != BASE
            ],
        ),
        "## Other differences",
        _differences(results["compared"], COMPARED, n, tasks),
        "## Success by the number of candidates",
        "![Success against the number of candidates, task by task](robosuite-success-by-n.svg)",
        table(
            ["candidates", *tasks],
            [[count, *(rate_in(success[arm], task) for task in tasks)] for count, arm in counts.items()],
        ),
        "In per cent and percentage points; in brackets 95 % intervals: a bootstrap over training seeds and scenes. "
        "Every arm plays the same scenes with the same noise; the oracle plays fewer, and is compared in those.",
        "## The oracle's headroom",
        table(
            ["task", "share that best-of-N gets"],
            [[task, _share(entry)] for task, entry in results["headroom"]["per_task"].items()],
        ),
    ]
    parts += _without_noise(results, tasks)
    for name, bench in results["second_round_benches"].items():
        parts += [
            f"## Two rounds where a critic chooses: {name}",
            f"Every pairing of the rounds' policies and critics plays {bench['scenes']} scenes a run that no run "
            f"evaluates on, with best of 8 at half the noise unless it says otherwise. {len(bench['runs'])} runs: "
            f"{_listed('seed', bench['seeds'])} of each task. No setting was chosen by it.",
            second_round_tables(bench),
        ]
    for name, bench in results["critic_benches"].items():
        parts += [
            f"## Ingredients of the critic: {name}",
            f"{bench['decisions']} decisions in {bench['scenes']} scenes that no run evaluates on, all candidates "
            "played out; what choosing by a critic gains in one decision. " + LUCK,
            bench_table(bench),
        ]
    for name, bench in results["policy_benches"].items():
        parts += [
            f"## Ingredients of advantage weighting: {name}",
            f"Each plays {bench['scenes']} scenes that no run evaluates on: alone, without its noise, and "
            f"with best of {bench['candidates']} by the critic that weighted its chunks. " + LUCK,
            policy_bench_table(bench),
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
        "of the first round and the evaluation of all arms; a run of one process had one core, another run beside it; "
        "where a stage took several attempts, they are those of the last. The one-step critic (IQL) has a fifth "
        "more rollouts, with an image of every step, without which its steps would not join.",
        "---\n\nThis page and [robosuite.json](robosuite.json) are written by `python -m studies.robosuite.results` "
        "from the records in [robosuite/](robosuite/), which it makes from the folders of "
        "studies/robosuite/suite.py, studies/ablations/critic.py, studies/ablations/policy.py and "
        "studies/ablations/second_round.py.",
    ]
    return "\n\n".join(parts) + "\n"


def _in_words(results: dict) -> str:
    n, success = results["candidates"], results["success"]
    arms = [arm for arm in (BASE, CHOSEN, CLONED, WEIGHTED, BOTH, SECOND, SECOND_BOTH) if arm in success]
    told = [f"{arm_title(arm, n)} {rate(success[arm]['mean']['success'])}" for arm in arms]
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
        [f"{arm_title(one, n)} − {arm_title(other, n)}", *(gap_in(compared[name], task) for task in tasks)]
        for name, (one, other) in pairs.items()
        if name in compared
    ]
    return table(["", *tasks], rows)


def _without_noise(results: dict, tasks: list[str]) -> list[str]:
    if WITHOUT_NOISE not in results:
        return []
    n, played = results["candidates"], results[WITHOUT_NOISE]
    rows = [
        [arm_title(arm, n), *(rate_in(level, task) for task in tasks)]
        for arm, level in played["success"].items()
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
