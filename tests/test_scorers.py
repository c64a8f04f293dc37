"""Scorers: the class and the aggregation are in the file, several choose as one, broken files are refused."""

import dataclasses
import json
import os

import pytest
import safetensors.torch
import torch
from policy_example import observations, small_policy
from reranker_example import FEATURES, other_statistics, small_scorer
from rollout_example import LinePolicy, MovesRight
from test_critic import make_batch, train

from deas_vla.critic.critic import CriticBatch
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.scorers.deas import DeasScorer, IqlScorer, QChunkingScorer
from deas_vla.scorers.scorer import SCORERS, EnsembleScorer, Scorer, load_scorer, register_scorer

pytestmark = pytest.mark.unit
KEYS = [NoiseKey(0, scene, 0, 0) for scene in range(6)]


@pytest.fixture(scope="module")
def policy():
    return small_policy()


@pytest.fixture
def scorer(policy):
    return small_scorer(policy)


def encoded_and_chunks(policy, scorer, count=6, candidates=8):
    seen = observations(count, seed=2)
    generator = torch.Generator().manual_seed(3)
    chunks = torch.randn(count, candidates, scorer.horizon, policy.contract.action_dim, generator=generator)
    return scorer.encode(policy.encode(seen), seen), chunks


# ---- class and aggregation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DeasScorer, QChunkingScorer, IqlScorer])
def test_a_scorer_is_loaded_as_what_it_was_saved_as(policy, tmp_path, kind):
    """A critic trained by Q-chunking, with means, was once read back as DEAS and scored by the minimum."""
    scorer = small_scorer(policy, kind=kind)
    scorer.save(tmp_path)
    loaded = load_scorer(tmp_path, policy.contract)
    assert type(loaded) is kind and type(loaded.critic) is kind.critic_class
    assert loaded.aggregation == kind.default_aggregation
    encoded, chunks = encoded_and_chunks(policy, loaded)
    values = loaded.q_values(encoded, chunks)
    expected = values.mean(0) if kind is QChunkingScorer else values.amin(0)
    assert torch.equal(loaded.score(encoded, chunks), expected)
    assert not torch.equal(values.mean(0), values.amin(0))
    assert torch.equal(scorer.score(encoded, chunks), expected)
    # And this is what chooses.
    choice = BestOfN(policy, 8, "best", loaded).choose(observations(6, seed=2), KEYS)
    assert torch.equal(choice.index, choice.scores.argmax(1))
    again = loaded.q_values(loaded.encode(policy.encode(observations(6, seed=2)), observations(6, seed=2)),
                            loaded.chunks(choice.candidates))  # fmt: skip
    torch.testing.assert_close(choice.scores, loaded.aggregate(again))


def test_another_aggregation_is_kept_too(policy, tmp_path):
    scorer = small_scorer(policy)
    scorer.aggregation = "mean"
    scorer.save(tmp_path)
    assert load_scorer(tmp_path).aggregation == "mean"
    # One of a user's own class too, which adds nothing to its description.
    own = type("Own", (Scorer,), {"q_values": None})(policy.contract, 4, aggregation="mean")
    assert type(own).from_description(own.description()).aggregation == "mean"


def test_iql_scores_the_first_action(policy):
    scorer = small_scorer(policy, kind=IqlScorer)
    assert scorer.horizon == 1 and policy.horizon > 1
    commands = torch.randn(2, 3, policy.horizon, policy.contract.action_dim)
    assert scorer.chunks(commands).shape == (2, 3, 1, policy.contract.action_dim)


def test_a_scorer_is_one_module(scorer):
    assert {name.partition(".")[0] for name in scorer.state_dict()} == {"features", "critic"}
    assert not scorer.features.mean.requires_grad and not scorer.training
    scorer.train()
    scorer.eval()
    before = {name: tensor.clone() for name, tensor in scorer.state_dict().items()}
    scorer.double()
    assert scorer.features.mean.dtype == torch.float64
    scorer.float()
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.state_dict().items())


