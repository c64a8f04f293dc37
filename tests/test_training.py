"""The training loop: counter-based randomness, resume to the same weights, atomic files."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import safe_open
from torch import nn

from deas_vla.errors import UserError
from deas_vla.files import atomic_path, sha256_of, write_json
from deas_vla.training import loop
from deas_vla.training.loop import TrainingConfig, my_share, read_metrics, step_generator, train

pytestmark = pytest.mark.unit


class Regression(nn.Module):
    """A small network with dropout, so that a resumed run must also see the same dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))

    def forward(self, x, y):
        loss = (self.net(x) - y).square().mean()
        return loss, {"error": loss.detach().sqrt()}


class Killed(Exception):
    pass


def batches(kill_at=None):
    def batch_at(step):
        if step == kill_at:
            raise Killed
        x = torch.randn(8, 3, generator=step_generator(7, step))
        return x, x.sum(1, keepdim=True)

    return batch_at


def run(folder, kill_at=None, seed=3, precision="no", **overrides):
    module = Regression()
    config = TrainingConfig(steps=20, batch_size=8, checkpoint_every=4, log_every=2, **overrides)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    train(accelerator, module, batches(kill_at), config, folder, name="test", seed=seed)
    return module.state_dict()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights, and the lines, of a training that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), read_metrics(folder / "metrics.jsonl")


@pytest.mark.parametrize("kill_at", [1, 4, 13, 19])
def test_rule_12_interrupted_is_not_lost(whole, tmp_path, kill_at):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=kill_at)
    resumed = run(tmp_path)
    for key, value in whole[0].items():
        assert torch.equal(value, resumed[key]), key
    lines, expected = read_metrics(tmp_path / "metrics.jsonl"), whole[1]
    assert [line["step"] for line in lines] == list(range(2, 21, 2))
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected]


