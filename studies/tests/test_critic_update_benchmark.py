"""The benchmark of a training update: its count of the matrix products, and what it prints."""

import json
import sys

import pytest

from studies.ogbench import update_benchmark


@pytest.fixture(scope="module")
def benchmark():
    return update_benchmark


def test_what_it_prints(benchmark, monkeypatch, capsys):
    arguments = ["--updates=30", "--hidden-dim=32", "--num-layers=2", "--profile", "--json"]
    monkeypatch.setattr(sys, "argv", ["update_benchmark", *arguments])
    monkeypatch.setattr(benchmark, "ROWS", 2000)
    benchmark.main()
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])

    def weights(inputs, outputs):
        return inputs * 32 + 32 * 32 + 32 * outputs

    v, q, flow = weights(28, 101), weights(53, 101), weights(28 + 26, 25)
    # Forward passes: V twice, two Q and two targets, the policy. Backward: once for the weights, and once more for
    # the inputs of all layers but the first.
    forward = 2 * v + 4 * q + flow
    backward = 2 * (v + 2 * q + flow) - 32 * (28 + 2 * 53 + 54)
    assert result["gflop_per_update"] == pytest.approx(2e-9 * 256 * (forward + backward))
    floor = 1e3 * result["gflop_per_update"] / result["peak_gflops"]
    assert result["fraction_of_peak"] == pytest.approx(floor / result["cpu_ms_per_update"])
    assert 0 < result["fraction_of_peak"] < 1 and 0 < result["sampler_share"] < 1
    assert "matrix products" in printed and "aten::bmm" in printed
