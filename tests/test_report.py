"""The report: its schema, its honesty, and that nothing in the data can break it."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_example import example, panels

from deas_vla.errors import UserError
from deas_vla.report.data import Calibration, Curve, OracleDecisions, Outcomes, ReportData, ValueTrace
from deas_vla.report.report import write_report
from deas_vla.report.summary import summarize
from deas_vla.report.video import Panel, compose, write_video
from deas_vla.rollouts.play import Decision
from deas_vla.rollouts.statistics import paired_difference, wilson_interval
from deas_vla.versions import collect_versions

VOID = {"meta", "br", "line", "path", "circle", "rect", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page: every tag closed in order, every attribute that could fetch something."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.references, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "poster", "data")]
        assert tag not in ("script", "link", "iframe", "object", "embed")

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_data(self, data):
        self.text.append(data)


def read(folder) -> tuple[dict, Page, str]:
    text = (folder / "report.html").read_text(encoding="utf-8")

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads((folder / "report.json").read_text(), parse_constant=refuse), Page(text), text


def methods(a: np.ndarray, b: np.ndarray, **more) -> ReportData:
    """A report of two methods, `a` best-of-N and `b` the policy."""
    scenes = np.arange(len(a))
    return ReportData(
        "title", "task", "command", {"best_of_n": Outcomes(scenes, a), "policy": Outcomes(scenes, b)}, **more
    )


def test_report_json_has_the_promised_fields(tmp_path):
    data = example()
    written = write_report(tmp_path, data)
    report, _, _ = read(tmp_path)
    assert report == json.loads(json.dumps(written))
    for name, method in data.methods.items():
        got = report["methods"][name]
        assert got["successes"] == method.success.sum() and got["episodes"] == method.success.size
        assert got["success_rate"] == method.success.mean()
        assert got["ci95"] == list(wilson_interval(method.successes, method.episodes))
    expected = paired_difference(data.methods["best_of_n"].success, data.methods["policy"].success)
    got = report["paired"]["best_of_n - policy"]
    assert (got["difference"], got["ci95"], got["p_value"]) == (
        expected["difference"],
        list(expected["ci95"]),
        expected["p_value"],
    )
    assert set(report["success_by_n"]) == {"1", "2", "4", "8", "16", "32"}
    assert report["success_by_n"]["8"]["ci95"] == report["methods"]["best_of_n"]["ci95"]
    for field in ("versions", "seeds", "hashes", "seconds", "config", "command", "peak_memory_bytes"):
        assert report[field] == getattr(data, field)


def test_page_is_whole_and_refers_to_nothing_outside(tmp_path):
    data = example(scenes=30)
    data.video = tmp_path / "rollout.mp4"
    write_video(data.video, panels(size=64, length=20), 20)
    write_report(tmp_path, data)
    summary, page, text = read(tmp_path)
    assert page.references and all(reference.startswith("data:") for reference in page.references)
    assert "url(" not in text and "@import" not in text and "http" not in re.sub(r'src="data:[^"]*"', "", text)
    assert {"h1", "img", "video", "table"} <= set(re.findall(r"<(\w+)", text))
    shown = " ".join(page.text)
    for name in ("Best of 8", "Worst of 8", "Oracle of 8", "Filtered BC", "3f1c3f1c", data.command):
        assert name in shown
    # A number that is shown is a number of report.json.
    assert f"{100 * summary['methods']['best_of_n']['success_rate']:.0f}\u00a0%" in shown


def test_same_data_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, example(scenes=20))
        write_video(tmp_path / name / "v.mp4", panels(size=64, length=20), 20)
    for file in ("report.html", "report.json", "v.mp4"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not list((tmp_path / "a").glob(".*"))


@pytest.mark.parametrize(
    ("wins", "losses", "verdict", "words"),
    [
        (30, 5, "gain", "Gain: Best of"),
        (12, 10, "no_gain", "No gain could be shown"),
        (5, 30, "worse", "Worse: Best of"),
    ],
)
def test_rule_10_headline_says_what_the_interval_says(tmp_path, wins, losses, verdict, words):
    a, b = np.zeros((100, 1), bool), np.zeros((100, 1), bool)
    a[:wins], b[wins : wins + losses] = True, True
    report = write_report(tmp_path, methods(a, b))
    assert report["headline"]["verdict"] == verdict and report["headline"]["text"].startswith(words)
    low, high = report["paired"]["best_of_n - policy"]["ci95"]
    assert (low > 0, high < 0) == (verdict == "gain", verdict == "worse")
    assert ("holds zero" in report["headline"]["detail"]) == (verdict == "no_gain")
    heading = re.search(r"<h1>(.*?)</h1>", read(tmp_path)[2]).group(1)
    assert re.sub(r"<.*?>", "", heading).replace("\u00a0", " ") == report["headline"]["text"]


def test_rule_10_a_handful_of_episodes_proves_nothing():
    won, lost = np.ones((5, 2), bool), np.zeros((5, 2), bool)
    for scenes in (1, 2, 4):
        headline = summarize(methods(won[:scenes], lost[:scenes]))["headline"]
        assert headline["verdict"] == "no_gain" and "holds zero" in headline["detail"]
    won[0, 0] = False
    headline = summarize(methods(won, lost))["headline"]
    assert headline["verdict"] == "no_gain" and "too few scenes" in headline["detail"]


def test_rule_10_evaluation_scenes_must_not_be_training_scenes():
    won = np.ones((4, 1), bool)
    with pytest.raises(UserError, match=r"scenes \[3\] were also used"):
        summarize(methods(won, won, collection_scenes=np.array([3, 77])))
    assert "unseen" in summarize(methods(won, won, collection_scenes=np.array([77])))["headline"]["detail"]
    unknown = summarize(methods(won, won))
    assert "unseen" not in unknown["headline"]["detail"] and any("not checked" in c for c in unknown["caveats"])


def test_rule_10_methods_on_fewer_scenes_are_compared_on_those_they_share():
    rng = np.random.default_rng(0)
    policy, oracle = (Outcomes(np.arange(50), rng.random((50, 3)) < 0.4), Outcomes([7, 3, 99], np.ones((3, 1), bool)))
    data = ReportData("t", "t", "c", {"policy": policy, "oracle": oracle}, primary=("oracle", "policy"))
    got = summarize(data)["paired"]["oracle - policy"]
    assert (got["scenes"], got["pairs"]) == (2, 2)
    assert got["difference"] == pytest.approx(1 - policy.success[[7, 3], 0].mean())


def test_rule_10_no_common_scene_is_said_not_hidden(tmp_path):
    data = methods(np.ones((3, 1), bool), np.ones((3, 1), bool))
    data.methods["policy"] = Outcomes([10, 11, 12], np.zeros((3, 1), bool))
    report = write_report(tmp_path, data)
    assert report["headline"]["verdict"] == "not_measured" and report["paired"] == {}


def test_rule_10_methods_that_should_be_equal_and_are_not_are_pointed_out():
    a, b = np.zeros((60, 1), bool), np.zeros((60, 1), bool)
    a[:20] = True
    data = methods(a, b)
    data.methods["random_candidate"] = data.methods["best_of_n"]
    assert any("same distribution" in caveat for caveat in summarize(data)["caveats"])
    # With less noise, a random candidate is not the policy: it is one candidate.
    data.methods["best_of_1"] = data.methods["best_of_n"]
    assert not any("same distribution" in caveat for caveat in summarize(data)["caveats"])
    data.methods["best_of_1"] = data.methods["policy"]
    assert any("policy with less noise have the same" in caveat for caveat in summarize(data)["caveats"])


def test_a_gain_that_playing_without_noise_explains_is_pointed_out():
    policy, better = np.zeros((60, 2), bool), np.zeros((60, 2), bool)
    better[:20] = True
    data = methods(better, policy)
    data.methods["zero_noise"] = Outcomes(data.methods["policy"].scenes, better[:, :1])
    assert any("steadier chunks" in caveat for caveat in summarize(data)["caveats"])
    data.methods["zero_noise"] = Outcomes(data.methods["policy"].scenes, policy[:, :1])
    assert not any("steadier chunks" in caveat for caveat in summarize(data)["caveats"])


def test_missing_method_is_named():
    with pytest.raises(UserError, match="needs method best_of_n"):
        summarize(ReportData("t", "t", "c", {"policy": Outcomes([0], np.ones((1, 1), bool))}))


def test_more_candidates_that_hurt_are_reported():
    def outcomes(successes):
        success = np.zeros((100, 1), bool)
        success[:successes] = True
        return Outcomes(np.arange(100), success)

    data = methods(np.ones((4, 1), bool), np.ones((4, 1), bool))
    for rates, words in (
        ({1: 40, 8: 60, 32: 30}, "More candidates hurt: N = 32 is −30.0 points against N = 8"),
        ({1: 40, 8: 60, 32: 59}, "the fall may be chance"),
        ({1: 40, 8: 50, 32: 60}, "highest at the largest N"),
        ({1: 40, 8: 30, 32: 40}, "No larger N does better than N = 1: success at N = 32 is the same."),
    ):
        data.success_by_n = {n: outcomes(k) for n, k in rates.items()}
        assert words in summarize(data)["more_candidates"]["text"]


ONE = np.ones((1, 1), bool)
DEGENERATE = {
    "one episode": lambda: methods(ONE, ~ONE),
    "all succeed": lambda: methods(np.ones((5, 2), bool), np.ones((5, 2), bool)),
    "none succeeds": lambda: methods(np.zeros((5, 2), bool), np.zeros((5, 2), bool)),
    "one N": lambda: methods(ONE, ONE, success_by_n={1: Outcomes([0], ~ONE)}),
    "one point traces": lambda: methods(ONE, ONE, value_traces=[ValueTrace(np.array([0]), np.array([-3.0]), True)]),
    "failures only": lambda: methods(ONE, ONE, value_traces=[ValueTrace(np.arange(3), np.ones(3), False)] * 4),
    "one calibration point": lambda: methods(
        ONE, ONE, calibration=Calibration(np.array([-3.0]), np.array([-2.0]), np.array(["success"]))
    ),
    "no calibration point": lambda: methods(ONE, ONE, calibration=Calibration(np.zeros(0), np.zeros(0), np.zeros(0))),
    "constant Q": lambda: methods(
        ONE, ONE, calibration=Calibration(np.full(5, -3.0), np.full(5, -3.0), np.full(5, "<b>&odd"))
    ),
    "oracle sees no difference": lambda: methods(
        ONE, ONE, oracle_decisions=OracleDecisions(np.zeros((2, 4)), np.ones((2, 4)), np.arange(2), "x")
    ),
    "no decision": lambda: methods(
        ONE, ONE, oracle_decisions=OracleDecisions(np.zeros((0, 4)), np.zeros((0, 4)), np.zeros(0), "x")
    ),
    "diverged curve": lambda: methods(
        ONE, ONE, curves={"critic/loss": Curve(np.arange(3), np.array([1.0, np.inf, np.nan])), "x": Curve([], [])}
    ),
    "single update": lambda: methods(ONE, ONE, curves={"policy/loss": Curve(np.array([0]), np.array([2.0]))}),
    "instant stage": lambda: methods(ONE, ONE, seconds={"report": 0.0}),
    "markup in texts": lambda: ReportData(
        "<i>",
        "a & b",
        "x > y",
        {"my<method": Outcomes([0], ONE), "policy": Outcomes([0], ONE)},
        ("my<method", "policy"),
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_data_makes_a_report(tmp_path, name):
    write_report(tmp_path, DEGENERATE[name]())
    _, page, text = read(tmp_path)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)
    assert "To be kept in mind" in page.text


def test_rule_13_the_head_of_the_page_names_the_preset(tmp_path):
    write_report(tmp_path, methods(ONE, ~ONE, preset="published (hl-gauss head)"))
    text = read(tmp_path)[2]
    assert text.count("preset published (hl-gauss head)") == 1
    assert "preset published (hl-gauss head)" in text[text.index("<header>") : text.index("</header>")]


def test_one_of_a_thing_is_not_plural(tmp_path):
    data = methods(ONE, ~ONE, value_traces=[ValueTrace(np.arange(3), np.ones(3), False)])
    data.oracle_decisions = OracleDecisions(np.zeros((1, 4)), np.ones((1, 4)), np.zeros(1), "x")
    data.calibration = Calibration(np.array([-3.0]), np.array([-2.0]), np.array(["success"]))
    write_report(tmp_path, data)
    shown = " ".join(read(tmp_path)[1].text)
    assert "At 1 decision in 1 scene each of 4 candidates" in shown
    assert "0 successes and 1 failure while" in shown and "1 chunk that was played" in shown
    assert not re.search(r"\b1 (decision|scene|candidate|success|failure|episode|sample|chunk)e?s\b", shown)


def test_versions_name_what_ran():
    versions = collect_versions()
    assert versions["numpy"] == np.__version__ and versions["python"].startswith("3.")


def test_video_plays_back_what_was_drawn(tmp_path):
    av = pytest.importorskip("av")
    rollouts = panels(size=96, length=24)
    drawn = list(compose(rollouts, 20))
    write_video(tmp_path / "v.mp4", rollouts, 20, hold_seconds=0.5)
    with av.open(str(tmp_path / "v.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 20
        played = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    longest = max(len(panel.frames) for panel in rollouts)
    assert len(drawn) == longest and len(played) == longest + 10
    assert played[0].shape == drawn[0].shape and np.shape(drawn[0])[1] == 2 * 96
    for i in (0, longest // 2, longest - 1):
        assert np.abs(played[i].astype(int) - drawn[i]).mean() < 6
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


def test_video_shows_value_and_success_only_once_they_are_there():
    frames = [np.full((64, 97, 3), 128, np.uint8)] * 12
    said = [Decision(step, 0, value) for step, value in ((0, -50.0), (4, -10.0), (8, 0.0))]
    said[1].scores = [-9.0, -20.0]
    with_value, without, scale = (Panel("a", frames, said, 8), Panel("a", frames, said[:1]), Panel("s", frames, said))
    shown = [picture[:, :97] for picture in compose([with_value, scale], 20)]
    plain = [picture[:, :97] for picture in compose([without, scale], 20)]
    assert all(picture.shape[1] % 2 == 0 and picture.shape[0] % 2 == 0 for picture in compose([with_value], 20))
    strip, picture = slice(60, 162), slice(162, None)
    assert np.array_equal(shown[3][strip], plain[3][strip]) and not np.array_equal(shown[4][strip], plain[4][strip])
    assert np.array_equal(shown[7][picture], plain[7][picture]) and not np.array_equal(
        shown[8][picture], plain[8][picture]
    )
    assert all((frame == 128).all() for frame in frames)


def test_video_refuses_pictures_of_different_sizes(tmp_path):
    small, large = np.zeros((8, 8, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        write_video(tmp_path / "v.mp4", [Panel("a", [small, large])], 20)
    assert not list(tmp_path.iterdir())
