"""What a stage is said to take: within a fifth of what it takes, refused where it cannot fit; nothing is changed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_example import ExampleEncoder, example_contract, example_episode
from safetensors.torch import save_file
from source_tree import ROOT
from torch import nn

from deas_vla.data.frames import FrameTable
from deas_vla.errors import UserError
from deas_vla.features.cache import FeatureCache
from deas_vla.features.features import FeatureConfig
from deas_vla.launch import system_fault
from deas_vla.training import checkpoint, estimate
from deas_vla.training.estimate import (
    GIB,
    Free,
    Needs,
    announce,
    bytes_in,
    cache_needs,
    free_memory,
    require_room,
    training_needs,
)
from deas_vla.training.loop import TrainingConfig, make_accelerator, train
from deas_vla.training.stages import run_stage

NEEDS = Needs(
    "critic", "10 steps of 8", disk=GIB, memory=8 * GIB, seconds=60.0,
    changes=(("--training.micro_batches=2", 5 * GIB, 0.0), ("--training.micro_batches=4", 3 * GIB, 0.0)),
)  # fmt: skip


@pytest.fixture(scope="module")
def accelerator():
    return make_accelerator()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("group", "files"),
    [
        ("0::/job", ("job/memory.max", "job/memory.current", "job/memory.stat", "inactive_file")),
        (
            "4:memory:/job",
            ("memory/job/memory.limit_in_bytes", "memory/job/memory.usage_in_bytes", "memory/job/memory.stat",
             "total_inactive_file"),
        ),
    ],
)  # fmt: skip
def test_a_control_group_limits_the_memory_that_is_free(group, files, tmp_path):
    (tmp_path / "cgroup").write_text(f"7:cpu:/job\n{group}\n")
    limit, used, notes, inactive = files
    (tmp_path / limit).parent.mkdir(parents=True)
    (tmp_path / limit).write_text("1000000\n")
    (tmp_path / used).write_text("900000\n")
    (tmp_path / notes).write_text(f"anon 700000\n{inactive} 50000\n")
    assert free_memory(tmp_path / "cgroup", tmp_path) == 150_000
    (tmp_path / limit).write_text("max\n" if group.startswith("0") else "9223372036854771712\n")
    assert free_memory(tmp_path / "cgroup", tmp_path) > 150_000


@pytest.mark.unit
@pytest.mark.parametrize(
    ("free", "words"),
    [
        (Free(9 * GIB, 6 * GIB, None), "critic needs about 8.0 GiB of memory, 6.0 GiB is free: set "
         "--training.micro_batches=2 (5.0 GiB)"),
        (Free(9 * GIB, 4 * GIB, None), "--training.micro_batches=4 (3.0 GiB)"),
        (Free(9 * GIB, 2 * GIB, None), "take a machine with 8.0 GiB"),
        (Free(GIB // 2, 9 * GIB, None), "critic needs 1.0 GiB of disk, 0.5 GiB is free: free space, or"),
    ],
)  # fmt: skip
def test_what_cannot_fit_is_refused_with_the_flag_and_value_that_fit(free, words):
    require_room(NEEDS, Free(9 * GIB, 7 * GIB, None))
    with pytest.raises(UserError) as caught:
        require_room(NEEDS, free)
    assert words in str(caught.value)


@pytest.mark.unit
def test_a_dry_run_prints_every_stage_and_what_there_is_and_writes_nothing(tmp_path, capsys):
    printing = SimpleNamespace(device=torch.device("cpu"), print=print, is_main_process=True)
    said = []
    assert not announce(printing, tmp_path / "critic", [NEEDS], said)
    assert not announce(printing, tmp_path / "critic", [replace(NEEDS, stage="next")], said)
    head, there, *rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert head == "needs about disk memory GPU time" and there.startswith("there is ")
    assert rows == [f"{name} 1.0 GiB 8.0 GiB 1.0 min 10 steps of 8" for name in ("critic", "next")]
    assert not (tmp_path / "critic").exists()


@pytest.mark.unit
def test_memory_that_runs_out_in_a_stage_names_what_was_estimated_to_take_less(accelerator, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "free_memory", lambda: 6.9 * GIB)

    def work(folder):
        announce(accelerator, folder, [NEEDS])
        raise MemoryError

    with pytest.raises(MemoryError) as caught:
        run_stage(accelerator, tmp_path / "critic", {"a": 1}, {}, work)
    assert "out of memory: set --training.micro_batches=2 (5.0 GiB); then run again" in system_fault(caught.value)


class Counting(nn.Module):
    """A network with a buffer that each step moves, and dropout."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 1))

    def forward(self, x):
        return self.layers(x).square().mean() + torch.log(x.amin()), {}  # not finite: no gradient may be followed


