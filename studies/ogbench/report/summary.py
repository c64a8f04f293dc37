"""The OGBench runs as numbers: everything that the page says is in here, and everything here is from the runs."""

from dataclasses import dataclass, field

import numpy as np

from deas_vla.config import flat
from studies.grid import Cell, Grid, grid_mean
from studies.ogbench.report.parts import calibration, difference, level, loss_curves, success_curve
from studies.ogbench.report.runs import EXECUTE, DataSetRuns

TITLES = {
    "deas": "DEAS",
    "deas_onestep": "DEAS, one-step policy",
    "dqc": "decoupled Q-chunking",
    "qc": "Q-chunking (QC)",
    "qc_fql": "QC-FQL",
    "fql": "FQL",
    "nstep_iql": "n-step IQL",
    "iql": "IQL",
    "filtered_bc": "filtered BC",
    "bc": "BC",
}
MAIN = "deas"
PEER = "qc"  # whose training costs several times as much
# The main agent trained for longer, at less than its peer's cost.
LONGER = "deas@updates=6000"
# Does not play or train on the shared behaviour policy.
OWN_POLICY = {"filtered_bc"}
# Is the shared behaviour policy: nothing else is trained.
NO_TRAINING = {"bc"}


@dataclass
class ResultsOptions:
    """What is compared.

    Attributes:
        methods: names of methods, the first that an agent has played is what it is compared in. From 8 candidates
            consensus chooses as best does.
        few: N at which success against N is measured first.
        many: and last.
        seeds: training seeds that count (settings are tuned on others); empty: all that are there.
    """

    methods: list[str] = field(default_factory=lambda: ["consensus-8", "best-8", "first-1"])
    few: int = 8
    many: int = 128
    seeds: list[int] = field(default_factory=list)


def summarize(data: DataSetRuns, name: str, options: ResultsOptions) -> dict:
    """All numbers of one data set, as JSON values; a part that was not run is None or empty."""
    tasks = sorted({task for _, task in data.cells})
    seeds = sorted({seed for seed, _ in data.cells})
    order = list(TITLES)
    agents = sorted(
        (variant for variant in data.runs if "@" not in variant),
        key=lambda variant: (order.index(variant) if variant in order else len(order), variant),
    )
    methods = {agent: _compared(data, agent, options.methods) for agent in agents}
    return {
        "tasks": tasks,
        "seeds": seeds,
        "data": _data_facts(data, name),
        "settings": _settings(data, agents),
        "agents": {agent: _agent(data, agent, methods, tasks, seeds, options) for agent in agents},
        "success_by_n": {agent: by_n for agent in agents if (by_n := _by_n(data, agent))},
        "selection": [row for agent in agents for row in _selection(data, agent, options)],
        "ablations": [row for variant in sorted(data.runs) if (row := _ablation(data, variant, options.methods))],
        "executed": [row for variant in sorted(data.runs) for row in _executed(data, variant)],
        "curves": {agent: curve for agent in agents if (curve := success_curve(data, agent))},
        "losses": {agent: losses for agent in agents if (losses := loss_curves(data.runs[agent]))},
        "calibration": {agent: c for agent in agents if (c := calibration(data.runs[agent], methods[agent]))},
    }


def _compared(data: DataSetRuns, variant: str, names: list[str]) -> str | None:
    return next((name for name in names if data.grid(variant, name)), None)


def _data_facts(data: DataSetRuns, name: str) -> dict | None:
    file = data.data.get("files", {}).get(f"{name}-v0.npz")
    if file is None:
        return None
    # The last row of a trajectory is only where its last transition leads.
    return {"transitions": file["rows"] - file["trajectories"], **file}


def _settings(data: DataSetRuns, agents: list[str]) -> dict:
    """Values of the settings that say how large the runs are; more than one where runs differ."""

    def values(stages: list[dict], *suffixes: str) -> list:
        found = [value for stage in stages for key, value in stage.items() if key.endswith(suffixes)]
        return sorted(set(found))

    trained = [run.settings for agent in agents for run in data.runs[agent].values()]
    behaviours = [flat(stage.get("settings", {})) for stage in data.behaviours.values()]
    return {
        "updates": values(trained, "training.steps"),
        "batch_size": values(trained, "training.batch_size"),
        "hidden_dim": values(trained, "hidden_dim"),
        "num_layers": values(trained, "num_layers"),
        "behaviour_updates": values(behaviours, "training.steps"),
        "episodes_per_run": sorted(
            {len(method.scenes) for a in agents for r in data.runs[a].values() for method in r.methods.values()}
        ),
    }


