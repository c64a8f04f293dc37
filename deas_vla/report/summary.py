"""The numbers of a report, and the sentences that say what they mean: the content of report.json."""

import math

import numpy as np

from deas_vla.report.data import Calibration, OracleDecisions, Outcomes, ReportData, ValueTrace, paired_outcomes
from deas_vla.rollouts import statistics

# Names of methods and what they do, in the order in which they are shown; N is filled in.
METHODS = {
    "policy": ("Policy", "one sample, played as it is (N = 1)"),
    "best_of_n": ("Best of {n}", "the candidate that the critic scores highest"),
    "advantage_weighted": ("Advantage-weighted", "policy fine-tuned with the critic's advantages as weights"),
    "advantage_weighted + best_of_n": ("Advantage-weighted + best of {n}", "both improvements together"),
    "second_iteration": ("Second iteration", "the improved policy rolled out, and improved once more"),
    "second_iteration + best_of_n": ("Second iteration + best of {n}", "its policy and its critic together"),
    "iql": ("Best of {n} by IQL", "the same with a one-step critic"),
    "qc": ("Best of {n} by Q-chunking", "the same with a critic whose target asks the policy"),
    "filtered_bc": ("Filtered BC", "policy fine-tuned on successful rollouts: no critic"),
    "best_of_1": ("Policy with less noise", "one of the candidates: what they gain before any choice"),
    "random_candidate": ("Random of {n}", "control: a candidate drawn at random; should equal one candidate"),
    "zero_noise": ("Policy without noise", "control: what it makes of zero noise; knows nothing of the critic"),
    "worst_of_n": ("Worst of {n}", "control: the candidate that the critic scores lowest; should do harm"),
    "oracle": ("Oracle of {n}", "every candidate is tried out in the simulator first: the headroom"),
}
# Method to what it is compared with, where both were played.
COMPARED_WITH = {
    "best_of_n": ("policy", "random_candidate", "worst_of_n", "zero_noise"),
    "zero_noise": ("policy",),
    "best_of_1": ("policy",),
    "random_candidate": ("best_of_1", "policy"),
    "filtered_bc": ("policy",),
    "advantage_weighted": ("policy", "filtered_bc"),
    "advantage_weighted + best_of_n": ("policy",),
    "oracle": ("policy", "best_of_n"),
}
# What report.json holds as it was given.
GIVEN = ("title", "task", "command", "preset", "seeds", "hashes", "versions", "config", "peak_memory_bytes")


def summarize(data: ReportData) -> dict:
    """The content of report.json: rates and differences are fractions, what could not be computed is None."""
    data.validate()
    paired = _paired(data)
    in_order = dict.fromkeys([*(name for name in METHODS if name in data.methods), *data.methods])
    return {
        **{name: getattr(data, name) for name in GIVEN},
        "headline": _headline(data, paired),
        "methods": {name: _rate(data.methods[name]) for name in in_order},
        "paired": paired,
        "success_by_n": {str(n): _rate(data.success_by_n[n]) for n in sorted(data.success_by_n)},
        "more_candidates": _more_candidates(data.success_by_n),
        "critic": {
            "values": _values(data.value_traces),
            "calibration": _calibration(data.calibration),
            "ranking": _ranking(data.oracle_decisions),
            "headroom": _headroom(data.methods),
        },
        "training": {
            name: {"first": float(values[0]), "last": float(values[-1]), "steps": int(curve.steps[-1])}
            for name, curve in data.curves.items()
            if len(values := curve.values)
        },
        "evaluation": {
            name: {"scenes": [int(s) for s in method.scenes], "samples": method.success.shape[1]}
            for name, method in data.methods.items()
        },
        "seconds": {name: float(value) for name, value in data.seconds.items()},
        "scenes_disjoint": None if data.collection_scenes is None else True,
        "caveats": _caveats(data, paired),
    }


def method_title(name: str, candidates: int | None) -> str:
    """Name of a method for people."""
    return METHODS.get(name, (name.replace("_", " "), ""))[0].format(n="N" if candidates is None else candidates)


def method_meaning(name: str) -> str:
    """What a method does, in a few words; empty for one that this project does not know."""
    return METHODS.get(name, ("", ""))[1]


def lowered(title: str) -> str:
    """A title in the middle of a sentence."""
    return title[:1].lower() + title[1:]


def percent(rate: float) -> str:
    """A fraction in per cent, without decimals."""
    rounded = round(100 * rate)
    return f"{'−' if rounded < 0 else ''}{abs(rounded)} %"


