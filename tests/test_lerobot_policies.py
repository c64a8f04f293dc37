"""LeRobot's own policy classes, small, as chunk policies: they do what LeRobot does, for N candidates at once."""

import copy
import re

import pytest
import torch
from lerobot.policies.factory import get_policy_class, make_policy_config
from lerobot_example import CONTRACT, KINDS, SENTENCES, SIZE, A, H, features, normal, observations
from lerobot_own import alike, commands_for, noise_for, own_batch, own_chunks
from policy_example import close

from deas_vla.critic.critic import CriticConfig
from deas_vla.errors import UserError
from deas_vla.features.features import FeatureConfig, Features, fit_projection, pool_tokens
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.policies.chunk_policy import require_noise_scale
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.lerobot.noise import widen
from deas_vla.scorers.deas import DeasScorer

pytest_plugins = "lerobot_fixtures"


# ---- rules that hold for every kind ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "diffusion_ddpm"])
def test_rule_08_one_candidate_is_the_policy(policies, kind):
    policy = policies(kind)
    for count in (1, 4):
        observation, noise = alike(kind, count), noise_for(count)
        own = own_chunks(policy, observation, noise)
        with torch.no_grad():
            ours = policy.sample(policy.encode(observation), noise[:, None])[:, 0]
        assert ours.shape == (count, H, A) and own.std() > 0.1
        assert torch.allclose(ours[:, : own.shape[1]], own, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_candidates_are_nested_and_differ(policies, kind):
    policy = policies(kind)
    observation, noise = observations(2), normal(2, 6, H, A)
    context = policy.encode(observation)
    six = policy.sample(context, noise)
    for n in (1, 3):
        assert torch.allclose(policy.sample(context, noise[:, :n]), six[:, :n], atol=2e-5)
    assert (six[:, 0] - six[:, 1]).abs().max() > 1e-2
    # Neither the state of torch's generator nor a second call changes anything.
    torch.manual_seed(99)
    assert close(policy.sample(context, noise), six)
    # The same as encoding six times.
    copies = policy.encode(observation[[0] * 6 + [1] * 6])
    naive = policy.sample(copies, noise.view(12, 1, H, A)).view(2, 6, H, A)
    assert torch.allclose(naive, six, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rule_06_other_items_of_the_batch_change_nothing(policies, kind):
    policy = policies(kind)
    everything, noise = observations(6), normal(6, 2, H, A)
    together = policy.encode(everything)
    chunks = policy.sample(together, noise)
    for rows in ([5], [2, 3], [0, 1, 2, 3, 4]):
        alone = policy.encode(everything[rows])
        length = alone.tokens.shape[1]  # of the longest instruction among them, for a kind that reads padding
        assert close(alone.tokens, together.tokens[rows, :length])
        for name in ("mask", "camera"):
            assert torch.equal(getattr(alone, name), getattr(together, name)[rows, :length])
        assert not together.mask[rows, length:].any()
        assert close(alone.state, together.state[rows])
        assert torch.allclose(policy.sample(alone, noise[rows]), chunks[rows], atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["smolvla", "pi0", "pi05"])
def test_rule_06_padded_tokens_change_nothing(policies, make, kind):
    policy = policies(kind)
    observation, noise = observations(2), normal(2, 2, H, A)
    context = policy.encode(observation)
    assert (~context.mask).any() and (context.tokens[~context.mask] == 0).all()
    chunks = policy.sample(context, noise)
    wild = copy.deepcopy(context)
    pad = ~wild.extras["memory.pad"]
    assert pad.any()
    wild.extras["memory.cache"] = wild.extras["memory.cache"].masked_fill(pad[:, None, None, None, :, None], 50.0)
    assert torch.allclose(policy.sample(wild, noise), chunks, atol=2e-5)
    # More room for the sentence: the same features and chunks from a longer prompt.
    roomy = make(kind, tokenizer_max_length=policy.policy.config.tokenizer_max_length + 9)
    roomy.policy.load_state_dict(policy.policy.state_dict())
    longer = roomy.encode(observation)
    assert longer.tokens.shape[1] == context.tokens.shape[1] + 9
    assert torch.allclose(longer.tokens[longer.mask], context.tokens[context.mask], atol=2e-5)
    assert torch.allclose(roomy.sample(longer, noise), chunks, atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("diffusion")])
def test_every_sample_has_its_own_instruction(policies, kind):
    policy = policies(kind)
    one, two = (policy.encode(observations(2, sentences=[sentence])).tokens for sentence in SENTENCES)
    mixed = policy.encode(observations(2)).tokens
    assert close(mixed[0, : one.shape[1]], one[0]) and close(mixed[1], two[1])
    assert not torch.allclose(one[1], two[1, : one.shape[1]], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("diffusion")])
