"""An exported reranker: one folder, the same decisions, and every fault is named."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from data_example import SIZE, example_contract
from policy_example import observations, small_policy
from reranker_example import (
    forge_contract,
    other_statistics,
    reordered,
    reseal,
    rewrite_json,
    rewrite_scorer,
    rewrite_tensors,
    small_scorer,
)
from rollout_example import LinePolicy, MovesRight

from deas_vla.data.contract import Contract
from deas_vla.errors import UserError
from deas_vla.export import export as exporting
from deas_vla.export.export import export_reranker
from deas_vla.export.reranker import Reranker, read_manifest
from deas_vla.export.verify import Golden, check_sums, verify, write_sums
from deas_vla.features.features import Features
from deas_vla.files import sha256_of
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.registry import load_policy
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.scorers.scorer import SCORERS, load_scorer

ROOT = Path(__file__).resolve().parents[1]
RULE = SelectionConfig(rule="consensus", as_best_of=3)
KEYS = [NoiseKey(seed=1, scene=scene, sample=0, decision=2) for scene in range(3)]


@pytest.fixture(scope="module")
def parts():
    policy = small_policy()
    return policy, small_scorer(policy)


@pytest.fixture(scope="module")
def exported(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "reranker"
    export_reranker(
        folder,
        policy=parts[0],
        scorer=parts[1],
        observation=observations(4),
        num_candidates=5,
        selection=RULE,
        execute_steps=3,
    )
    return folder


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "reranker"))


# ---- the same decisions ----------------------------------------------------------------------------------------


def test_rule_01_an_exported_reranker_decides_as_its_parts_do(parts, exported):
    policy, scorer = parts
    reranker, observation = Reranker.load(exported), observations(3, seed=9)
    mine = BestOfN(policy, 5, "consensus", scorer, RULE).choose(observation, KEYS)
    its = reranker.choose(observation, KEYS)
    for name in ("candidates", "scores", "value"):
        torch.testing.assert_close(getattr(its, name), getattr(mine, name), rtol=1e-5, atol=1e-5)
    chosen = [mine.scores.gather(1, choice.index[:, None]) for choice in (its, mine)]
    tied = (chosen[0] - chosen[1]).abs().squeeze(1) <= 1e-5
    assert ((its.index == mine.index) | tied).all()
    assert torch.equal(its.commands, its.candidates[range(3), its.index])
    assert reranker.execute_steps == 3 and reranker.contract == policy.contract


def test_a_fresh_export_is_verified_and_may_move_or_be_linked_to(folder):
    told = verify(folder)
    assert "4 golden inputs decided as before" in told
    moved = folder.rename(folder.with_name("elsewhere"))
    assert verify(moved) == told.replace(str(folder), str(moved))
    folder.symlink_to(moved)
    assert verify(folder) == told


def test_two_exports_of_the_same_parts_are_equal(parts, exported, tmp_path):
    again = tmp_path / "again"
    export_reranker(
        again,
        policy=parts[0],
        scorer=parts[1],
        observation=observations(4),
        num_candidates=5,
        selection=RULE,
        execute_steps=3,
    )
    for path in ("policy", "critic", "config.json", "policy_preprocessor.json", "policy_postprocessor.json"):
        assert sha256_of(again / path) == sha256_of(exported / path), path
    one, two = (Golden.load(folder / "golden.safetensors") for folder in (again, exported))
    assert not one.differences(two, BestOfN(parts[0], 5, "consensus", parts[1], RULE))


def test_the_critic_alone_gives_the_expected_scores(exported):
    scorer = load_scorer(exported / "critic")
    golden = Golden.load(exported / "golden.safetensors")
    torch.testing.assert_close(golden.rescored(scorer), golden.scores, rtol=0, atol=1e-5)


def test_scoring_needs_torch_and_safetensors_only(exported):
    code = (
        "import sys\n"
        "from deas_vla.export.verify import Golden\n"
        "from deas_vla.scorers.scorer import SCORERS, load_scorer\n"
        f"scorer = load_scorer({str(exported / 'critic')!r})\n"
        f"golden = Golden.load({str(exported / 'golden.safetensors')!r})\n"
        "assert (golden.rescored(scorer) - golden.scores).abs().max() < 1e-5\n"
        # PyTorch's own algebra package takes a second to import, and is needed for nothing here.
        "unwanted = 'transformers lerobot accelerate draccus peft huggingface_hub psutil PIL pyarrow sympy'\n"
        "print(sorted(set(unwanted.split()) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_manifest_says_what_it_is_made_of(parts, exported):
    policy, scorer = parts
    manifest = read_manifest(exported)
    assert [c["name"] for c in manifest["contract"]["state"]] == [c.name for c in policy.contract.state]
    assert manifest["contract"]["rate_hz"] == 20 and manifest["contract"]["embodiment"] == "toy"
    assert len(manifest["contract"]["statistics_sha256"]) == 64
    expected = {"type": "deas", "aggregation": "min", "horizon": 4}
    expected |= {"critic.reward_discount": 0.9, "critic.bootstrap_discount": 0.99}
    assert expected.items() <= manifest["scorer"].items()
    assert manifest["scorer"]["score_range"] == list(scorer.score_range)
    assert manifest["policy"]["encoder_fingerprint"] == policy.encoder_fingerprint
    assert manifest["selection"] == {
        "num_candidates": 5,
        "rule": "consensus",
        "parameters": {"noise_scale": 1.0, "bandwidth": 0.6, "as_best_of": 3},
        "execute_steps": 3,
    }
    assert manifest["versions"]["torch"] == torch.__version__.partition("+")[0]
    config = json.loads((exported / "config.json").read_text())
    assert config["type"] == "deas" and config["input_features"]["observation.images.left"]["shape"] == [3, 16, 16]
    card = (exported / "README.md").read_text()
    assert all(column.name in card for column in (*policy.contract.state, *policy.contract.action))


def test_rule_08_no_action_is_played_that_was_never_scored(parts, tmp_path):
    """Defect: all of a chunk was played, though the critic scores only how it begins."""
    policy, scorer = parts[0], small_scorer(parts[0], horizon=3)
    given = {"policy": policy, "scorer": scorer, "observation": observations(2)}
    assert export_reranker(tmp_path / "reranker", **given).execute_steps == 3
    with pytest.raises(UserError, match=r"4 actions .* the critic scores the first 3: play 3 \(--execute_steps=3"):
        export_reranker(tmp_path / "longer", **given, execute_steps=4)
    # No score is looked at.
    export_reranker(tmp_path / "first", **given, execute_steps=4, selection=SelectionConfig(rule="first"))
    # Exported before this was looked at, or changed since.
    rewrite_json(tmp_path / "reranker/manifest.json", lambda m: m["selection"].update(execute_steps=4))
    with pytest.raises(UserError, match=r"4 actions .* the critic scores the first 3"):
        Reranker.load(tmp_path / "reranker")


@pytest.mark.parametrize("kind", ["q_chunking", "iql", "ensemble"])
def test_a_critic_is_loaded_as_what_it_was(parts, tmp_path, kind):
    policy, critic = parts[0], SCORERS.get(kind)
    if kind == "ensemble":
        scorer = critic([small_scorer(policy, seed=seed) for seed in (0, 1)])
    else:
        scorer = small_scorer(policy, kind=critic, **({"horizon": 1} if kind == "iql" else {}))
    exported = export_reranker(tmp_path / "reranker", policy=policy, scorer=scorer, observation=observations(2))
    loaded = Reranker.load(tmp_path / "reranker").decider.scorer
    assert type(loaded) is critic and exported.manifest["scorer"]["type"] == kind
    golden = Golden.load(tmp_path / "reranker" / "golden.safetensors")
    torch.testing.assert_close(golden.rescored(scorer), golden.rescored(loaded))
    assert exported.execute_steps == loaded.horizon == scorer.horizon


def test_rule_11_no_pickle(exported):
    assert {path.suffix for path in exported.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md", ""}


# ---- changed files ---------------------------------------------------------------------------------------------


def test_one_flipped_byte_in_any_file_is_named(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    assert len(files) > 10
    for path in files:
        good = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        for place in {0, len(good) // 3, len(good) - 1}:
            bad = bytearray(good)
            bad[place] ^= 1
            path.write_bytes(bad)
            with pytest.raises(UserError, match=name):
                verify(folder)
        path.write_bytes(good)
    verify(folder)


def test_every_byte_of_the_sums_counts(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b c").write_text("b")
    write_sums(tmp_path)
    sums = tmp_path / "SHA256SUMS"
    good = sums.read_bytes()
    assert check_sums(tmp_path) == 2
    for place in range(len(good)):
        for bit in (1, 0x20, 0x80):
            bad = bytearray(good)
            bad[place] ^= bit
            sums.write_bytes(bad)
            with pytest.raises(UserError, match=str(tmp_path)):
                check_sums(tmp_path)
    for bad in (good + b"\n", good[:-1], good + good, good[good.index(b"\n") + 1 :], b""):
        sums.write_bytes(bad)
        with pytest.raises(UserError):
            check_sums(tmp_path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="coreutils are not here")
def test_the_sums_are_those_of_sha256sum(exported):
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=exported, check=True, capture_output=True)


def test_missing_and_extra_files_are_named(folder):
    (folder / "policy" / "model.safetensors").unlink()
    (folder / "critic" / "notes.txt").write_text("a")
    with pytest.raises(UserError, match=r"critic/notes.txt is not listed; policy/model.safetensors is missing"):
        verify(folder)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="SHA256SUMS"):
        verify(folder)


def test_the_card_and_hidden_files_are_no_part_of_it(folder):
    """Defect (C7): a card that was edited on a hub, or a file that a Mac left, made a policy unusable."""
    for name in (".gitattributes", ".cache/entry", ".DS_Store", "policy/.DS_Store", "critic/.ipynb_checkpoints/a.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    with (folder / "README.md").open("a") as card:
        card.write("A line more.")
    assert not {"README.md", ".DS_Store"} & set((folder / "SHA256SUMS").read_text().split())
    verify(folder)
    (folder / "README.md").unlink()
    verify(folder)
    # An export of an earlier version lists its card.
    with (folder / "SHA256SUMS").open("a") as sums:
        sums.write(f"{'0' * 64}  README.md\n")
    verify(folder)
    # Only the card in the folder itself is one.
    (folder / "policy" / "README.md").write_text("x")
    with pytest.raises(UserError, match=r"policy/README\.md is not listed"):
        verify(folder)


# ---- changed parts, sealed again -------------------------------------------------------------------------------


def in_policy_contract(change):
    def fault(folder):
        path = folder / "policy" / "contract.json"
        contract = Contract.from_json(json.loads(path.read_text()))
        path.write_text(json.dumps(change(contract).to_json()))

    return fault


def in_inputs(change):
    return lambda folder: rewrite_scorer(folder, lambda i: setattr(i, "contract", change(i.contract)))


def in_manifest(change):
    return lambda folder: rewrite_json(folder / "manifest.json", change)


def in_manifest_contract(change):
    def edit(manifest):
        contract = change(Contract.from_json(manifest["contract"]))
        manifest["contract"] |= contract.to_json()

    return in_manifest(edit)


def other_backbone(folder):
    def change(tensors):
        name = next(n for n in sorted(tensors) if n.startswith("backbone.") and n.endswith("proj.weight"))
        tensors[name][0, 0] += 1e-3

    rewrite_tensors(folder / "policy" / "model.safetensors", change)


def other_head(folder):
    def change(tensors):
        for name in tensors:
            if name.startswith("head."):
                tensors[name] += 0.05

    rewrite_tensors(folder / "policy" / "model.safetensors", change)


def other_critic(folder, **changes):
    policy = SmallVLAPolicy.load(folder / "policy")
    small_scorer(policy, seed=1, **changes).save(folder / "critic")


def longer_policy(folder):
    small_policy(horizon=6).save(folder / "policy")


def in_golden(change):
    return lambda folder: rewrite_tensors(folder / "golden.safetensors", change)


def other_rate(contract):
    return replace(contract, rate_hz=10.0)


def other_unit(contract):
    return replace(contract, state=(replace(contract.state[0], unit="mm"), *contract.state[1:]))


def another_choice(tensors):
    """Not among those whose scores are the same but for rounding, which all of the example's are."""
    other = (tensors["index"][3] + 1) % tensors["scores"].shape[1]
    tensors["index"][3] = other
    tensors["scores"][3, other] += 0.1


