"""From the folders that a run leaves to a verified reranker, by the command that a user types."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from policy_example import small_policy
from reranker_example import small_scorer

from deas_vla import cli
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.export.export import some_frames
from deas_vla.export.reranker import Reranker
from deas_vla.export.verify import Golden
from deas_vla.files import write_json
from deas_vla.scorers.scorer import load_scorer

METHODS = {"policy": {"success_rate": 0.4, "ci95": [0.36, 0.46], "episodes": 400}}


def finished(stage: Path, settings: dict | None = None) -> Path:
    """Marks a stage as one that is done."""
    sources = {name: str(stage.parent / name) for name in ("demonstrations", "rollouts")}
    record = {"fingerprint": stage.name, "settings": settings or {}, "sources": sources}
    write_json(stage / "stage.json", record)
    return stage


def episodes(source: str) -> list:
    rng = np.random.default_rng(len(source))
    return [example_episode(rng, 10 + i, i % 2 == 0 or source == "demonstration", source=source) for i in range(6)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of the recipe, as small as it gets: two data sets, two policies, a critic, an evaluation."""
    run = tmp_path_factory.mktemp("run")
    contract = example_contract()
    for name, source in (("demonstrations", "demonstration"), ("rollouts", "rollout")):
        write_dataset(finished(run / name) / "dataset", episodes(source), contract, f"local/{name}")
    policy = small_policy()
    scorer = small_scorer(policy)
    policy.save(finished(run / "policy") / "policy")
    with torch.no_grad():
        policy.head.positions.add_(0.3)
    policy.save(finished(run / "advantage_weighted") / "policy")
    scorer.save(finished(run / "critic") / "critic")
    with torch.no_grad():
        policy.head.positions.add_(0.3)
    policy.save(finished(run / "advantage_weighted_2") / "policy")
    small_scorer(policy, seed=2).save(finished(run / "critic_2") / "critic")
    finished(run / "evaluation", {"evaluation": {"execute_steps": 3}})
    write_json(run / "report.json", {"methods": METHODS})
    return run


