"""The policy type `deas` inside LeRobot: it plays what the reranker chooses, and refuses what does not fit."""

import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lerobot_policy_deas
import pytest
import torch
from hub_example import local_hub
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.rollout.inference.rtc import supports_rtc_inference
from lerobot_plugin_example import batch_of, same
from policy_example import observations, small_policy
from reranker_example import reseal, rewrite_json, small_scorer

from deas_vla.data.lerobot.writer import features
from deas_vla.data.observation import episode_ids
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.export.export import export_reranker, upload
from deas_vla.export.lerobot_plugin.configuration_deas import DeasConfig
from deas_vla.export.lerobot_plugin.modeling_deas import DeasPolicy, observation_of
from deas_vla.export.lerobot_plugin.processor_deas import make_deas_pre_post_processors
from deas_vla.export.reranker import Reranker
from deas_vla.export.verify import verify
from deas_vla.files import sha256_of
from deas_vla.improvement.best_of_n import NoiseKey, Prefix
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.scorers.deas import QChunkingScorer

H = 4
RULE = SelectionConfig(rule="consensus", as_best_of=3)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "reranker"
    policy = small_policy()
    export_reranker(
        folder,
        policy=policy,
        scorer=small_scorer(policy),
        observation=observations(4),
        num_candidates=5,
        selection=RULE,
        execute_steps=3,
    )
    return folder


@pytest.fixture(scope="module")
def shared(exported) -> DeasPolicy:
    return DeasPolicy.from_pretrained(exported)


@pytest.fixture
def policy(shared) -> DeasPolicy:
    shared.reset()
    return shared


@pytest.fixture
def folder(exported, tmp_path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "reranker"))


def config_of(folder, **changes) -> DeasConfig:
    config = PreTrainedConfig.from_pretrained(folder)
    return replace(config, **changes)


# ---- it plays what the reranker chooses ------------------------------------------------------------------------


def test_lerobot_finds_it(exported):
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    assert "lerobot_policy_deas" in names, "it is installed by tools/install.sh"
    assert lerobot_policy_deas.DeasConfig is DeasConfig
    config = PreTrainedConfig.from_pretrained(exported)
    assert isinstance(config, DeasConfig) and get_policy_class(config.type) is DeasPolicy
    assert (config.selection.rule, config.selection.as_best_of, config.num_candidates, config.n_action_steps) == (
        "consensus",
        3,
        5,
        3,
    )


def test_lerobots_command_line_changes_the_rule(exported):
    flags = ["--selection.rule=consensus", "--selection.bandwidth=0.2", "--num_candidates=16"]
    config = PreTrainedConfig.from_pretrained(exported, cli_overrides=flags)
    assert config.selection == SelectionConfig(rule="consensus", as_best_of=3, bandwidth=0.2)
    assert config.num_candidates == 16 and config.n_action_steps == 3


def test_rule_01_it_plays_what_the_reranker_chooses_action_for_action(policy, exported):
    reranker, observed = Reranker.load(exported), [observations(2, seed=seed) for seed in range(3)]
    names = episode_ids(observed[0])
    for decision, observation in enumerate(observed):
        keys = [NoiseKey(0, name, 0, decision) for name in names]
        chosen = reranker.choose(observation, keys).commands
        batch = batch_of(observation)
        for step in range(3):
            assert same(policy.select_action(batch), chosen[:, step])


def test_through_lerobots_own_processors_nothing_changes(policy, exported):
    before, after = make_pre_post_processors(policy.config, str(exported))
    observation = observations(2)
    action = after(policy.select_action(before(batch_of(observation))))
    policy.reset()
    assert same(action, policy.select_action(batch_of(observation)))
    # And the pixels that the policy sees are those that the camera gave.
    image_keys = policy.reranker.manifest["policy"]["image_keys"]
    seen = observation_of(before(batch_of(observation)), image_keys, policy.reranker.contract)
    assert all(torch.equal(seen.images[name], image) for name, image in observation.images.items())


