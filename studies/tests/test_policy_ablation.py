"""The ablation of fine-tuning: what was played is what its table says, scene by scene."""

import numpy as np
import pytest

from studies.ablations.policy_table import ALONE, CHOSEN, ZERO_NOISE, judge, policy_ablation_table

pytestmark = pytest.mark.unit


def episodes(success):
    return [{"scene": scene, "sample": 0, "success": bool(value)} for scene, value in enumerate(success)]


def policy(alone, chosen=None, quiet=None):
    played = {ALONE: alone, ZERO_NOISE: quiet, CHOSEN: chosen}
    return {"lift": {method: episodes(wins) for method, wins in played.items() if wins is not None}}


def test_differences_are_paired_by_scene():
    before = np.arange(100) < 40
    # Two seeds: one wins 20 scenes more, the other 30; the colder variant loses two of them in each.
    better = [before | (np.arange(100) >= 80), before | (np.arange(100) >= 70)]
    colder = [wins & (np.arange(100) < 98) for wins in better]
    results = judge(
        {
            "policy": [policy(before, before, before)],
            "default": [policy(wins, np.ones(100), wins) for wins in better],
            # Behind only where its noise plays: without it, it is where the default is.
            "colder": [policy(wins, quiet=quiet) for wins, quiet in zip(colder, better, strict=True)],
        },
        base="policy",
        default="default",
    )
    assert results["base"][ALONE]["success"] == pytest.approx(0.4)
    default, colder = results["variants"]["default"], results["variants"]["colder"]
    assert default[ALONE]["success"] == pytest.approx(0.65) and default["policies"] == 2
    assert default[ALONE]["over_base"]["difference"] == pytest.approx(0.25)
    assert default[ALONE]["over_default"] is None
    gap = colder[ALONE]["over_default"]
    assert gap["difference"] == pytest.approx(-0.02) and (gap["wins"], gap["losses"]) == (0, 4)
    assert CHOSEN not in colder and default[CHOSEN]["success"] == 1

    for entry in results["variants"].values():
        entry["seconds"] = 90.0
    lines = policy_ablation_table(results | {"candidates": 8}).splitlines()
    assert lines[0].index("without noise") < lines[0].index("best of 8")
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`default`", "`colder`", "before"]
    alone, apart, quiet, together, chosen = (cell.strip() for cell in lines[3].split("|")[2:7])
    assert alone.startswith("63.0 (") and apart == "−2.0 (−5.0 to 0.0)"
    assert quiet.startswith("65.0 (") and together.startswith("0.0 (") and chosen == "–"


def test_luck_of_the_seeds_is_in_the_interval():
    """Two seeds of which one gains and one loses are no gain, however many scenes were played."""
    before = np.arange(400) < 200
    up, down = np.arange(400) < 260, np.arange(400) < 150
    runs = {"policy": [policy(before)], "default": [policy(up), policy(down)]}
    low, high = judge(runs, base="policy", default="default")["variants"]["default"][ALONE]["over_base"]["ci95"]
    assert low < 0 < high
