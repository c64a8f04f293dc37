"""The OGBench results: statistics against closed forms, nothing invented, nothing paired that is not a pair."""

import json
import math
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ogbench_example import method, write_example, write_run
from scipy import stats

from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.launch import run_recipe
from deas_vla.report import plots
from deas_vla.rollouts.statistics import wilson_interval
from studies.grid import Cell, grid_difference, grid_interval, grid_mean, success_interval
from studies.machine import machine_facts

# Last: a recipe may have the name of a library.
from studies.ogbench import results as ogbench_results
from studies.ogbench.report.summary import ResultsOptions
from studies.ogbench.report.write import write_ogbench_results

NAME = "cube-single-play"


@pytest.fixture(autouse=True)
def plain_figures(request, monkeypatch):
    """Figures are drawn where a test is about them: they take most of a page's time."""
    if not {"figures", "bytes"} & set(request.node.name.split("_")):
        monkeypatch.setattr(plots, "themed_svg", lambda *_: '<svg xmlns="http://www.w3.org/2000/svg"/>')


# ---- statistics ------------------------------------------------------------------------------------------------


def test_the_mean_counts_tasks_alike_whatever_their_runs():
    grid = {
        (0, 1): Cell((1, 2), np.array([1, 1])),
        (1, 1): Cell((1, 2), np.array([0, 0])),
        (0, 2): Cell((3, 4, 5, 6), np.array([1, 1, 1, 1])),
    }
    assert grid_mean(grid) == pytest.approx((0.5 + 1) / 2)


def test_one_run_is_the_plain_bootstrap():
    success = np.arange(200) < 60
    low, high = grid_interval({(0, 1): Cell(tuple(range(200)), success)})
    deviation = math.sqrt(0.3 * 0.7 / 200)
    assert low == pytest.approx(0.3 - 1.96 * deviation, abs=0.006)
    assert high == pytest.approx(0.3 + 1.96 * deviation, abs=0.006)


def runs_of(means, task: int = 1, scenes: int = 400) -> dict:
    """A grid of one task in which every scene of a run has the run's mean."""
    return {(seed, task): Cell(tuple(range(scenes)), np.full(scenes, mean)) for seed, mean in enumerate(means)}


def test_rule_10_over_several_trainings_the_unit_is_the_training():
    means = np.array([0.5, 0.6, 0.9])
    low, high = grid_interval(runs_of(means))
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    # Ten times the scenes say nothing more about another training.
    assert grid_interval(runs_of(means, scenes=4000)) == pytest.approx((low, high))


def test_tasks_that_are_trained_apart_are_strata():
    """Two tasks at different levels: what differs between tasks is no doubt, what differs within them is."""
    rng = np.random.default_rng(0)
    covered, narrow = [], []
    for _ in range(400):
        runs = [rng.normal(level, 0.1, 3) for level in (0.1, 0.5, 0.9)]
        grid = {key: cell for task, means in enumerate(runs) for key, cell in runs_of(means, task, 2).items()}
        low, high = grid_interval(grid)
        covered.append(low <= 0.5 <= high)
        narrow.append(high - low)
    assert 0.92 <= np.mean(covered) <= 0.99
    assert np.median(narrow) < 0.25


def test_tasks_that_share_a_training_are_one_unit():
    """A seed that is good on all tasks is one lucky training, not several."""
    means = np.linspace(0, 1, 12)
    grid = {key: cell for task in range(6) for key, cell in runs_of(means, task, 2).items()}
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert grid_interval(grid, shared=True) == pytest.approx((expected.low, expected.high))
    low, high = grid_interval(grid)
    assert high - low < (expected.high - expected.low) / 2


@pytest.mark.parametrize("outcome", [0, 1])
def test_episodes_that_all_end_alike_are_no_certainty(outcome):
    grid = {(seed, 1): Cell(tuple(range(20)), np.full(20, outcome, bool)) for seed in range(2)}
    assert success_interval(grid) == wilson_interval(40 * outcome, 40)
    low, high = grid_difference(grid, grid).ci95
    assert low < 0 < high


