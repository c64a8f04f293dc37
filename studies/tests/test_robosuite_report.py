"""The page of robosuite's tasks: every verdict follows from what was played, missed ones included.

Runs come one by one, and are kept as records when their folders are gone: the page is the same.
"""

import json
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest

from deas_vla.config import parse
from deas_vla.errors import UserError
from deas_vla.report import plots

# Last: a recipe may have the name of a library.
from studies.robosuite import results as robosuite_results
from studies.robosuite.figures import drawn
from studies.robosuite.page import page
from studies.robosuite.summary import TASKS, by_count, run_names, summarize
from studies.robosuite.write import write_robosuite_results
from studies.runs import method_grids, read_run, run_of, run_record

SEEDS = [1, 2, 3]
# Share of the policy's failures that each method turns into successes.
METHODS = {
    "best_of_n": 0.4,
    "filtered_bc": 0.3,
    "advantage_weighted": 0.5,
    "advantage_weighted + best_of_n": 0.7,
    "second_iteration": 0.8,
    "second_iteration + best_of_n": 0.9,
    "iql": 0.1,
    "zero_noise": 0.2,
    "best_of_2": 0.2,
    "oracle": 0.6,
}
FIGURES = ("robosuite-methods.svg", "robosuite-success-by-n.svg")


@pytest.fixture(autouse=True)
def plain_figures(request, monkeypatch):
    """Figures are drawn where a test is about them: they take most of a page's time."""
    if "figures" not in request.node.name:
        monkeypatch.setattr(plots, "themed_svg", lambda *_: '<svg xmlns="http://www.w3.org/2000/svg"/>')


# The same of what plays without noise, in other scenes, once.
QUIET = {"policy": 0.2, "filtered_bc": 0.3, "advantage_weighted": 0.6, "second_iteration": 0.7}
FEW = {"best_of_n": 0.4, "advantage_weighted": 0.5, "oracle": 0.6}


def write_run(folder, task, seed, methods=METHODS, scenes=200, seconds=60.0, processes=2, attempts=1, quiet=None):
    played = ["evaluation", *(["without_noise"] if quiet else [])]
    for name in ("demonstrations", "policy", "rollouts", "critic", *played):
        settings = {"seed": seed} | ({"tasks": [task]} if name in played else {})
        if name == "evaluation":
            settings |= {"evaluation": {"num_candidates": 8, "samples": 2}}
        (folder / name).mkdir(parents=True)
        about = {"settings": settings, "seconds": seconds, "peak_memory_bytes": 2_000_000_000 + 10**8 * seed}
        about |= {"fingerprint": "0", "inputs": {}, "sources": {}, "processes": processes, "attempts": attempts}
        (folder / name / "stage.json").write_text(json.dumps(about))
    rng = np.random.default_rng((TASKS.index(task), seed))
    base, luck = rng.random((scenes, 2)) < 0.4, rng.random((scenes, 2))
    place = folder / "evaluation" / "methods" / task
    place.mkdir(parents=True)
    for method, share in ({"policy": 0.0} | methods).items():
        success = base | (luck < share) if share >= 0 else base & (luck > -share)
        # The oracle plays a few scenes once.
        success = success[:20, :1] if method == "oracle" else success
        records = [
            {"scene": 100 + scene, "sample": sample, "success": bool(success[scene, sample])}
            for scene in range(len(success))
            for sample in range(success.shape[1])
        ]
        (place / f"{method}.json").write_text(json.dumps(records))
    if quiet:
        place = folder / "without_noise" / "methods" / task
        place.mkdir(parents=True)
        for method, share in quiet.items():
            success = base[:, 0] | (luck[:, 0] < share)
            records = [{"scene": 900 + scene, "sample": 0, "success": bool(won)} for scene, won in enumerate(success)]
            (place / f"{method}.json").write_text(json.dumps(records))
    return folder


