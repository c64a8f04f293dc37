"""The tables of one data set on the page of OGBench results, as Markdown."""

from studies.markdown import DASH, gap, number, rate, rate_range, table
from studies.ogbench.report.paper import ABLATIONS
from studies.ogbench.report.summary import MAIN


def success_table(data: dict) -> str:
    header = [
        "agent",
        "plays",
        "mean (95 %)",
        *(f"task {task}" for task in data["tasks"]),
        "each seed",
        "episodes",
        "runs",
    ]
    rows = []
    for entry in data["agents"].values():
        mean = entry["mean"]
        rows.append(
            [
                entry["title"],
                entry["method"],
                f"**{rate(mean['success'])}** ({rate_range(mean['ci95'])})" if mean else None,
                *(rate(level and level["success"], 0) for level in entry["per_task"].values()),
                " · ".join(rate(value) for value in entry["per_seed"].values()),
                entry["episodes"],
                f"{entry['runs']} of {len(data['tasks']) * len(data['seeds'])}",
            ]
        )
    return table(header, rows, "ll" + "r" * (len(header) - 2))


def costs_table(data: dict, many: int) -> str:
    main = data["agents"].get(MAIN)
    base = main["cost"] if main else None
    rows = []
    for name, entry in data["agents"].items():
        cost, result = entry["cost"], entry["main_minus_this"]
        ratio = f"{cost['total'] / base['total']:.2f}" if cost and base and base["total"] > 0 else None
        seconds = entry["evaluation_cpu_seconds_per_episode"]
        rows.append(
            [
                entry["title"],
                entry["horizon"],
                ", ".join(f"{value:g}" for values in entry["discounts"].values() for value in values) or None,
                " / ".join(map(str, entry["updates"])) if any(entry["updates"]) else "0" if cost else None,
                "" if name == MAIN else gap(result),
                "" if name == MAIN else gap(entry["main_at_many_minus_this"]),
                f"{result['wins']} : {result['losses']} of {result['pairs']}"
                if result
                else ""
                if name == MAIN
                else None,
                f"{cost['agent']:.0f} + {cost['behaviour_share']:.0f}" if cost else None,
                ratio,
                None if seconds is None else f"{seconds:.3f}",
            ]
        )
    header = [
        "agent", "H", "γ₁, γ₂", "updates", "DEAS − agent, points (95 %)", f"DEAS with {many} candidates − agent",
        "won : lost of pairs", "CPU s: agent + behaviour", "÷ DEAS", "CPU s per episode",
    ]  # fmt: skip
    return (
        table(header, rows)
        + "\n\nTraining cost is the median CPU time of one run; the behaviour policy's is divided among the tasks that "
        "share it. An episode's cost is that of playing and deciding together."
    )


def by_n_table(data: dict) -> str:
    numbers = sorted({int(n) for rules in data["success_by_n"].values() for by_n in rules.values() for n in by_n})
    if not numbers:
        return DASH
    rows = []
    for agent, rules in data["success_by_n"].items():
        for rule, by_n in rules.items():
            levels = [by_n.get(str(n)) for n in numbers]
            episodes = sorted({level["episodes"] for level in levels if level})
            cells = [f"{rate(level['success'])} ({rate_range(level['ci95'])})" if level else None for level in levels]
            rows.append([data["agents"][agent]["title"], rule, *cells, " / ".join(map(str, episodes))])
    header = ["agent", "rule", *(f"N = {n}" for n in numbers), "episodes"]
    return (
        table(header, rows, "ll" + "r" * (len(header) - 2))
        + "\n\nOne candidate is the policy alone, whatever the rule; that method is shown in every row of its agent. "
        "Figures leave out points of fewer runs than the rest of their line."
    )


def selection_table(data: dict, few: int, many: int) -> str:
    if not data["selection"]:
        return ""
    rows = [
        [
            data["agents"][row["agent"]]["title"],
            row["rule"],
            rate(row["few"] and row["few"]["success"]),
            rate(row["many"] and row["many"]["success"]),
            gap(row["many_minus_few"]),
            row["many_minus_few"] and row["many_minus_few"]["pairs"],
            "" if row["rule"] == "best" else gap(row["few_minus_best"]),
            "" if row["rule"] == "best" else gap(row["many_minus_best"]),
        ]
        for row in data["selection"]
    ]
    header = [
        "agent", "rule", f"N = {few}", f"N = {many}", f"{few} → {many}, points (95 %)", "pairs",
        f"rule − best at {few}", f"rule − best at {many}",
    ]  # fmt: skip
    return table(header, rows, "llrrrrrr")