def test_reading_moves_no_module(policy, scorer):
    seen = observations(2)
    places = {name: tensor.data_ptr() for name, tensor in scorer.state_dict().items()}
    scorer.encode(policy.encode(seen), seen)
    assert {name: tensor.data_ptr() for name, tensor in scorer.state_dict().items()} == places


# ---- ensembles -------------------------------------------------------------------------------------------------


def test_an_ensemble_is_the_mean_of_what_its_members_see(policy, tmp_path):
    members = [small_scorer(policy, seed, observations(12, seed=seed)) for seed in (1, 2)]
    EnsembleScorer(members).save(tmp_path)
    loaded, seen = load_scorer(tmp_path, policy.contract), observations(6, seed=3)
    alone = [BestOfN(policy, 8, "best", member).choose(seen, KEYS) for member in members]
    together = BestOfN(policy, 8, "best", loaded).choose(seen, KEYS)
    mean = torch.stack([choice.scores for choice in alone]).mean(0)
    torch.testing.assert_close(together.scores, mean)
    torch.testing.assert_close(together.value, torch.stack([choice.value for choice in alone]).mean(0))
    assert torch.equal(together.index, mean.argmax(1))
    assert not torch.equal(together.index, alone[0].index)


def test_a_member_named_in_a_file_imports_nothing(policy, tmp_path):
    """Rule 11: what is registered may be named, a module may not."""
    (tmp_path / "evil_member.py").write_text("raise SystemExit('it ran')")
    EnsembleScorer([small_scorer(policy)]).save(tmp_path)
    rewrite(tmp_path, description=lambda d: d["members"][0].update(type=f"{tmp_path / 'evil_member.py'}:evil"))
    with pytest.raises(UserError, match=r"header that does not fit.*unknown scorer") as caught:
        load_scorer(tmp_path)
    # Its file is missing, and no training brings that back.
    assert "DEAS_VLA_PLUGINS=FILE.py" in str(caught.value) and "train" not in str(caught.value)


def test_what_does_not_belong_together_is_no_ensemble(policy, scorer):
    with pytest.raises(UserError, match="at least one"):
        EnsembleScorer([])
    foreign = small_scorer(policy, 2)
    foreign.encoder_fingerprint = "0" * 64
    with pytest.raises(UserError, match="scorer 2 of the ensemble reads other tokens"):
        EnsembleScorer([scorer, foreign])
    with pytest.raises(UserError, match="reads other tokens or chunks"):
        EnsembleScorer([scorer, small_scorer(policy, horizon=2)])
    scaled = small_scorer(policy)
    scaled.contract = other_statistics(policy.contract)
    with pytest.raises(ContractMismatch, match="state_mean"):
        EnsembleScorer([scorer, scaled])


# ---- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["hl_gauss", "scalar"])
@pytest.mark.parametrize("num_q", [1, 3])
def test_save_and_load(policy, tmp_path, head, num_q):
    scorer = small_scorer(policy, head=head, num_q=num_q, polyak=0.3, support=[-100.0, 3.0])
    folder = tmp_path / "new" / "critic"
    scorer.save(folder)
    before = torch.get_rng_state()
    loaded = load_scorer(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.critic.config == scorer.critic.config and loaded.critic.head.low == -100.0
    assert not loaded.training
    assert sorted(path.name for path in folder.iterdir()) == ["scorer.json", "scorer.safetensors"]
    described = json.loads((folder / "scorer.json").read_text())
    assert described == json.loads(json.dumps(loaded.description())) and described["type"] == "deas"
    # It trains on as the saved one does.
    batch = batch_for(scorer)
    for each in (scorer, loaded):
        train(each.critic.train(), batch, 2)
    for name, tensor in scorer.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, msg=name)


def batch_for(scorer) -> CriticBatch:
    batch, width = make_batch(), FEATURES.dim
    return dataclasses.replace(batch, features=batch.features[:, :width], next_features=batch.next_features[:, :width])


