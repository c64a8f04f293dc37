"""The recipe of many tasks at a tiny size, and its page. (tests/test_end_to_end.py launches two processes.)"""

import json
from pathlib import Path

import pytest

from deas_vla.config import parse
from recipes.finetune_metaworld import FinetuneMetaworldConfig, main
from studies.metaworld.page import write_metaworld_results

TASKS = ("reach-v3", "drawer-close-v3")
TINY = [
    f"--tasks={','.join(TASKS)}",
    "--workers=0",
    "--parallel_episodes=4",
    "--demos.episodes=3",
    "--demos.frame_every=8",
    "--bc.steps=8",
    "--bc.batch_size=8",
    "--policy.width=32",
    "--policy.layers=2",
    "--rollouts.episodes=4",
    "--rollouts.frame_every=0",
    "--critic.hidden_dim=32",
    "--critic.num_layers=2",
    "--features.dim=8",
    "--image_encoder.dim=8",
    "--image_encoder_training.steps=4",
    "--image_encoder_training.batch_size=8",
    "--critic_training.steps=8",
    "--critic_training.batch_size=16",
    "--improvement.steps=4",
    "--improvement.batch_size=8",
    "--evaluation.scenes=2",
    "--evaluation.samples=1",
    "--evaluation.num_candidates=2",
    "--evaluation.candidate_counts=1,2",
    "--evaluation.oracle_scenes=1",
    "--evaluation.video=false",
]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.sim, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    main(parse(FinetuneMetaworldConfig, [*TINY, f"--output={output}"]))
    return output


def test_the_recipe_of_many_tasks_leaves_a_report_and_one_data_set_of_all_tasks(run):
    report = json.loads((run / "report.json").read_text())
    assert report["methods"]["best_of_n"]["episodes"] == 4  # two scenes of each task
    assert {"random_candidate", "worst_of_n", "oracle"} <= set(report["methods"])
    sidecars = list((run / "demonstrations" / "dataset").rglob("*.json"))
    told = [json.loads(path.read_text()).get("metadata", {}).get("instructions") for path in sidecars]
    assert ["close the drawer", "move the hand to the red ball"] in told


def test_the_page_of_many_tasks_has_every_task_and_comes_out_the_same(run, tmp_path):
    results = write_metaworld_results([run], tmp_path, [], "0123abc")
    first = (tmp_path / "metaworld.md").read_bytes()
    assert results["tasks"] == list(TASKS) and not results["shown"]["episodes"]
    for task in TASKS:
        assert task in first.decode()
    write_metaworld_results([run], tmp_path, [], "")
    assert (tmp_path / "metaworld.md").read_bytes() == first