def test_what_an_export_holds_is_what_the_factory_makes(policy, exported, tmp_path):
    for pipeline in make_deas_pre_post_processors(policy.config):
        pipeline.save_pretrained(tmp_path, config_filename=f"{pipeline.name}.json")
        written, held = (json.loads((where / f"{pipeline.name}.json").read_text()) for where in (tmp_path, exported))
        assert written == held


def test_rule_10_reset_makes_episodes_repeatable(policy):
    def episode(seed):
        policy.reset()
        return torch.stack([policy.select_action(batch_of(observations(1, seed=seed))) for _ in range(7)])

    first = episode(3)
    assert same(episode(3), first)
    assert not torch.equal(episode(4), first)
    # A queue that is not empty is forgotten too.
    policy.select_action(batch_of(observations(1, seed=5)))
    assert same(episode(3), first)
    # Torch's own generator has no part in it.
    torch.manual_seed(1)
    assert same(episode(3), first)


def test_decisions_of_one_episode_differ_in_their_noise(policy):
    batch = batch_of(observations(1))
    assert not torch.equal(policy.predict_action_chunk(batch), policy.predict_action_chunk(batch))


def test_rule_06_a_batch_of_two_is_two_batches_of_one(policy):
    both, steps = observations(2, seed=7), 7
    together = torch.stack([policy.select_action(batch_of(both)) for _ in range(steps)])
    for row in range(2):
        policy.reset()
        alone = torch.stack([policy.select_action(batch_of(both[[row]])) for _ in range(steps)])
        # Beyond the encoder, a matrix product of another batch size rounds differently in its last bits.
        assert torch.allclose(together[:, [row]], alone, rtol=0, atol=1e-5)


def test_rule_08_one_candidate_is_the_policy(exported):
    policy = DeasPolicy.from_pretrained(exported, config=config_of(exported, num_candidates=1))
    plain = DeasPolicy.from_pretrained(exported, config=config_of(exported, selection=SelectionConfig(rule="first")))
    batch = batch_of(observations(2))
    assert same(policy.predict_action_chunk(batch), plain.predict_action_chunk(batch))


def test_another_seed_gives_other_noise(policy, exported):
    other = DeasPolicy.from_pretrained(exported, config=config_of(exported, seed=1))
    batch = batch_of(observations(1))
    assert not torch.equal(policy.predict_action_chunk(batch), other.predict_action_chunk(batch))


# ---- real-time chunking ----------------------------------------------------------------------------------------


def test_lerobots_real_time_chunking_takes_it(policy):
    assert supports_rtc_inference(policy)


@pytest.mark.parametrize("held", range(H + 1))
def test_a_prefix_is_kept_and_the_rest_goes_on_from_it(policy, held):
    observation = observations(1)
    last = policy.predict_action_chunk(batch_of(observation))[0, 1:]
    policy._decisions = 1
    free = policy.predict_action_chunk(batch_of(observation))
    policy._decisions = 1
    chunk = policy.predict_action_chunk(batch_of(observation), inference_delay=held, prev_chunk_left_over=last)
    real = min(held, len(last))
    assert torch.equal(chunk[0, :real], last[:real])
    # It is what the reranker chooses among the candidates that go on from it.
    key = NoiseKey(0, episode_ids(observation)[0], 0, 1)
    chosen = policy.reranker.choose(observation, [key], Prefix(last[None], held))
    assert same(chunk, chosen.commands) and chosen.candidates.shape[1] == 3
    assert free.shape == chunk.shape


