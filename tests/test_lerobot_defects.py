"""Nine defects that were read in a published LeRobot policy; each test would catch one of them in ours.

They are those of LeRobot 0.4.4's GR00T N1.5: a queue that plays the end of a chunk, one prompt for a whole batch, and
so on. The policy of the project and a LeRobot policy are looked at as LeRobot sees both: exported, as type `deas`.
"""

import importlib.util
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import make_pre_post_processors
from lerobot_example import CONTRACT, smolvla
from lerobot_example import observations as lerobot_observations
from lerobot_plugin_example import batch_of, same
from policy_example import SENTENCES, close, observations, small_policy
from reranker_example import small_scorer

from deas_vla.critic.critic import DeasCritic
from deas_vla.errors import ContractMismatch
from deas_vla.export.export import export_reranker
from deas_vla.export.lerobot_plugin.configuration_deas import DeasConfig
from deas_vla.export.lerobot_plugin.modeling_deas import DeasPolicy
from deas_vla.export.reranker import Reranker, read_manifest
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.training.loop import TrainingConfig

BEST = SelectionConfig(rule="best")
LONG_AND_SHORT = ["lift the red cube", "open the left drawer of the cabinet"]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("defects")
    policy = small_policy()
    export_reranker(
        place / "own",
        policy=policy,
        scorer=small_scorer(policy),
        observation=observations(2),
        num_candidates=8,
        selection=BEST,
    )
    policy = smolvla(place / "smolvlm")
    scorer = small_scorer(policy, frames=lerobot_observations(12, seed=5))
    export_reranker(
        place / "lerobot",
        policy=policy,
        scorer=scorer,
        observation=lerobot_observations(2),
        num_candidates=3,
        selection=BEST,
    )
    return place


@pytest.fixture(scope="module")
def loaded(place):
    return {name: DeasPolicy.from_pretrained(place / name) for name in ("own", "lerobot")}


@pytest.fixture(params=["own", "lerobot"])
def policy(loaded, request) -> DeasPolicy:
    loaded[request.param].reset()
    return loaded[request.param].eval()


def seen_by(policy: DeasPolicy, count: int, seed: int = 0, sentences: list[str] = LONG_AND_SHORT):
    """Observations of the right size."""
    size = policy.reranker.contract.cameras[0].height
    make = lerobot_observations if size == CONTRACT.cameras[0].height else observations
    return make(count, seed=seed, sentences=sentences)


def test_defect_1_the_queue_plays_the_first_actions_of_a_chunk(policy):
    batch, steps = batch_of(seen_by(policy, 2)), policy.config.n_action_steps
    try:
        for n in (1, 3, policy.config.chunk_size):
            policy.config.n_action_steps = n
            policy.reset()
            chunks = [policy.predict_action_chunk(batch) for _ in range(2)]
            policy.reset()
            played = torch.stack([policy.select_action(batch) for _ in range(2 * n)], 1)
            assert same(played, torch.cat([chunk[:, :n] for chunk in chunks], 1))
    finally:
        policy.config.n_action_steps = steps


def test_defect_2_every_row_of_a_batch_has_its_own_instruction(policy):
    both = seen_by(policy, 2, sentences=LONG_AND_SHORT)
    both.images = {name: image[[0, 0]] for name, image in both.images.items()}
    both.state = both.state[[0, 0]]
    together = policy.predict_action_chunk(batch_of(both))
    for row in range(2):
        policy.reset()
        alone = policy.predict_action_chunk(batch_of(both[[row]]))
        assert torch.allclose(together[[row]], alone, rtol=0, atol=1e-5)
    # The scene is the same and the words are not: so are the features.
    tokens = policy.policy.encode(both).tokens
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)