def write_runs(folder, *, seeds=SEEDS, tasks=TASKS, **options):
    for seed in seeds:
        for task in tasks:
            write_run(folder / f"{task}-{seed}", task, seed, **options)
    return folder


def write_ablation(folder, gain=0.04):
    """What studies/ablations/critic.py leaves."""
    score = {"gain": gain, "gain_ci95": [0.02, 0.06], "headroom": 0.3, "spearman": 0.14, "spearman_ci95": None}
    variant = {"flags": [], "critics": 2, "seconds": 180.0, "score": score | {"worst": -0.05}}
    variant["over_default"] = None
    folder.mkdir(parents=True, exist_ok=True)
    ablation = {"decisions": 956, "scenes": 520, "possible": {}, "variants": {"default": variant}}
    (folder / "ablation.json").write_text(json.dumps(ablation))
    return folder


def write_policy_ablation(folder):
    """What studies/ablations/policy.py leaves."""
    alone = {"success": 0.65, "ci95": [0.6, 0.7], "over_default": None}
    quiet = {"success": 0.7, "ci95": [0.65, 0.75], "over_default": None}
    chosen = {"success": 0.8, "ci95": [0.75, 0.85], "over_default": None}
    variant = {"policies": 2, "seconds": 95.2, "alone": alone, "zero_noise": quiet, "best_of_n": chosen}
    ablation = {"scenes": 200, "candidates": 8, "base": {"alone": alone}, "variants": {"default": variant}}
    folder.mkdir(parents=True)
    (folder / "ablation.json").write_text(json.dumps(ablation))
    return folder


def write_second_iteration_ablation(folder):
    """What studies/ablations/second_iteration.py leaves."""
    level = {"success": 0.82, "ci95": [0.78, 0.86]}
    over = {"difference": 0.03, "ci95": [-0.01, 0.07]}
    pairings = {
        "first iteration": {"success": {"mean": level, "per_task": {"lift": level}}},
        "second iteration": {
            "success": {"mean": level, "per_task": {"lift": level}},
            "against": "first iteration",
            "difference": {"mean": over, "per_task": {"lift": over}},
        },
    }
    ablation = {"scenes": 200, "runs": ["lift-1", "lift-2"], "tasks": ["lift"], "seeds": [1, 2], "pairings": pairings}
    folder.mkdir(parents=True)
    (folder / "ablation.json").write_text(json.dumps(ablation))
    return folder


