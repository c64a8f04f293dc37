"""The GR00T-style policy: what must not matter does not, and what must matter does."""

import copy
from dataclasses import replace

import pytest
import torch
from data_example import SIZE, example_contract
from policy_example import SENTENCES, close, normal, observations, shake, small_config, small_policy, trained

from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError
from deas_vla.policies import fingerprint
from deas_vla.policies.flow import hold_last, interpolate, sample_time
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

pytestmark = pytest.mark.unit

H, A = 4, 2


@pytest.fixture(scope="module")
def policy() -> SmallVLAPolicy:
    return small_policy()


@pytest.fixture(autouse=True)
def evaluation(policy):
    policy.eval()
    yield
    policy.zero_grad()


@torch.no_grad()
def test_rule_06_other_items_of_the_batch_change_nothing(policy):
    everything = observations(20)
    together = policy.encode(everything)
    for count in range(1, 21):
        rows = list(range(20 - count, 20))
        alone = policy.encode(everything[rows])
        assert close(alone.tokens, together.tokens[rows])
        assert torch.equal(alone.mask, together.mask[rows])
        assert close(alone.state, together.state[rows])
    noise = normal(20, 3, H, A)
    chunks = policy.sample(together, noise)
    for row in (0, 7, 19):
        alone = policy.sample(policy.encode(everything[[row]]), noise[[row]])
        assert torch.allclose(alone[0], chunks[row], atol=1e-5)


@torch.no_grad()
def test_images_of_other_sizes_are_seen_as_means_of_their_pixels(policy):
    """Cameras of 3·SIZE by 2·SIZE, each pixel six times, brought to SIZE, are the cameras of SIZE."""
    contract = example_contract()
    wide = replace(contract, cameras=tuple(replace(c, height=3 * SIZE, width=2 * SIZE) for c in contract.cameras))
    with pytest.raises(UserError, match=r"--policy\.image_size=32 brings images to 32x32"):
        SmallVLAPolicy(small_config(), wide, SENTENCES)
    other = SmallVLAPolicy(small_config(image_size=SIZE), wide, SENTENCES).eval()
    other.load_state_dict(policy.state_dict())
    small = observations(5)
    images = {k: image.repeat_interleave(3, 1).repeat_interleave(2, 2) for k, image in small.images.items()}
    large = Observation(images, small.state, small.instruction)
    assert close(other.encode(large).tokens, policy.encode(small).tokens)


@torch.no_grad()
def test_rule_06_padded_tokens_change_nothing(policy):
    observation = observations(4)
    context = policy.encode(observation)
    assert (~context.mask).any() and (context.tokens[~context.mask] == 0).all()
    noise = normal(4, 2, H, A)
    wild = torch.where(context.mask[..., None], context.tokens, torch.full_like(context.tokens, 50.0))
    chunks = policy.sample(Context(wild, context.mask, context.camera, context.state), noise)
    assert torch.allclose(chunks, policy.sample(context, noise), atol=1e-5)
    # More room for the instruction: the same chunks from a longer prompt.
    roomy = small_policy(max_instruction_tokens=24)
    roomy.load_state_dict(policy.state_dict() | {"token_camera": roomy.token_camera}, strict=False)
    assert torch.allclose(roomy.sample(roomy.encode(observation), noise), chunks, atol=1e-5)


@torch.no_grad()
def test_observations_are_encoded_in_batches(policy):
    """One call of the backbone for all of them, or for each `encode_batch`."""
    calls = []
    handle = policy.backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    policy.encode(observations(7))
    small_batches = copy.deepcopy(policy)
    small_batches.config.encode_batch = 3
    small_batches.encode(observations(7))
    handle.remove()
    assert calls == [7, 3, 3, 1]