def counted(number: int, noun: str) -> str:
    """1 scene, 2 scenes, 2 successes."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{'' if number == 1 else plural}"


def signed(number: float) -> str:
    """A correlation with its sign."""
    return f"{number:+.2f}".replace("-", "−")


def points(difference: float, decimals: int = 0) -> str:
    """A difference of rates as signed percentage points."""
    rounded = round(100 * difference, decimals)
    return f"{'+' if rounded > 0 else '−' if rounded < 0 else ''}{abs(rounded):.{decimals}f}"


def point_range(interval) -> str:
    """An interval of differences. Tenths show on which side of zero it ends."""
    return f"{points(interval[0], 1)} to {points(interval[1], 1)}"


def p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def scene_runs(numbers) -> str:
    """1, 2, 3, 7 as "4 scenes (1–3, 7)"; more than six runs are cut, for people."""
    numbers, runs = sorted(map(int, numbers)), []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    shown = ", ".join([str(a) if a == b else f"{a}–{b}" for a, b in runs[:6]] + ["…"] * (len(runs) > 6))
    return f"{counted(len(numbers), 'scene')} ({shown})"


def _paired(data: ReportData) -> dict[str, dict]:
    """`paired_difference` of the headline's pair and the known pairs, where they share a scene."""
    known = [(method, other) for method, others in COMPARED_WITH.items() for other in others]
    known = [pair for pair in known if set(pair) <= set(data.methods)]
    pairs = dict.fromkeys([tuple(data.primary), *known])
    played = {f"{a} - {b}": paired_outcomes(data.methods[a], data.methods[b]) for a, b in pairs}
    return {name: statistics.paired_difference(*both) for name, both in played.items() if both}


def _rate(outcomes: Outcomes) -> dict:
    return {
        "successes": outcomes.successes,
        "episodes": outcomes.episodes,
        "success_rate": outcomes.successes / outcomes.episodes,
        "ci95": statistics.wilson_interval(outcomes.successes, outcomes.episodes),
    }


def _headline(data: ReportData, paired: dict[str, dict]) -> dict:
    method, baseline = data.primary
    name = f"{method} - {baseline}"
    if name not in paired:
        text = f"Not measured: {method} and {baseline} share no scene."
        return {"verdict": "not_measured", "comparison": name, "text": text, "detail": ""}
    result = paired[name]
    low, high = result["ci95"]
    a, b = paired_outcomes(data.methods[method], data.methods[baseline])
    who, than = method_title(method, data.candidates), lowered(method_title(baseline, data.candidates))
    unseen = "" if data.collection_scenes is None else "unseen "
    size = f"{counted(result['pairs'], 'paired episode')} in {counted(result['scenes'], f'{unseen}scene')}"
    detail = f"{points(result['difference'], 1)} percentage points, 95 % interval {point_range(result['ci95'])}, "
    if result["verdict"] == "no_gain":
        detail += "which holds zero" if low <= 0 <= high else "from too few scenes to tell it from chance"
        half = math.ceil(50 * (high - low))
        detail += f"; {size}. A true difference of less than about {half} points would not be visible at this size."
    else:
        detail += f"over {size}."
    verdict = {"gain": "Gain", "worse": "Worse", "no_gain": "No gain could be shown"}[result["verdict"]]
    text = f"{verdict}: {who} succeeds in {percent(a.mean())}, the {than} in {percent(b.mean())}."
    return {"verdict": result["verdict"], "comparison": name, "text": text, "detail": detail}


def _more_candidates(by_n: dict[int, Outcomes]) -> dict | None:
    """Whether success still rises with N, or falls after a peak."""
    if len(by_n) < 2:
        return None
    rates = {n: by_n[n].success.mean() for n in sorted(by_n)}
    peak, last, result = max(rates, key=rates.get), max(rates), None
    both = paired_outcomes(by_n[last], by_n[peak])
    if peak == last:
        text = f"Success is highest at the largest N that was tried, {last}."
    elif both is None:
        text = f"Success is highest at N = {peak}."
    else:
        result = statistics.paired_difference(*both)
        fall = f"N = {last} is {points(result['difference'], 1)} points against N = {peak}"
        fall += f" ({point_range(result['ci95'])})"
        text = f"Success is highest at N = {peak}; {fall}: the fall may be chance."
        if rates[last] == rates[peak]:
            text = f"No larger N does better than N = {peak}: success at N = {last} is the same."
        elif result["verdict"] == "worse":
            text = f"More candidates hurt: {fall}."
    return {"peak": peak, "last_minus_peak": result, "text": text}