def ablations_table(data: dict) -> str:
    if not data["ablations"]:
        return DASH
    rows = []
    ordered = sorted(data["ablations"], key=lambda row: row["base_level"] is None or row["difference"]["difference"])
    for row in ordered:
        paper, reference = ABLATIONS.get(row["variant"], (None, None))
        result = row["difference"]
        rows.append(
            [
                f"`{row['variant']}`",
                "; ".join(f"{name} {_value(old)} → {_value(new)}" for name, (old, new) in row["changes"].items())
                or None,
                rate(row["level"] and row["level"]["success"]),
                rate(row["base_level"] and row["base_level"]["success"]),
                gap(result),
                gap(row["minus_peer"]) if row["base"] == MAIN else "",
                result and f"{result['pairs']} ({result['runs']})",
                paper,
                None if paper is None else f"{paper - reference:+d}".replace("-", "−"),
            ]
        )
    header = [
        "variant", "what changes", "success", "default", "variant − default, points (95 %)", "variant − QC",
        "pairs (runs)", "paper", "paper, points",
    ]  # fmt: skip
    return (
        table(header, rows, "llrrrrrrr")
        + "\n\nSuccess and default are over the same runs; QC is the default Q-chunking with as many candidates. "
        "A variant's default is the agent before the @. The paper's ablations are on puzzle-4x4-play; its points are "
        "against its own default (H = 8, HL-Gauss: 88 %), but for `deas@head=hl_gauss`, which is that default against "
        "its scalar head. Its number beside `qc@head=hl_gauss` is its HL-Gauss without detaching, to be compared with "
        "DEAS of the same head: here "
        f"{_coupled(data)} points."
    )


def _coupled(data: dict) -> str:
    rows = {row["variant"]: row["minus_main_alike"] for row in data["ablations"]}
    return gap(rows.get("qc@head=hl_gauss"))


def executed_table(data: dict) -> str:
    if not data["executed"]:
        return DASH
    rows = [
        [
            data["agents"].get(row["agent"], {}).get("title", row["agent"]),
            row["method"],
            row["execute"],
            row["horizon"],
            f"{rate(row['level']['success'])} ({rate_range(row['level']['ci95'])})" if row["level"] else None,
            gap(row["minus_whole"]) if row["execute"] != row["horizon"] else "",
            row["level"] and row["level"]["episodes"],
        ]
        for row in data["executed"]
    ]
    header = ["agent", "plays", "executed", "H", "success (95 %)", "− whole chunk, points (95 %)", "episodes"]
    return table(header, rows, "llrrrrr")


def curves_table(data: dict) -> str:
    if not data["curves"]:
        return DASH
    rows = []
    for agent, curve in data["curves"].items():
        points = {int(update): level for update, level in curve["points"].items()}
        last = points[max(points)]
        course = " → ".join(f"{update}: {rate(points[update]['success'], 0)}" for update in sorted(points))
        rows.append([data["agents"][agent]["title"], course, last["runs"], last["episodes"]])
    return table(["agent", "updates: success", "runs", "episodes of each point"], rows, "llrr")


def calibration_table(data: dict) -> str:
    if not data["calibration"]:
        return DASH
    rows = [
        [
            data["agents"][agent]["title"],
            _signed(entry["mean_q"]),
            _signed(entry["mean_return"]),
            _signed(entry["bias"]),
            _signed(entry["bias_in_successes"]),
            None if entry["rank_correlation"] is None else f"{entry['rank_correlation']:.2f}",
            f"{entry['decisions']:,}",
            entry["runs"],
        ]
        for agent, entry in data["calibration"].items()
    ]
    header = ["agent", "mean Q", "mean return", "bias", "bias in successes", "rank correlation", "decisions", "runs"]
    return (
        table(header, rows)
        + "\n\nQ of the chunks that were played (the smallest of the networks') against the discounted return that "
        "followed, in each agent's own discounts: bias, Q − return, compares within an agent, rank correlation "
        "(Spearman's, mean over runs) between agents. An episode that runs out of time is taken to go on without end "
        "as in its last step, the worst that can follow; hence the bias in successes alone."
    )


def _signed(value: float | None) -> str | None:
    return None if value is None else number(value)


def _value(value) -> str:
    return DASH if value is None else str(value)