@pytest.mark.parametrize("camera", ["left", "wrist"])
def test_camera_tokens_are_where_the_contract_says(policies, kind, camera):
    """A change in one corner of one camera moves that corner's token most."""
    policy, index, half = policies(kind), ["left", "wrist"].index(camera), SIZE // 2
    base = policy.encode(observations(1)).tokens
    for corner in range(4):
        changed = observations(1)
        rows = slice(half * (corner // 2), half * (corner // 2 + 1))
        columns = slice(half * (corner % 2), half * (corner % 2 + 1))
        changed.images[camera][:, rows, columns] = 255 - changed.images[camera][:, rows, columns]
        context = policy.encode(changed)
        difference = (context.tokens - base)[0].norm(dim=-1)
        chosen = context.camera[0] == index
        side = round(int(chosen.sum()) ** 0.5)
        place = difference[chosen].view(2, side // 2, 2, side // 2).mean(dim=(1, 3)).argmax()
        assert chosen.sum() == side * side and place == corner


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_camera_tokens_of_a_resnet_are_its_map_row_by_row(make, shared):
    """Every place of its last map sees the whole image: their order is compared with the map itself."""
    policy = make("diffusion", use_separate_rgb_encoder_per_camera=not shared)
    observation = observations(1)
    context, encoders = policy.encode(observation), policy.adapter.encoder
    for index, camera in enumerate(["left", "wrist"]):
        image = own_batch(policy, observation)[f"observation.images.{camera}"][:, 0]
        expected = encoders[0 if shared else index](image)[0]
        tokens = context.tokens[0, context.camera[0] == index]
        assert expected.shape == (512, 2, 2)
        # Held against how far apart places are: new weights blow rounding up, more on some processors than on others.
        apart = torch.cdist(tokens, expected.flatten(1).T)
        assert apart.argmin(1).tolist() == [0, 1, 2, 3]
        others = apart[~torch.eye(4, dtype=torch.bool)]
        assert apart.diagonal().max() < 1e-5 * others.min()


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_rule_01_a_frame_has_the_same_features_alone_and_in_a_batch(policies, kind):
    policy = policies(kind)
    pooled = pool_tokens(policy.encode(observations(3)), FeatureConfig(), 2)
    assert len(pooled) == 3 and pooled.isfinite().all()
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3
    for row in range(3):
        alone = pool_tokens(policy.encode(observations(3)[[row]]), FeatureConfig(), 2)
        assert close(alone[0], pooled[row])


# ---- one kind each ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_ddpm_draws_its_later_noise_as_the_scheduler_would(policies):
    """Its chunks are spread as LeRobot's own, though each follows from its first noise."""
    policy, observation = policies("diffusion_ddpm"), observations(1)
    context = policy.encode(observation)
    noise = normal(1, 400, H, A)
    ours = policy.sample(context, noise)[0]
    condition = context.extras["memory.condition"].expand(400, -1)
    theirs = policy.policy.diffusion.conditional_sample(400, global_cond=condition, noise=noise[0])
    theirs = policy.contract.normalize_action(policy.processors.postprocessor(theirs))
    assert not torch.allclose(ours, theirs, atol=0.1)
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.35 * theirs.std(0).max()
    assert ((ours.std(0) / theirs.std(0)) - 1).abs().mean() < 0.1


@torch.no_grad()
def test_ddpm_without_noise_is_deterministic_and_other_scales_are_refused(policies):
    """Only its first noise was scaled: the control without noise still played noise of every later step."""
    policy = policies("diffusion_ddpm")
    context = policy.encode(observations(1))
    none = policy.sample(context, torch.zeros(1, 2, H, A))
    assert close(none[:, 0], none[:, 1])
    actions = policy.adapter.model.conditional_sample  # LeRobot's own, with no noise at all
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda shape, **_: torch.zeros(shape))
        condition = context.extras["memory.condition"]
        quiet = actions(1, global_cond=condition, noise=torch.zeros(1, H, A))
    expected = policy.contract.normalize_action(policy.processors.postprocessor(quiet))
    assert torch.allclose(none[0, :1], expected, atol=2e-5)
    for scale in (0, 1):
        require_noise_scale(policy, scale)
    with pytest.raises(UserError, match=r"noise_scale=0\.5.*set noise_scale to 1 or 0"):
        require_noise_scale(policy, 0.5)
    require_noise_scale(policies("diffusion"), 0.5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "groot"])
def test_observations_are_encoded_in_one_batch(policies, kind):
    policy, calls = policies(kind), []
    encode = policy.adapter.encode
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(policy.adapter, "encode", lambda batch: calls.append(1) or encode(batch))
        policy.encode(observations(5))
        assert len(calls) == 1
        patched.setattr(policy.adapter, "largest_batch", 2)
        policy.encode(observations(5))
        assert len(calls) == 4


@torch.no_grad()
def test_groot_encodes_observations_of_one_instruction_together(policies):
    policy, calls = policies("groot"), []
    encode = policy.adapter.encode
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(policy.adapter, "encode", lambda batch: calls.append(1) or encode(batch))
        policy.encode(observations(6))  # of two instructions in turn
    assert len(calls) == 2


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_the_text_mean_holds_text_tokens_only(policies, kind):
    """Summary tokens of X-VLA's views were averaged into the text."""
    policy = policies(kind)
    before = policy.encode(observations(2, seed=0))
    text = (before.camera == -1) & before.mask
    if kind.startswith("diffusion"):
        assert not text.any()
        return
    # A token for each piece of the instruction (and of the state, where it is text): never as many as image tokens.
    counts = text.sum(1)
    keys = ("observation.language.attention_mask", "attention_mask")
    batch = policy.processors.batch(observations(2)[[0]])
    given = next((batch[key] for key in keys if key in batch), None)
    if kind.startswith("dit"):
        assert (counts == 1).all()
    elif kind == "groot":
        images = int(((before.camera >= 0) & before.mask)[0].sum())
        assert counts[0] == int(given.sum()) - images
    else:
        assert counts[0] == int(given.sum())


def test_smolvla_features_stay_valid_while_its_expert_learns(make):
    """By default it trains the expert and the state's projection; the critic's tokens depend on neither."""
    policy = make("smolvla")
    before, tokens = policy.encoder_fingerprint, policy.encode(observations(2)).tokens
    with torch.no_grad():
        for parameter in [p for p in policy.parameters() if p.requires_grad]:
            parameter += 0.1
    assert policy.encoder_fingerprint == before
    assert close(policy.encode(observations(2)).tokens, tokens)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"add_image_special_tokens": True}, {"prefix_length": 64}, {"empty_cameras": 1}])