@pytest.mark.unit
def test_a_trial_leaves_the_module_and_the_random_state_as_they_were(accelerator):
    module = Counting().eval()
    before, random = {k: v.clone() for k, v in module.state_dict().items()}, torch.get_rng_state()
    config = TrainingConfig(steps=10, batch_size=8, checkpoint_every=4)
    need = training_needs(accelerator, "s", module, lambda step: (torch.arange(32.0).view(8, 4),), config, "training")
    assert torch.equal(random, torch.get_rng_state()) and not module.training
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert [flag for flag, _, _ in need.changes] == [f"--training.micro_batches={m}" for m in (2, 4, 8)]
    assert need.seconds > 0 and need.memory > 0


@pytest.mark.unit
def test_disk_of_a_training_is_within_a_fifth_of_what_lies_there(accelerator, tmp_path, monkeypatch):
    """Weights that stay as they are were counted in every checkpoint, which leaves them out (defect)."""
    module, lies = Half(), []
    config = TrainingConfig(steps=5, batch_size=4, checkpoint_every=2)
    batches = lambda step: (torch.ones(4, 256),)  # noqa: E731
    need = training_needs(accelerator, "s", module, batches, config, "training")

    def saved(*arguments, **options):
        save_file(*arguments, **options)
        lies.append(bytes_in(tmp_path))

    monkeypatch.setattr(checkpoint, "save_file", saved)
    train(accelerator, module, batches, config, tmp_path, name="s", seed=0)
    saved(module.state_dict(), tmp_path / "weights.safetensors")
    assert len(lies) == 3 and max(lies) == pytest.approx(need.disk, rel=0.2)


class Half(nn.Module):
    """Two layers, of which one is trained."""

    def __init__(self):
        super().__init__()
        self.fixed, self.head = nn.Linear(256, 256).requires_grad_(False), nn.Linear(256, 256)

    def forward(self, x):
        return self.head(self.fixed(x)).square().mean(), {}


@pytest.mark.unit
def test_disk_of_features_is_within_a_fifth_of_what_lies_there(accelerator, tmp_path):
    episodes = [example_episode(np.random.default_rng(0), 40, True, every=1) for _ in range(4)]
    cache = FeatureCache(tmp_path, ExampleEncoder(example_contract()), FrameTable.of(episodes), FeatureConfig())
    need, _ = cache_needs(accelerator, cache, "features")
    cache.fill()
    assert bytes_in(cache.folder) == pytest.approx(need.disk, rel=0.2)


def off(names: list[str]) -> dict[str, float]:
    """Combinations whose estimate is more than a fifth off, with its ratio to what was measured."""
    script = Path(ROOT, "benchmarks", "estimates.py")
    command = [sys.executable, script, f"--combinations={','.join(names)}", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])["combinations"]
    assert list(found) == names
    ratios = {name: each["ratio"]["memory"] for name, each in found.items()}
    return {name: ratio for name, ratio in ratios.items() if not 0.8 <= ratio <= 1.2}


@pytest.mark.slow
def test_memory_is_within_a_fifth_of_what_is_measured():
    wrong = off(["image_encoder", "critic", "critic_published", "checkpoint", "full", "lora"])
    # What a process holds depends on when the system takes pages back: what is off is measured once more.
    assert not wrong or not off(list(wrong)), wrong
