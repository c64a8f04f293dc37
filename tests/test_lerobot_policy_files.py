"""LeRobot policies as chunk policies: what is saved, what a fingerprint covers, and what is refused."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot_example import CONTRACT, SIZE, A, H, features, normal, observations, small_pi, statistics
from policy_example import close
from safetensors.torch import load_file, save_file

from deas_vla.data.contract import Camera, Statistics
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.policies.lerobot.batched import Batched
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.lerobot.processing import Processors
from deas_vla.policies.lerobot.standalone import make_standalone

pytest_plugins = "lerobot_fixtures"

STORED = ("diffusion", "dit_flow", "smolvla", "pi0", "pi05", "groot", "xvla")


@pytest.fixture(scope="module", autouse=True)
def small():
    """LeRobot reads what its small π0 and π0.5 wrote."""
    with small_pi():
        yield


@pytest.mark.parametrize("kind", STORED)
def test_fingerprint_covers_what_encoding_depends_on(policies, make, kind):
    policy = policies(kind)
    prints = {"same": policy.encoder_fingerprint}
    policy.encode(observations(2))
    assert policy.encoder_fingerprint == make(kind).encoder_fingerprint == prints["same"]
    other = copy.deepcopy(policy)
    next(iter(other.adapter.encoder[-1].parameters())).data.view(-1)[-1] += 1e-6
    prints["weights"] = other.encoder_fingerprint
    other = copy.deepcopy(policy)
    other.contract = policy.contract.with_statistics(Statistics.of(normal(5, 3), normal(5, 2)))
    prints["statistics"] = other.encoder_fingerprint
    assert len(set(prints.values())) == 3


# ---- contract, files and refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORED)
def test_save_and_load(policies, tmp_path, kind):
    policy, observation, noise = policies(kind), observations(2), normal(2, 3, H, A)
    policy.save(tmp_path / "policy", standalone=False)
    assert {path.suffix for path in (tmp_path / "policy").iterdir()} == {".json", ".safetensors"}
    before = torch.get_rng_state()
    again = LeRobotPolicy.load(tmp_path / "policy", policy.contract)
    # No initial values are drawn that the file's then replace, where PyTorch's own functions draw them.
    assert kind not in ("diffusion", "dit_flow") or torch.equal(torch.get_rng_state(), before)
    assert again.contract == policy.contract and not again.training
    assert again.encoder_fingerprint == policy.encoder_fingerprint
    with torch.no_grad():
        expected = policy.sample(policy.encode(observation), noise)
        assert close(again.sample(again.encode(observation), noise), expected)
    # And LeRobot reads the folder as one of its own.
    theirs = get_policy_class(policy.policy.config.type).from_pretrained(tmp_path / "policy")
    assert all(
        torch.equal(a, b)
        for a, b in zip(theirs.state_dict().values(), policy.policy.state_dict().values(), strict=True)
    )


def test_a_folder_of_lerobot_needs_a_contract(policies, tmp_path):
    policy = policies("diffusion")
    policy.save(tmp_path / "policy")
    (tmp_path / "policy" / "contract.json").unlink()
    with pytest.raises(UserError, match="contract"):
        LeRobotPolicy.load(tmp_path / "policy")
    loaded = LeRobotPolicy.load(tmp_path / "policy", CONTRACT)
    # Without statistics of its own the contract gets those of the policy's data.
    assert loaded.contract.statistics.state_mean == pytest.approx((0.1, 0.2, 0.3))
    assert loaded.contract.statistics.action_std == pytest.approx((0.4, 0.5))


def test_another_contract_is_refused(policies, tmp_path):
    policies("diffusion").save(tmp_path / "policy", standalone=False)
    slower = replace(CONTRACT, rate_hz=10.0)
    with pytest.raises(ContractMismatch, match="10 Hz"):
        LeRobotPolicy.load(tmp_path / "policy", slower)


def old_florence(name: str) -> str:
    """X-VLA's names of the time when Florence was part of it; the reverse of what LeRobot does to them."""
    new_to_old = (
        (r"(vision_tower\.convs\.\d+\.)conv\.", r"\1proj."),
        (r"(_block\.conv[12]\.)", r"\1fn.dw."),
        (r"(spatial_block\.)norm1\.", r"\1window_attn.norm."),
        (r"(channel_block\.)norm1\.", r"\1channel_attn.norm."),
        (r"((?:window|channel)_attn\.)(?!norm|fn)", r"\1fn."),
        (r"(_block\.)norm2\.", r"\1ffn.norm."),
        (r"(_block\.ffn\.)(?!norm)", r"\1fn.net."),
        (r"multi_modal_projector\.image_projection\.weight", "image_projection"),
        (r"multi_modal_projector\.image_position_embed\.", "image_pos_embed."),
        (r"multi_modal_projector\.", ""),
        (r"(vlm\.language_model\.)", r"\1model."),
    )
    for new, old in new_to_old:
        name = re.sub(new, old, name)
    return name