def test_smolvla_variants(make, changes):
    policy = make("smolvla", **changes)
    observation, noise = observations(2), normal(2, H, A)
    context = policy.encode(observation)
    ours = policy.sample(context, noise[:, None])[:, 0]
    assert torch.allclose(ours, own_chunks(policy, observation, noise), atol=2e-5)
    assert ((context.camera >= 0) & context.mask).sum() == 2 * 2 * 4
    assert pool_tokens(context, FeatureConfig(), 2).isfinite().all()


@pytest.mark.parametrize("kind", ["pi0", "pi05"])
def test_a_small_pi_is_a_real_one_but_for_its_sizes(policies, kind):
    """The real one, of four billion weights, is built without memory for them."""
    sizes = {"max_state_dim": 8, "max_action_dim": 8}
    config = make_policy_config(kind, device="cpu", push_to_hub=False, **features(CONTRACT), **sizes)
    config.device = "meta"
    with torch.device("meta"):
        real = get_policy_class(kind)(config)
    assert sum(parameter.numel() for parameter in real.parameters()) > 4e9
    mine, its = (
        {re.sub(r"layers\.\d+", "layers", name): tensor.dim() for name, tensor in model.state_dict().items()}
        for model in (policies(kind).policy, real)
    )
    assert mine == its


def as_any_other(policy: LeRobotPolicy, feature: str) -> LeRobotPolicy:
    """The same policy, as if there were no adapter of its kind."""
    processors = (policy.processors.preprocessor, policy.processors.postprocessor)
    return LeRobotPolicy(policy.policy, *processors, policy.contract, feature).eval()