def _agent(
    data: DataSetRuns,
    agent: str,
    methods: dict[str, str | None],
    tasks: list[int],
    seeds: list[int],
    options: ResultsOptions,
) -> dict:
    method = methods[agent]
    grid = data.grid(agent, method) if method else {}
    whole = {task for _, task in grid} == set(tasks)
    entry = {
        "title": TITLES.get(agent, agent),
        "method": method,
        "horizon": _horizon(data, agent),
        "discounts": _discounts(data, agent),
        "updates": sorted({run.settings.get("training.steps", 0) for run in data.runs[agent].values()}),
        # A mean over some of the tasks is not comparable with one over all of them.
        "mean": level(grid) if whole else None,
        "runs": len(grid),
        "episodes": sum(len(cell.values) for cell in grid.values()),
        "per_task": {task: level({key: cell for key, cell in grid.items() if key[1] == task}) for task in tasks},
        "per_seed": {seed: _seed_mean(grid, seed, tasks) for seed in seeds},
        "cost": _cost(data, agent, len(tasks)),
        "evaluation_cpu_seconds_per_episode": _evaluation_cost(data, agent, method),
        "main_minus_this": None,
        "main_at_many_minus_this": None,
        "both_at_many": None,
    }
    if method and agent != MAIN and methods.get(MAIN):
        entry["main_minus_this"] = difference(data.grid(MAIN, methods[MAIN]), grid)
        at_many = f"{methods[MAIN].rpartition('-')[0]}-{options.many}"
        entry["main_at_many_minus_this"] = difference(data.grid(MAIN, at_many), grid)
        entry["both_at_many"] = difference(data.grid(MAIN, at_many), data.grid(agent, at_many))
    return entry


def _seed_mean(grid: Grid, seed: int, tasks: list[int]) -> float | None:
    mine = {key: cell for key, cell in grid.items() if key[0] == seed}
    return grid_mean(mine) if len(mine) == len(tasks) else None


def _horizon(data: DataSetRuns, variant: str) -> int | None:
    """Length of the agent's chunks: what it plays where nobody asks for less."""
    found = {
        method.execute
        for run in data.runs[variant].values()
        for name, method in run.methods.items()
        if EXECUTE not in name
    } - {None}
    return max(found, default=None)


def _discounts(data: DataSetRuns, agent: str) -> dict[str, list[float]]:
    """The agent's discounts by the name of their setting; more than one where runs differ."""
    found: dict[str, set] = {}
    for run in data.runs[agent].values():
        for name, value in run.settings.items():
            if name.startswith(f"{agent}.") and name.endswith("discount"):
                found.setdefault(name.rpartition(".")[2], set()).add(value)
    return {name: sorted(values) for name, values in sorted(found.items(), reverse=True)}


def _cost(data: DataSetRuns, agent: str, num_tasks: int) -> dict | None:
    """CPU seconds of training one run; the behaviour policy's are divided among the tasks that one of them serves.

    Medians over runs: a run that was interrupted has noted only what came after.
    """
    runs, horizon = data.runs[agent], _horizon(data, agent)
    own = [run.stage["cpu_seconds"] for run in runs.values() if "cpu_seconds" in run.stage]
    if agent in NO_TRAINING:
        own = [0.0]
    shared = [
        stage["cpu_seconds"] for (_, h), stage in data.behaviours.items() if h == horizon and "cpu_seconds" in stage
    ]
    if agent in OWN_POLICY:
        shared = [0.0]
    if not own or not shared:
        return None
    agent_seconds, behaviour = float(np.median(own)), float(np.median(shared)) / num_tasks
    return {
        "agent": agent_seconds,
        "behaviour_share": behaviour,
        "total": agent_seconds + behaviour,
        "runs": len(runs) if agent in NO_TRAINING else len(own),
    }


def _evaluation_cost(data: DataSetRuns, agent: str, method: str | None) -> float | None:
    played = [run.methods[method] for run in data.runs[agent].values() if method in run.methods]
    timed = [(each.cpu_seconds, len(each.scenes)) for each in played if each.cpu_seconds is not None]
    return sum(seconds for seconds, _ in timed) / sum(count for _, count in timed) if timed else None


