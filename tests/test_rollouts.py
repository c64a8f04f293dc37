"""Playing, collecting and evaluating: paired, resumable, the same whatever runs beside it."""

import json

import numpy as np
import pytest
from data_example import assert_same_episode
from rollout_example import CONTRACT, HORIZON, LIMIT, LinePolicy, LineWorkers, MovesRight

from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.rollouts.collect import collect_in_blocks
from deas_vla.rollouts.evaluate import evaluate_method, paired_jobs
from deas_vla.rollouts.oracle import Oracle
from deas_vla.rollouts.play import Job, play_episodes
from deas_vla.rollouts.scenes import scenes_of
from deas_vla.training.stages import try_lock

pytestmark = pytest.mark.unit
SETTINGS = {"seed": 0, "parallel": 4, "execute_steps": HORIZON}


def decider(rule="first", n=1):
    policy = LinePolicy(drift=0.8)
    return BestOfN(policy, n, rule, MovesRight(policy))


def test_episodes_are_whole_and_valid():
    rollouts = play_episodes(LineWorkers(), decider(), [Job(s) for s in range(12)], **SETTINGS, frame_every=2)
    outcomes = set()
    for scene, rollout in enumerate(rollouts):
        episode = rollout.episode
        episode.validate(CONTRACT, "test")
        assert (rollout.job.scene, episode.scene, episode.source) == (scene, scene, "rollout")
        assert episode.terminated != episode.truncated
        assert episode.truncated == (episode.length == LIMIT and not episode.success[-1])
        assert {d.step for d in rollout.decisions} <= set(episode.frame_steps.tolist())
        assert episode.frame_steps[-1] == episode.length
        # The line's own law: each state follows from the one before and the action that was recorded.
        assert np.allclose(np.diff(episode.states[:, 0]), episode.actions[:, 0], atol=1e-6)
        outcomes.add(episode.terminated)
    assert outcomes == {True, False}


@pytest.mark.parametrize("parallel", [1, 3, 50])
def test_rule_10_evaluation_is_paired_whatever_runs_beside_it(parallel):
    jobs = paired_jobs(list(range(9)), samples=2)
    expected = play_episodes(LineWorkers(), decider("best", 3), jobs, **SETTINGS)
    found = play_episodes(LineWorkers(), decider("best", 3), jobs, **(SETTINGS | {"parallel": parallel}))
    for a, b in zip(expected, found, strict=True):
        assert_same_episode(a.episode, b.episode)
        assert [d.scores for d in a.decisions] == [d.scores for d in b.decisions]


def test_rule_10_scenes_of_evaluation_are_disjoint_from_those_of_collection():
    uses = ("demonstrations", "rollouts", "evaluation")
    scenes = [scene for use in uses for seed in range(100) for scene in scenes_of(use, 10_000, seed)]
    assert len(scenes) == len(set(scenes)) == 3_000_000
    for count, seed in ((10_001, 0), (5, 100), (5, -1)):
        with pytest.raises(UserError):
            scenes_of("evaluation", count, seed)


def test_rule_10_every_method_plays_the_same_first_candidate():
    jobs = paired_jobs([1, 2, 3], samples=2)
    first, best = (
        play_episodes(LineWorkers(), decider(r, n), jobs, **SETTINGS) for r, n in (("first", 1), ("best", 5))
    )
    for a, b in zip(first, best, strict=True):
        assert a.decisions[0].scores[0] == b.decisions[0].scores[0]
        assert len(b.decisions[0].scores) == 5


def test_draws_of_one_scene_differ():
    a, b = play_episodes(LineWorkers(), decider(), [Job(1, 0), Job(1, 1)], **SETTINGS)
    assert not np.array_equal(a.episode.actions[0], b.episode.actions[0])


