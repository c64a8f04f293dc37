"""Does the verdict of `deas-vla critique` predict what reranking gains? A rank correlation over the runs there are.

    python -m studies.critique.correlation --runs=outputs/critique/lift,outputs/critique/door

Each run is a folder that studies/critique/critics.py or recipes/finetune_robocasa.py made: its evaluation says what the
best of N gained by the run's critic, and by each further one of `--scorers`. Every such critic is asked about the
rollouts in the run's stage `fresh`, or without one about the episodes of its own data that it was not trained on, a
minute each, and its score is compared with its gain. Needs the extras `groot`, `lerobot` and `report`. With fewer than
12 critics nothing is called shown.

The gain is that of choosing: best of N against a random one of the same N, whose noise is the same. Against the policy
alone, less noise would be counted as the critic's (design rule 10). Critics of one policy share its scenes and data:
they are fewer than their number, which is why that of the policies is printed, too.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import stats

from deas_vla.critique.critique import critique
from deas_vla.critique.evidence import HELD_OUT
from deas_vla.critique.verdict import MIDDLE, Critique
from deas_vla.errors import UserError
from deas_vla.files import read_json, write_json
from deas_vla.launch import run_recipe
from deas_vla.training.stages import stage_report

# Stage of a run's rollouts in scenes of their own.
FRESH = "fresh"
# Fewer critics show nothing, whatever their correlation.
FEWEST = 12
# What is compared with the gain: the score, and for comparison what it is made of.
PREDICTORS: dict[str, Callable[[Critique], float]] = {
    "score": lambda found: found.score,
    "AUC of V half-way": lambda found: found.auc[MIDDLE].value,
    "reliability": lambda found: found.reliability.value,
    "promised by the best of N": lambda found: max(found.gains.values()),
    "calibration": lambda found: found.calibration.value,
}


@dataclass
class CorrelationConfig:
    """Settings of studies/critique/correlation.py."""

    # Folders of runs, separated by commas.
    runs: list[str] = field(default_factory=list)
    # Where correlation.json goes.
    output: str = "outputs/critique"


@dataclass
class Critic:
    """A critic whose gain was measured."""

    name: str
    folder: Path
    policy: str
    fresh: Path  # stage of rollouts that none of the run's critics has seen, perhaps
    gain: float  # success of the best of N minus that of a random candidate
    episodes: int  # pairs


def critics_of(run: Path) -> list[Critic]:
    """The critics that a run's evaluation played as best of N, with their gains."""
    report = stage_report(run / "evaluation")
    sources, scorers = report["sources"], [text.split(":")[0] for text in report["settings"].get("scorers", [])]
    found = []
    for method, source in {"best_of_n": "critic", **{name: name for name in scorers}}.items():
        best, random = (_successes(run, name) for name in (method, "random_candidate"))
        if not best or best.keys() != random.keys():
            raise UserError(f"{run}: {method} and random_candidate did not play the same episodes; evaluate it anew")
        gain = float(np.mean([best[key] - random[key] for key in best]))
        found.append(
            Critic(f"{run.name}/{source}", Path(sources[source]), sources["policy"], run / FRESH, gain, len(best))
        )
    return found


def _successes(run: Path, method: str) -> dict[tuple, bool]:
    """Task, scene and sample to success."""
    return {
        (path.parent.name, episode["scene"], episode["sample"]): episode["success"]
        for path in sorted((run / "evaluation" / "methods").glob(f"*/{method}.json"))
        for episode in json.loads(path.read_text(encoding="utf-8"))
    }


def ask(critic: Critic) -> Critique:
    """The critique by rollouts that a critic never saw."""
    noted = read_json(critic.folder / HELD_OUT)["datasets"] if (critic.folder / HELD_OUT).is_file() else []
    own = [each["dataset"] for each in noted if each["held_out"]]
    datasets = [str(critic.fresh)] if critic.fresh.is_dir() else own
    return critique(datasets, critic.folder, output=critic.folder / "critique_of_study", films=0)


def spearman(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """Rank correlation and its 95 % interval by Fisher's z, with the variance of Bonett and Wright (2000)."""
    value = float(stats.spearmanr(x, y).statistic) if len(x) > 1 else np.nan
    if len(x) < 4 or not np.isfinite(value):
        return value, -1.0, 1.0
    half = 1.96 * np.sqrt((1 + value**2 / 2) / (len(x) - 3))
    centre = np.arctanh(np.clip(value, -1 + 1e-9, 1 - 1e-9))
    return value, float(np.tanh(centre - half)), float(np.tanh(centre + half))


def summarize(critics: list[Critic], found: list[Critique]) -> tuple[str, dict]:
    """The table, the correlations and whether they show anything, as text and as JSON values."""
    rows = [(critic, each) for critic, each in zip(critics, found, strict=True) if np.isfinite(each.score)]
    gains, count, policies = [critic.gain for critic, _ in rows], len(rows), len({c.policy for c, _ in rows})
    correlations = {name: spearman([predict(each) for _, each in rows], gains) for name, predict in PREDICTORS.items()}
    worth = {True: "yes", False: "no", None: "cannot tell"}
    lines = ["| critic | worth reranking | score | gain in points | pairs |", "| --- | --- | ---: | ---: | ---: |"]
    lines += [
        f"| {critic.name} | {worth[each.worth]} | {each.score:.2%} | {100 * critic.gain:+.1f} | {critic.episodes} |"
        for critic, each in sorted(rows, key=lambda row: -row[1].score)
    ]
    lines += ["", f"Spearman's ρ with the gain, over {count} critics of {policies} policies (95 % interval):", ""]
    lines += [f"- {name}: {rho:.2f} [{low:.2f}, {high:.2f}]" for name, (rho, low, high) in correlations.items()]
    if len(rows) < len(critics):
        lines += ["", f"{len(critics) - count} critics have no score: too few episodes that they were not trained on."]
    shown = count >= FEWEST and correlations["score"][1] > 0
    if count < FEWEST:
        conclusion = f"Not shown: {count} critics are too few, whatever ρ is; {FEWEST} are wanted."
    elif shown:
        conclusion = "Shown: the score predicts the gain; its interval is above 0."
    else:
        conclusion = "Not shown: the interval of the score's ρ is not above 0."
    table = [
        {"critic": str(c.folder), "policy": c.policy, "gain": c.gain, "pairs": c.episodes, "worth": each.worth}
        | {name: predict(each) for name, predict in PREDICTORS.items()}
        for c, each in rows
    ]
    values = {"critics": table, "policies": policies, "correlations": correlations, "shown": bool(shown)}
    return "\n".join([*lines, "", conclusion]), values


def main(config: CorrelationConfig) -> None:
    if not config.runs:
        raise UserError("there is no run to look at; give the folders of some: --runs=FOLDER,FOLDER")
    critics = [critic for run in config.runs for critic in critics_of(Path(run))]
    text, values = summarize(critics, [ask(critic) for critic in critics])
    write_json(Path(config.output) / "correlation.json", values)
    print(text)


if __name__ == "__main__":
    run_recipe(main, CorrelationConfig)