def _by_rule(data: DataSetRuns, variant: str) -> dict[str, dict[int, Grid]]:
    """Success by rule and N, whole chunks played. With one candidate all rules are the policy alone."""
    grids: dict[str, dict[int, dict]] = {}
    alone: dict[tuple[int, int], Cell] = {}
    for key, run in data.runs[variant].items():
        for name, method in run.methods.items():
            if EXECUTE in name:
                continue
            if method.candidates == 1:
                alone[key] = method.cell
            else:
                grids.setdefault(method.rule, {}).setdefault(method.candidates, {})[key] = method.cell
    if alone:
        grids = {rule: {1: alone, **by_n} for rule, by_n in grids.items()} or {"first": {1: alone}}
    return grids


def _by_n(data: DataSetRuns, variant: str) -> dict:
    return {rule: {n: level(by_n[n]) for n in sorted(by_n)} for rule, by_n in sorted(_by_rule(data, variant).items())}


def _selection(data: DataSetRuns, agent: str, options: ResultsOptions) -> list[dict]:
    grids = _by_rule(data, agent)
    rows = []
    for rule, by_n in sorted(grids.items()):
        if options.few not in by_n and options.many not in by_n:
            continue
        few, many = by_n.get(options.few, {}), by_n.get(options.many, {})
        row = {"agent": agent, "rule": rule, "few": level(few), "many": level(many)}
        row["many_minus_few"] = difference(many, few)
        for end, grid in (("few", few), ("many", many)):
            best = grids.get("best", {}).get(getattr(options, end), {})
            row[f"{end}_minus_best"] = difference(grid, best) if rule != "best" else None
        rows.append(row)
    return rows


def _ablation(data: DataSetRuns, variant: str, names: list[str]) -> dict | None:
    base, at, change = variant.partition("@")
    if not at:
        return None
    shared = [name for name in names if base not in data.runs or data.grid(base, name)]
    method = _compared(data, variant, shared)
    grid = data.grid(variant, method) if method else {}
    default = data.grid(base, method) if method else {}
    common = grid.keys() & default.keys()
    alike = f"{MAIN}@{change}" if f"{MAIN}@{change}" in data.runs else MAIN
    return {
        "variant": variant,
        "base": base,
        "method": method,
        "changes": _changes(data, variant, base),
        "level": level(grid),
        "base_level": level({key: default[key] for key in common}),
        "difference": difference(grid, default),
        "minus_main_alike": difference(grid, data.grid(alike, _compared(data, alike, names) or "")),
        "minus_peer": difference(grid, data.grid(PEER, _compared(data, PEER, names) or "")),
        "cost": _cost(data, variant, len({task for _, task in data.cells})),
    }


def _changes(data: DataSetRuns, variant: str, base: str) -> dict[str, list]:
    """Settings in which the variant's runs differ from the default's: shows that it changes what its name says."""
    changed: dict[str, list] = {}
    for key, run in sorted(data.runs[variant].items()):
        other = data.runs.get(base, {}).get(key)
        if other is None or not (run.settings and other.settings):
            continue
        for name in sorted(run.settings.keys() | other.settings.keys()):
            pair = [other.settings.get(name), run.settings.get(name)]
            if pair[0] != pair[1] and name != "curve_points":
                changed.setdefault(name, pair)
    return changed


def _executed(data: DataSetRuns, variant: str) -> list[dict]:
    names = sorted({name for run in data.runs[variant].values() for name in run.methods})
    rows = []
    for full in sorted({name.split(EXECUTE)[0] for name in names if EXECUTE in name}):
        whole = data.grid(variant, full)
        for name in names:
            if name.split(EXECUTE)[0] == full:
                grid = data.grid(variant, name)
                lengths = {r.methods[name].execute for r in data.runs[variant].values() if name in r.methods}
                rows.append(
                    {
                        "agent": variant,
                        "method": full,
                        "horizon": _horizon(data, variant),
                        "execute": max(lengths - {None}, default=None),
                        "level": level(grid),
                        "minus_whole": difference(grid, whole) if name != full else None,
                    }
                )
    return sorted(rows, key=lambda row: (row["agent"], row["method"], row["execute"] or 0))