def test_what_lerobot_fills_a_prefix_up_with_is_no_command(policy):
    observation, last = observations(1), torch.tensor([[0.3, 1.0], [-0.2, 0.0]])

    def chunk(left_over):
        policy.reset()
        return policy.predict_action_chunk(batch_of(observation), inference_delay=1, prev_chunk_left_over=left_over)

    padded = torch.cat([last, torch.zeros(2, 2)])
    assert same(chunk(padded), chunk(last))
    assert same(chunk(torch.zeros(4, 2)), chunk(None))
    policy.reset()
    cut = policy.predict_action_chunk(
        batch_of(observation), inference_delay=1, prev_chunk_left_over=torch.cat([last, last]), execution_horizon=2
    )
    assert same(cut, chunk(last))


@pytest.mark.parametrize("filled_up_to", [3, 6])
def test_zeros_that_hold_an_arm_still_are_commands(policy, monkeypatch, filled_up_to):
    """Defect: zeros at the end of a left-over were all taken for filling, so an arm that holds still had no prefix."""
    prefixes = []

    def choose(observation, keys, prefix=None):
        prefixes.append(prefix)
        return SimpleNamespace(commands=torch.tensor([[[0.5, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]))

    monkeypatch.setattr(policy.reranker, "choose", choose)
    last = policy.predict_action_chunk(batch_of(observations(1)))[0]
    for played, real in ((1, 3), (0, min(4, filled_up_to))):
        left_over = torch.zeros(filled_up_to, 2)
        left_over[: len(last) - played] = last[played : played + filled_up_to]
        policy.predict_action_chunk(batch_of(observations(1)), 1, left_over)
        assert prefixes[-1] is not None and prefixes[-1].committed == 1
        assert torch.equal(prefixes[-1].commands[0], last[played : played + real])


def test_a_mean_is_a_mean_in_lerobot_too(tmp_path):
    """Defect: the class and the aggregation of a scorer were not saved, so all were scored by their minimum."""
    own = small_policy()
    scorer = small_scorer(own, kind=QChunkingScorer, num_q=3)
    export_reranker(tmp_path / "reranker", policy=own, scorer=scorer, observation=observations(2))
    loaded, observation = DeasPolicy.from_pretrained(tmp_path / "reranker"), observations(3, seed=4)
    with torch.no_grad():
        context = own.encode(observation)
        encoded = scorer.encode(context, observation)
    keys = [NoiseKey(0, name, 0, 0) for name in episode_ids(observation)]
    choice = loaded.reranker.choose(observation, keys)
    values = scorer.q_values(encoded, scorer.chunks(choice.candidates))
    torch.testing.assert_close(choice.scores, values.mean(0), rtol=1e-5, atol=1e-5)
    assert (values.mean(0) - values.amin(0)).abs().max() > 1e-3
    chunk = loaded.predict_action_chunk(batch_of(observation))
    assert same(chunk, choice.candidates[range(3), values.mean(0).argmax(1)])


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda b: b.update({"observation.images.left": torch.zeros(1, 3, 480, 480)}),
            r"images of left are torch.uint8 \(1, 480, 480, 3\), the policy takes torch.uint8 \(1, 16, 16, 3\)",
        ),
        (lambda b: b.pop("observation.images.wrist"), "lacks observation.images.wrist.*it has observation.images.left"),
        (
            lambda b: b.update({"observation.images.left": b["observation.images.left"] * 2 - 1}),
            "observation.images.left is not an image from 0 to 1",
        ),
        (lambda b: b.update({"observation.images.left": torch.full((1, 3, 16, 16), torch.nan)}), "not an image"),
        (lambda b: b.pop("task"), "lacks task"),
        (lambda b: b.update(task=["lift", "open"]), "task holds 2 instructions for 1 observations"),
        (lambda b: b["observation.state"].fill_(torch.nan), "the observation's state hold NaN"),
        (lambda b: b.pop("observation.state"), "lacks observation.state"),
        (lambda b: b.update({"observation.state": torch.zeros(1, 5)}), r"the state is \(1, 5\)"),
    ],
)  # fmt: skip
def test_rule_07_observations_that_do_not_fit_are_refused(policy, change, told):
    batch = batch_of(observations(1))
    change(batch)
    with pytest.raises(UserError, match=told):
        policy.select_action(batch)


