"""What was found, in sentences and verdicts: each is computed from the numbers, also where a target is missed."""

from deas_vla.report.summary import counted, point_range, points
from studies.markdown import gap, rate, rate_range
from studies.ogbench.report.summary import LONGER, MAIN, PEER, TITLES

BASELINES = ("bc", "iql", "nstep_iql")  # DEAS is to be ahead of these
SECONDS_PER_EPISODE = 0.15
TIMED = "cube-single"  # on this
MS_PER_UPDATE = 35.0
SEEDS, EPISODES, TASKS, TRANSITIONS = 3, 50, 5, 200_000
MET, MISSED, OPEN = "met", "missed", "not measured"


def targets(results: dict) -> list[dict]:
    """What the project set out to show, and whether the numbers show it."""
    rows = []
    for name, data in results["data_sets"].items():
        for target, measured, verdict in (
            _size(data),
            _baselines(data),
            _peer(data, "main_minus_this", results["options"]["few"]),
            _peer(data, "both_at_many", results["options"]["many"]),
            _cost(data),
            *_longer(data),
            _falls(data, results["options"]),
            *([_speed_of_play(data)] if name.startswith(TIMED) else []),
        ):
            rows.append({"data_set": name, "target": target, "measured": measured, "verdict": verdict})
        # The ablations of one data set are enough.
        if data["ablations"] or not any(other["ablations"] for other in results["data_sets"].values()):
            rows += [{"data_set": name, **row} for row in paper_order(data)]
    speed = results["speed"] or {}
    value = speed.get("cpu_ms_per_update")
    rows.append(
        {
            "data_set": "all",
            "target": f"a critic update takes at most {MS_PER_UPDATE:g} CPU milliseconds",
            "measured": "–" if value is None else f"{value:.1f} ms",
            "verdict": _verdict(None if value is None else value <= MS_PER_UPDATE),
        }
    )
    return rows


def paper_order(data: dict) -> list[dict]:
    """The three claims of the paper's ablations: reproduced, not shown (the interval holds zero) or opposite."""
    by_name = {row["variant"]: row for row in data["ablations"]}
    claims = [("H = 1 is the worst of all chunk lengths", _worst_horizon(data, by_name))]
    with_it = by_name.get(f"{MAIN}@head=hl_gauss")
    claims.append(("HL-Gauss is better than a scalar head", _order(with_it and with_it["difference"])))
    coupled = by_name.get(f"{PEER}@head=hl_gauss")
    claims.append(
        (
            "detached targets are better than coupled ones with HL-Gauss",
            _order(coupled and coupled["minus_main_alike"], ahead="opposite", behind="reproduced"),
        )
    )
    return [
        {"target": f"as in the paper: {claim}", "measured": measured, "verdict": verdict}
        for claim, (measured, verdict) in claims
    ]


def paragraph(name: str, data: dict, results: dict) -> str:
    """A data set in a few sentences."""
    deas = data["agents"].get(MAIN)
    if deas is None or deas["mean"] is None:
        return f"**{name}.** DEAS was not run on all tasks of this data set: nothing can be said yet."
    mean = deas["mean"]
    words = [
        f"**{name}.** DEAS ({deas['method']}) succeeds in {rate(mean['success'])} % of {mean['episodes']} episodes "
        f"(95 % interval {rate_range(mean['ci95'])}; {counted(mean['tasks'], 'task')}, "
        f"{counted(mean['seeds'], 'training seed')})."
    ]
    others = {agent: entry["main_minus_this"] for agent, entry in data["agents"].items() if agent != MAIN}
    for verdict, phrase in (
        ("ahead", "In points, with paired intervals, it is ahead of"),
        ("undecided", "No difference could be shown to"),
        ("behind", "It is behind"),
    ):
        mine = [
            f"{TITLES.get(agent, agent)} ({points(result['difference'], 1)}, {point_range(result['ci95'])})"
            for agent, result in others.items()
            if result and result["verdict"] == verdict
        ]
        if mine:
            words.append(f"{phrase} {_listed(mine)}.")
    many = results["options"]["many"]
    at_many = [
        f"{points(result['difference'], 1)} ({point_range(result['ci95'])}) over {TITLES.get(agent, agent)}"
        for agent, entry in data["agents"].items()
        if (result := entry["main_at_many_minus_this"]) and (others[agent] or result)["verdict"] != "ahead"
    ]
    if at_many:
        words.append(f"With {many} candidates: {_listed(at_many)}.")
    missing = [TITLES.get(agent, agent) for agent in (*BASELINES, PEER) if not others.get(agent)]
    if missing:
        words.append(f"Not compared yet: {_listed(missing)}.")
    rows = [row for row in results["targets"] if row["data_set"] == name]
    cost = next(row for row in rows if "cost" in row["target"])
    if cost["verdict"] != OPEN:
        words.append(f"Training a run costs: {cost['measured']}.")
    falls = next(row for row in rows if "fall" in row["target"])
    if falls["verdict"] != OPEN:
        words.append(f"Success against N: {falls['measured']}.")
    for verdict, phrase in ((MISSED, "Targets missed"), ("opposite", "Opposite to the paper"), (OPEN, "Not measured")):
        mine = [row["target"].removeprefix("as in the paper: ") for row in rows if row["verdict"] == verdict]
        if mine:
            words.append(f"{phrase}: {'; '.join(mine)}.")
    return " ".join(words)


