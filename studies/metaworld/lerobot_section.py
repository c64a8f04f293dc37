"""What stock `lerobot-eval` measured of LeRobot's policies and their rerankers, beside our own evaluation."""

import json
from pathlib import Path

import numpy as np

from deas_vla.errors import UserError
from studies.grid import Cell, Grid
from studies.markdown import gap, rate, rate_range, table
from studies.ogbench.report.parts import difference, level

STAGE, RESULTS = "lerobot", "results.json"
STOCK, OURS = "lerobot-eval", "evaluate.py"


def read_lerobot_run(run: Path) -> dict:
    """What studies/metaworld/finetune_lerobot.py left.

    Raises:
        UserError: if the run is not finished.
    """
    path = run / STAGE / RESULTS
    if not path.is_file():
        raise UserError(f"{run} has no {STAGE}/{RESULTS}; run studies/metaworld/finetune_lerobot.py to its end first")
    return json.loads(path.read_text(encoding="utf-8"))


def with_summary(results: dict) -> dict:
    """The same with ``summary``: rates, gain, episodes in which tools differ."""
    return results | {"summary": _summary(results)}


def lerobot_table(runs: list[dict]) -> str:
    """A Markdown table, a line a run `with_summary`: success in per cent and its 95 % intervals."""
    rows = []
    for run in runs:
        found = run["summary"]
        own = run.get("own_environment", {})
        rows.append(
            [
                f"{run['kind']}, {', '.join(run[STOCK]['policy'])}",
                f"{found[STOCK]['episodes']}",
                *(_rate(found[name]) for name in ("policy", STOCK, OURS)),
                gap(found["gain"]),
                f"**not** in {found['differ']}" if found["differ"] else "in every episode",
                ", ".join(f"{sum(wins)} of {len(wins)}" for wins in own.values()) or "–",
            ]
        )
    head = [
        "policy, tasks",
        "episodes a method",
        "policy, `lerobot-eval`",
        f"best of {runs[0]['candidates']}, `lerobot-eval`",
        f"best of {runs[0]['candidates']}, `evaluate.py`",
        "gain, points",
        "the tools agree",
        "LeRobot's own Meta-World",
    ]
    return table(head, rows)


def _summary(results: dict) -> dict:
    stock, ours = results[STOCK]["best_of_n"], results[OURS]["best_of_n"]
    policy, reranker = (_grid(results["seed"], results[STOCK][method]) for method in ("policy", "best_of_n"))
    return {
        "policy": level(policy),
        STOCK: level(reranker),
        OURS: level(_grid(results["seed"], ours)),
        "gain": difference(reranker, policy),
        "differ": sum(one != two for task in stock for one, two in zip(stock[task], ours[task], strict=True)),
    }


def _grid(seed: int, by_task: dict[str, list[bool]]) -> Grid:
    return {
        (seed, number): Cell(tuple(range(len(wins))), np.array(wins, float))
        for number, wins in enumerate(by_task.values())
    }


def _rate(value: dict) -> str:
    return f"{rate(value['success'], 0)} ({rate_range(value['ci95'])})"