def _values(traces: list[ValueTrace]) -> dict | None:
    """How well V tells later successes from failures, at each step at which both kinds were still running."""
    if not traces:
        return None
    success = np.array([trace.success for trace in traces], bool)
    steps = np.concatenate([trace.steps for trace in traces]).astype(int)
    values = np.concatenate([trace.values for trace in traces])
    succeeded = np.repeat(success, [len(trace.steps) for trace in traces])
    at = {str(step): steps == step for step in np.unique(steps)}
    areas = {step: statistics.separation(values[rows], succeeded[rows]) for step, rows in at.items()}
    return {
        "successes": int(success.sum()),
        "failures": int((~success).sum()),
        "separation_by_step": {step: area for step, area in areas.items() if area is not None},
    }


def _calibration(found: Calibration | None) -> dict | None:
    if found is None or not len(found.q):
        return None
    q, returns = np.asarray(found.q, np.float64), np.asarray(found.returns, np.float64)
    return {
        "options": len(q),
        "pearson": statistics.pearson(q, returns),
        "spearman": statistics.spearman(q, returns),
        "bias": float((q - returns).mean()),
        "rmse": float(np.sqrt(((q - returns) ** 2).mean())),
    }


def _ranking(oracle: OracleDecisions | None) -> dict | None:
    if oracle is None or not len(oracle.scores):
        return None
    size = {"scenes": len(np.unique(oracle.scenes)), "candidates": np.shape(oracle.scores)[1]}
    found = statistics.rank_against_oracle(oracle.scores, oracle.returns, oracle.scenes)
    return found | size | {"returns": oracle.meaning}


def _headroom(methods: dict[str, Outcomes]) -> dict | None:
    """The oracle's gain over the policy, and how much of it best-of-N gets."""
    names = ("policy", "best_of_n", "oracle")
    played = paired_outcomes(*(methods[name] for name in names)) if set(names) <= set(methods) else None
    if played is None:
        return None
    share, interval = statistics.share_of_headroom(*played)
    rates = {name: float(success.mean()) for name, success in zip(names, played, strict=True)}
    return {"scenes": len(played[0]), **rates, "share": share, "share_ci95": interval}


def _caveats(data: ReportData, paired: dict[str, dict]) -> list[str]:
    caveats = []
    samples = max(method.success.shape[1] for method in data.methods.values())
    if samples > 1:
        caveats.append(
            f"Every scene was played with up to {samples} noise samples, which resemble each other. Differences are "
            "resampled by scene; the Wilson intervals of single methods and McNemar's p take episodes for independent "
            "and are a little too sure."
        )
    if len(paired) > 1:
        caveats.append(
            f"The headline rests on one comparison, fixed beforehand ({data.primary[0]} − {data.primary[1]}). "
            f"The other {len(paired) - 1} are for orientation: their p-values are not corrected for being many."
        )
    if data.collection_scenes is None:
        caveats.append(
            "The records of the training data do not say in which scenes it was collected: that the evaluation's "
            "scenes are unseen was not checked."
        )
    one = "best_of_1" if "best_of_1" in data.methods else "policy"
    placebo, quiet = paired.get(f"random_candidate - {one}"), paired.get("best_of_n - zero_noise")
    if placebo is not None and placebo["verdict"] != "no_gain":
        caveats.append(
            f"A random candidate and {lowered(method_title(one, 1))} have the same distribution, yet they differ by "
            f"{points(placebo['difference'], 1)} points ({point_range(placebo['ci95'])}): differences of this size "
            "can be chance here, or the methods are not paired as they should be."
        )
    if quiet is not None and quiet["verdict"] != "gain":
        caveats.append(
            f"Best of {data.candidates} is not shown to be better than the policy without noise "
            f"({points(quiet['difference'], 1)} points, {point_range(quiet['ci95'])}): what it gains over the policy "
            "may be steadier chunks and not the critic's knowledge."
        )
    if "filtered_bc" in data.methods:
        caveats.append(
            "Filtered BC clones demonstrations and successful rollouts, one stored frame as much as another: where "
            "demonstrations store more frames than rollouts do, they are most of what it imitates. A difference from "
            "it is in part that."
        )
    caveats.append(
        "The intervals cover other scenes and other noise, not another training run: with another training seed the "
        "result may differ."
    )
    return caveats