def rewrite(folder, tensors=None, description=None):
    """Changes a saved scorer as a careless program might."""
    path = folder / "scorer.safetensors"
    with safetensors.safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["scorer"])
    stored = safetensors.torch.load_file(path)
    if tensors:
        tensors(stored)
    if description:
        description(described)
    safetensors.torch.save_file(stored, path, metadata={"scorer": json.dumps(described)})


def test_a_missing_scorer_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"scorer\.safetensors is missing: train a critic first"):
        load_scorer(tmp_path)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_cut_off_scorer_is_refused(scorer, tmp_path, kept):
    scorer.save(tmp_path)
    path = tmp_path / "scorer.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(UserError, match=r"scorer\.safetensors cannot be read"):
        load_scorer(tmp_path)


def test_a_foreign_file_is_refused(tmp_path):
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "scorer.safetensors")
    with pytest.raises(UserError, match="not a scorer of this project"):
        load_scorer(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "description", "message"),
    [
        (None, lambda d: d["critic"].update(hidden_dim=48), "does not fit its own description"),
        (
            None,
            lambda d: d["features"].update(dim=9),
            r"critic.q.observation.weight is torch.float32 \(2, 9, 16\), not torch.float32 \(2, 12, 16\)",
        ),
        (None, lambda d: d["critic"].update(temperature=1), "does not fit this version.*argument 'temperature'"),
        (None, lambda d: d["critic"].update(expectile=2), "critic.expectile=2"),
        (None, lambda d: d["critic"].update(horizon="four"), "header that does not fit"),
        (None, lambda d: d.update(horizon=3), "does not match its fingerprint"),
        (None, lambda d: d["features"].pop("pooled_dim"), "header that does not fit"),
        (None, lambda d: d.update(type="luck"), "unknown scorer 'luck'"),
        (None, lambda d: d.update(aggregation="max"), "aggregation='max' must be min or mean"),
        (None, lambda d: d.update(aggregation="mean"), "does not match its fingerprint"),
        (lambda t: t.pop("critic.v.output.bias"), None, "critic.v.output.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), None, "extra is unknown"),
        (lambda t: t["critic.q.output.bias"].fill_(torch.nan), None, "critic.q.output.bias holds NaN"),
        (lambda t: t["features.mean"].add_(1e-3), None, "does not match its fingerprint"),
        (
            lambda t: t.update({"critic.q.output.bias": t["critic.q.output.bias"].half()}),
            None,
            r"float16 .*, not torch.float32",
        ),
    ],
)
def test_a_scorer_that_does_not_fit_is_refused(scorer, tmp_path, tensors, description, message):
    scorer.save(tmp_path)
    rewrite(tmp_path, tensors, description)
    with pytest.raises(UserError, match=message) as error:
        load_scorer(tmp_path)
    assert "scorer.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_a_scorer_without_a_name_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="MovesRight is not registered"):
        MovesRight(LinePolicy()).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_two_scorers_have_one_name():
    with pytest.raises(ValueError, match="deas"):
        register_scorer("deas")(type("Other", (Scorer,), {}))
    assert SCORERS.get("deas") is DeasScorer


@pytest.mark.parametrize("stop_at", range(4))
def test_rule_12_an_interrupted_save_leaves_a_whole_scorer(policy, tmp_path, monkeypatch, stop_at):
    """Killed before any of the two writes or the two renames: the old scorer or the new one loads."""
    old, new = small_scorer(policy), small_scorer(policy, 9, hidden_dim=8)
    old.save(tmp_path)
    calls = 0

    class Killed(BaseException):
        pass

    def killed_at(function):
        def wrapper(*args):
            nonlocal calls
            calls += 1
            if calls > stop_at:
                raise Killed
            return function(*args)

        return wrapper

    monkeypatch.setattr(os, "fsync", killed_at(os.fsync))
    monkeypatch.setattr(os, "replace", killed_at(os.replace))
    with pytest.raises(Killed):
        new.save(tmp_path)
    monkeypatch.undo()
    expected = old if stop_at < 2 else new
    assert load_scorer(tmp_path).fingerprint() == expected.fingerprint()