@pytest.mark.parametrize(
    ("kind", "feature"),
    [
        ("smolvla", "model.vlm_with_expert.vlm.model.connector"),
        ("xvla", "model.vlm.vision_tower"),
        ("pi0", "model.paligemma_with_expert.paligemma.model.multi_modal_projector"),
    ],
)
def test_any_other_policy_runs_as_a_batch(policies, kind, feature):
    """It gives what the adapter of its kind gives, at a higher price."""
    policy = policies(kind)
    plain, observation, noise = as_any_other(policy, feature), observations(3), normal(3, 4, 8, A)
    assert plain.horizon == 8
    with torch.no_grad():
        context = plain.encode(observation)
        assert context.tokens.shape[1] in (2 * 4, 2 * 16) and (context.camera >= 0).all()
        chunks = plain.sample(context, noise)
        alone = plain.encode(observation[[2]])
        assert close(alone.tokens[0], context.tokens[2])
        assert torch.allclose(plain.sample(alone, noise[[2]])[0], chunks[2], atol=2e-5)
        # The adapter is given what is derived here: the steps beyond the noise.
        longer = widen(noise.flatten(0, 1), H, policy.adapter.width)
        memory, _ = policy._memory(policy.encode(observation))
        expected = policy.adapter.sample(memory, longer)[:, :8]
        inner, _ = plain._memory(context)
        assert torch.allclose(plain.adapter.sample(inner, noise.flatten(0, 1)), expected, atol=2e-5)
    plain.freeze_encoder()
    plain.train()
    weighted = plain(
        observation, plain.contract.normalize_action(commands_for(3)[:, :8]), noise[:, :2], torch.rand(3, 2)
    )
    assert weighted.shape == (3,) and weighted.std() > 0
    assert plain.policy.training and not plain.adapter.module.training
    weighted.mean().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in plain.parameters())


def test_any_other_policy_is_told_its_sentences(policies, monkeypatch):
    """Some kinds read them from the batch, as text, and invent one if there is none."""
    plain = as_any_other(policies("smolvla"), "model.vlm_with_expert.vlm.model.connector")
    told, inner = [], plain.policy

    def noting(method):
        def call(batch, **settings):
            told.append(batch["task"])
            return method(batch, **settings)

        return call

    for name in ("predict_action_chunk", "forward"):
        monkeypatch.setattr(inner, name, noting(getattr(inner, name)))
    observation = observations(2, sentences=["öffne die Schublade", "", "x"])
    context = plain.encode(observation)
    plain.sample(context, normal(2, 3, 8, A))
    plain.loss(context, torch.zeros(2, 8, A), normal(2, 2, 8, A), torch.rand(2, 2))
    first, second = (f"{sentence}\n" for sentence in observation.instruction)  # as its preprocessor leaves them
    assert told[:2] == [[first], [second]]
    assert told[2] == [first] * 3 + [second] * 3
    spoken = [sentence for each in told[3:] for sentence in each]
    assert spoken == [first] * 2 + [second] * 2


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_best_of_n_takes_any_of_them(policies, kind):
    policy, observation = policies(kind), observations(2)
    keys = [NoiseKey(0, scene, 0, 0) for scene in range(2)]
    context, config = policy.encode(observations(6)), FeatureConfig(dim=4)
    projection = fit_projection(pool_tokens(context, config, 2), config.dim)
    features, small = (
        Features(policy.contract, config, projection),
        CriticConfig(horizon=H, hidden_dim=16, num_layers=1),
    )
    scorer = DeasScorer.untrained(features, small, policy.encoder_fingerprint).eval()
    best = BestOfN(policy, 4, "best", scorer).choose(observation, keys)
    first = BestOfN(policy).choose(observation, keys)
    assert best.candidates.shape == (2, 4, H, A)
    assert torch.allclose(best.candidates[:, 0], first.commands, atol=1e-4)
    assert torch.equal(best.index, best.scores.argmax(1))


@torch.no_grad()
def test_rule_06_groot_encodes_without_padding(policies):
    """Inside LeRobot a short sentence beside a long one gives another chunk than alone: its padding is read."""
    policy, observation, noise = policies("groot"), observations(2), normal(2, H, A)
    together, alone = (own_chunks(policy, observation[rows], noise[: len(rows)]) for rows in ([0, 1], [0]))
    assert (together[0] - alone[0]).abs().max() > 1e-4
    ours = policy.sample(policy.encode(observation), noise[:, None])[:, 0, :8]
    assert torch.allclose(ours[0], alone[0], atol=2e-5)


@torch.no_grad()
def test_xvla_pads_its_actions(make):
    policy = make("xvla", max_action_dim=8)
    observation, noise = observations(2), normal(2, H, A)
    ours = policy.sample(policy.encode(observation), noise[:, None])[:, 0]
    assert policy.adapter.width == 8
    assert torch.allclose(ours, own_chunks(policy, observation, noise), atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"use_separate_rgb_encoder_per_camera": False}, {"crop_shape": (48, 48)}])
def test_diffusion_variants(make, changes):
    policy = make("diffusion", **changes)
    observation, noise = observations(2), normal(2, H, A)
    ours = policy.sample(policy.encode(observation), noise[:, None])[:, 0]
    assert torch.allclose(ours[:, :8], own_chunks(policy, observation, noise), atol=2e-5)