def _size(data: dict) -> tuple[str, str, str]:
    target = f"at least {TASKS} tasks, {SEEDS} seeds, {EPISODES} episodes each and {TRANSITIONS:,} transitions"
    deas = data["agents"].get(MAIN)
    if deas is None or not deas["runs"]:
        return target, "–", OPEN
    tasks, seeds = len(data["tasks"]), len(data["seeds"])
    transitions = (data["data"] or {}).get("transitions")
    each = deas["episodes"] / deas["runs"]
    measured = (
        f"{tasks} tasks, {seeds} seeds, {each:.0f} episodes each, {deas['runs']} of {tasks * seeds} runs, "
        f"{'–' if transitions is None else f'{transitions:,}'} transitions"
    )
    if transitions is None:
        return target, measured, OPEN
    whole = deas["runs"] == tasks * seeds
    enough = tasks >= TASKS and seeds >= SEEDS and each >= EPISODES and transitions >= TRANSITIONS
    return target, measured, _verdict(whole and enough)


def _baselines(data: dict) -> tuple[str, str, str]:
    target = "DEAS ahead of BC, IQL and n-step IQL, beyond the interval"
    gaps = {baseline: data["agents"].get(baseline, {}).get("main_minus_this") for baseline in BASELINES}
    measured = "; ".join(f"{TITLES[baseline]} {gap(result)}" for baseline, result in gaps.items())
    if any(result and result["verdict"] != "ahead" for result in gaps.values()):
        return target, measured, MISSED
    return target, measured, OPEN if None in gaps.values() else MET


def _peer(data: dict, key: str, candidates: int) -> tuple[str, str, str]:
    result = data["agents"].get(PEER, {}).get(key)
    verdict = _verdict(None if result is None else result["verdict"] != "behind")
    return f"DEAS not behind QC beyond the interval, each with {candidates} candidates", gap(result), verdict


def _cost(data: dict) -> tuple[str, str, str]:
    target = "a fraction of QC's training cost"
    mine, other = (data["agents"].get(agent, {}).get("cost") for agent in (MAIN, PEER))
    if not mine or not other:
        return target, "–", OPEN
    measured = f"DEAS {mine['total']:.0f} CPU s, QC {other['total']:.0f}: {mine['total'] / other['total']:.2f} of it"
    return target, measured, _verdict(mine["total"] < other["total"])


def _longer(data: dict) -> list[tuple[str, str, str]]:
    """DEAS with more updates, where it was run, against QC with its own: more updates, and still less work."""
    row = next((row for row in data["ablations"] if row["variant"] == LONGER), None)
    peer = data["agents"].get(PEER, {}).get("cost")
    if row is None or not row["cost"] or not peer or not row["minus_peer"]:
        return []
    share = row["cost"]["total"] / peer["total"]
    target = f"{LONGER} not behind QC beyond the interval, at less training cost"
    verdict = _verdict(row["minus_peer"]["verdict"] != "behind" and share < 1)
    return [(target, f"{gap(row['minus_peer'])}, at {share:.2f} of the cost", verdict)]


def _falls(data: dict, options: dict) -> tuple[str, str, str]:
    few, many = options["few"], options["many"]
    target = f"success does not fall from N = {few} to N = {many} by more than the interval"
    method = data["agents"].get(MAIN, {}).get("method") or ""
    rule = method.rpartition("-")[0]
    row = next((row for row in data["selection"] if (row["agent"], row["rule"]) == (MAIN, rule)), None)
    if row is None or row["many_minus_few"] is None:
        return target, "–", OPEN
    measured = f"rule {rule}, N = {few} to {many}: {gap(row['many_minus_few'])} points"
    return target, measured, _verdict(row["many_minus_few"]["verdict"] != "behind")


def _speed_of_play(data: dict) -> tuple[str, str, str]:
    seconds = data["agents"].get(MAIN, {}).get("evaluation_cpu_seconds_per_episode")
    measured = "–" if seconds is None else f"{seconds:.3f} CPU s"
    target = f"an episode of evaluation takes at most {SECONDS_PER_EPISODE} s"
    return target, measured, _verdict(None if seconds is None else seconds <= SECONDS_PER_EPISODE)


def _worst_horizon(data: dict, by_name: dict) -> tuple[str, str]:
    first = by_name.get(f"{MAIN}@H=1")
    if first is None or first["difference"] is None:
        return "–", OPEN
    measured = f"H = 1 minus default: {gap(first['difference'])}"
    others = [
        row["difference"] for name, row in by_name.items() if name.startswith(f"{MAIN}@H=") and name != first["variant"]
    ]
    lowest = all(first["difference"]["difference"] < other["difference"] for other in others if other)
    match first["difference"]["verdict"]:
        case "behind" if lowest:
            return measured, "reproduced"
        case "ahead":
            return measured, "opposite"
    return measured, "not shown"


def _order(result: dict | None, ahead: str = "reproduced", behind: str = "opposite") -> tuple[str, str]:
    """What is measured of a claim, and what it says of it."""
    if result is None:
        return "–", OPEN
    return gap(result), {"ahead": ahead, "behind": behind, "undecided": "not shown"}[result["verdict"]]


def _verdict(met: bool | None) -> str:
    return OPEN if met is None else MET if met else MISSED


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