def contents(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def verdicts(results) -> list:
    return [row["met"] for row in results["targets"]]


def test_what_was_played_is_what_the_page_says(tmp_path):
    runs = write_runs(tmp_path / "runs")
    results = write_robosuite_results(runs, tmp_path / "out", SEEDS, commit="0123abc")
    assert all(verdicts(results)), results["targets"]
    success, gains = results["success"], results["gain_over_policy"]
    for method, share in METHODS.items():
        if method != "oracle":
            assert success[method]["mean"]["success"] == pytest.approx(0.4 + 0.6 * share, abs=0.03)
            difference = success[method]["mean"]["success"] - success["policy"]["mean"]["success"]
            assert gains[method]["mean"]["difference"] == pytest.approx(difference)
    # Luck is shared: best-of-N gets 0.4 / 0.6 of what the oracle gets in the same scenes.
    assert results["headroom"]["mean"] == pytest.approx(0.4 / 0.6, abs=0.12)
    ahead = results["compared"]["weighted_over_cloned"]["mean"]
    assert ahead["difference"] == pytest.approx(0.6 * 0.2, abs=0.03) and ahead["losses"] == 0
    text = (tmp_path / "out" / "robosuite.md").read_text()
    assert "Commit `0123abc` fixed" in text and "not shown" not in text and "| 2 |" in text
    assert "| stack | 1, 2, 3 | 5, 5, 5 | 2, 2, 2 | 1, 1, 1 | 2.3 GB |" in text and "not made yet" not in text
    assert "without_noise" not in results and "less noise" not in text
    assert json.loads((tmp_path / "out" / "robosuite.json").read_text()) == results
    for figure in FIGURES:
        assert f"({figure})" in text and (tmp_path / "out" / figure).is_file()


def test_what_is_learnt_besides_less_noise_has_a_table(tmp_path):
    runs, out = write_runs(tmp_path / "runs", methods=FEW, quiet=QUIET), tmp_path / "out"
    played = write_robosuite_results(runs, out, SEEDS, commit="0123abc")["without_noise"]
    for method, share in QUIET.items():
        assert played["success"][method]["mean"]["success"] == pytest.approx(0.4 + 0.6 * share, abs=0.04)
    assert played["compared"].keys() == {
        "cloned_over_policy", "weighted_over_policy", "weighted_over_cloned", "second_over_first"
    }  # fmt: skip
    ahead = played["compared"]["weighted_over_cloned"]
    assert ahead["mean"]["difference"] == pytest.approx(0.6 * 0.3, abs=0.03) and ahead["mean"]["losses"] == 0
    text = (out / "robosuite.md").read_text()
    assert "What is learnt besides less noise" in text
    assert f"+{100 * ahead['per_task']['stack']['difference']:.1f} (" in text
    # The records hold it.
    shutil.rmtree(runs)
    write_robosuite_results(runs, out, SEEDS)
    assert (out / "robosuite.md").read_text() == text


def test_runs_of_which_some_never_played_without_noise_are_not_one_result(tmp_path):
    runs = write_runs(tmp_path / "runs", tasks=["lift"], seeds=[1, 2], methods=FEW, scenes=8, quiet=QUIET)
    write_run(runs / "lift-3", "lift", 3, FEW, scenes=8)
    with pytest.raises(UserError, match="lift differ in more than their seeds"):
        write_robosuite_results(runs, tmp_path / "out", SEEDS, commit="0")


def test_the_figures_show_the_numbers_of_the_page(tmp_path):
    results = write_robosuite_results(write_runs(tmp_path / "runs"), tmp_path / "out", SEEDS, commit="0123abc")
    figures = drawn(results)

    # A column an average and a task, a row a method.
    for place, column in enumerate(figures["methods"].axes):
        at = {line.get_gid(): line.get_xdata() for line in column.lines if line.get_gid()}
        for method in ("policy", "best_of_n", "advantage_weighted", "advantage_weighted + best_of_n"):
            assert at[method] == pytest.approx([100 * shown(results, method)[place]])
    # One, two and eight candidates in each panel.
    for place, panel in enumerate(axis for axis in figures["success-by-n"].axes if axis.get_visible()):
        heights = max((line.get_ydata() for line in panel.lines), key=len)
        levels = [shown(results, method)[place] for method in by_count(results).values()]
        assert len(levels) > 2 and heights == pytest.approx([100 * level for level in levels])
    for figure in FIGURES:
        ElementTree.parse(tmp_path / "out" / figure)


def shown(results, method) -> list[float]:
    """Success on average and on every task."""
    level = results["success"][method]
    return [level["mean"]["success"], *(level["per_task"][task]["success"] for task in TASKS)]


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"best_of_n": 0.1}, [1, 3]),
        ({"best_of_n": -0.2}, [1, 2, 3]),
        ({"advantage_weighted": 0.2}, [4, 5]),
        ({"advantage_weighted": 0.33}, [5]),
        ({"advantage_weighted + best_of_n": 0.45}, [6]),
        ({"second_iteration": 0.45}, [8]),
        ({"second_iteration + best_of_n": 0.6}, [9]),
    ],
)
def test_what_is_missed_is_said(tmp_path, changed, missed):
    runs = write_runs(tmp_path / "runs", methods=METHODS | changed)
    found = verdicts(write_robosuite_results(runs, tmp_path / "out", SEEDS, commit="0"))
    assert not any(found[number] for number in missed)
    assert "**not shown**" in (tmp_path / "out" / "robosuite.md").read_text()