@torch.no_grad()
def test_rule_08_one_candidate_is_the_policy(policy):
    context, noise = policy.encode(observations(3)), normal(3, 10, H, A)
    ten = policy.sample(context, noise)
    for i in (0, 9):
        assert torch.allclose(policy.sample(context, noise[:, i : i + 1])[:, 0], ten[:, i], atol=1e-6)
    assert (ten[:, 0] - ten[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_sharing_keys_and_values_equals_copying_the_context(policy):
    observation, noise = observations(3), normal(3, 5, H, A)
    shared = policy.sample(policy.encode(observation), noise)
    copied = policy.encode(observation[[0] * 5 + [1] * 5 + [2] * 5])
    naive = policy.sample(copied, noise.view(15, 1, H, A)).view(3, 5, H, A)
    assert torch.allclose(shared, naive, atol=1e-5)
    # A context from elsewhere, without the keys and values, gives the same.
    context = policy.encode(observation)
    bare = Context(context.tokens, context.mask, context.camera, context.state)
    assert torch.allclose(policy.sample(bare, noise), shared, atol=1e-6)


@torch.no_grad()
def test_loss_is_the_error_of_the_predicted_chunk(policy):
    context, chunks, noise = policy.encode(observations(3)), normal(3, H, A), normal(3, 2, H, A, seed=3)
    time = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    losses = policy.loss(context, chunks, noise, time)
    for row in range(3):
        errors = []
        for sample in range(2):
            one = Context(context.tokens[[row]], context.mask[[row]], context.camera[[row]], context.state[[row]])
            x = interpolate(chunks[row][None, None], noise[row, sample][None, None], time[row, sample].view(1, 1))
            head = policy.head
            memory = head.read_context(one.tokens, one.mask, policy.token_camera)
            conditioning = head.condition(time[row, sample].view(1, 1))
            predicted = head(x, conditioning, head.embed_state(one.state), memory, one.mask)
            errors.append((predicted[0, 0] - chunks[row]).square().mean())
        assert torch.allclose(losses[row], torch.stack(errors).mean(), atol=1e-5)


@torch.no_grad()
def test_loss_ignores_what_was_not_played(policy):
    context, chunks, noise = policy.encode(observations(3)), normal(3, H, A), normal(3, 2, H, A, seed=3)
    time = torch.full((3, 2), 0.5)
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    losses = policy.loss(context, chunks, noise, time, valid)
    wild = torch.where(valid[..., None], chunks, torch.full_like(chunks, 1e3))
    assert close(policy.loss(context, wild, noise, time, valid), losses)
    held = policy.loss(context, hold_last(chunks, valid), noise, time)
    assert torch.allclose(held[0], losses[0]) and not torch.allclose(held[2], losses[2])


@torch.no_grad()
def test_every_sample_has_its_own_instruction(policy):
    """Published code gave the first sentence of a batch to all its samples."""
    one, two = (observations(4, sentences=[sentence]) for sentence in SENTENCES)
    mixed = observations(4, sentences=SENTENCES)
    tokens = [policy.encode(observation).tokens for observation in (one, two, mixed)]
    assert not torch.allclose(tokens[0], tokens[1], atol=1e-3)
    for row in range(4):
        assert close(tokens[2][row], tokens[row % 2][row])
    noise = normal(4, 2, H, A)
    chunks = [policy.sample(policy.encode(observation), noise) for observation in (one, two)]
    assert (chunks[0] - chunks[1]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("camera", ["left", "wrist"])
def test_camera_tokens_are_where_the_contract_says(policy, camera):
    """A change in one corner of one camera moves that corner's token most."""
    index = ["left", "wrist"].index(camera)
    base = observations(1)
    for corner, (rows, columns) in enumerate(
        [(slice(8), slice(8)), (slice(8), slice(8, 16)), (slice(8, 16), slice(8)), (slice(8, 16), slice(8, 16))]
    ):
        changed = observations(1)
        changed.images[camera][:, rows, columns] = 255 - changed.images[camera][:, rows, columns]
        difference = (policy.encode(changed).tokens - policy.encode(base).tokens)[0].norm(dim=-1)
        chosen = policy.encode(base).camera[0] == index
        assert chosen.sum() == 4
        assert difference[chosen].argmax() == corner


@torch.no_grad()
def test_state_is_normalised_and_used(policy):
    observation = observations(2)
    context = policy.encode(observation)
    assert torch.equal(context.state, example_contract().normalize_state(observation.state))
    observation.state += 1
    noise = normal(2, 1, H, A)
    moved = policy.sample(policy.encode(observation), noise)
    assert (moved - policy.sample(context, noise)).abs().max() > 1e-3


def test_a_new_policy_predicts_nothing_yet():
    policy = SmallVLAPolicy(small_config(), example_contract()).eval()
    with torch.no_grad():
        assert policy.sample(policy.encode(observations(2)), normal(2, 3, H, A)).abs().max() == 0


def test_training_mode_has_gradients_everywhere(policy):
    policy.train()
    policy(observations(4), normal(4, H, A), normal(4, 2, H, A), torch.rand(4, 2)).sum().backward()
    without = [name for name, p in policy.named_parameters() if p.grad is None]
    assert not without


def test_frozen_encoder_trains_the_head_only(policy):
    frozen = copy.deepcopy(policy)
    frozen.freeze_encoder()
    before = frozen.encoder_fingerprint
    frozen.train()
    optimizer = torch.optim.AdamW(trained(frozen), lr=1e-2)
    time = torch.rand(4, 2)
    frozen(observations(4), normal(4, H, A), normal(4, 2, H, A), time).sum().backward()
    # The projection of keys and values belongs to the head, and learns.
    assert frozen.head.blocks[0].key_value.weight.grad.abs().max() > 0
    optimizer.step()
    assert frozen.encoder_fingerprint == before
    with torch.no_grad():
        assert close(frozen.encode(observations(4)).tokens, policy.encode(observations(4)).tokens)


def test_a_frozen_encoder_with_dropout_gives_the_same_features_in_training():
    """A fully tuned backbone stayed in training mode when its encoder was frozen: the head saw other features."""
    policy = small_policy()
    for module in policy.backbone.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
        if getattr(module, "dropout", None).__class__ is float:
            module.dropout = 0.5
    expected = policy.encode(observations(4)).tokens
    learning = policy.train().encode(observations(4)).tokens
    assert not torch.allclose(learning, expected, atol=1e-3)  # the dropout matters
    policy.freeze_encoder()
    policy.train()
    assert policy.head.training and not any(module.training for module in policy.backbone.modules())
    assert close(policy.encode(observations(4)).tokens, expected)


def test_the_fingerprint_is_computed_once_and_again_when_a_weight_has_changed(policy, monkeypatch):
    changing, hashed = copy.deepcopy(policy), []
    real = fingerprint.hash_tensors
    monkeypatch.setattr(fingerprint, "hash_tensors", lambda tensors: hashed.append(1) or real(tensors))
    prints = [changing.encoder_fingerprint]
    changing.encode(observations(2))
    with torch.inference_mode():
        changing.encode(observations(2))
    assert changing.encoder_fingerprint == changing.encoder_fingerprint == prints[0] and len(hashed) == 1
    # Training that touches the encoder, with the optimiser of the training loop, which counts no versions up.
    changing.train()
    changing.eval()
    assert changing.encoder_fingerprint == prints[0] and len(hashed) == 2
    changing.train()
    optimizer = torch.optim.AdamW(trained(changing), lr=1e-3, fused=True)
    changing(observations(2), normal(2, H, A), normal(2, 1, H, A), torch.rand(2, 1)).sum().backward()
    assert changing.encoder_fingerprint == prints[0]
    optimizer.step()
    assert changing.eval().encoder_fingerprint != prints[0]
    prints.append(changing.encoder_fingerprint)
    hashed.clear()
    # Training of the head alone.
    changing.freeze_encoder()
    changing.train()
    changing.zero_grad()
    changing(observations(2), normal(2, H, A), normal(2, 1, H, A), torch.rand(2, 1)).sum().backward()
    optimizer.step()
    assert changing.encoder_fingerprint == changing.eval().encoder_fingerprint == prints[1] and not hashed
    # Weights that are read, and those of another type.
    changing.load_state_dict(policy.state_dict())
    assert changing.encoder_fingerprint == prints[0] and len(hashed) == 1
    changing.backbone.to(torch.bfloat16)
    prints.append(changing.encoder_fingerprint)
    assert len(set(prints)) == 3 and len(hashed) == 2


def test_fingerprint_covers_what_encoding_depends_on(policy):
    contract = example_contract()
    shifted = contract.with_statistics(example_contract().statistics.of(normal(5, 3), normal(5, 2)))
    prints = {"same": policy.encoder_fingerprint}
    assert copy.deepcopy(policy).encoder_fingerprint == prints["same"]
    for name in ("backbone.model.text_model.layers.1.mlp.up_proj.weight", "context_encoder.norm.bias"):
        other = copy.deepcopy(policy)
        other.get_parameter(name).data.view(-1)[-1] += 1e-6
        prints[name] = other.encoder_fingerprint
    other = copy.deepcopy(policy)
    other.contract = shifted
    prints["statistics"] = other.encoder_fingerprint
    prints["room"] = small_policy(max_instruction_tokens=17).encoder_fingerprint
    vocabulary = SmallVLAPolicy(small_config(), contract, ["grill the aubergine"])
    vocabulary.load_state_dict(policy.state_dict())
    prints["words"] = vocabulary.encoder_fingerprint
    head = copy.deepcopy(policy)
    head.head.decoder[-1].bias.data += 1
    assert head.encoder_fingerprint == prints["same"]
    assert len(set(prints.values())) == len(prints) == 6


def test_the_flow_learns_what_it_is_told():
    """Two instructions, two opposite chunks, other images at every step: training separates them."""
    torch.manual_seed(0)
    policy = SmallVLAPolicy(small_config(), example_contract(), SENTENCES).train()
    chunks = torch.ones(16, H, A) * torch.tensor([1.0, -1.0]).repeat(8)[:, None, None]
    optimizer = torch.optim.AdamW(trained(policy), lr=3e-3)
    for step in range(60):
        time = sample_time((16, 2), torch.Generator().manual_seed(step))
        loss = policy(observations(16, seed=step), chunks, normal(16, 2, H, A, seed=step), time).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    with torch.no_grad():
        sampled = policy.sample(policy.encode(observations(8, seed=999)), normal(8, 4, H, A, seed=999))
    mean = sampled.mean(dim=(1, 2, 3))
    assert (mean[::2] > 0.8).all() and (mean[1::2] < -0.8).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": "half"}, "tune='half'"),
        ({"width": 30}, "head_width"),
        ({"horizon": 0}, "horizon=0"),
        ({"backbone_dtype": "int8"}, "backbone_dtype"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        small_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"select_layer": 3}, "select_layer=3"), ({"backbone": "no/such/folder"}, "no/such/folder")],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        SmallVLAPolicy(small_config(**changes), example_contract())


def test_what_the_policy_cannot_read_is_refused(policy):
    long = observations(1, sentences=["put the aubergine next to the xylophone " * 3])
    with pytest.raises(UserError, match="max_instruction_tokens"):
        policy.encode(long)
    blind = observations(1)
    del blind.images["wrist"]
    with pytest.raises(UserError, match="wrist"):
        policy.encode(blind)


def test_select_layer_cuts_the_language_model():
    cut = small_policy(select_layer=1)
    assert len(cut.backbone.model.text_model.layers) == 1
    assert shake(cut).encode(observations(1)).tokens.isfinite().all()
