"""The report of a run, from the files in its folders: report.json, and from it and the plots report.html."""

import base64
import json
import re
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from deas_vla.config import fingerprint, to_json
from deas_vla.critic.critic import CriticConfig
from deas_vla.data.lerobot import SIDECAR
from deas_vla.errors import require
from deas_vla.files import atomic_path, read_json, sha256_of
from deas_vla.report import plots, summary
from deas_vla.report.data import Calibration, Curve, OracleDecisions, Outcomes, ReportData, ValueTrace
from deas_vla.report.template import rendered
from deas_vla.rollouts.collect import DATASET
from deas_vla.rollouts.oracle import RETURNS, returns_of
from deas_vla.rollouts.scenes import seen_scenes
from deas_vla.training.loop import read_metrics
from deas_vla.training.presets import PRESETS, preset
from deas_vla.training.stages import stage_report
from deas_vla.versions import collect_versions

TASK_STRIDE = 10_000_000  # scenes of one task are told from those of another by this distance in the report
LAUNCHER = re.compile(r"(^|/)accelerate(-launch|\.commands\.launch)?$")
# Training curves that are shown, by group: each group is a plot of its own.
CURVES = (("loss", "loss"), ("loss", "value_loss"), ("loss", "q_loss"), ("values", "value"), ("values", "q"))


def write_report(folder: str | Path, data: ReportData) -> dict:
    """Writes ``report.json`` and ``report.html`` into a folder; the same data gives the same bytes.

    Returns the content of report.json: what is not a finite number (the loss of a run that diverged) is null in it.
    Raises UserError as `ReportData.validate`, or if matplotlib or jinja2 is not installed.
    """
    found = json.loads(json.dumps(summary.summarize(data)), parse_constant=lambda constant: None)
    text = json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    for name, content in (("report.html", render(data, found)), ("report.json", text)):
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return found


