"""`deas-vla audit --against`: a critic, an exported reranker, and the folders of stages."""

import numpy as np
import pytest
from data_example import example_contract, example_episode
from policy_example import observations, small_policy
from reranker_example import other_statistics, rewrite_json, rewrite_scorer, small_scorer

from deas_vla.cli import main
from deas_vla.data.audit.agreement import reference_at
from deas_vla.data.audit.audit import audit
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError
from deas_vla.export.export import export_reranker


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data set, and what was trained for the robot of its contract."""
    place = tmp_path_factory.mktemp("against")
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, 8 + i, i % 2 == 0) for i in range(4)]
    write_dataset(place / "dataset", episodes, example_contract(), "local/example")
    return place


@pytest.fixture
def trained(tmp_path):
    """Stage folders of a policy and a critic, and their export."""
    policy = small_policy()
    scorer = small_scorer(policy)
    policy.save(tmp_path / "policy" / "policy")
    scorer.save(tmp_path / "critic" / "critic")
    export_reranker(tmp_path / "reranker", policy=policy, scorer=scorer, observation=observations(2), num_candidates=2)
    return tmp_path


def errors(report) -> list[str]:
    findings = [finding for part in report.datasets for finding in part.findings.sorted()]
    return [f"{f.code}: {f.message}" for f in findings if f.severity == "error"]


ROUTES = {
    "policy": "policy",
    "policy/policy": "policy",
    "critic": "critic",
    "critic/critic": "critic",
    "reranker": "reranker",
    "reranker/policy": "policy",
    "reranker/critic": "critic",
}


def test_what_was_made_for_the_same_robot_fits(place, trained):
    for folder, name in ROUTES.items():
        assert reference_at(trained / folder).name == f"{name} {trained / folder}"
        assert reference_at(trained / folder).contract == example_contract()
    for folder in ("critic", "reranker"):
        report = audit([place / "dataset"], trained / folder)
        assert errors(report) == [] and report.against.startswith(folder)


def test_rule_07_another_critic_does_not_fit(place, trained):
    folder = trained / "critic"
    rewrite_scorer(folder, lambda inputs: setattr(inputs, "contract", other_statistics(inputs.contract)))
    report = audit([place / "dataset"], folder)
    assert not report.fit and any("against critic" in line and "state_mean" in line for line in errors(report))


def test_rule_07_another_reranker_does_not_fit(place, trained, capsys):
    folder = trained / "reranker"
    rewrite_json(folder / "manifest.json", lambda manifest: manifest["contract"].update(rate_hz=10.0))
    report = audit([place / "dataset"], folder)
    assert any("against reranker" in line and "20 Hz against 10 Hz" in line for line in errors(report))
    assert main(["audit", str(place / "dataset"), f"--against={folder}"]) == 1
    assert "against reranker" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: (f / "manifest.json").write_text("{"), r"manifest.json: missing, cut off or damaged"),
        (
            lambda f: rewrite_json(f / "manifest.json", lambda m: m.pop("contract")),
            "manifest.json: not a valid contract",
        ),
    ],
)
def test_a_damaged_manifest_is_named(place, trained, damage, told):
    damage(trained / "reranker")
    with pytest.raises(UserError, match=told):
        audit([place / "dataset"], trained / "reranker")


def test_a_damaged_critic_is_named(place, trained):
    path = trained / "critic" / "critic" / "scorer.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"scorer.json: missing, cut off or damaged"):
        audit([place / "dataset"], trained / "critic")
