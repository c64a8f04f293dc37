"""From the folders that a run leaves to a verified reranker, by the command that a user types."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_example import example_contract, example_episode
from policy_example import small_policy
from reranker_example import small_scorer

from deas_vla import cli
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.export.golden import Golden
from deas_vla.export.reranker import Reranker
from deas_vla.export.run import spread
from deas_vla.files import write_json

METHODS = {"policy": {"success_rate": 0.4, "ci95": [0.36, 0.46], "episodes": 400}}


def finished(stage: Path, settings: dict | None = None) -> Path:
    """Marks a stage as one that is done."""
    write_json(stage / "stage.json", {"fingerprint": stage.name, "settings": settings or {}})
    return stage


def episodes(source: str) -> list:
    rng = np.random.default_rng(len(source))
    return [
        example_episode(rng, 10 + i, i % 2 == 0 or source == "demonstration", source=source) for i in range(6)
    ]


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
    finished(run / "evaluation", {"evaluation": {"execute_steps": 3}})
    write_json(run / "report.json", {"methods": METHODS})
    return run


def test_export_verify_inspect(run, tmp_path, capsys):
    output = tmp_path / "reranker"
    assert cli.main(["export", f"--run={run}", f"--output={output}", "--candidates=6", "--rule=best"]) == 0
    assert f"deas-vla verify {output}" in capsys.readouterr().out
    assert cli.main(["verify", str(output)]) == 0
    assert "8 golden inputs decided as before" in capsys.readouterr().out

    assert cli.main(["inspect", str(output), "--json"]) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest["selection"] == {
        "num_candidates": 6,
        "rule": "best",
        "numbers": {"noise_scale": 0.5},
        "execute_steps": 3,
    }
    assert manifest["origin"]["policy"]["folder"].endswith("policy/policy")
    assert str(run) not in json.dumps(manifest)
    assert cli.main(["inspect", str(output)]) == 0
    told = capsys.readouterr().out
    for words in (
        "best of 6, noise_scale 0.5; 3 actions",
        "toy, 20 Hz",
        "position.x [m]",
        "γ₁ = 0.9",
        "left 16x16",
    ):
        assert words in told, words
    assert "| policy | 40 % [36, 46] | 400 |" in (output / "README.md").read_text()

    golden = Golden.load(output / "golden.safetensors")
    stored = [e for source in ("demonstration", "rollout") for e in episodes(source)]
    for image, state in zip(golden.observation.images["left"], golden.observation.state, strict=True):
        places = [
            (e, row)
            for e in stored
            for row, frame in enumerate(e.images["left"])
            if (frame == image.numpy()).all()
        ]
        ((episode, row),) = places
        assert np.array_equal(episode.states[episode.frame_steps[row]], state.numpy())


def test_a_flag_chooses_the_improved_policy_and_the_numbers_of_the_rule(run, tmp_path):
    output = tmp_path / "reranker"
    flags = ["--policy=advantage_weighted", "--rule=consensus", "--bandwidth=0.3", "--execute_steps=4"]
    assert cli.main(["export", f"--run={run}", f"--output={output}", *flags]) == 0
    loaded = Reranker.load(output)
    assert loaded.manifest["origin"]["policy"]["folder"].endswith("advantage_weighted/policy")
    assert loaded.manifest["selection"]["numbers"]["bandwidth"] == 0.3
    assert loaded.decider.selection.bandwidth == 0.3 and loaded.execute_steps == 4
    assert cli.main(["verify", str(output)]) == 0


def test_mistakes_are_one_line(run, tmp_path, capsys):
    def told(*arguments: str) -> str:
        assert cli.main(list(arguments)) == 2
        (line,) = capsys.readouterr().err.strip().split("\n")
        return line

    export = ["export", f"--run={run}", f"--output={tmp_path / 'x'}"]
    assert "filtered_bc is not a finished stage" in told(*export, "--policy=filtered_bc")
    assert "did you mean --rule" in told(*export, "--rul=best")
    assert "--rule must be first|random" in told(*export, "--rule=luck")
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
    for name in ("run", "output", "policy", "candidates", "rule", "bandwidth", "execute_steps"):
        assert f"--{name}=" in told


def test_frames_are_of_different_episodes_and_moments():
    frames = spread(episodes("rollout"), 4)
    assert len({frame["state"].tobytes() for frame in frames}) == 4
    assert len(spread(episodes("rollout")[:1], 4)) == 4