def render(data: ReportData, found: dict) -> str:
    """The report as one HTML document that refers to nothing outside it; every number in words is of `found`."""
    words = "percent points point_range signed counted lowered p_value duration scene_runs method_meaning"
    text = rendered(
        Path(__file__).with_name("report.html.j2"),
        **found,
        **{name: getattr(summary, name) for name in words.split()},
        data=data,
        METHOD_COLORS=plots.METHOD_COLORS,
        plots={name: _embedded(svg) for name, svg in plots.plots(data, found["critic"]).items()},
        curves=[(title, _embedded(svg)) for title, svg in plots.curve_plots(data.curves)],
        video=_embedded(data.video.read_bytes(), "video/mp4") if data.video else None,
        title_of=lambda name: summary.method_title(name, data.candidates),
        reach=_reach(found["paired"]),
        dump=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    return text.replace(" %", "\u00a0%")  # no line break between a number and its per cent sign


def _reach(paired: dict) -> float:
    """Half the width of the axis of differences: the first round number that holds all intervals."""
    ends = [abs(end) for result in paired.values() for end in result["ci95"]]
    return next((r for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if r >= max([0.1, *ends]) - 1e-9), 1.0)


def _embedded(content: str | bytes, kind: str = "image/svg+xml") -> str:
    content = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def write_run_report(evaluation: Path) -> dict:
    """`write_report` of a run, into the folder above the stage of recipes/evaluate.py; returns report.json's content.

    UserError as `write_report`: a scene of the evaluation that is in the training data's records is refused.
    """
    stages = _stages(evaluation)
    settings = stages[evaluation.name]["settings"]
    plan, tasks = settings["evaluation"], settings["tasks"]
    methods = _read_methods([evaluation / "methods" / task for task in tasks])
    outcomes = {name: _outcomes(episodes) for name, episodes in methods.items()}

    by_count = {n: f"best_of_{n}" for n in plan["candidate_counts"]} | {plan["num_candidates"]: "best_of_n"}
    if plan["noise_scale"] == 1:  # one candidate with the policy's own noise is the policy
        by_count[1] = "policy"
    only_in_table = set(by_count.values()) - {"policy", "best_of_1", "best_of_n"}
    # Not by the names of folders, which are the user's.
    critic_stage = Path(stages[evaluation.name]["sources"]["critic"])
    critic = stage_report(critic_stage)["settings"]
    seen, unrecorded = seen_scenes([evaluation])
    # Nothing is called unseen where a stage did not record what it was trained on.
    trained_on = None
    if not unrecorded:
        scenes = np.array(sorted(set().union(*seen.values())), np.int64)
        trained_on = np.concatenate([scenes + number * TASK_STRIDE for number in range(len(tasks))])
    video, caption = evaluation / "rollout.mp4", evaluation / "rollout.json"
    data = ReportData(
        title=f"deas_vla · {', '.join(tasks)} in {settings['env']}",
        task=_task_in_words(stages, tasks),
        command=launch_command(),
        methods={name: outcome for name, outcome in outcomes.items() if name not in only_in_table},
        candidates=plan["num_candidates"],
        success_by_n={n: outcomes[by_count[n]] for n in sorted(plan["candidate_counts"])},
        value_traces=_value_traces(methods["policy"]),
        calibration=_calibration(methods["policy"], critic["critic"]),
        oracle_decisions=_oracle_decisions(methods.get("oracle", [])),
        curves=_curves(stages),
        seconds={name: stage["seconds"] for name, stage in stages.items()},
        peak_memory_bytes=max(stage["peak_memory_bytes"] for stage in stages.values()),
        collection_scenes=trained_on,
        preset=_preset(critic, trained=(critic_stage / "validation.json").is_file()),
        seeds={"run": settings["seed"]},
        hashes=_hashes(stages),
        versions=collect_versions(),
        config={name: stage["settings"] for name, stage in stages.items()},
        video=video if video.is_file() else None,
        video_caption=read_json(caption)["caption"] if caption.is_file() else "",
    )
    return write_report(evaluation.parent, data)


def launch_command() -> str:
    """The command line that started this process; where a launcher did, the launcher's, with its flags."""
    psutil = require("psutil", "report")
    mine, arguments = psutil.Process(), sys.argv[1:]
    for process in mine.parents():
        with suppress(psutil.Error):
            words = process.cmdline()
            launcher = next((i for i, word in enumerate(words) if LAUNCHER.search(word)), None)
            if launcher is not None and words[len(words) - len(arguments) :] == arguments:
                words = words[launcher + 1 :]
                return shlex.join(["accelerate", "launch", *words[words[:1] == ["launch"] :]])
    return shlex.join(["python", *mine.cmdline()[1:]])


def _preset(settings: dict, trained: bool = True) -> str:
    """The critic's preset in words, its head, and what was set otherwise: the name DEAS alone does not say them."""
    scorer = settings.get("scorer", "deas").rpartition(":")[2]
    if not trained and scorer != "deas":
        return f"none (the scorer {scorer}, which is not trained)"
    name = settings.get("preset") or "not named in its settings"
    named = to_json(preset(name)) if name in PRESETS else {}
    changed = [
        f"; {part}.{key} was changed"
        for part, values in named.items()
        for key, value in values.items()
        if settings.get(part, {}).get(key, value) != value
    ]
    head = settings["critic"].get("head", "unknown").replace("_", "-")
    other = "" if scorer == "deas" else f"scorer {scorer}; "
    return f"{name} ({other}{head} head{''.join(changed)})"


def _stages(evaluation: Path) -> dict[str, dict]:
    """The finished stages that the evaluation stands on, in the order in which they were made."""
    found: dict[str, dict] = {}

    def add(folder: Path) -> None:
        report = stage_report(folder)
        for source in report["sources"].values():
            add(Path(source))
        found.setdefault(folder.name, report | {"folder": folder})

    add(evaluation)
    return found


def _read_methods(folders: list[Path]) -> dict[str, list[dict]]:
    """Episodes by method, over the tasks' folders; the scenes of different tasks get different numbers."""
    methods: dict[str, list[dict]] = {}
    for number, folder in enumerate(folders):
        for path in sorted(folder.glob("*.json")):
            for episode in json.loads(path.read_text(encoding="utf-8")):
                episode["scene"] += number * TASK_STRIDE
                methods.setdefault(path.stem, []).append(episode)
    return methods


def _outcomes(episodes: list[dict]) -> Outcomes:
    samples = 1 + max(episode["sample"] for episode in episodes)
    success = np.array([episode["success"] for episode in episodes]).reshape(-1, samples)
    return Outcomes(np.array([episode["scene"] for episode in episodes[::samples]]), success)


def _value_traces(episodes: list[dict]) -> list[ValueTrace]:
    return [ValueTrace(*np.array([(d["step"], d["value"]) for d in e["decisions"]]).T, e["success"]) for e in episodes]


def _calibration(episodes: list[dict], critic: dict) -> Calibration:
    """Q of what the policy played on the evaluation scenes, against what came of it."""
    config = CriticConfig(**{name: critic[name] for name in ("horizon", "reward_discount", "bootstrap_discount")})
    q, returns, group = [], [], []
    for episode in episodes:
        success = np.zeros(episode["steps"], bool)
        success[-1] = episode["success"]
        to_go = returns_of(success, config)
        for decision in episode["decisions"]:
            q.append(decision["scores"][decision["index"]])
            returns.append(to_go[decision["step"]])
            group.append("success" if episode["success"] else "failure")
    return Calibration(np.array(q), np.array(returns), np.array(group))


def _oracle_decisions(episodes: list[dict]) -> OracleDecisions | None:
    rows = [(episode["scene"], decision) for episode in episodes for decision in episode["decisions"]]
    if not rows:
        return None
    scores, returns = (np.array([decision[part] for _, decision in rows]) for part in ("scores", "returns"))
    return OracleDecisions(scores, returns, np.array([scene for scene, _ in rows]), RETURNS)


def _curves(stages: dict[str, dict]) -> dict[str, Curve]:
    curves = {}
    for name, stage in stages.items():
        lines = read_metrics(stage["folder"] / "metrics.jsonl")
        for group, key in CURVES:
            if lines and key in lines[0]:
                columns = (np.array([line[column] for line in lines]) for column in ("step", key))
                curves[f"{name} {group}/{key}"] = Curve(*columns)
    return curves


def _hashes(stages: dict[str, dict]) -> dict[str, str]:
    hashes = {}
    for name, stage in stages.items():
        for part in (DATASET, "policy", "critic"):
            if (stage["folder"] / part).is_dir():
                hashes[f"{name}/{part}"] = sha256_of(stage["folder"] / part)
        hashes[f"{name}/settings"] = fingerprint(stage["settings"])
    return hashes


def _task_in_words(stages: dict[str, dict], tasks: list[str]) -> str:
    if "demonstrations" not in stages:
        return ", ".join(tasks)
    facts = read_json(stages["demonstrations"]["folder"] / DATASET / SIDECAR)
    sentences = " and ".join(f"“{sentence}”" for sentence in facts["metadata"]["instructions"])
    return f"The robot ({facts['contract']['embodiment']}) is told {sentences}."