@pytest.mark.parametrize(
    ("options", "missed"),
    [({"seeds": [1, 2]}, 0), ({"scenes": 199}, 0), ({"seconds": 600}, -1)],
    ids=["seeds", "scenes", "minutes"],
)
def test_too_little_and_too_slow_shows_nothing(tmp_path, options, missed):
    runs = write_runs(tmp_path / "runs", methods=FEW, **options)
    results = write_robosuite_results(runs, tmp_path / "out", options.get("seeds", SEEDS), commit="0")
    assert verdicts(results)[missed] is False and verdicts(results)[2] is True


def test_a_run_on_one_core_does_not_tell_how_long_two_take(tmp_path):
    runs = write_runs(tmp_path / "runs", methods=FEW, processes=1, seconds=600)
    assert verdicts(write_robosuite_results(runs, tmp_path / "out", SEEDS, commit="0"))[-1] is None
    assert (
        "| lift | 1, 2, 3 | 50, 50, 50 | 1, 1, 1 | 1, 1, 1 | 2.3 GB |"
        in (tmp_path / "out" / "robosuite.md").read_text()
    )


def test_a_run_that_was_interrupted_does_not_tell_how_long_one_takes(tmp_path):
    runs = write_runs(tmp_path / "runs", methods=FEW, attempts=2, seconds=60)
    assert verdicts(write_robosuite_results(runs, tmp_path / "out", SEEDS, commit="0"))[-1] is None


def test_an_method_that_was_not_played_is_not_measured(tmp_path):
    runs = write_runs(tmp_path / "runs", seeds=[1], tasks=["lift"], methods={"best_of_n": 0.4})
    results = write_robosuite_results(runs, tmp_path / "out", [1], commit="0")
    assert verdicts(results)[3:10] == [None] * 7
    assert "not measured" in (tmp_path / "out" / "robosuite.md").read_text()


def test_runs_that_are_not_one_result_are_refused_and_nothing_is_kept(tmp_path):
    runs, out = write_runs(tmp_path / "runs", tasks=["lift"], methods=FEW, scenes=8), tmp_path / "out"
    shutil.copytree(runs / "lift-1", runs / "door-1")
    with pytest.raises(UserError, match="called door-1 is the run lift-1: the runs of one page"):
        write_robosuite_results(runs, out, SEEDS, commit="0")
    shutil.rmtree(runs / "door-1")
    path = runs / "lift-1" / "critic" / "stage.json"
    about = json.loads(path.read_text())
    about["settings"]["steps"] = 7
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match="lift differ in more than their seeds"):
        write_robosuite_results(runs, out, SEEDS, commit="0")
    assert not out.exists()


# ---- records ----------------------------------------------------------------------------------------------------


def test_a_record_gives_the_same_grids_and_the_same_page_as_its_run(tmp_path):
    runs, out = write_runs(tmp_path / "runs", methods=FEW, scenes=8), tmp_path / "out"
    results = write_robosuite_results(runs, out, SEEDS, commit="0123abc")
    read = {name: read_run(runs / name) for name in run_names(SEEDS)}
    kept = [run_of(json.loads((out / "robosuite" / f"{name}.json").read_text())) for name in read]

    expected, found = (method_grids(some, list(TASKS)) for some in (read.values(), kept))
    assert expected.keys() == found.keys() and set(found) == {"policy", *FEW}
    for method, grid in expected.items():
        assert grid.keys() == found[method].keys()
        for key, cell in grid.items():
            assert cell.scenes == found[method][key].scenes
            np.testing.assert_array_equal(cell.values, found[method][key].values)

    extra = {"commit": "0123abc", "peak_memory_bytes": 2_300_000_000, "processes": 2, "attempts": 1}
    from_folders = summarize({name: run | extra for name, run in read.items()}, SEEDS)
    from_folders |= {"critic_ablations": {}, "policy_ablations": {}, "second_iteration_ablations": {}}
    assert from_folders == results
    assert page(from_folders) == (out / "robosuite.md").read_text()