def test_defect_3_no_other_statistics_and_no_lost_overrides(policy, place):
    folder = place / ("own" if policy.config.chunk_size == 4 else "lerobot")
    batch = batch_of(seen_by(policy, 1))
    expected = policy.select_action(batch)
    other = {
        key: {"mean": torch.full((3,), 9.0), "std": torch.full((3,), 9.0)} for key in ("observation.state", "action")
    }
    renamed = {"observation.images.top": "observation.images.left"}
    before, after = make_pre_post_processors(
        policy.config,
        str(folder),
        dataset_stats=other,
        preprocessor_overrides={"rename_observations_processor": {"rename_map": renamed}},
    )
    batch["observation.images.top"] = batch.pop("observation.images.left")
    policy.reset()
    assert same(after(policy.select_action(before(batch))), expected)
    fresh = make_pre_post_processors(policy.config, dataset_stats=other)
    assert [type(step) for step in fresh[0].steps] == [type(step) for step in before.steps]
    assert not any(step.state_dict() for pipeline in fresh for step in pipeline.steps)


# Field of the configuration to a rule that heeds it and two values, or to a value that is refused.
HEEDED = {
    "num_candidates": ("best", 1, 8),
    "n_action_steps": ("best", 1, 2),
    "seed": ("best", 0, 1),
    "rule": (None, "best", "worst"),
    "pessimism": ("lower_bound", 0.0, 50.0),
    "as_best_of": ("consensus", 1, 8),
    "bandwidth": ("consensus", 0.01, 2.0),
    "noise_scale": ("best", 0.0, 1.0),
}
REFUSED = {"chunk_size": 5, "rate_hz": 10.0}


def test_defect_4_no_setting_is_dead(place):
    own = {field.name for field in fields(DeasConfig)} - {field.name for field in fields(PreTrainedConfig)}
    chosen = {field.name for field in fields(SelectionConfig)}
    assert own | chosen == {"selection"} | HEEDED.keys() | REFUSED.keys()
    config, reranker = PreTrainedConfig.from_pretrained(place / "own"), Reranker.load(place / "own")
    batch = batch_of(observations(8, seed=3))
    for name, (rule, *values) in HEEDED.items():
        played = []
        for value in values:
            # Up to as_best_of candidates, consensus is best whatever its bandwidth.
            changes = {"as_best_of": 3} if name == "bandwidth" else {}
            changes |= ({"rule": rule} if rule else {}) | ({name: value} if name in chosen else {})
            changed = replace(config, selection=replace(config.selection, **changes))
            changed = changed if name in chosen else replace(changed, **{name: value})
            policy = DeasPolicy(changed, reranker)
            played.append(torch.stack([policy.select_action(batch) for _ in range(3)]))
        assert not torch.equal(*played), name
    for name, value in REFUSED.items():
        with pytest.raises(ContractMismatch, match=name):
            DeasPolicy(replace(config, **{name: value}), reranker)


def test_defect_4_adapters_are_merged_and_not_forgotten(place, tmp_path):
    """LeRobot's own saving would write the adapters' weights under names that its reading knows nothing of."""
    from peft import LoraConfig, inject_adapter_in_model

    policy = smolvla(place / "smolvlm")
    scorer = small_scorer(policy, frames=lerobot_observations(12, seed=5))
    noise = torch.randn(1, 1, 16, 2, generator=torch.Generator().manual_seed(0))
    context = policy.encode(lerobot_observations(1))
    with torch.no_grad():
        plain = policy.sample(context, noise)
        expert = policy.policy.model.vlm_with_expert.lm_expert
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "down_proj"]), expert)
        for name, parameter in expert.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
        adapted = policy.eval().sample(context, noise)
    assert not torch.allclose(plain, adapted, atol=1e-3)
    export_reranker(
        tmp_path / "reranker", policy=policy, scorer=scorer, observation=lerobot_observations(2), selection=BEST
    )
    merged = read_manifest(tmp_path / "reranker")["merged"]
    assert merged["layers"] == merged["changed"] > 0
    again = Reranker.load(tmp_path / "reranker").policy
    assert not any("lora" in name for name in again.state_dict())
    with torch.no_grad():
        assert torch.allclose(again.sample(again.encode(lerobot_observations(1)), noise), adapted, atol=1e-4)