def test_images_of_whole_numbers_are_taken_as_they_are(policy):
    batch = batch_of(observations(1))
    expected = policy.select_action(batch)
    policy.reset()
    whole = {k: (v * 255).round().byte() if "images" in k else v for k, v in batch.items()}
    assert same(policy.select_action(whole), expected)


def test_an_instruction_as_one_text_is_that_of_one_observation(policy):
    """LeRobot's own policies take it so (defect: its letters were taken for instructions)."""
    batch = batch_of(observations(1))
    expected = policy.select_action(batch)
    policy.reset()
    assert same(policy.select_action(batch | {"task": batch["task"][0]}), expected)
    policy.reset()
    with pytest.raises(UserError, match="task holds 1 instructions for 2 observations; give one to each"):
        policy.select_action(batch_of(observations(2)) | {"task": "lift"})


def test_other_episodes_need_a_reset(policy):
    policy.predict_action_chunk(batch_of(observations(1)))
    with pytest.raises(UserError, match="2 observations after 1: call reset"):
        policy.predict_action_chunk(batch_of(observations(2)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rate_hz": 80.0}, "rate_hz: 80 against 20"),
        ({"chunk_size": 16}, "chunk_size: 16 against 4"),
        ({"output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))}}, r"action: \(7,\) against \(2,\)"),
        (
            {"input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (3,))}},
            "observation.images.left is missing",
        ),
    ],
)
def test_rule_07_settings_that_are_not_the_policys_are_refused(exported, changes, told):
    with pytest.raises(ContractMismatch, match=told):
        DeasPolicy.from_pretrained(exported, config=config_of(exported, **changes))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"n_action_steps": 5}, "n_action_steps=5 must be 1 to 4"), ({"num_candidates": 0}, "num_candidates=0")],
)
def test_settings_that_make_no_sense_are_refused(exported, changes, told):
    with pytest.raises(UserError, match=told):
        config_of(exported, **changes)


def dataset_meta(contract, **changes):
    """What LeRobot tells of a data set: nothing but its features and its rate are read."""
    return SimpleNamespace(fps=20, features=features(contract, "image"), **changes)


def test_rule_07_a_data_set_of_another_robot_is_refused(policy, exported):
    contract = policy.reranker.contract
    meta = dataset_meta(contract)
    assert DeasPolicy.from_pretrained(exported, dataset_meta=meta, dataset_stats={"action": {}})
    meta.fps = 30
    with pytest.raises(ContractMismatch, match="rate of the data set: 30 Hz against 20 Hz"):
        DeasPolicy.from_pretrained(exported, dataset_meta=meta)
    meta = dataset_meta(replace(contract, action=contract.action[::-1]))
    with pytest.raises(ContractMismatch, match=r"action: gripper_close, move.x against move.x, gripper_close"):
        DeasPolicy.from_pretrained(exported, dataset_meta=meta)
    meta = dataset_meta(replace(contract, cameras=(replace(contract.cameras[0], height=96), contract.cameras[1])))
    with pytest.raises(ContractMismatch, match=r"left: \(3, 96, 16\) against \(3, 16, 16\)"):
        DeasPolicy.from_pretrained(exported, dataset_meta=meta)


# ---- folders ---------------------------------------------------------------------------------------------------


def test_a_moved_folder_still_loads(policy, folder):
    moved = folder.rename(folder.with_name("elsewhere"))
    batch = batch_of(observations(2))
    assert same(DeasPolicy.from_pretrained(moved).select_action(batch), policy.select_action(batch))