def test_a_rate_lies_in_its_interval_where_scenes_succeed_in_part():
    """The mean of two draws is a half as often as not."""
    values = np.zeros(50)
    values[0] = 0.5
    grid = {(0, task): Cell(tuple(range(50)), values) for task in range(10)}
    low, high = success_interval(grid)
    assert low < grid_mean(grid) < high
    halves = {(0, 1): Cell((1, 2, 3), np.full(3, 0.5))}
    ones = {(0, 1): Cell((1, 2, 3), np.ones(3))}
    difference = grid_difference(ones, halves)
    assert difference.ci95[0] < difference.difference == 0.5 < difference.ci95[1]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_a_difference_turned_around_is_its_negative(pairs):
    scenes = tuple(range(len(pairs)))
    a, b = ({(0, 1): Cell(scenes, np.array(side))} for side in zip(*pairs, strict=True))
    there, back = grid_difference(a, b), grid_difference(b, a)
    assert there.difference == -back.difference == pytest.approx(np.mean([x - y for x, y in pairs]))
    assert (there.wins, there.losses) == (back.losses, back.wins)
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]), abs=1e-6)


def test_only_runs_that_both_methods_have_are_paired_and_only_in_the_same_scenes():
    a = {(0, 1): Cell((1, 2), np.array([True, True])), (1, 1): Cell((1, 2), np.array([True, True]))}
    b = {(0, 1): Cell((1, 2), np.array([False, True]))}
    result = grid_difference(a, b)
    assert (result.difference, result.pairs, result.runs, result.seeds) == (0.5, 2, 1, 1)
    assert grid_difference(a, {(5, 1): a[0, 1]}) is None
    with pytest.raises(ValueError, match="different scenes"):
        grid_difference(a, {(0, 1): Cell((1, 3), np.array([True, True]))})


# ---- the page --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A small suite and its results; tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("ogbench")
    write_example(folder / "runs", tasks=(1, 2), seeds=(0, 1), episodes=12)
    write_json(folder / "runs" / "critic_update.json", {"cpu_ms_per_update": 41.0, "peak": {"gflops": 99.5}})
    write_json(folder / "runs" / "machine.json", machine_facts())
    write_ogbench_results(folder / "runs", folder / "results")
    return folder


@pytest.fixture
def runs(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole / "runs", tmp_path / "runs"))


def write(runs: Path, **options) -> tuple[dict, str]:
    """(data set of the JSON file, page)."""
    output = runs.parent / "results"
    write_ogbench_results(runs, output, ResultsOptions(**options))
    results = json.loads((output / "ogbench.json").read_text(encoding="utf-8"))
    return results["data_sets"][NAME] | {"targets": results["targets"]}, (output / "ogbench.md").read_text(
        encoding="utf-8"
    )


def verdicts(data: dict) -> dict[str, str]:
    return {row["target"]: row["verdict"] for row in data["targets"]}


def verdict(data: dict, word: str) -> str:
    return next(value for target, value in verdicts(data).items() if word in target)


def test_the_page_shows_its_figures_and_every_figure_is_shown(whole):
    page = (whole / "results" / "ogbench.md").read_text(encoding="utf-8")
    there = {path.name for path in (whole / "results").glob("*.svg")}
    assert set(re.findall(r"\]\((ogbench-[^)]*svg)\)", page)) == there
    assert len(there) == 6
    for name in there:
        root = ElementTree.parse(whole / "results" / name).getroot()
        used = set(re.findall(r"var\(--(\w+)\)", (whole / "results" / name).read_text(encoding="utf-8"))) - {"c"}
        style = next(child.text for child in root if child.tag.endswith("style"))
        assert all(style.count(f"--{color}:#") == 2 for color in used), "each colour has a light and a dark value"


