"""Made-up run folders of the OGBench suite; run it as a script to look at the page.

python tests/ogbench_example.py outputs/ogbench_example
"""

import json
import sys
from pathlib import Path

import numpy as np

from deas_vla.files import write_json
from studies.ogbench.report.write import write_ogbench_results

SKILL = {
    "bc": 0.28, "filtered_bc": 0.36, "iql": 0.5, "nstep_iql": 0.62, "deas": 0.8, "deas_onestep": 0.66, "dqc": 0.78,
    "qc": 0.77, "qc_fql": 0.6, "fql": 0.3,
}  # fmt: skip
ALONE = ("bc", "filtered_bc", "fql", "qc_fql", "deas_onestep")
SETTINGS = {
    "deas@H=1": 0.45,
    "deas@updates=6000": 0.82,
    "deas@H=10": 0.72,
    "deas@head=hl_gauss": 0.68,
    "deas@gamma1=0.99": 0.76,
    "qc@head=hl_gauss": 0.7,
}
# What a rule loses for each doubling of N beyond 8.
RULES = {
    "best": 0.06,
    "lower_bound": 0.02,
    "softmax": 0.005,
    "quantile": 0.0,
    "dense": 0.03,
    "consensus": 0.001,
    "random": 0.0,
    "worst": 0.03,
}


def method(
    rng: np.random.Generator,
    ease: np.ndarray,
    rate: float,
    *,
    rule: str = "best",
    candidates: int = 8,
    execute: int = 5,
    first_scene: int = 1000,
    has_q: bool = True,
) -> dict:
    """One evaluation: scene i succeeds where its ease, and some luck, lie below the rate."""
    episodes = []
    for i, level in enumerate(ease):
        success = bool(0.75 * level + 0.25 * rng.random() < rate)
        length = int(rng.integers(30, 90)) if success else 200
        decisions = []
        for step in range(0, length, execute):
            back = -(1 - 0.99 ** (length - step)) / 0.01 + (0 if success else -8)
            q = 0.8 * back - 6 + 4 * rng.standard_normal() if has_q else None
            value = None if q is None else q - 1
            decisions.append({"step": step, "q": q, "value": value, "mc": back})
        episodes.append({"scene": first_scene + i, "success": success, "steps": length, "decisions": decisions})
    description = {"rule": rule, "num_candidates": candidates, "execute": execute}
    return {"method": description, "episodes": episodes, "seconds": 4.0, "cpu_seconds": 0.07 * len(ease)}


def write_run(folder: Path, methods: dict[str, dict], *, stage: dict | None = None, metrics=()) -> None:
    """One agent's run folder."""
    for name, content in methods.items():
        path = folder / "evaluation" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    if stage is not None:
        (folder / "stage.json").write_text(json.dumps(stage), encoding="utf-8")
        lines = "".join(json.dumps(line) + "\n" for line in metrics)
        (folder / "metrics.jsonl").write_text(lines, encoding="utf-8")


def write_example(
    runs: Path,
    *,
    name: str = "cube-single-play",
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5),
    seeds: tuple[int, ...] = (0, 1, 2),
    episodes: int = 50,
) -> None:
    """A whole suite: every agent, ablations, rules, executed lengths, curves."""
    files = {f"{name}-v0.npz": {"rows": 200_200, "trajectories": 200, "sha256": "5ea1" * 16}}
    write_json(runs / "data" / f"{name}-v0.json", {"settings": {}, "versions": {}, "files": files})
    for seed in seeds:
        for horizon in (1, 5, 10):
            settings = {"seed": seed, "training": {"steps": 8000, "batch_size": 256}}
            stage = {"settings": settings, "seconds": 130.0, "cpu_seconds": 120.0 + seed}
            write_json(runs / name / f"seed-{seed}" / f"behaviour-H{horizon}" / "stage.json", stage)
        for task in tasks:
            rng = np.random.default_rng((seed, task))
            ease = rng.random(episodes)
            for variant, skill in (SKILL | SETTINGS).items():
                folder = runs / name / f"seed-{seed}" / f"task{task}" / variant
                _write_variant(folder, rng, ease, variant, skill + 0.05 * (3 - task) + 0.02 * (seed - 1))


def _write_variant(folder: Path, rng: np.random.Generator, ease: np.ndarray, variant: str, rate: float) -> None:
    agent = variant.partition("@")[0]
    horizon = 1 if agent in ("iql", "nstep_iql", "fql") or variant.endswith("H=1") else 10 if "=10" in variant else 5
    methods = {}
    if agent in ALONE:
        methods["first-1"] = method(
            rng, ease, rate, rule="first", candidates=1, execute=horizon, has_q=agent not in ("bc",)
        )
    else:
        methods["best-8"] = method(rng, ease, rate, execute=horizon)
    if variant in ("deas", "qc", "iql", "dqc", "nstep_iql"):
        methods["first-1"] = method(rng, ease, rate - 0.35, rule="first", candidates=1, execute=horizon)
        for rule, loss in RULES.items() if variant == "deas" else [("best", 0.04)]:
            for n in (8, 32, 128):
                level = rate - loss * np.log2(n / 8) - {"random": 0.35, "worst": 0.5}.get(rule, 0)
                methods[f"{rule}-{n}"] = method(rng, ease, level, rule=rule, candidates=n, execute=horizon)
    if variant in ("deas", "dqc"):
        for execute in (1, 2):
            methods[f"best-8-execute-{execute}"] = method(rng, ease, rate - 0.04 / execute, execute=execute)
    if variant in ("deas", "qc", "iql"):
        for step in range(1000, 6000, 1000):
            level = rate * (1 - np.exp(-step / 1500))
            methods[f"curve/{step}"] = method(rng, ease[:20], level, execute=horizon)
    settings = {"seed": 0, "task": "x", "agent": agent, "training": {"steps": 6000, "batch_size": 256}}
    settings[agent] = {
        "critic": {
            "horizon": horizon,
            "hidden_dim": 256,
            "num_layers": 3,
            "head": "scalar",
            "reward_discount": 0.9,
            "bootstrap_discount": 0.999,
        }
    }
    if "hl_gauss" in variant:
        settings[agent]["critic"]["head"] = "hl_gauss"
    steps = range(500, 6001, 500)
    metrics = [
        {"step": step, "loss": 5 * np.exp(-step / 900) + 2, "q_loss": 3 * np.exp(-step / 900) + 1.2,
         "value_loss": 2 * np.exp(-step / 700) + 0.8, "learning_rate": 3e-4}
        for step in steps
    ]  # fmt: skip
    cost = {"qc": 900.0, "qc_fql": 500.0, "fql": 300.0}.get(agent, 300.0 if "updates" in variant else 150.0)
    stage = None if agent == "bc" else {"settings": settings, "seconds": cost, "cpu_seconds": cost}
    write_run(folder, methods, stage=stage, metrics=metrics)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    write_example(target / "runs")
    write_example(target / "runs", name="scene-play", tasks=(1, 2), seeds=(0, 1))
    write_json(
        target / "runs" / "critic_update.json",
        {"cpu_ms_per_update": 33.1, "gflop_per_update": 3.21, "peak_gflops": 118.0, "fraction_of_peak": 0.82},
    )
    print("\n".join(write_ogbench_results(target / "runs", target / "results")["findings"]))