FAULTS = {
    "statistics of the policy": (in_policy_contract(other_statistics), r"state_mean differs in columns \[1\]"),
    "statistics of the critic": (in_inputs(other_statistics), r"critic's statistics: state_mean differs in"),
    "statistics of the manifest": (in_manifest_contract(other_statistics), r"state_mean differs in columns \[1\]"),
    "columns of the policy": (in_policy_contract(reordered), r"position\.x' against 'position\.y"),
    "columns of the critic": (in_inputs(reordered), r"critic's state\[0\]: name 'position\.x' against 'position\.y"),
    "columns of the manifest": (in_manifest_contract(reordered), r"position\.y' against 'position\.x"),
    "rate": (in_policy_contract(other_rate), "rate: 20 Hz against 10 Hz"),
    "unit": (in_manifest_contract(other_unit), "unit 'mm' against 'm'"),
    "no statistics": (
        in_manifest(lambda m: m["contract"].update(statistics=None)), "contract.statistics are missing",
    ),
    "backbone": (other_backbone, "the policy's backbone is of another revision: policy.encoder_fingerprint"),
    "backbone of the critic": (
        lambda f: rewrite_scorer(f, lambda i: setattr(i, "encoder_fingerprint", "0" * 64)),
        "the critic's features are of another backbone revision",
    ),
    "backbone of the manifest": (
        in_manifest(lambda m: m["policy"].update(encoder_fingerprint="0" * 64)),
        "manifest.json says 000000000000",
    ),
    "chunks of the critic": (
        lambda f: other_critic(f, horizon=6), "the critic scores chunks of another length: scorer.horizon is 6",
    ),
    "chunks of the policy": (longer_policy, "the policy makes chunks of another length: policy.horizon is 6"),
    "chunks of the manifest": (
        in_manifest(lambda m: m["scorer"].update(horizon=6)), "scorer.horizon is 4, manifest.json says 6",
    ),
    "discount": (lambda f: other_critic(f, bootstrap_discount=0.9), "scorer.critic.bootstrap_discount is 0.9"),
    "weights of the head": (other_head, r"candidates \(the policy\): input \d is .* away"),
    "weights of the critic": (other_critic, "scorer.fingerprint is"),
    "expected scores": (
        in_golden(lambda t: t["scores"].__setitem__((2, 1), t["scores"][2, 1] + 0.1)),
        r"scores \(the critic's Q networks\): input 2 is",
    ),
    "expected choice": (
        in_golden(another_choice), r"choice on input 3: candidate \d instead of \d",
    ),
    "golden image": (in_golden(lambda t: t["image.left"][1].zero_()), r"features .*input 1 is"),
    "golden inputs of another size": (
        in_golden(lambda t: t.update({"image.left": t["image.left"][:, :8].contiguous()})),
        "images of left are",
    ),
    "fewer golden inputs": (
        in_golden(lambda t: t.update({k: v[:2].contiguous() for k, v in t.items()})), "not the golden inputs",
    ),
    "rule": (
        in_manifest(lambda m: m["selection"].update(rule="worst", parameters={})), "config.json does not say",
    ),
    "unknown rule": (in_manifest(lambda m: m["selection"].update(rule="luck")), "unknown rule 'luck'"),
    "number of a rule": (
        in_manifest(lambda m: m["selection"]["parameters"].update(as_best_of="3")), "its selection makes no sense",
    ),
    "steps played": (in_manifest(lambda m: m["selection"].update(execute_steps=5)), "5 of 4 steps played"),
    "kind": (in_manifest(lambda m: m["policy"].update(kind="other")), "policy.kind is"),
    "format": (in_manifest(lambda m: m.update(format="x 2")), "manifest.json: format 'x 2'"),
    "section": (in_manifest(lambda m: m.pop("scorer")), "the section scorer is missing"),
    "projection": (
        lambda f: rewrite_scorer(f, lambda s: s.features.mean.add_(1)), "scorer.fingerprint is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_changed_part_is_named_even_if_sealed_again(folder, name):
    fault, told = FAULTS[name]
    fault(folder)
    reseal(folder)
    with pytest.raises(UserError, match=told) as caught:
        verify(folder)
    assert "SHA256SUMS" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_lie_that_all_parts_agree_on_is_found_by_replay(folder):
    contract = Contract.from_json(json.loads((folder / "policy" / "contract.json").read_text()))
    forge_contract(folder, contract)
    reseal(folder)
    verify(folder)  # the forger changes nothing else
    forge_contract(folder, other_statistics(contract))
    reseal(folder)
    with pytest.raises(UserError, match=r"scores \(the critic's Q networks\)"):
        verify(folder)


def test_golden_inputs_of_another_contract_are_refused(folder):
    path = folder / "golden.safetensors"
    golden = Golden.load(path)
    golden.contract = other_statistics(example_contract()).fingerprint
    golden.save(path)
    reseal(folder)
    with pytest.raises(UserError, match=r"golden.safetensors was recorded under another contract"):
        verify(folder)


def test_code_that_scores_otherwise_is_found(folder, monkeypatch):
    """The folder is whole; what reads it has changed: a normalisation that is off by a hundredth."""
    forward = Features.forward
    off = lambda *seen: (forward(*seen)[0], 1.01 * forward(*seen)[1])  # noqa: E731
    monkeypatch.setattr(Features, "forward", off)
    with pytest.raises(UserError, match=r"does not decide as it did when it was exported: scores"):
        verify(folder)


# ---- what cannot be exported, and what cannot be fed in --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda o: o.images.pop("wrist"), "lacks the camera wrist; it has left"),
        (lambda o: o.images.update(left=o.images["left"].repeat_interleave(3, 1)), rf"\(2, {3 * SIZE}, {SIZE}, 3\)"),
        (lambda o: o.images.update(left=o.images["left"].float()), "torch.float32"),
        (lambda o: setattr(o, "state", o.state[:, :2]), r"the state is \(2, 2\)"),
    ],
)
def test_observations_of_another_shape_are_refused(exported, change, told):
    observation = observations(2)
    change(observation)
    with pytest.raises(UserError, match=told):
        Reranker.load(exported).choose(observation, KEYS[:2])