@pytest.mark.parametrize(
    ("kind", "rename"),
    [
        ("xvla", old_florence),
        ("pi0", lambda name: name.removeprefix("model.").replace("action_time_mlp", "time_mlp")),
        ("pi05", lambda name: name.removeprefix("model.").replace("time_mlp", "action_time_mlp")),
    ],
)
def test_files_of_older_versions_are_read(policies, tmp_path, kind, rename):
    """LeRobot gives their weights the names of today."""
    policy, path = policies(kind), tmp_path / "policy" / "model.safetensors"
    policy.save(path.parent, standalone=False)
    weights = load_file(path)
    old = {rename(name): tensor for name, tensor in weights.items()}
    assert len(old) == len(weights) and old.keys() != weights.keys()
    if kind == "xvla":
        old["model.vlm.image_projection"] = old["model.vlm.image_projection"].T.contiguous()
        old["model.vlm.language_model.final_logits_bias"] = torch.zeros(1, 3)
    save_file(old, path)
    again = LeRobotPolicy.load(path.parent)
    assert again.encoder_fingerprint == policy.encoder_fingerprint
    # A weight of an old name is compared like any other.
    some = next(name for name in old if "image_projection" in name or "mlp_in.weight" in name)
    save_file(old | {some: old[some][:-1]}, path)
    with pytest.raises(UserError):
        LeRobotPolicy.load(path.parent)


def damage_nothing_loaded(folder):
    weights = load_file(folder / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")


def damage_half_the_weights(folder):
    weights = load_file(folder / "model.safetensors")
    kept = dict(list(weights.items())[::2])
    save_file(kept, folder / "model.safetensors")


def damage_cut_off(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def damage_shards(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def damage_config(folder):
    (folder / "config.json").write_text("{")


def damage_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"type": "telepathy"}))


def damage_processor(folder):
    (folder / "policy_preprocessor.json").unlink()


def damage_statistics(folder):
    next(folder.glob("policy_preprocessor_*.safetensors")).unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_loaded,
        damage_half_the_weights,
        damage_cut_off,
        damage_shards,
        damage_config,
        damage_kind,
        damage_processor,
        damage_statistics,
    ],
)
def test_rule_11_a_damaged_folder_is_refused(policies, tmp_path, damage):
    """LeRobot itself reads some of these with a warning, and plays with weights that were never trained."""
    policies("diffusion").save(tmp_path / "policy", standalone=False)
    damage(tmp_path / "policy")
    with pytest.raises(UserError, match="policy"):
        LeRobotPolicy.load(tmp_path / "policy")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": (Camera("left", SIZE, SIZE), Camera("top", SIZE, SIZE))}, "camera top.*camera wrist"),
        (
            {"cameras": (Camera("left", 480, 480), Camera("wrist", SIZE, SIZE))},
            r"left: \(64, 64\) against \(480, 480\)",
        ),
        ({"cameras": (Camera("left", SIZE, SIZE),)}, "camera wrist"),
        ({"state": CONTRACT.state[:2]}, "state: 3 columns against 2"),
        ({"action": CONTRACT.action[:1]}, "action: 2 columns against 1"),
    ],
)
def test_rule_07_a_policy_for_another_robot_is_refused(policies, changes, message):
    policy = policies("diffusion")
    contract = replace(CONTRACT, **changes)
    with pytest.raises(ContractMismatch, match=message):
        LeRobotPolicy(policy.policy, policy.processors.preprocessor, policy.processors.postprocessor, contract)


