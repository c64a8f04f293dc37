"""A LeRobot policy in an exported reranker: whole, movable, and the same to the last bit."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lerobot_example import A, H, maker, normal, observations, small_pi
from reranker_example import reseal, rewrite_json, rewrite_tensors, small_scorer

from deas_vla.errors import UserError
from deas_vla.export.export import export_reranker
from deas_vla.export.reranker import Reranker, read_manifest
from deas_vla.export.verify import Golden, allowed, verify
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.registry import load_policy

KINDS = ("diffusion", "dit_flow", "smolvla", "pi0", "pi05", "groot", "xvla")
RULE = SelectionConfig(rule="best")
KEYS = [NoiseKey(seed=1, scene=scene, sample=0, decision=2) for scene in range(2)]


@pytest.fixture(scope="module", autouse=True)
def small():
    """LeRobot reads what its small π0 and π0.5 wrote; no tokenizer is named but by what is read."""
    with small_pi():
        yield


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Exports by kind, with what each was made of; the checkpoints that a policy was built from are gone since."""
    made = {}

    def get(kind: str):
        if kind not in made:
            place = tmp_path_factory.mktemp(kind)
            policy = maker(place / "sources")(kind)
            scorer = small_scorer(policy, frames=observations(12, seed=5))
            folder = place / "reranker"
            export_reranker(
                folder,
                policy=policy,
                scorer=scorer,
                observation=observations(3),
                num_candidates=4,
                selection=RULE,
                execute_steps=8,
            )
            policy.save(place / "plain", standalone=False)
            shutil.rmtree(place / "sources", ignore_errors=True)
            made[kind] = policy, scorer, folder
        return made[kind]

    return get


@pytest.fixture
def folder(exports, tmp_path) -> Path:
    return Path(shutil.copytree(exports("smolvla")[2], tmp_path / "reranker"))


@pytest.mark.parametrize("kind", KINDS)
def test_rule_01_an_export_decides_as_its_parts_do_and_needs_nothing_else(exports, kind, tmp_path):
    policy, scorer, exported = exports(kind)
    moved = Path(shutil.copytree(exported, tmp_path / "moved"))
    assert "3 golden inputs decided as before" in verify(moved)
    reranker, observation = Reranker.load(moved), observations(2, seed=9)
    mine = BestOfN(policy, 4, "best", scorer, RULE).choose(observation, KEYS)
    its = reranker.choose(observation, KEYS)
    for name in ("candidates", "scores", "value", "commands"):
        torch.testing.assert_close(getattr(its, name), getattr(mine, name), rtol=1e-5, atol=2e-5)
    assert torch.equal(its.index, mine.index)
    assert reranker.policy.encoder_fingerprint == policy.encoder_fingerprint
    assert read_manifest(moved)["origin"]["policy"]["kind"] == policy.policy.config.type


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_of_an_export_names_a_folder(exports, kind):
    exported = exports(kind)[2]
    outside = str(exported.parent)
    for path in exported.rglob("*"):
        if path.is_file():
            assert outside.encode() not in path.read_bytes(), path
            assert path.suffix in {".json", ".safetensors", ".md", ".jinja", ".txt", ""}, path


@pytest.mark.parametrize("kind", ("smolvla", "pi0", "pi05", "groot"))
def test_an_exported_policy_can_be_exported_again(exports, kind, tmp_path):
    exported = exports(kind)[2]
    reranker = Reranker.load(exported)
    decider = reranker.decider
    again = tmp_path / "again"
    export_reranker(
        again,
        policy=decider.policy,
        scorer=decider.scorer,
        observation=observations(3),
        num_candidates=4,
        selection=RULE,
        execute_steps=8,
    )
    for path in sorted(exported.rglob("*.safetensors")):
        assert path.read_bytes() == (again / path.relative_to(exported)).read_bytes(), path
    settings = [json.loads((each / "policy" / "config.json").read_text()) for each in (exported, again)]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("kind", ("smolvla", "pi0", "pi05"))