def test_rule_12_a_killed_evaluation_goes_on_where_it_was(tmp_path):
    jobs = paired_jobs(list(range(6)), samples=2)
    whole = evaluate_method("best", LineWorkers(), decider("best", 3), jobs, tmp_path / "whole", **SETTINGS, block=4)

    class Killed(LineWorkers):
        def play(self, slots, chunks, frame_every=0):
            if self.steps_played > 60:
                raise KeyboardInterrupt
            return super().play(slots, chunks, frame_every)

    with pytest.raises(KeyboardInterrupt):
        evaluate_method("best", Killed(), decider("best", 3), jobs, tmp_path / "killed", **SETTINGS, block=4)
    kept = json.loads((tmp_path / "killed" / "best.json").read_text())
    assert 0 < len(kept) < len(jobs)
    workers = LineWorkers()
    resumed = evaluate_method("best", workers, decider("best", 3), jobs, tmp_path / "killed", **SETTINGS, block=4)
    assert resumed == whole and len(whole) == 6 * 2
    assert [(e["scene"], e["sample"]) for e in whole] == [(job.scene, job.sample) for job in jobs]


def test_rule_12_a_killed_collection_goes_on_where_it_was(tmp_path):
    calls = []

    def collect(scenes, finished):
        calls.append(scenes)
        if len(calls) == 3:
            raise KeyboardInterrupt
        rollouts = play_episodes(LineWorkers(), decider(), [Job(s) for s in scenes], **SETTINGS)
        for rollout in rollouts:
            finished(rollout.episode)
        return [rollout.episode for rollout in rollouts]

    with pytest.raises(KeyboardInterrupt):
        collect_in_blocks(tmp_path, "line", list(range(10)), collect, block=3)
    paths = collect_in_blocks(tmp_path, "line", list(range(10)), collect, block=3)
    assert calls == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [6, 7, 8], [9]]
    assert len(paths) == 4 and all(path.is_file() for path in paths)


def test_processes_share_a_collection_and_collect_the_same(tmp_path):
    """What another process is at is left to it; who collects a block changes nothing in it."""

    def collect(scenes, finished):
        collected.append(scenes)
        rollouts = play_episodes(LineWorkers(), decider("first"), [Job(scene) for scene in scenes], **SETTINGS)
        return [rollout.episode for rollout in rollouts]

    collected = []
    alone = collect_in_blocks(tmp_path / "alone", "line", list(range(10)), collect, block=3)
    assert len(collected) == 4
    collected.clear()
    with try_lock(tmp_path / "shared" / "blocks" / "line-00003.safetensors"):  # the other process is at it
        paths = collect_in_blocks(tmp_path / "shared", "line", list(range(10)), collect, block=3, show=False)
    assert collected == [[0, 1, 2], [6, 7, 8], [9]] and not paths[1].exists()
    assert collect_in_blocks(tmp_path / "shared", "line", list(range(10)), collect, block=3) == paths
    assert collected[3:] == [[3, 4, 5]]
    for mine, theirs in zip(paths, alone, strict=True):
        assert mine.read_bytes() == theirs.read_bytes()


def play_oracle(scenes, folder):
    workers = LineWorkers()
    oracle = Oracle(workers, decider("best", 6), HORIZON)
    settings = SETTINGS | {"parallel": 1}
    return evaluate_method("oracle", workers, oracle, paired_jobs(scenes, 1), folder, **settings, block=1)


def test_the_oracle_chooses_the_candidate_that_ends_best(tmp_path):
    records = play_oracle([0, 1, 2], tmp_path)
    for record in records:
        for decision in record["decisions"]:
            assert len(decision["returns"]) == len(decision["scores"]) == 6
            assert decision["returns"][decision["index"]] == max(decision["returns"])
    # It is never worse than choosing at random, and here, where some candidate always leads on, it wins.
    assert all(record["success"] for record in records)


def test_the_oracle_plays_what_it_saw_in_the_branch(tmp_path):
    """The last decision of an episode decides it: its return must be the return of what was then really played."""
    (record,) = play_oracle([4], tmp_path)
    last = record["decisions"][-1]
    left = record["steps"] - last["step"]
    expected = -sum(0.9**k for k in range(left - 1)) if record["success"] else None
    assert max(last["returns"]) == pytest.approx(expected, rel=1e-5)