def test_rule_07_images_of_another_size_are_refused(policies):
    """LeRobot crops 64 pixels out of the middle of 480 and says nothing."""
    policy, observation = policies("diffusion"), observations(1)
    observation.images["left"] = torch.zeros(1, 480, 480, 3, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"left.*480"):
        policy.encode(observation)
    del observation.images["left"]
    with pytest.raises(UserError, match="left"):
        policy.encode(observation)


def test_the_order_of_cameras_is_the_contracts(make):
    swapped = replace(CONTRACT, cameras=CONTRACT.cameras[::-1])
    policy = make("diffusion")
    other = LeRobotPolicy(policy.policy, policy.processors.preprocessor, policy.processors.postprocessor, swapped)
    one, two = policy.encode(observations(1)), other.eval().encode(observations(1))
    assert close(one.tokens, two.tokens)
    assert torch.equal(one.camera, 1 - two.camera)


def test_renamed_cameras_are_found(make, policies):
    """A policy that was pretrained with other names of cameras gets them from LeRobot's renaming step."""
    policy = policies("diffusion")
    names = {f"observation.images.{new}": f"observation.images.{old}" for new, old in [("a", "left"), ("b", "wrist")]}
    processors = make_pre_post_processors(policy.policy.config, dataset_stats=statistics(CONTRACT))
    processors[0].steps[0].rename_map = names
    cameras = (Camera("a", SIZE, SIZE), Camera("b", SIZE, SIZE))
    renamed = LeRobotPolicy(policy.policy, *processors, replace(CONTRACT, cameras=cameras)).eval()
    observation = observations(2)
    tokens = policy.encode(observation).tokens
    observation.images = {"a": observation.images["left"], "b": observation.images["wrist"]}
    assert close(renamed.encode(observation).tokens, tokens)


def test_relative_actions_are_relative_to_the_observed_state(make):
    contract = replace(CONTRACT, action=CONTRACT.action[:1] * 3)
    policy, state = make("pi0", contract=contract, use_relative_actions=True), normal(4, 3, seed=2)
    commands = normal(4, H, 3)
    actions = policy.processors.actions(commands, state)
    assert torch.allclose(policy.processors.commands(actions, state), commands, atol=1e-5)
    moved = policy.processors.commands(actions, state + 0.5)
    assert torch.allclose(moved, commands + 0.5, atol=1e-5)
    # Each candidate gets the state of its own observation.
    noise, observation = normal(2, 3, H, 3), observations(2)
    both = policy.sample(policy.encode(observation), noise)
    alone = policy.sample(policy.encode(observation[[1]]), noise[[1]])
    assert torch.allclose(both[1], alone[0], atol=2e-5)


def test_a_policy_with_one_chunk_only_is_refused():
    """ACT's latent is zero at inference: N candidates would be N times the same."""
    settings = {"chunk_size": H, "n_action_steps": 8, "dim_model": 32, "n_heads": 2, "dim_feedforward": 32}
    config = make_policy_config("act", device="cpu", pretrained_backbone_weights=None, **features(CONTRACT), **settings)
    policy = get_policy_class("act")(config)
    with pytest.raises(UserError, match=r"act.*latent"):
        LeRobotPolicy(policy, *make_pre_post_processors(config, dataset_stats=statistics(CONTRACT)), CONTRACT)