def test_scenes_with_a_gap_are_kept_too(tmp_path):
    run = write_run(tmp_path / "lift-1", "lift", 1, FEW, scenes=8)
    path = run / "evaluation" / "methods" / "lift" / "policy.json"
    gap = [record for record in json.loads(path.read_text()) if record["scene"] != 103]
    path.write_text(json.dumps(gap))
    record = json.loads(json.dumps(run_record(run, "0")))
    assert run_of(record)["methods"]["policy"]["lift"] == gap


def test_a_record_keeps_what_the_critic_knew_and_no_long_list(tmp_path):
    run = write_run(tmp_path / "lift-1", "lift", 1, FEW, scenes=8)
    ranking = {"spearman": 0.2, "spearman_ci95": [0.1, 0.3]}
    critic = {"values": None, "ranking": ranking | {"spearman_per_decision": [0.1] * 400}}
    (run / "report.json").write_text(json.dumps({"critic": critic, "methods": {}}))
    record = run_record(run, "0")
    assert record["critic"] == {"values": None, "ranking": ranking}
    assert record["peak_memory_bytes"] == 2_100_000_000
    assert len(json.dumps(record["methods"]["policy"])) < 120


def test_runs_that_come_one_by_one_make_the_same_files(tmp_path):
    runs, ablation = (
        write_runs(tmp_path / "runs", methods=FEW, scenes=8),
        write_ablation(tmp_path / "ablation" / "lift"),
    )
    once, twice = tmp_path / "once", tmp_path / "twice"
    write_robosuite_results(runs, once, SEEDS, critic_ablations=[ablation], commit="0123abc")
    # On one machine, and then on another that has other runs.
    first = [f"door-{seed}" for seed in SEEDS] + ["lift-2"]
    for name in first:
        shutil.copytree(runs / name, tmp_path / "first" / name)
        shutil.rmtree(runs / name)
    write_robosuite_results(tmp_path / "first", twice, SEEDS, critic_ablations=[ablation], commit="0123abc")
    write_robosuite_results(runs, twice, SEEDS, commit="0123abc")
    assert contents(twice) == contents(once) and len(contents(once)) == 12 + 1 + 2 + len(FIGURES)
    # And when no folder is left.
    shutil.rmtree(runs)
    write_robosuite_results(runs, twice, SEEDS)
    assert contents(twice) == contents(once)
    assert "Ingredients of the critic: lift" in (twice / "robosuite.md").read_text()
    # An ablation that went on replaces what was kept of it.
    write_robosuite_results(runs, twice, SEEDS, critic_ablations=[write_ablation(ablation, gain=0.09)])
    assert "**+9.0**" in (twice / "robosuite.md").read_text()
    with pytest.raises(UserError, match="has no ablation"):
        write_robosuite_results(runs, twice, SEEDS, critic_ablations=[tmp_path])
    # The other kind of ablation has a table of its own.
    write_robosuite_results(
        runs, twice, SEEDS, policy_ablations=[write_policy_ablation(tmp_path / "policies" / "lift")]
    )
    text = (twice / "robosuite.md").read_text()
    assert "Ingredients of advantage weighting: lift" in text and "**+9.0**" in text
    levels = "65.0 (60.0 to 70.0) | – | 70.0 (65.0 to 75.0) | – | 80.0 (75.0 to 85.0) | –"
    assert f"| `default` | {levels} | 2 | 95 |" in text
    with pytest.raises(UserError, match=r"studies\.ablations\.policy"):
        write_robosuite_results(runs, twice, SEEDS, policy_ablations=[tmp_path])
    # And so has that of two iterations, which is kept as well.
    write_robosuite_results(
        runs, twice, SEEDS, second_iteration_ablations=[write_second_iteration_ablation(tmp_path / "rounds" / "all")]
    )
    write_robosuite_results(runs, twice, SEEDS)
    text = (twice / "robosuite.md").read_text()
    assert "Two iterations where a critic chooses: all" in text and "2 runs: seeds 1, 2 of each task." in text
    rates, gaps = "82 (78.0 to 86.0) | 82 (78.0 to 86.0)", "+3.0 (−1.0 to +7.0) | +3.0 (−1.0 to +7.0)"
    assert f"| second iteration | {rates} |" in text and f"| second iteration − first iteration | {gaps} |" in text