def test_every_table_has_as_many_cells_as_columns(whole):
    page = (whole / "results" / "ogbench.md").read_text(encoding="utf-8")
    tables = [block.splitlines() for block in page.split("\n\n") if block.startswith("|")]
    assert len(tables) > 9
    for rows in tables:
        assert len({row.count("|") - row.count("\\|") for row in rows}) == 1, rows[0]


def test_the_same_runs_give_the_same_bytes(whole, tmp_path):
    write_ogbench_results(whole / "runs", tmp_path)
    first = {path.name: path.read_bytes() for path in (whole / "results").iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_numbers_are_those_of_the_files(whole):
    data = json.loads((whole / "results" / "ogbench.json").read_text(encoding="utf-8"))["data_sets"][NAME]
    files = sorted((whole / "runs" / NAME).glob("seed-*/task*/deas/evaluation/consensus-8.json"))
    episodes = [episode for file in files for episode in json.loads(file.read_text())["episodes"]]
    deas = data["agents"]["deas"]
    assert deas["mean"]["episodes"] == deas["episodes"] == len(episodes) == 48
    assert deas["mean"]["successes"] == sum(episode["success"] for episode in episodes)
    assert deas["mean"]["success"] == pytest.approx(np.mean([e["success"] for e in episodes]), abs=1e-4)
    # 150 s of its own, and 120 and 121 s of the behaviour policies of chunks of 5, for two tasks each.
    assert deas["cost"] == {"agent": 150.0, "behaviour_share": 60.25, "total": 210.25, "runs": 4}
    assert data["agents"]["bc"]["cost"]["agent"] == 0
    assert data["agents"]["filtered_bc"]["cost"]["behaviour_share"] == 0
    assert deas["evaluation_cpu_seconds_per_episode"] == pytest.approx(0.07)
    assert data["data"]["transitions"] == 200_000
    assert data["agents"]["iql"]["horizon"] == 1
    assert list(deas["discounts"].items()) == [("reward_discount", [0.9]), ("bootstrap_discount", [0.999])]
    ablation = next(row for row in data["ablations"] if row["variant"] == "deas@H=1")
    assert ablation["changes"] == {"deas.critic.horizon": [5, 1]}


def test_a_curve_ends_with_the_final_agent_in_the_scenes_of_the_curve(runs):
    path = runs / NAME / "seed-0" / "task1" / "deas" / "evaluation"
    for file in (path / "curve").glob("*.json"):
        content = json.loads(file.read_text())
        write_json(file, content | {"episodes": content["episodes"][4:8]})
    final = json.loads((path / "best-8.json").read_text())
    for row, episode in enumerate(final["episodes"]):
        episode["success"] = row in (5, 6, 7)
    write_json(path / "best-8.json", final)
    for other in runs.glob(f"{NAME}/seed-*/task*/*/evaluation/curve"):
        if other.parent != path:
            shutil.rmtree(other)
    data, _ = write(runs)
    points = data["curves"]["deas"]["points"]
    assert points["6000"]["successes"] == 3
    assert {point["episodes"] for point in points.values()} == {4}


def test_calibration_of_a_q_that_is_two_too_high(runs):
    for file in runs.glob(f"{NAME}/seed-*/task*/deas/evaluation/consensus-8.json"):
        content = json.loads(file.read_text())
        for episode in content["episodes"]:
            for decision in episode["decisions"]:
                decision["q"] = decision["mc"] + 2
            episode["decisions"][0]["mc"] = None  # not known: left out
        write_json(file, content)
    entry = write(runs)[0]["calibration"]["deas"]
    assert (entry["bias"], entry["bias_in_successes"], entry["rank_correlation"]) == (2, 2, 1)
    assert all(q == pytest.approx(value + 2, abs=0.01) for q, value in entry["bins"])


# ---- honesty ---------------------------------------------------------------------------------------------------


def test_a_missing_run_is_counted_and_a_missing_task_leaves_no_mean(runs):
    shutil.rmtree(runs / NAME / "seed-1" / "task2" / "qc")
    for seed in (0, 1):
        shutil.rmtree(runs / NAME / f"seed-{seed}" / "task2" / "fql")
    data, page = write(runs)
    qc, fql = data["agents"]["qc"], data["agents"]["fql"]
    assert (qc["runs"], qc["mean"]["runs"], qc["per_seed"]["1"]) == (3, 3, None)
    assert qc["main_minus_this"]["pairs"] == 36
    assert fql["mean"] is None and fql["per_task"]["2"] is None and fql["per_task"]["1"]["episodes"] == 24
    row = next(line for line in page.splitlines() if line.startswith("| FQL | first-1"))
    assert row.split("|")[3].strip() == "–" and "2 of 4" in row


def test_an_agent_that_was_never_run_is_nowhere_and_its_target_is_open(runs):
    for path in runs.glob(f"{NAME}/seed-*/task*/qc*"):
        shutil.rmtree(path)
    data, page = write(runs)
    assert "qc" not in data["agents"]
    assert verdict(data, "not behind QC") == "not measured" and verdict(data, "training cost") == "not measured"
    assert "Not compared yet: Q-chunking (QC)." in page


def test_runs_without_settings_times_or_decisions_still_make_a_page(tmp_path):
    rng = np.random.default_rng(0)
    content = method(rng, rng.random(5), 0.5)
    bare = {
        "method": content["method"],
        "episodes": [{"scene": e["scene"], "success": True} for e in content["episodes"]],
    }
    write_run(tmp_path / "runs" / NAME / "seed-0" / "task1" / "deas", {"best-8": bare})
    data, page = write(tmp_path / "runs")
    deas = data["agents"]["deas"]
    assert deas["cost"] is None and deas["evaluation_cpu_seconds_per_episode"] is None and data["data"] is None
    assert deas["mean"]["ci95"][0] < 1 and not data["calibration"]
    assert "Processor and versions: –." in page


def test_targets_that_are_missed_are_said_to_be(runs):
    for path in runs.glob(f"{NAME}/seed-*/task*"):
        shutil.rmtree(path / "bc")
        shutil.copytree(path / "deas", path / "bc")
        shutil.rmtree(path / "deas@H=1")
        shutil.copytree(path / "deas", path / "deas@H=1")
    data, page = write(runs)
    assert verdict(data, "ahead of BC") == "missed"
    assert verdict(data, "at least 5 tasks") == "missed"
    assert verdict(data, "CPU milliseconds") == "missed"
    assert verdict(data, "H = 1 is the worst") == "not shown"
    assert data["agents"]["bc"]["main_minus_this"]["verdict"] == "undecided"
    assert re.search(r"Targets missed: [^.]*ahead of BC", page)


def test_more_updates_count_only_as_long_as_they_cost_less(runs):
    data, _ = write(runs)
    assert verdict(data, "deas@updates=6000 not behind QC") == "met"
    for path in runs.glob(f"{NAME}/seed-*/task*/deas@updates=6000/stage.json"):
        write_json(path, json.loads(path.read_text()) | {"cpu_seconds": 1000.0})
    data, _ = write(runs)
    assert verdict(data, "deas@updates=6000 not behind QC") == "missed"


def test_an_order_against_the_paper_is_called_opposite(runs):
    for path in runs.glob(f"{NAME}/seed-*/task*"):
        for variant, wins in (("deas@head=hl_gauss", 0), ("deas", 1), ("deas@H=1", 2)):
            file = path / variant / "evaluation" / "best-8.json"
            content = json.loads(file.read_text())
            for place, episode in enumerate(content["episodes"]):
                episode["success"] = place % 2 < wins
            write_json(file, content)
    data, _ = write(runs)
    assert verdict(data, "HL-Gauss is better than a scalar") == "opposite"
    assert verdict(data, "H = 1 is the worst") == "opposite"


def test_only_the_seeds_that_are_asked_for_count(runs):
    data, _ = write(runs, seeds=[1])
    assert data["seeds"] == [1] and data["agents"]["deas"]["runs"] == 2
    with pytest.raises(UserError, match="holds no runs"):
        write(runs, seeds=[7])


def test_points_of_fewer_runs_do_not_bend_a_line(runs):
    (runs / NAME / "seed-0" / "task1" / "qc" / "evaluation" / "best-128.json").unlink()
    data, _ = write(runs)
    by_n = data["success_by_n"]["qc"]["best"]
    assert (by_n["32"]["runs"], by_n["128"]["runs"]) == (4, 3)
    row = next(row for row in data["selection"] if row["agent"] == "qc")
    assert row["many_minus_few"]["runs"] == 3


def test_figures_without_data_go(runs):
    write(runs)
    for path in runs.glob(f"{NAME}/seed-*/task*/*/evaluation/curve"):
        shutil.rmtree(path)
    _, page = write(runs)
    assert not (runs.parent / "results" / f"ogbench-{NAME}-curves.svg").exists()
    assert "during training" not in page


# ---- bad input -------------------------------------------------------------------------------------------------


def in_other_scenes(content: dict) -> dict:
    for episode in content["episodes"]:
        episode["scene"] += 1
    return content


def without_one(content: dict) -> dict:
    return content | {"episodes": content["episodes"][1:]}


@pytest.mark.parametrize("change", [in_other_scenes, without_one])
@pytest.mark.parametrize("file", ["qc/evaluation/best-8.json", "deas/evaluation/softmax-128.json"])
def test_rule_10_methods_in_different_scenes_are_refused(runs, change, file):
    path = runs / NAME / "seed-1" / "task2" / file
    write_json(path, change(json.loads(path.read_text())))
    with pytest.raises(UserError, match="in other scenes") as caught:
        write(runs)
    message = str(caught.value)
    assert "\n" not in message and "task2" in message and message.count(".json") == 2
    assert not (runs.parent / "results").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not an object"),
        ('{"episodes": []}', "no 'method'"),
        ('{"method": {"rule": "best", "num_candidates": 8}, "episodes": []}', "no episodes"),
        (
            '{"method": {"rule": "best", "num_candidates": 8}, "episodes": [{"scene": 1, "success": 2}]}',
            "neither true nor false",
        ),
        (
            '{"method": {"rule": "best", "num_candidates": 8}, "episodes": '
            '[{"scene": 1, "success": true}, {"scene": 1, "success": true}]}',
            "listed twice",
        ),
        ('{"method": {"rule": "best", "num_candidates": "x"}, "episodes": [{"scene": 1, "success": true}]}', "invalid"),
        ('{"method": null, "episodes": [{"scene": 1, "success": true}]}', "not an evaluation"),
    ],
)
def test_a_file_that_is_no_evaluation_is_named(runs, text, words):
    path = runs / NAME / "seed-0" / "task1" / "deas" / "evaluation" / "best-8.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        write(runs)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_recipe_says_in_one_line_that_there_are_no_runs(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    for runs, words in ((tmp_path / "none", "is not a folder"), (tmp_path / "runs", "holds no runs")):
        with pytest.raises(SystemExit) as caught:
            run_recipe(ogbench_results.main, ogbench_results.OGBenchResultsConfig, [f"--runs={runs}"])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err


def test_the_recipe_compares_agents_in_the_default_rule():
    from deas_vla.improvement.selection import SelectionConfig

    # best-8 is what the default rule plays from 8 candidates, and what agents without the other methods have.
    assert ogbench_results.OGBenchResultsConfig().methods == [f"{SelectionConfig().rule}-8", "best-8", "first-1"]