def test_defect_5_losses_come_one_a_sample_and_can_be_weighted(policy):
    policy.train()
    observation, horizon = seen_by(policy, 3), policy.config.chunk_size
    actions = torch.rand(3, horizon, 2, generator=torch.Generator().manual_seed(1))
    padded = torch.zeros(3, horizon, dtype=torch.bool)
    padded[1, 2:] = True
    wrapped = policy.policy  # inside LeRobot it is not trained: see test_lerobot_plugin.py

    def losses(actions):
        generator = torch.Generator().manual_seed(4)
        noise, time = (torch.randn(3, 1, horizon, 2, generator=generator), torch.rand(3, 1, generator=generator))
        chunks = wrapped.contract.normalize_action(actions)
        return wrapped.loss(wrapped.encode(observation), chunks, noise, time, ~padded)

    each = losses(actions)
    assert each.shape == (3,) and len(each.unique()) == 3
    # What was never played counts for nothing, and a sample's loss is its own.
    wild = actions.clone()
    wild[1, 2:] = 9.0
    assert torch.allclose(losses(wild), each, atol=1e-6)
    wild[0] = 0.5
    assert close(losses(wild)[1:], each[1:]) and not close(losses(wild)[0], each[0])
    # A weight of 0 takes a sample out of the gradient; the encoder and the critic get none at all.
    learned = [p for p in wrapped.parameters() if p.requires_grad]
    (losses(actions) * torch.tensor([1.0, 0.0, 0.0])).sum().backward()
    gradients = [parameter.grad for parameter in learned if parameter.grad is not None]
    assert gradients and any(gradient.abs().sum() > 0 for gradient in gradients)
    assert all(
        p.grad is None for module in policy.modules() if isinstance(module, DeasCritic) for p in module.parameters()
    )
    before = wrapped.encoder_fingerprint
    torch.optim.SGD(learned, lr=0.1).step()
    assert wrapped.encoder_fingerprint == before
    torch.optim.SGD(learned, lr=0.1, maximize=True).step()
    policy.zero_grad()


@pytest.mark.parametrize("steps", [100, 20_000])
def test_defect_6_a_schedule_is_as_long_as_the_training(steps):
    config = TrainingConfig(steps=steps, learning_rate=1.0)
    assert config.learning_rate_at(steps // 2) > 0.3 and config.learning_rate_at(steps - 1) < 0.01


def test_defect_7_every_step_of_a_chunk_is_postprocessed(policy, place):
    chunk = policy.predict_action_chunk(batch_of(seen_by(policy, 2)))
    _, after = make_pre_post_processors(policy.config, str(place / "own"))
    assert chunk.shape == (2, policy.config.chunk_size, 2)
    one_by_one = torch.stack([after(step) for step in chunk.unbind(1)], 1)
    assert close(after(chunk), one_by_one)
    # And inside: what LeRobot's own postprocessor makes of a chunk, it makes of each step.
    if hasattr(policy.policy, "processors"):
        actions, state = torch.randn(2, 16, 2), torch.randn(2, 3)
        whole = policy.policy.processors.commands(actions, state)
        parts = [policy.policy.processors.commands(step[:, None], state) for step in actions.unbind(1)]
        assert torch.allclose(whole, torch.cat(parts, 1))


def test_defect_8_padding_of_a_batch_changes_nothing(policy):
    """A short sentence beside a long one: the same features as alone, but for rounding, and the same scores."""
    both = seen_by(policy, 2, seed=2, sentences=SENTENCES)
    mixed, alone = policy.policy.encode(both), policy.policy.encode(both[[0]])
    length = int(alone.mask.sum())
    assert close(mixed.tokens[0][mixed.mask[0]], alone.tokens[0][alone.mask[0]])
    assert int(mixed.mask[0].sum()) == length
    scorer = policy.reranker.decider.scorer
    features = [scorer.encode(context, both[: len(context)])[0][0] for context in (mixed, alone)]
    torch.testing.assert_close(*features, rtol=1e-5, atol=1e-5)


def test_defect_9_nothing_needs_flash_attention(policy):
    assert importlib.util.find_spec("flash_attn") is None, "with it installed this test would show nothing"
    kinds = {
        module.config._attn_implementation
        for module in policy.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation")
    }
    assert kinds and all(kind is None or "flash" not in kind for kind in kinds)
    assert policy.select_action(batch_of(seen_by(policy, 1))).isfinite().all()
