"""report.html: one file that needs nothing else, for a screen or a phone, light or dark."""

import base64
import json
from html import escape

import numpy as np

from deas_vla.report import plots
from deas_vla.report.data import ReportData
from deas_vla.report.style import STYLE
from deas_vla.report.summary import counted, method_title, percent, point_range, points, signed

VERDICT_COLORS = {"gain": "good", "worse": "bad", "no_gain": "soft", "not_measured": "soft"}


def render_page(data: ReportData, summary: dict) -> str:
    """The page as HTML.

    Args:
        data: the raw outcomes, for the charts.
        summary: `summarize(data)`, for every number in words.

    Returns:
        A whole document without a reference to anything outside it.
    """
    parts = [_header(data, summary), _video(data), _methods(data, summary), _candidates(data, summary)]
    parts += [_critic(data, summary), _training(data, summary), _measured(data, summary)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(data.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        # No line break between a number and its per cent sign.
        + "\n".join(part for part in parts if part).replace(" %", "\u00a0%")
        + "\n</main>\n</body>\n</html>\n"
    )


def _header(data: ReportData, summary: dict) -> str:
    headline = summary["headline"]
    color = VERDICT_COLORS[headline["verdict"]]
    verdict, _, rest = headline["text"].partition(":")
    facts = []
    for name in data.primary[::-1]:
        method = summary["methods"][name]
        low, high = method["ci95"]
        title, episodes = method_title(name, data.candidates), counted(method["episodes"], "episode")
        note = f"{title}: {percent(low)} to {percent(high)}, {episodes}"
        facts.append(_fact(percent(method["success_rate"]), note, plots.METHOD_COLORS.get(name, "main")))
    paired = summary["paired"].get(headline["comparison"])
    if paired:
        p = plots.p_value(paired["p_value_scenes"])
        note = f"points of difference: {point_range(paired['ci95'])}; p by scene {p}"
        facts.append(_fact(points(paired["difference"]), note, color))
    headroom = summary["critic"]["headroom"]
    if headroom and headroom["share"] is not None:
        sure = _between(headroom["share_ci95"], percent)
        note = f"of what an oracle gains over the policy{sure}, {counted(headroom['scenes'], 'scene')}"
        facts.append(_fact(percent(headroom["share"]), note, "oracle"))
    heading = f'<span style="color:var(--{color})">{escape(verdict)}</span>:{escape(rest)}'
    return (
        f'<header>\n<div class="kicker">{escape(data.title)}</div>\n<h1>{heading}</h1>\n'
        f'<p class="detail-line">{escape(headline["detail"])}</p>\n<p>{escape(data.task)}</p>\n'
        f'<div class="facts">{"".join(facts)}</div>\n</header>'
    )


def _video(data: ReportData) -> str:
    if data.video is None:
        return ""
    encoded = base64.b64encode(data.video.read_bytes()).decode()
    return (
        '<figure class="card"><video controls autoplay muted loop playsinline '
        f'src="data:video/mp4;base64,{encoded}"></video>'
        f"<figcaption>{escape(data.video_caption)}</figcaption></figure>"
    )


def _methods(data: ReportData, summary: dict) -> str:
    dashed = " The dashed line is the policy." if "policy" in data.methods else ""
    return _section(
        "Every method on the same scenes",
        "All methods start from the same scenes with the same noise seeds, so that they can be compared pair by pair.",
        _card(
            "Success rate",
            f"Dots are rates, bars their 95 % Wilson intervals.{dashed}",
            plots.methods_chart(data, summary),
        ),
        _card(
            "Difference, in percentage points",
            "Bars are 95 % bootstrap intervals over scenes: grey where chance may explain the difference. "
            "p is McNemar's exact test; “by scene” also allows for samples of a scene being alike.",
            plots.differences_chart(data, summary),
        ),
    )


def _candidates(data: ReportData, summary: dict) -> str:
    cards = []
    if data.success_by_n:
        more = summary["more_candidates"]
        cards.append(
            _card("Success against N", more["text"] if more else "", plots.success_by_n_chart(data)),
        )
    ranking = summary["critic"]["ranking"]
    if ranking:
        cards.append(_card("The critic against the oracle", _ranking_text(summary), _ranking_chart(ranking)))
    if not cards:
        return ""
    about = "More candidates find better chunks, and also more chunks that only fool the critic."
    return _section("Choosing among candidates", about, *cards)


def _ranking_text(summary: dict) -> str:
    ranking, headroom = summary["critic"]["ranking"], summary["critic"]["headroom"]
    text = (
        f"At {ranking['decisions']} decisions in {ranking['scenes']} scenes each of {ranking['candidates']} "
        f"candidates was played in a branch of the simulator (each with its {ranking['returns']}). "
    )
    if not ranking["informative_decisions"]:
        return text + "All candidates of each decision came out alike, so that there was nothing to rank."
    text += (
        f"In {ranking['informative_decisions']} of them it mattered which was chosen: there the mean rank "
        f"correlation is {signed(ranking['spearman'])}{_between(ranking['spearman_ci95'], signed)}, and the "
        f"critic's choice gets {percent(ranking['captured'])}{_between(ranking['captured_ci95'], percent)} of "
        "what lies between chance and the best candidate. "
    )
    if headroom and headroom["share"] is not None:
        text += (
            f"Over whole episodes the oracle reaches {percent(headroom['oracle'])} against the policy's "
            f"{percent(headroom['policy'])}, best-of-N {percent(headroom['best_of_n'])}: "
            f"{percent(headroom['share'])}{_between(headroom['share_ci95'], percent)} of the headroom."
        )
    return text


def _between(interval: list[float] | None, form) -> str:
    return "" if interval is None else f" ({form(interval[0])} to {form(interval[1])})"


def _ranking_chart(ranking: dict) -> str:
    return plots.ranking_chart(ranking["spearman_per_decision"]) if ranking["informative_decisions"] else ""


def _critic(data: ReportData, summary: dict) -> str:
    cards, values, calibration = [], summary["critic"]["values"], summary["critic"]["calibration"]
    if values:
        text = (
            f"Median and middle half of {values['successes']} successes and {values['failures']} failures while they "
            "last, a few single episodes behind."
        )
        told = values["separation_by_step"]
        if told:
            first = next(iter(told))
            text += (
                f" At step {first} a later success has the higher value in {percent(told[first])} of cases "
                "(50 %: no information)."
            )
        cards.append(_card("Value against time", text, plots.value_chart(data.value_traces)))
    if calibration:
        correlation = calibration["pearson"]
        text = (
            f"{calibration['options']} chunks that were played. "
            + ("" if correlation is None else f"Correlation {correlation:.2f}; ")
            + f"Q is {abs(calibration['bias']):.1f} too {'high' if calibration['bias'] > 0 else 'low'} on average."
        )
        cards.append(_card("Q against what came of it", text, plots.calibration_chart(data.calibration)))
    about = "V should rise on the way to a success, and stay low where an episode fails."
    return _section("What the critic knows", about, *cards) if cards else ""


def _training(data: ReportData, summary: dict) -> str:
    cards = [_card(title, "", chart) for title, chart in plots.curve_charts(data.curves)]
    if data.seconds:
        total = f"{plots.duration(sum(data.seconds.values()))} in all"
        memory = data.peak_memory_bytes
        memory = "" if memory is None else f"; peak memory {memory / 1e9:.1f} GB"
        cards.append(_card("Time by stage", f"{total}{memory}.", plots.stages_chart(summary["seconds"])))
    return _section("Training and cost", "", *cards) if cards else ""


def _measured(data: ReportData, summary: dict) -> str:
    scenes = [
        (
            method_title(name, data.candidates),
            f"{_runs(played['scenes'])} × {counted(played['samples'], 'sample')}",
        )
        for name, played in summary["evaluation"].items()
    ]
    if data.collection_scenes is not None:
        scenes.append(
            ("Collection", f"{_runs(np.unique(data.collection_scenes).tolist())}: none of them is evaluated")
        )
    caveats = "".join(f"<li>{escape(caveat)}</li>" for caveat in summary["caveats"])
    config = json.dumps(summary["config"], indent=2, ensure_ascii=False)
    return _section(
        "What was measured, and how to do it again",
        "",
        f'<div class="card"><h3>To be kept in mind</h3><ul>{caveats}</ul></div>',
        f'<div class="card"><h3>Again</h3><pre>{escape(data.command)}</pre>'
        f"<details><summary>Scenes</summary>{_table(scenes)}</details>"
        + (f"<details><summary>Seeds</summary>{_table(data.seeds.items())}</details>" if data.seeds else "")
        + (
            f"<details><summary>Versions</summary>{_table(data.versions.items())}</details>"
            if data.versions
            else ""
        )
        + (
            f"<details><summary>Hashes</summary>{_table(data.hashes.items())}</details>"
            if data.hashes
            else ""
        )
        + (
            f"<details><summary>Configuration</summary><pre>{escape(config)}</pre></details>"
            if data.config
            else ""
        )
        + "</div>",
    )


def _runs(numbers: list[int]) -> str:
    """1, 2, 3, 7 as "1–3, 7"; more than six runs are cut, for people."""
    numbers, runs = sorted(numbers), []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    shown = ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs[:6]) + (
        ", …" if len(runs) > 6 else ""
    )
    return f"{counted(len(numbers), 'scene')} ({shown})"


def _section(title: str, about: str, *cards: str) -> str:
    about = f'<p class="about">{escape(about)}</p>' if about else ""
    return f'<section><h2>{escape(title)}</h2>{about}<div class="grid">{"".join(cards)}</div></section>'


def _card(title: str, text: str, body: str) -> str:
    text = f"<p>{escape(text)}</p>" if text else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{text}{body}</div>'


def _fact(value: str, note: str, color: str) -> str:
    return f'<div class="fact" style="--f:var(--{color})"><strong>{value}</strong><span>{escape(note)}</span></div>'


def _table(rows) -> str:
    cells = "".join(
        f"<tr><td>{escape(str(key))}</td><td>{escape(str(value))}</td></tr>" for key, value in rows
    )
    return f"<table>{cells}</table>"
