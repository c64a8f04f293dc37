"""A made-up evaluation, as a recipe would hand it to the report; run it as a script to look at the page.

python tests/report_example.py outputs/report_example
"""

import sys
from pathlib import Path

import numpy as np

from deas_vla.report.data import Calibration, Curve, OracleDecisions, Outcomes, ReportData, ValueTrace
from deas_vla.report.report import write_report
from deas_vla.report.video import Panel, write_video
from deas_vla.rollouts.play import Decision
from deas_vla.versions import collect_versions


def outcomes(rng: np.random.Generator, ease: np.ndarray, shift: float, samples: int, first: int = 1000) -> Outcomes:
    """Success in scenes of different ease; a larger shift succeeds more often."""
    success = ease[:, None] + shift + 0.5 * rng.standard_normal((len(ease), samples)) > 0
    return Outcomes(np.arange(first, first + len(ease)), success)


def example(scenes: int = 100, samples: int = 3, gain: float = 0.35, seed: int = 0) -> ReportData:
    """A whole report; `gain` is what the critic is worth."""
    rng = np.random.default_rng(seed)
    ease = rng.standard_normal(scenes)
    shift = {
        "policy": -0.1,
        "random_candidate": -0.1,
        "zero_noise": -0.05,
        "worst_of_n": -0.1 - gain,
        "best_of_n": -0.1 + gain,
        "filtered_bc": -0.05,
        "advantage_weighted": -0.1 + gain / 2,
        "advantage_weighted + best_of_n": -0.1 + 1.2 * gain,
    }
    methods = {name: outcomes(rng, ease, value, samples) for name, value in shift.items()}
    methods["zero_noise"] = outcomes(rng, ease, shift["zero_noise"], 1)
    methods["oracle"] = outcomes(rng, ease[:24], 1.3, 1)
    by_n = {
        n: outcomes(rng, ease, -0.1 + gain * (np.log2(n) / 3 - max(0, np.log2(n) - 3) / 2), samples)
        for n in (2, 4, 16, 32)
    }
    by_n |= {1: methods["policy"], 8: methods["best_of_n"]}
    traces = []
    for _ in range(60):
        success = bool(rng.random() < 0.45)
        steps = np.arange(0, (rng.integers(50, 100) if success else 113), 4)
        end = -4 if success else -51
        values = -40 + (end + 40) * (steps / steps[-1]) ** 1.5 + 3 * rng.standard_normal(len(steps)) + 4 * success
        traces.append(ValueTrace(steps, values, success))
    group = rng.choice(["demonstration", "success", "failure"], 800, p=[0.3, 0.3, 0.4])
    returns = np.where(group == "failure", -54.8, -45 * rng.random(800))
    q = 0.75 * returns - 9 + 6 * rng.standard_normal(800)
    branch_returns = rng.integers(0, 3, (60, 8)) / 2
    scores = -30 + 4 * branch_returns * gain * 2 + 3 * rng.standard_normal((60, 8))
    steps = np.arange(0, 3000, 50)
    noise = 0.04 * rng.standard_normal((3, len(steps)))
    return ReportData(
        title="deas_vla · Lift with PandaOmron",
        task="The robot is told “lift the red cube” and has 112 steps (5.6 s); the cube lies anywhere on 24 × 24 cm.",
        command="accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_robocasa.py --seed=0",
        methods=methods,
        candidates=8,
        success_by_n=by_n,
        value_traces=traces,
        calibration=Calibration(q, returns, group),
        oracle_decisions=OracleDecisions(
            scores, branch_returns, np.repeat(np.arange(1000, 1020), 3), "success of 2 continuations"
        ),
        curves={
            "policy/loss": Curve(steps, 0.2 + np.exp(-steps / 600) + noise[0]),
            "critic/value_loss": Curve(steps, 2.2 + 1.5 * np.exp(-steps / 400) + noise[1]),
            "critic/q_loss": Curve(steps, 2.6 + 1.4 * np.exp(-steps / 500) + noise[2]),
        },
        seconds={
            "demonstrations": 41.0,
            "policy": 312.4,
            "rollouts": 168.9,
            "features": 22.2,
            "critic": 71.0,
            "fine-tuning": 120.0,
            "evaluation": 402.0,
            "report": 2.4,
        },
        peak_memory_bytes=4_700_000_000,
        collection_scenes=np.arange(0, 800),
        seeds={"run": 0, "evaluation noise": 7},
        hashes={"contract": "3f1c" * 16, "critic": "9ab0" * 16},
        versions=collect_versions(),
        config={"horizon": 16, "critic": {"expectile": 0.7, "num_bins": 101}, "task": "lift"},
    )


def panels(size: int = 320, length: int = 90) -> list[Panel]:
    """Two made-up rollouts of one scene: the first fails, the second succeeds."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:size, :size] / size
    result = []
    for label, success in (("policy", None), ("best of 8", 61)):
        frames = []
        for step in range(length if success is None else success + 1):
            picture = np.stack([90 + 60 * x, 100 + 40 * y, 120 + 0 * x], axis=-1)
            picture[(abs(x - 0.2 - step / 180) < 0.06) & (abs(y - 0.6) < 0.06)] = (200, 40, 40)
            frames.append(picture.astype(np.uint8))
        at = np.arange(0, len(frames), 4)
        values = (-35 + 30 * at / 61 if success else -35 - 14 * at / 90) + rng.standard_normal(len(at))
        decisions = []
        for step, value in zip(at, values, strict=True):
            scores = value + 4 * rng.standard_normal(8) if success and step % 16 == 0 else np.zeros(0)
            index = int(np.argmax(scores)) if len(scores) else 0
            decisions.append(Decision(int(step), index, float(value), scores.tolist()))
        result.append(Panel(label, frames, decisions, success))
    return result


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    data = example(gain=float(sys.argv[2]) if len(sys.argv) > 2 else 0.35)
    data.video = folder / "rollout.mp4"
    data.video_caption = (
        "The same scene twice: the policy, and the best of 8 candidates. Blue: the critic's value so far. "
        "Dots: the scores of the candidates at each decision, gold the one that was played."
    )
    write_video(data.video, panels(), rate_hz=20)
    print(write_report(folder, data)["headline"])