def test_export_verify_inspect(run, tmp_path, capsys):
    output = tmp_path / "reranker"
    assert cli.main(["export", f"--run={run}", f"--output={output}", "--candidates=6", "--selection.rule=best"]) == 0
    assert f"deas-vla verify {output}" in capsys.readouterr().out
    assert cli.main(["verify", str(output)]) == 0
    assert "4 golden inputs decided as before" in capsys.readouterr().out

    assert cli.main(["inspect", str(output), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["selection"] == {
        "num_candidates": 6,
        "rule": "best",
        "parameters": {"noise_scale": 0.5},
        "execute_steps": 3,
    }
    assert manifest["origin"]["policy"]["folder"].endswith("policy/policy")
    assert str(run) not in json.dumps(manifest)
    assert cli.main(["inspect", str(output)]) == 0
    told = capsys.readouterr().out
    for words in ("best of 6, noise_scale 0.5; 3 actions", "toy, 20 Hz", "position.x [m]", "γ₁ = 0.9", "left 16x16"):
        assert words in told, words
    assert "| policy | 40 % [36, 46] | 400 |" in (output / "README.md").read_text()

    golden = Golden.load(output / "golden.safetensors")
    stored = [e for source in ("demonstration", "rollout") for e in episodes(source)]
    for image, state in zip(golden.observation.images["left"], golden.observation.state, strict=True):
        places = [
            (e, row) for e in stored for row, frame in enumerate(e.images["left"]) if (frame == image.numpy()).all()
        ]
        ((episode, row),) = places
        assert np.array_equal(episode.states[episode.frame_steps[row]], state.numpy())


def test_of_a_policy_of_shorter_chunks_than_the_evaluation_asked_for_all_is_played(run, tmp_path):
    """`execute_steps=16 must be 1 to 8`, though no flag said 16 (defect)."""
    copy = shutil.copytree(run, tmp_path / "run")
    finished(copy / "evaluation", {"evaluation": {"execute_steps": 16}})
    assert cli.main(["export", f"--run={copy}", f"--output={tmp_path / 'reranker'}", "--selection.rule=first"]) == 0
    assert Reranker.load(tmp_path / "reranker").execute_steps == 4


def test_a_flag_chooses_the_improved_policy_and_the_numbers_of_the_rule(run, tmp_path):
    output = tmp_path / "reranker"
    flags = [
        "--policy=advantage_weighted",
        "--selection.rule=consensus",
        "--selection.bandwidth=0.3",
        "--candidates=9",
        "--execute_steps=4",
    ]
    assert cli.main(["export", f"--run={run}", f"--output={output}", *flags]) == 0
    loaded = Reranker.load(output)
    assert loaded.manifest["origin"]["policy"]["folder"].endswith("advantage_weighted/policy")
    assert loaded.manifest["selection"]["parameters"]["bandwidth"] == 0.3
    assert loaded.decider.selection.bandwidth == 0.3 and loaded.execute_steps == 4
    assert cli.main(["verify", str(output)]) == 0


def test_a_policy_of_the_second_iteration_comes_with_the_critic_of_its_own(run, tmp_path):
    """Defect: only the stages of the first iteration could be exported."""
    for flags, critic in ([], "critic_2"), (["--critic=critic"], "critic"):
        output = tmp_path / critic
        flags = [f"--run={run}", f"--output={output}", "--policy=advantage_weighted_2", *flags]
        assert cli.main(["export", *flags]) == 0
        origin = Reranker.load(output).manifest["origin"]
        assert origin["policy"]["folder"].endswith("advantage_weighted_2/policy")
        assert origin["critic"]["folder"].endswith(f"{critic}/critic")
        scorer = load_scorer(output / "critic")
        weights = load_scorer(run / critic / "critic").state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in scorer.state_dict().items())
        assert cli.main(["verify", str(output)]) == 0


@pytest.mark.parametrize(
    ("flags", "played"),
    [
        ([], "best"),
        (["--selection.rule=consensus"], "best"),
        (["--selection.rule=consensus", "--candidates=9"], "consensus"),
    ],
)
def test_the_rule_is_called_what_it_does(run, tmp_path, flags, played, capsys):
    """Defect: the default said consensus of 8 candidates, which is the highest score whatever the chunks are."""
    output = tmp_path / "reranker"
    assert cli.main(["export", f"--run={run}", f"--output={output}", *flags]) == 0
    reranker = Reranker.load(output)
    assert reranker.decider.rule == reranker.manifest["selection"]["rule"] == played
    assert reranker.decider.selection.noise_scale == 0.5
    config = json.loads((output / "config.json").read_text())
    assert config["selection"]["rule"] == played and f"`{played}`" in (output / "README.md").read_text()


def test_mistakes_are_one_line(run, tmp_path, capsys):
    def told(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 2
        (line,) = capsys.readouterr().err.strip().split("\n")
        return line

    export = ["export", f"--run={run}", f"--output={tmp_path / 'x'}"]
    assert "filtered_bc is not a finished stage" in told(*export, "--policy=filtered_bc")
    assert "did you mean --selection.rule" in told(*export, "--selection.rul=best")
    assert "invalid choice 'luck' for argument '--selection.rule'" in told(*export, "--selection.rule=luck")
    assert "execute_steps=5 must be 1 to 4" in told(*export, "--execute_steps=5")
    assert "at least one candidate" in told(*export, "--candidates=0")
    assert "exists already" in told("export", f"--run={run}", f"--output={run / 'policy'}")
    assert "SHA256SUMS cannot be read" in told("verify", str(run))
    assert "manifest.json: missing" in told("inspect", str(run))
    assert not (tmp_path / "x").exists()
    with pytest.raises(SystemExit):
        cli.main(["verify", str(run), "--loudly"])


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    for name in ("run", "output", "policy", "candidates", "selection.rule", "selection.bandwidth", "execute_steps"):
        assert f"--{name} " in told


def test_frames_are_of_different_episodes_and_moments():
    frames = some_frames(episodes("rollout"), 4)
    assert len({frame["state"].tobytes() for frame in frames}) == 4
    assert len(some_frames(episodes("rollout")[:1], 4)) == 4