def test_a_named_feature_is_kept(policies, tmp_path):
    policy, name = policies("smolvla"), "model.vlm_with_expert.vlm.model.connector"
    processors = (policy.processors.preprocessor, policy.processors.postprocessor)
    plain = LeRobotPolicy(policy.policy, *processors, policy.contract, name).eval()
    plain.save(tmp_path / "policy")
    again = LeRobotPolicy.load(tmp_path / "policy")
    assert again.feature == name and again.encoder_fingerprint == plain.encoder_fingerprint
    assert plain.encoder_fingerprint != policy.encoder_fingerprint
    with pytest.raises(UserError, match=r"no module 'model\.eyes'"):
        LeRobotPolicy.load(tmp_path / "policy", feature="model.eyes")


def test_a_policy_that_draws_no_noise_is_refused():
    """Whatever its kind: here one that LeRobot knows and the project has no adapter for."""
    settings = {"n_obs_steps": 1, "chunk_size": H, "n_action_steps": 8, "dim_model": 32, "n_heads": 2}
    made = {"device": "cpu", "pretrained_backbone_weights": None, "dim_feedforward": 32}
    config = make_policy_config("act", **settings, **made, **features(CONTRACT))
    policy = get_policy_class("act")(config).eval()
    processors = make_pre_post_processors(config, dataset_stats=statistics(CONTRACT))
    batch = Processors(config, *processors).batch(observations(2))
    with pytest.raises(UserError, match="draws no noise"):
        Batched(policy, [0, 1], "model.backbone").encode(batch)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("tdmpc", "the tdmpc policy samples from queues"),
        ("vqbet", "the vqbet policy samples from queues"),
        ("diffusion", "the diffusion policy samples from queues"),
        ("gaussian_actor", "the gaussian_actor policy has no n_action_steps"),
    ],
)
def test_a_policy_that_no_batch_is_enough_for_is_refused(kind, message):
    policy = torch.nn.Module()
    policy.config = make_policy_config(kind, device="cpu", **features(CONTRACT))
    with pytest.raises(UserError, match=message):
        Batched(policy, [0, 1], "encoder")


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("diffusion", {"n_obs_steps": 2, "horizon": 16}, "n_obs_steps=1"),
        ("smolvla", {"adapt_to_pi_aloha": True}, "aloha"),
    ],
)
def test_what_does_not_fit_is_refused(make, kind, changes, message):
    with pytest.raises(UserError, match=message):
        make(kind, **changes)


def test_missing_statistics_are_refused(policies):
    """LeRobot leaves the numbers as they are, and says nothing."""
    policy = policies("diffusion")
    processors = make_pre_post_processors(policy.policy.config, dataset_stats=None)
    with pytest.raises(UserError, match="statistics of observation"):
        LeRobotPolicy(policy.policy, *processors, policy.contract)


def test_a_context_of_another_policy_is_refused(policies):
    policy, context = policies("diffusion"), policies("diffusion").encode(observations(1))
    context.extras.clear()
    with pytest.raises(UserError, match="another policy"):
        policy.sample(context, normal(1, 1, H, A))


def test_a_tokenizer_that_knows_slashes_names_no_folder(tmp_path):
    """Pairs of pieces of text that a tokenizer merges were read as paths."""
    for name, content in {"config": {}, "policy_preprocessor": {"steps": []}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    pieces = {"model": {"merges": [["/", "/"]], "vocab": {"/": 0, "//": 1}}, "name_or_path": "/old/folder"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(pieces))
    make_standalone(tmp_path, [], {})
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == {"model": pieces["model"]}


@pytest.mark.parametrize("value", ["/a/folder", ["/a/folder"], [["x", ["/a/folder"]]]])
def test_an_absolute_path_is_refused_however_deep_it_lies(tmp_path, value):
    for name, content in {"config": {}, "policy_preprocessor": {"steps": []}, "part": {"where": value}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"where = /a/folder"):
        make_standalone(tmp_path, [], {})
