"""Evaluation on OGBench: what is recorded, what it does not depend on, and what an interruption leaves."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deas_vla.errors import UserError
from deas_vla.policies.chunk_policy import candidate_noise
from deas_vla.rollouts.scenes import scenes_of
from studies.ogbench import evaluate as ogbench
from studies.ogbench.env import OGBenchTask, Outcome
from studies.ogbench.evaluate import Decision, evaluate_method, monte_carlo, play_episodes

pytestmark = pytest.mark.unit

G1, G2 = 0.9, 0.97


class CountingEnvs:
    """A line: the state is (scene, position); an action's first number is how far to go, and 8 is the goal.

    The reward is −2 before half of the way and −1 after it.
    """

    task = OGBenchTask("cube-single", "play", 1)
    max_steps = 20

    def reset(self, seeds: list[int]) -> np.ndarray:
        self.seeds, self.at = np.array(seeds), np.zeros(len(seeds))
        self.steps, self.success = np.zeros(len(seeds), int), np.zeros(len(seeds), bool)
        return self._observe()

    def play(self, chunks: np.ndarray) -> Outcome:
        rewards = np.full(chunks.shape[:2], np.nan, np.float32)
        played = np.zeros(len(chunks), int)
        for row, chunk in enumerate(chunks):
            for k, action in enumerate(chunk):
                if not self.success[row] and self.steps[row] < self.max_steps:
                    rewards[row, k] = -2.0 if self.at[row] < 4 else -1.0
                    self.at[row] += action[0]
                    self.steps[row] += 1
                    played[row] += 1
                    self.success[row] = self.at[row] >= 8 and self.steps[row] < self.max_steps
        over = self.success | (self.steps == self.max_steps)
        return Outcome(self._observe(), rewards, played, self.success.copy(), over)

    def _observe(self) -> np.ndarray:
        return np.stack([self.seeds, self.at], 1).astype(np.float64)


class Noisy:
    """Goes as far as its own noise says, scaled; remembers the sizes of its batches."""

    def __init__(self, length: int = 3, scale: float = 1.0):
        self.length, self.scale, self.batches = length, scale, []

    def __call__(self, observations: torch.Tensor, keys: list) -> Decision:
        self.batches.append(len(keys))
        assert observations[:, 0].tolist() == [key.scene for key in keys]
        noise = [candidate_noise(k.seed, k.scene, k.sample, k.decision, 1, self.length, 5)[0] for k in keys]
        chunks = torch.stack(noise).abs().clamp(max=1) * self.scale
        return Decision(chunks, chunks.mean((1, 2)), -observations[:, 1])


def test_a_record_tells_what_happened():
    decide = Noisy(length=3)
    (record,) = play_episodes(CountingEnvs(), decide, [5], seed=1)
    assert record["success"]
    rewards = [reward for reward, steps in record["rewards"] for _ in range(steps)]
    assert len(rewards) == record["steps"]
    assert sum(rewards) == record["reward"]
    assert [reward for reward, _ in record["rewards"]] == [-2.0, -1.0]
    assert [decision["step"] for decision in record["decisions"]] == list(range(0, record["steps"], 3))
    noise = candidate_noise(1, 5, 0, 0, 1, 3, 5)[0].abs().clamp(max=1)
    assert record["decisions"][0]["q"] == pytest.approx(float(noise.mean()), abs=1e-4)
    assert record["decisions"][1]["value"] == pytest.approx(-float(noise[:, 0].sum()), abs=1e-4)
    assert json.loads(json.dumps(record)) == record


def test_an_agent_without_a_critic_leaves_none():
    def decide(observations, keys):
        return Decision(torch.ones(len(keys), 2, 5), None, None)

    (record,) = play_episodes(CountingEnvs(), decide, [3], seed=0)
    assert record["steps"] == 8
    assert {(d["q"], d["value"]) for d in record["decisions"]} == {(None, None)}


@given(
    scenes=st.lists(st.integers(0, 1000), min_size=1, max_size=9, unique=True),
    block=st.integers(1, 10),
    length=st.integers(1, 7),
)
def test_episodes_do_not_depend_on_how_many_are_played_at_once(scenes, block, length):
    alone = [play_episodes(CountingEnvs(), Noisy(length), [scene], seed=3)[0] for scene in scenes]
    together = play_episodes(CountingEnvs(), Noisy(length), scenes, seed=3, block=block)
    assert together == alone
    assert [record["scene"] for record in together] == scenes


def test_the_agent_is_asked_once_a_chunk_and_only_for_what_still_runs():
    decide = Noisy(length=4)
    records = play_episodes(CountingEnvs(), decide, list(range(30)), seed=0)
    longest = max(len(record["decisions"]) for record in records)
    assert len(decide.batches) == longest
    assert sum(decide.batches) == sum(len(record["decisions"]) for record in records)
    assert len({len(record["decisions"]) for record in records}) > 1


def brute_force(rewards: list[float], success: bool, start: int, backup: int) -> float:
    """The return by adding up option by option, far beyond any time limit."""
    total, weight, t = 0.0, 1.0, start
    for _ in range(3000):
        for k in range(backup):
            reward = rewards[t + k] if t + k < len(rewards) else (0.0 if success else rewards[-1])
            total += weight * G1**k * reward
        weight *= G2**backup
        t += backup
        if success and t >= len(rewards):
            break
    return total


@given(
    runs=st.lists(st.tuples(st.integers(-3, 0), st.integers(1, 9)), min_size=1, max_size=4),
    success=st.booleans(),
    backup=st.integers(1, 6),
    every=st.integers(1, 6),
)
def test_monte_carlo_returns_are_those_of_options(runs, success, backup, every):
    rewards = [float(reward) for reward, steps in runs for _ in range(steps)]
    starts = list(range(0, len(rewards), every))
    record = {"rewards": runs, "success": success, "decisions": [{"step": step} for step in starts]}
    returns = monte_carlo(record, backup=backup, reward_discount=G1, bootstrap_discount=G2)
    expected = [brute_force(rewards, success, start, backup) for start in starts]
    np.testing.assert_allclose(returns, expected, rtol=1e-9, atol=1e-9)


def test_monte_carlo_closed_forms():
    failed = {"rewards": [[-2.0, 200]], "success": False, "decisions": [{"step": 0}, {"step": 195}]}
    forever = -2 * (1 - G1**5) / ((1 - G1) * (1 - G2**5))
    assert monte_carlo(failed, backup=5, reward_discount=G1, bootstrap_discount=G2) == pytest.approx([forever] * 2)
    won = {"rewards": [[-1.0, 7]], "success": True, "decisions": [{"step": 0}, {"step": 5}]}
    last = -1 - G1
    first = -sum(G1**k for k in range(5)) + G2**5 * last
    assert monte_carlo(won, backup=5, reward_discount=G1, bootstrap_discount=G2) == pytest.approx([first, last])


def evaluated(path, decide=None, **changed):
    settings = {
        "episodes": 12, "seed": 2, "description": {"rule": "best", "num_candidates": 8, "execute": 3},
        "backup": 3, "reward_discount": G1, "bootstrap_discount": G2,
    }  # fmt: skip
    return evaluate_method(CountingEnvs(), decide or Noisy(), path, **settings | changed)


def test_an_evaluation_is_written_once_and_found_again(tmp_path):
    content = evaluated(tmp_path / "best-8.json")
    assert json.loads((tmp_path / "best-8.json").read_text()) == content
    assert content["method"] == {"rule": "best", "num_candidates": 8, "execute": 3}
    assert [episode["scene"] for episode in content["episodes"]] == scenes_of("evaluation", 12, 2)
    assert content["cpu_seconds"] > 0
    for episode in content["episodes"]:
        record = episode | {"rewards": episode["rewards"]}
        returns = monte_carlo(record, backup=3, reward_discount=G1, bootstrap_discount=G2)
        assert [d["mc"] for d in episode["decisions"]] == pytest.approx(returns, abs=1e-4)
    never = Noisy()
    assert evaluated(tmp_path / "best-8.json", never) == content
    assert not never.batches


class Killed(Exception):
    """Stands for a kill."""


def test_an_interrupted_evaluation_goes_on_and_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(ogbench, "BLOCK", 5)
    whole = evaluated(tmp_path / "whole.json")

    class Dying(Noisy):
        def __call__(self, observations, keys):
            if keys[0].scene >= scenes_of("evaluation", 12, 2)[5]:
                raise Killed
            return super().__call__(observations, keys)

    path = tmp_path / "cut.json"
    with pytest.raises(Killed):
        evaluated(path, Dying())
    assert not path.exists()
    assert [file.name for file in tmp_path.glob("*.json")] == ["whole.json"]
    rest = Noisy()
    assert evaluated(path, rest)["episodes"] == whole["episodes"]
    assert max(rest.batches) == 5
    assert sum(rest.batches) < sum(len(episode["decisions"]) for episode in whole["episodes"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cut.json", "whole.json"]


@pytest.mark.parametrize("changed", [{"episodes": 11}, {"seed": 3}, {"description": {"rule": "first"}}])
def test_an_evaluation_of_something_else_is_not_taken_for_this_one(tmp_path, changed):
    evaluated(tmp_path / "best-8.json")
    before = (tmp_path / "best-8.json").read_bytes()
    with pytest.raises(UserError, match="was played with other settings"):
        evaluated(tmp_path / "best-8.json", **changed)
    assert (tmp_path / "best-8.json").read_bytes() == before


def test_evaluation_scenes_meet_no_other_use():
    uses = {use: {s for seed in range(100) for s in scenes_of(use, 10_000, seed)} for use in ("rollouts", "evaluation")}
    assert not uses["rollouts"] & uses["evaluation"]
