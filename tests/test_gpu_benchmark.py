"""benchmarks/gpu.py at small size on the CPU: each part has its rows, and one that fails is a line among the others."""

import importlib.util
import json
import subprocess
import sys
import time

import pytest
import torch
from source_tree import ROOT


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CANDIDATES, module.REPEATS, module.WARM_UP = (1, 8), 1, 0
    return module


def test_every_part_runs_small_on_the_cpu(gpu):
    results = gpu.run_all(list(gpu.PARTS), "small", torch.device("cpu"), gpu.run_here)
    assert {name: result.get("error") for name, result in results.items()} == dict.fromkeys(gpu.PARTS)
    rows = {name: {row["what"]: row for row in result["rows"]} for name, result in results.items()}
    assert rows["pi05"]["N = 8"]["published"] == 1.017 and "published" not in rows["n15"]["N = 8"]
    for name in ("n15", "pi05"):
        assert rows[name]["N = 8"]["of N = 1"] == rows[name]["N = 8"]["ms"] / rows[name]["N = 1"]["ms"]
    assert all(row["frames/s"] > 0 for row in rows["features"].values())
    assert [row["updates/s"] > 0 for row in rows["critic"].values()] == [True, True]
    shown = gpu.table(json.loads(json.dumps(results)))
    assert len(shown.splitlines()) == sum(map(len, rows.values()))
    assert sum(gpu.SECONDS.values()) <= 600 and gpu.SECONDS.keys() == gpu.PARTS.keys()


@pytest.mark.unit
def test_a_part_that_fails_is_one_line_and_the_others_go_on(gpu, monkeypatch):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    parts = {"n15": no_memory, "critic": lambda *_: [{"what": "eager", "updates/s": 2.0}]}
    monkeypatch.setattr(gpu, "PARTS", parts)
    shown = gpu.table(gpu.run_all(list(parts), "small", torch.device("cpu"), gpu.run_here)).splitlines()
    assert shown[0].split() == ["n15", "failed", "OutOfMemoryError:", "CUDA", "out", "of", "memory."]
    assert shown[1].split() == ["critic", "eager", "updates/s", "2"]


@pytest.mark.unit
@pytest.mark.parametrize(
    "program, said", [("import time; time.sleep(60)", "not done after"), ("1 / 0", "ZeroDivisionError"), ("", "said")]
)
def test_a_process_that_hangs_or_dies_is_one_line(gpu, monkeypatch, program, said):
    run = subprocess.run
    monkeypatch.setattr(gpu.subprocess, "run", lambda _, **more: run([sys.executable, "-c", program], **more))
    began = time.monotonic()
    assert said in gpu.run_apart("critic", "small", torch.device("cpu"), 3)["error"]
    assert time.monotonic() - began < 60


@pytest.mark.unit
def test_without_a_gpu_it_says_what_to_type(gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--size=small --device=cpu" in capsys.readouterr().err