def test_rule_11_one_flipped_byte_is_refused_by_name(folder):
    for name in ("config.json", "policy_preprocessor.json", "policy/model.safetensors", "critic/scorer.safetensors"):
        path = folder / name
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(good) // 2] ^= 1
        path.write_bytes(bad)
        with pytest.raises(UserError, match=f"{name} was changed"):
            DeasPolicy.from_pretrained(folder)
        path.write_bytes(good)


def test_a_config_that_lies_is_refused_even_if_sealed(folder):
    rewrite_json(folder / "config.json", lambda config: config.update(rate_hz=80.0))
    reseal(folder)
    with pytest.raises(UserError, match=r"config.json does not say what manifest.json says"):
        DeasPolicy.from_pretrained(folder)


def test_the_hub_and_back(exported, tmp_path, monkeypatch):
    """Uploaded by our command and by LeRobot's mixin; downloaded, its card edited there; then read without a hub."""
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    with local_hub() as repositories:
        address = upload(exported, "somebody/reranker")
        assert address.endswith("/somebody/reranker")
        files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
        assert repositories["somebody/reranker"].keys() == files
        repositories["somebody/reranker"][".gitattributes"] = b"*.safetensors filter=lfs"
        repositories["somebody/reranker"]["README.md"] += b"A line more."
        policy = DeasPolicy.from_pretrained("somebody/reranker", cache_dir=tmp_path)
        config = PreTrainedConfig.from_pretrained("somebody/reranker", cache_dir=tmp_path)
        assert isinstance(config, DeasConfig) and config.num_candidates == 5
        policy.push_to_hub("somebody/again")
        again = DeasPolicy.from_pretrained("somebody/again", cache_dir=tmp_path)
        with pytest.raises(UserError, match="somebody/else is no folder, and no repository"):
            DeasPolicy.from_pretrained("somebody/else", cache_dir=tmp_path)
    cached = DeasPolicy.from_pretrained("somebody/reranker", cache_dir=tmp_path)
    batch = batch_of(observations(2))
    expected = DeasPolicy.from_pretrained(exported).predict_action_chunk(batch)
    assert all(same(each.predict_action_chunk(batch), expected) for each in (policy, again, cached))
    with pytest.raises(UserError, match=r"is written, but not uploaded to somebody/reranker; log in"):
        upload(exported, "somebody/reranker")


def test_a_policy_out_of_nothing_is_refused(exported):
    with pytest.raises(UserError, match="read from a folder of deas-vla export"):
        DeasPolicy(config_of(exported))


def test_save_pretrained_exports_what_it_is_now(exported, tmp_path):
    plain = DeasPolicy.from_pretrained(exported)
    plain.save_pretrained(tmp_path / "same")
    assert "decided as before" in verify(tmp_path / "same")
    for part in ("critic", "config.json"):
        assert sha256_of(tmp_path / "same" / part) == sha256_of(exported / part)
    changed = config_of(exported, num_candidates=2, selection=SelectionConfig(rule="best"), n_action_steps=2)
    DeasPolicy.from_pretrained(exported, config=changed).save_pretrained(tmp_path / "changed")
    again = PreTrainedConfig.from_pretrained(tmp_path / "changed")
    assert (again.num_candidates, again.selection.rule, again.n_action_steps) == (2, "best", 2)


def test_saving_over_something_touches_nothing(policy, folder):
    before = sha256_of(folder)
    with pytest.raises(UserError, match="holds files already; save into a new folder"):
        policy.save_pretrained(folder)
    assert sha256_of(folder) == before and "decided as before" in verify(folder)


def test_training_inside_lerobot_is_refused(policy):
    for asked in (
        policy.config.get_optimizer_preset,
        policy.get_optim_params,
        lambda: policy.forward(batch_of(observations(1))),
    ):
        with pytest.raises(UserError, match="a deas policy is not trained by LeRobot"):
            asked()


def test_a_fresh_config_is_made_by_lerobots_factory():
    assert make_policy_config("deas", chunk_size=8, n_action_steps=8).action_delta_indices == list(range(8))