def test_runs_that_are_missing_are_named_and_nothing_is_shown(tmp_path):
    runs, out = write_runs(tmp_path / "runs"), tmp_path / "out"
    for name in ("stack-1", "door-1", "door-2", "door-3"):
        shutil.rmtree(runs / name)
    results = write_robosuite_results(runs, out, SEEDS, commit="0")
    text = (out / "robosuite.md").read_text()
    assert "Runs that are not made yet: stack 1, door 1, door 2, door 3." in text
    assert "3 tasks of robosuite" in text and "| stack | 2, 3 |" in text and "| shown |" not in text
    # All of it would be shown by the runs that are there, but for their number.
    assert verdicts(results) == [False] * len(results["targets"])
    means = [results["success"]["policy"]["per_task"][task]["success"] for task in results["tasks"]]
    assert results["success"]["policy"]["mean"]["success"] == pytest.approx(np.mean(means))


def test_a_run_that_changed_is_refused_by_name(tmp_path):
    runs, out = write_runs(tmp_path / "runs", seeds=[1], methods=FEW, scenes=8), tmp_path / "out"
    write_robosuite_results(runs, out, [1], commit="0123abc")
    before = contents(out)
    # The same run with a later commit: its record stays.
    write_robosuite_results(runs, out, [1], commit="4567def")
    assert contents(out) == before
    path = runs / "lift-1" / "evaluation" / "methods" / "lift" / "policy.json"
    records = json.loads(path.read_text())
    records[3]["success"] = not records[3]["success"]
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=r"robosuite/lift-1\.json .*\(methods\): delete the file.*played once"):
        write_robosuite_results(runs, out, [1], commit="0123abc")
    assert contents(out) == before
    (out / "robosuite" / "lift-1.json").unlink()
    results = write_robosuite_results(runs, out, [1], commit="4567def")
    assert results["commits"] == ["4567def", "0123abc"]
    assert "Commits `4567def`, `0123abc` fixed" in (out / "robosuite.md").read_text()


def recipe(*flags):
    config = parse(robosuite_results.RobosuiteResultsConfig, list(flags), prog="robosuite_results")
    robosuite_results.main(config)


def test_the_recipe_skips_what_is_not_finished_and_asks_for_the_commit(tmp_path, capsys):
    runs, out = write_runs(tmp_path / "runs", seeds=[1], methods=FEW, scenes=8), tmp_path / "out"
    (runs / "stack-1" / "evaluation" / "stage.json").unlink()
    flags = [f"--runs={runs}", f"--output={out}", "--seeds=1"]
    with pytest.raises(UserError, match="which commit fixed the settings of lift-1, pick_place_can-1, door-1"):
        recipe(*flags)
    with pytest.raises(UserError, match=r"seeds 5: run studies.robosuite.suite first"):
        recipe(*flags[:2], "--seeds=5", "--commit=0")
    assert not out.exists()
    recipe(*flags, "--commit=0123abc")
    told = capsys.readouterr().out
    assert "stack-1: skipped, its evaluation is not finished" in told and "not made yet: stack 1" in told
    before = contents(out)
    recipe(*flags)
    assert contents(out) == before