def test_what_lerobot_itself_writes_cannot_be_moved(exports, kind):
    """Why an export is written otherwise: the checkpoints are named by path, and looked up again."""
    plain = exports(kind)[2].parent / "plain"
    with pytest.raises(UserError, match="LeRobot cannot read this policy"):
        LeRobotPolicy.load(plain)
    if kind == "smolvla":
        assert os.path.isabs(json.loads((plain / "config.json").read_text())["vlm_model_name"])
    steps = json.loads((plain / "policy_preprocessor.json").read_text())["steps"]
    assert any(os.path.isabs(step["config"].get("tokenizer_name", "")) for step in steps)


@pytest.mark.parametrize("kind", ("pi0", "pi05"))
def test_what_lerobots_own_command_trains_is_exported(kind, tmp_path):
    """Its documentation trains π0 and π0.5 with these settings; relative actions are added to the state again."""
    settings = {"dtype": "bfloat16", "gradient_checkpointing": True, "compile_model": True}
    precise = torch.get_float32_matmul_precision()
    policy = maker(tmp_path / "sources")(kind, **settings, use_relative_actions=True)
    torch.set_float32_matmul_precision(precise)
    scorer = small_scorer(policy, frames=observations(12, seed=5))
    exported = tmp_path / "reranker"
    export_reranker(
        exported, policy=policy, scorer=scorer, observation=observations(3), num_candidates=4, selection=RULE
    )
    shutil.rmtree(tmp_path / "sources")
    verify(exported)
    its = Reranker.load(exported)
    mine = BestOfN(policy, 4, "best", scorer, RULE).choose(observations(2, seed=9), KEYS)
    commands = its.choose(observations(2, seed=9), KEYS).commands
    torch.testing.assert_close(commands, mine.commands, rtol=1e-2, atol=1e-2)
    numbers = {parameter.dtype for parameter in its.policy.parameters()}
    assert numbers == {torch.bfloat16, torch.float32}
    # Reading an export changes no arithmetic of the process that reads it.
    assert torch.get_float32_matmul_precision() == precise


def test_the_kind_of_a_saved_policy_is_found(exports):
    exported = exports("diffusion")[2]
    assert isinstance(load_policy(exported / "policy"), LeRobotPolicy)


# ---- faults ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "parts"), [("smolvla", 4), ("pi0", 2), ("pi05", 2)])
def test_one_flipped_byte_in_any_file_is_named(exports, kind, parts, tmp_path):
    folder = Path(shutil.copytree(exports(kind)[2], tmp_path / "reranker"))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    assert sum("parts" in path.parts for path in files) >= parts
    for path in files:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(good) // 2] ^= 1
        path.write_bytes(bad)
        with pytest.raises(UserError, match=path.relative_to(folder).as_posix()):
            verify(folder)
        path.write_bytes(good)


@pytest.mark.parametrize("kind", ("smolvla", "pi0", "pi05", "xvla"))
@pytest.mark.parametrize("name", ("tokenizer.json", "tokenizer_config.json"))
def test_a_tokenizer_that_is_not_whole_is_named(exports, kind, name, tmp_path):
    """Without one of its files it is read, with no words or no padding; without all, it is looked for on a hub."""
    folder = Path(shutil.copytree(exports(kind)[2], tmp_path / "reranker"))
    parts = folder / "policy" / "parts"
    (parts / "tokenizer" / name).unlink()
    for remove in (lambda: None, lambda: shutil.rmtree(parts / "tokenizer"), lambda: shutil.rmtree(parts)):
        remove()
        with pytest.raises(UserError, match=rf"policy/parts/tokenizer/{name} is missing"):
            verify(folder)
        with pytest.raises(UserError, match=r"parts/\S+: missing, and the policy is not whole without it"):
            Reranker.load(folder)


def other_tokenizer(folder):
    def change(words):
        vocabulary = words["model"]["vocab"]
        one, two = [name for name in vocabulary if len(name) == 1][:2]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]

    rewrite_json(folder / "policy" / "parts" / "tokenizer" / "tokenizer.json", change)


def other_resizing(folder):
    rewrite_json(folder / "policy" / "config.json", lambda config: config.update(resize_imgs_with_padding=[32, 32]))


def other_architecture(folder):
    rewrite_json(
        folder / "policy" / "parts" / "vlm" / "config.json",
        lambda config: config["text_config"].update(intermediate_size=48),
    )


def renaming(folder):
    rewrite_json(
        folder / "policy_preprocessor.json",
        lambda pipeline: pipeline["steps"][0]["config"].update(rename_map={"a": "b"}),
    )