def test_parts_that_do_not_belong_together_are_not_exported(parts, tmp_path):
    policy, scorer = parts
    output = tmp_path / "reranker"
    with pytest.raises(UserError, match="another backbone"):
        export_reranker(output, policy=small_policy(seed=1), scorer=scorer, observation=observations(2))
    longer = small_scorer(policy, horizon=5)
    with pytest.raises(UserError, match="chunks of 5 steps"):
        export_reranker(output, policy=policy, scorer=longer, observation=observations(2))
    with pytest.raises(UserError, match="execute_steps=9 must be 1 to 4"):
        export_reranker(output, policy=policy, scorer=scorer, observation=observations(2), execute_steps=9)
    line = LinePolicy()
    with pytest.raises(UserError, match="LinePolicy cannot be saved: decorate it with @register_policy"):
        export_reranker(output, policy=line, scorer=MovesRight(line), observation=observations(2))
    assert not list(tmp_path.iterdir())


def test_rule_12_a_failed_export_leaves_nothing(parts, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(exporting, "card", full_disk)
    with pytest.raises(OSError, match="No space"):
        export_reranker(tmp_path / "reranker", policy=parts[0], scorer=parts[1], observation=observations(2))
    assert not list(tmp_path.iterdir())


def test_an_export_does_not_replace_another(parts, folder):
    before = sha256_of(folder)
    with pytest.raises(UserError, match="exists already"):
        export_reranker(folder, policy=parts[0], scorer=parts[1], observation=observations(2))
    assert sha256_of(folder) == before


def test_a_saved_policy_says_of_which_kind_it_is(exported, tmp_path):
    assert type(load_policy(exported / "policy")) is SmallVLAPolicy
    with pytest.raises(UserError, match="no saved policy"):
        load_policy(tmp_path)


def test_rule_12_loading_a_critic_draws_no_random_numbers(exported):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    critic = load_scorer(exported / "critic").critic
    assert torch.equal(torch.rand(1), expected)
    trained = {name for name, p in critic.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in critic.named_parameters() if not name.startswith("target_q.")}