class Adapted(Regression):
    """A large layer that is not trained, and one beside it that is."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.fixed = nn.Linear(3, 500).requires_grad_(False)
        self.small = nn.Linear(500, 1, bias=False)

    def forward(self, x, y):
        loss = (self.net(x) + self.small(self.fixed(x)) - y).square().mean()
        return loss, {}


def test_rule_12_a_checkpoint_holds_what_is_trained_and_goes_with_the_rest(tmp_path):
    def run(folder, module, kill_at=None):
        config = TrainingConfig(steps=6, batch_size=8, checkpoint_every=4)
        train(Accelerator(cpu=True), module, batches(kill_at), config, folder, name="test", seed=3)
        return module.state_dict()

    whole = run(tmp_path / "whole", Adapted())
    with pytest.raises(Killed):
        run(tmp_path / "killed", Adapted(), kill_at=5)
    path = tmp_path / "killed" / "checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        held = {key.rpartition("fixed")[1] for key in file.keys()}  # noqa: SIM118
    assert held == {""} and path.stat().st_size < 3 * 4 * 600 + 4000
    with pytest.raises(UserError, match=r"checkpoint\.safetensors.*others that are not trained"):
        run(tmp_path / "killed", Adapted(seed=1))
    resumed = run(tmp_path / "killed", Adapted())
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_weights_that_something_else_moves_are_in_the_checkpoint(tmp_path):
    def run(folder, kill_at=None):
        module = Adapted()
        config = TrainingConfig(steps=6, batch_size=8, checkpoint_every=4)
        train(
            Accelerator(cpu=True), module, batches(kill_at), config, folder,
            name="test", seed=3, after_step=lambda m: m.fixed.weight.data.add_(0.1),
        )  # fmt: skip
        return module.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(Killed):
        run(tmp_path / "killed", kill_at=5)
    assert torch.equal(whole["fixed.weight"], run(tmp_path / "killed")["fixed.weight"])


def test_only_a_last_line_that_was_cut_off_is_left_out_of_the_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    for broken in ('{"step": 1}\n{"st\n{"step": 3}\n', '{"step": 1}\n{"ste\n'):
        path.write_text(broken)
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is not JSON"):
            read_metrics(path)


def test_missing_tensorboard_is_reported_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    loop._tensorboard.cache_clear()
    for name in ("one", "two"):
        loop.MetricLog(tmp_path / name, 0).close()
    assert capsys.readouterr().out.count("TensorBoard is not installed") == 1
    assert not (tmp_path / "one" / "tensorboard").exists()
    loop._tensorboard.cache_clear()


def test_another_seed_gives_other_weights(whole, tmp_path):
    """The resume test would pass if nothing was random: this is what makes it able to fail."""
    other = run(tmp_path, seed=4)
    assert any(not torch.equal(value, other[key]) for key, value in whole[0].items())


def test_a_cut_off_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(Killed):
        run(tmp_path, kill_at=10)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"checkpoint\.safetensors.*delete it and run again"):
        run(tmp_path)


def test_a_training_in_bfloat16_is_near_that_in_float32(tmp_path):
    """As `accelerate launch --mixed_precision=bf16` has it."""
    whole = run(tmp_path / "whole")
    AcceleratorState._reset_state()
    try:
        half = run(tmp_path / "half", precision="bf16")
    finally:
        AcceleratorState._reset_state()
    assert any(not torch.equal(half[key], value) for key, value in whole.items())
    for key, value in whole.items():
        assert half[key].dtype == torch.float32
        torch.testing.assert_close(half[key], value, atol=2e-2, rtol=0)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        run(tmp_path, learning_rate=1e30)


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TrainingConfig(steps=100, learning_rate=2.0, warmup=0.1)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(2.0)
    assert rates.index(max(rates)) == 9 and rates[-1] < 0.01
    assert TrainingConfig(steps=100, learning_rate=2.0, cosine=False).learning_rate_at(99) == 2.0


def test_a_batch_that_cannot_be_shared_is_refused():
    class TwoProcesses:
        num_processes, process_index = 2, 1

    assert my_share(TwoProcesses, 8) == slice(4, 8)
    with pytest.raises(UserError, match="not a multiple of the 2 processes; take 6"):
        my_share(TwoProcesses, 7)


def test_micro_batches_make_the_same_step(tmp_path):
    """A critic's and a policy's batch: test_distributed.py; here the gradients, their norm and the loss."""

    def run(name, parts):
        module = Adapted()
        module.net[2].p = 0.0
        config = TrainingConfig(steps=3, batch_size=8, log_every=1, micro_batches=parts)
        train(Accelerator(cpu=True), module, batches(), config, tmp_path / name, name="test", seed=3)
        return module.state_dict(), read_metrics(tmp_path / name / "metrics.jsonl")

    (whole, lines), (parts, part_lines) = run("whole", 1), run("parts", 4)
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, atol=1e-5, rtol=1e-4)
    for key in ("loss", "gradient_norm"):
        assert [line[key] for line in part_lines] == pytest.approx([line[key] for line in lines], rel=1e-4)


@pytest.mark.parametrize("parts, fix", [(3, "multiple of micro_batches=3"), (0, "micro_batches")])
def test_micro_batches_that_do_not_divide_the_batch_are_refused(parts, fix):
    with pytest.raises(UserError, match=fix):
        TrainingConfig(batch_size=8, micro_batches=parts)


def test_gradient_accumulation_of_the_launcher_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    with pytest.raises(UserError, match="set micro_batches instead"):
        loop.make_accelerator()


def test_step_generators_are_independent_of_history():
    first = torch.randn(4, generator=step_generator(0, 5))
    torch.randn(100)
    assert torch.equal(first, torch.randn(4, generator=step_generator(0, 5)))
    others = [step_generator(0, 6), step_generator(1, 5), step_generator(0, 5, stream=1)]
    assert all(not torch.equal(first, torch.randn(4, generator=g)) for g in others)


def test_atomic_path_leaves_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise OSError
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["value.json"]


def test_two_processes_may_write_one_path_and_what_a_dead_one_left_is_cleared(tmp_path):
    path = tmp_path / "block.json"
    writer = textwrap.dedent(
        f"""
        from pathlib import Path
        from deas_vla.files import write_json
        for number in range(40):  # each waits for the disk
            write_json(Path({str(path)!r}), [number] * 50)
        """
    )
    writers = [subprocess.Popen([sys.executable, "-c", writer]) for _ in range(2)]
    seen = 0
    while any(process.poll() is None for process in writers):
        if path.is_file():
            assert len(json.loads(path.read_text())) == 50
            seen += 1
    assert seen and [process.returncode for process in writers] == [0, 0]
    (tmp_path / f".block.json.{writers[0].pid}.partial").write_text("half")
    (tmp_path / f".block.json.{os.getppid()}.partial").write_text("another process is at it")
    write_json(path, {})
    assert sorted(os.listdir(tmp_path)) == [f".block.json.{os.getppid()}.partial", "block.json"]


def test_atomic_path_replaces_a_folder(tmp_path):
    for content in ("one", "two"):
        with atomic_path(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(content)
    assert (tmp_path / "folder" / "file").read_text() == "two"
    assert os.listdir(tmp_path) == ["folder"]


def test_sha256_of_a_folder_sees_names_and_contents(tmp_path):
    def digest(name, content):
        folder = tmp_path / f"{name}-{content}"
        folder.mkdir()
        (folder / name).write_text(content)
        return sha256_of(folder)

    assert len({digest("a", "x"), digest("a", "y"), digest("b", "x")}) == 3


def test_a_step_clips_the_gradient_and_is_one_of_adamw(tmp_path):
    """Against the equations in float64: clipping by the global norm, then AdamW with decoupled decay."""
    module = nn.Linear(3, 2).requires_grad_()
    weights = [p.detach().double().clone().requires_grad_() for p in module.parameters()]
    inputs = [10 * torch.randn(4, 3, generator=step_generator(1, step)) for step in range(6)]
    config = TrainingConfig(steps=6, batch_size=4, learning_rate=0.1, weight_decay=0.5, cosine=False, gradient_clip=1.0)

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, x):
            loss = self.net(x).square().sum()
            return loss, {}

    train(Accelerator(cpu=True), Loss(), lambda step: (inputs[step],), config, tmp_path, name="t", seed=0)

    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in weights]
    for step, x in enumerate(inputs, start=1):
        loss = (x.double() @ weights[0].T + weights[1]).square().sum()
        gradients = torch.autograd.grad(loss, weights)
        norm = sum(g.square().sum() for g in gradients).sqrt()
        assert norm > 1
        rate = config.learning_rate_at(step - 1)
        with torch.no_grad():
            for p, g, (first, second) in zip(weights, gradients, moments, strict=True):
                g = g / (norm + 1e-6)
                first.lerp_(g, 0.1)
                second.lerp_(g.square(), 0.001)
                p -= rate * 0.5 * p
                p -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    for parameter, expected in zip(module.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter.double(), expected, atol=1e-5, rtol=1e-5)
