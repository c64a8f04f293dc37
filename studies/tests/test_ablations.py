"""Both ablations at a tiny size, on a real run: every variant is made, judged and, the second time, skipped."""

import json

import pytest

from deas_vla.config import parse
from deas_vla.errors import UserError

# Last: a recipe may have the name of a library.

pytest.importorskip("robosuite")

from deas_vla.training.loop import make_accelerator
from recipes import finetune_robocasa
from studies.ablations import critic as critic_ablation
from studies.ablations import policy as policy_ablation

pytestmark = [pytest.mark.slow, pytest.mark.sim, pytest.mark.timeout(900)]

SIMULATOR = ["--tasks=lift", "--workers=0", "--parallel_episodes=3", "--simulator.horizon=48"]
SMALL_CRITIC = ["--critic.hidden_dim=32", "--critic.num_layers=2", "--features.dim=8", "--image_encoder.dim=8"]
BRIEF = ["--training.steps=4", "--training.batch_size=8"]
RUN = [
    *SIMULATOR, *SMALL_CRITIC, "--demos.episodes=4", "--bc.steps=4", "--bc.batch_size=8", "--rollouts.episodes=6",
    "--image_encoder_training.steps=6", "--image_encoder_training.batch_size=8", "--critic_training.steps=6",
    "--critic_training.batch_size=16", "--improvement.steps=4", "--improvement.batch_size=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Everything of a run but its evaluation."""
    folder = tmp_path_factory.mktemp("ablation") / "lift"
    config = parse(finetune_robocasa.FinetuneRobocasaConfig, [*RUN, f"--output={folder}"], prog="finetune_robocasa")
    finetune_robocasa.improve(make_accelerator(), config)
    return folder


def test_ways_to_fine_tune_become_a_table(run, tmp_path, monkeypatch, capsys):
    brief = {name: [*flags, *BRIEF] for name, flags in policy_ablation.VARIANTS.items()}
    monkeypatch.setattr(policy_ablation, "VARIANTS", brief)
    flags = [f"--run={run}", f"--output={tmp_path}", *SIMULATOR, "--scenes=3", "--num_candidates=2"]
    flags += ["--seeds=0,1", "--variants=filtered_bc,the better half alike"]

    def ablation(*more):
        policy_ablation.main(parse(policy_ablation.PolicyAblationConfig, [*flags, *more], prog="policy_ablation"))
        return json.loads((tmp_path / "ablation.json").read_text())

    first = ablation()
    assert list(first["variants"]) == ["default", "filtered_bc", "the better half alike"]
    assert all(
        entry["policies"] == 2 and {"alone", "zero_noise", "best_of_n"} <= entry.keys()
        for entry in first["variants"].values()
    )
    assert "`filtered_bc`" in capsys.readouterr().out
    # What there is no critic in does not depend on one.
    inputs = {
        path.parent.name: json.loads(path.read_text())["inputs"].keys()
        for path in (tmp_path / "policies").glob("*/stage.json")
    }
    assert len(inputs) == 6
    assert all(("critic" in names) == ("filtered" not in name) for name, names in inputs.items())

    # One more: its encoder is another, so that the critic cannot see what it sees; what is done stays as it is.
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")}
    second = ablation("--name=whole", f"--flags=--freeze_encoder=false {' '.join(BRIEF)}")
    assert second["variants"]["whole"].keys() == {"policies", "alone", "zero_noise", "flags", "seconds"}
    assert {name: second["variants"][name] for name in first["variants"]} == first["variants"]
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
    with pytest.raises(UserError, match="go together"):
        ablation("--name=default", "--flags=--training.steps=3")


def test_critics_become_a_table(run, tmp_path, monkeypatch, capsys):
    brief = ["--training.steps=4", "--training.batch_size=16", "--image_encoder_training.steps=4"]
    brief += [*SMALL_CRITIC, "--image_encoder_training.batch_size=8"]
    monkeypatch.setattr(
        critic_ablation,
        "VARIANTS",
        {name: [*brief, *critic_ablation.VARIANTS[name]] for name in ("default", "hl_gauss")},
    )
    flags = [f"--run={run}", f"--output={tmp_path}", *SIMULATOR, "--seeds=0", "--monte_carlo.scenes=3"]
    flags += ["--monte_carlo.share=1", "--monte_carlo.num_candidates=2", "--monte_carlo.continuations=2"]
    config = parse(critic_ablation.CriticAblationConfig, flags, prog="critic_ablation")
    critic_ablation.main(config)
    results = json.loads((tmp_path / "ablation.json").read_text())
    assert list(results["variants"]) == ["default", "hl_gauss"] and results["decisions"] > 0
    assert results["variants"]["default"]["over_default"] is None
    gains = [results["variants"][name]["score"]["gain"] for name in ("hl_gauss", "default")]
    over = results["variants"]["hl_gauss"]["over_default"]["difference"]
    assert over == pytest.approx(gains[0] - gains[1])
    printed = capsys.readouterr().out
    assert "`hl_gauss`" in printed and "2 candidates played out 2 times each" in printed
    made = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("stage.json")}
    critic_ablation.main(config)
    assert json.loads((tmp_path / "ablation.json").read_text()) == results
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())