def other_key(folder):
    rewrite_json(
        folder / "manifest.json", lambda manifest: manifest["policy"]["image_keys"].update(left="observation.image")
    )


@pytest.mark.parametrize("kind", ("pi0", "pi05"))
def test_another_tokenizer_is_another_backbone(exports, kind, tmp_path):
    folder = Path(shutil.copytree(exports(kind)[2], tmp_path / "reranker"))
    other_tokenizer(folder)
    reseal(folder)
    with pytest.raises(UserError, match="the policy's backbone is of another revision"):
        verify(folder)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (other_tokenizer, "the policy's backbone is of another revision"),
        (other_resizing, "the policy's backbone is of another revision"),
        (other_architecture, "LeRobot cannot read this policy"),
        (
            lambda folder: shutil.rmtree(folder / "policy" / "parts" / "vlm"),
            "policy/parts/vlm: missing, and the policy is not whole without it",
        ),
        (renaming, "policy_preprocessor.json does not say what manifest.json says"),
        (other_key, "policy.image_keys is"),
    ],
)
def test_a_changed_part_is_named_even_if_sealed_again(folder, fault, told):
    fault(folder)
    reseal(folder)
    with pytest.raises(UserError, match=told):
        verify(folder)


def test_a_policy_that_names_an_unknown_folder_is_not_exported(exports, tmp_path):
    policy, scorer, _ = exports("diffusion")
    policy.policy.config.tags = [str(tmp_path)]
    try:
        with pytest.raises(UserError, match=r"config.json of the policy names another folder \(tags = "):
            export_reranker(tmp_path / "reranker", policy=policy, scorer=scorer, observation=observations(2))
    finally:
        policy.policy.config.tags = None
    assert not (tmp_path / "reranker").exists()


def test_models_are_read_as_always_elsewhere(exports, tmp_path):
    """Reading a standalone folder leaves nothing behind in transformers."""
    from transformers import CLIPModel, PreTrainedModel

    before = PreTrainedModel.__dict__["from_pretrained"]
    Reranker.load(exports("dit_flow")[2])
    assert PreTrainedModel.__dict__["from_pretrained"] is before
    from lerobot_example import clip_folder

    clip = clip_folder(tmp_path / "clip")
    one, two = (CLIPModel.from_pretrained(clip).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_candidates_are_the_policys(exports):
    policy, _, exported = exports("smolvla")
    reranker, noise, observation = Reranker.load(exported), normal(1, 2, H, A), observations(1)
    with torch.no_grad():
        expected = policy.sample(policy.encode(observation), noise)
        chunks = reranker.policy.sample(reranker.policy.encode(observation), noise)
    torch.testing.assert_close(chunks, expected, rtol=1e-5, atol=2e-5)


def test_a_policy_that_computes_in_bfloat16_is_replayed_as_one(tmp_path):
    """GR00T keeps its weights as float32 and computes with less: another processor gives other last bits."""
    policy = maker(tmp_path / "sources")("groot", use_bf16=True)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert allowed(policy)["features"] == 0.2 > allowed(maker(tmp_path / "other")("groot"))["features"]
    export_reranker(
        tmp_path / "reranker",
        policy=policy,
        scorer=small_scorer(policy, frames=observations(12, seed=5)),
        observation=observations(3),
        num_candidates=4,
        selection=RULE,
        execute_steps=8,
    )
    rewrite_tensors(tmp_path / "reranker" / "golden.safetensors", lambda tensors: tensors["features"].add_(0.01))
    reseal(tmp_path / "reranker")
    assert "3 golden inputs decided as before" in verify(tmp_path / "reranker")


def test_two_candidates_of_one_score_may_change_places(exports):
    golden = Golden.load(exports("smolvla")[2] / "golden.safetensors")
    golden.scores = torch.tensor([[-3.0, -3.0005, -5.0, -5.0]]).repeat(3, 1)
    golden.index = torch.zeros(3, dtype=torch.int64)
    other = replace(golden, index=torch.tensor([0, 1, 2]))
    assert golden.other_choices(other, 1e-3) == ["choice on input 2: candidate 2 instead of 0"]
    golden.scores[1, 1] = torch.nan
    assert len(golden.other_choices(other, 1e-3)) == 2
