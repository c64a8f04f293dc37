"""Evaluation on OGBench: many episodes at once, one decision a chunk for all of them, every outcome kept.

Scene numbers are seeds of the environment's reset, and name the noise of each decision as well: all agents play the
same scenes with the same noise. Evaluation takes those of the use ``evaluation`` (`deas_vla.rollouts.evaluate`), two
million and more; a rule's numbers may be chosen on those of ``rollouts``. The data sets are of random scenes without a
task, so no episode was seen in training.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from deas_vla.data.options import returns_to_go
from deas_vla.errors import UserError
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import NoiseKey
from deas_vla.rollouts.scenes import scenes_of
from studies.ogbench.env import OGBenchEnvs

# Episodes under way at once, and between two saves. Fixed: a matrix product may round differently with the number of
# rows, and an evaluation must give the same episodes again.
BLOCK = 50


@dataclass
class Decision:
    """What was decided for b episodes.

    Attributes:
        chunks: (b, h, A) actions in [-1, 1], all of which are played.
        q: (b,) the agent's Q of them, the least of its networks; None without a critic.
        value: (b,) the agent's V of the state; None where it has none.
    """

    chunks: Tensor
    q: Tensor | None
    value: Tensor | None


Decide = Callable[[Tensor, list[NoiseKey]], Decision]


def play_episodes(
    envs: OGBenchEnvs,
    decide: Decide,
    scenes: list[int],
    seed: int,
    *,
    block: int = BLOCK,
    finished: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Plays one episode in each scene, to its end.

    Args:
        envs: of the task.
        decide: (b, S) float32 observations and the names of b decisions to what is played; called once a chunk with
            all episodes of a block that are not over. Its randomness must come from the names.
        scenes: seeds of the resets.
        seed: of the noise.
        block: episodes at once. Episodes do not depend on it if the rows of `decide` do not on each other.
        finished: called with each record as its episode ends.

    Returns:
        A record of JSON values for each scene, in their order: `scene`, `success`, `steps`, `reward` (sum),
        `rewards` (runs of equal ones as [reward, steps]), `decisions` (step, q and value; q and value may be None).
    """
    records = []
    for first in range(0, len(scenes), block):
        records += _play_block(envs, decide, scenes[first : first + block], seed, finished)
    return records


def _play_block(
    envs: OGBenchEnvs, decide: Decide, scenes: list[int], seed: int, finished: Callable[[dict], None] | None
) -> list[dict]:
    observations = envs.reset(scenes)
    rewards: list[list[float]] = [[] for _ in scenes]
    decisions: list[list[dict]] = [[] for _ in scenes]
    records: list[dict] = [{} for _ in scenes]
    running = list(range(len(scenes)))
    while running:
        keys = [NoiseKey(seed, scenes[row], 0, len(decisions[row])) for row in running]
        decision = decide(torch.from_numpy(observations[running].astype(np.float32)), keys)
        chosen = decision.chunks.cpu().numpy()
        chunks = np.zeros((len(scenes), *chosen.shape[1:]), chosen.dtype)
        chunks[running] = chosen
        q, value = (_rounded(numbers, len(running)) for numbers in (decision.q, decision.value))
        for place, row in enumerate(running):
            decisions[row].append({"step": len(rewards[row]), "q": q[place], "value": value[place]})
        outcome = envs.play(chunks)
        observations = outcome.observations
        for row in running:
            rewards[row] += outcome.rewards[row, : outcome.played[row]].tolist()
            if outcome.over[row]:
                records[row] = {
                    "scene": scenes[row],
                    "success": bool(outcome.success[row]),
                    "steps": len(rewards[row]),
                    "reward": sum(rewards[row]),
                    "rewards": [[reward, len(list(run))] for reward, run in groupby(rewards[row])],
                    "decisions": decisions[row],
                }
                if finished is not None:
                    finished(records[row])
        running = [row for row in running if not outcome.over[row]]
    return records


def monte_carlo(record: dict, *, backup: int, reward_discount: float, bootstrap_discount: float) -> list[float]:
    """What followed each decision of an episode: the return that its Q estimates, in options of `backup` steps.

    G_t = Σ_{k<n} γ₁ᵏ r_{t+k} + γ₂ⁿ G_{t+n}, and 0 from the success on. An episode cut off by the time limit is taken
    to go on without end as in its last step: the truth lies between this and a success right after the cut.

    Args:
        record: of `play_episodes`.
        backup: n.
        reward_discount: γ₁.
        bootstrap_discount: γ₂, per step, below 1.
    """
    rewards = np.repeat([reward for reward, _ in record["rewards"]], [steps for _, steps in record["rewards"]])
    done = np.zeros(len(rewards), bool)
    done[-1] = record["success"]
    after = returns_to_go(
        rewards, done, horizon=backup, reward_discount=reward_discount, bootstrap_discount=bootstrap_discount,
        forever=float(rewards[-1]),
    )  # fmt: skip
    return [float(after[decision["step"]]) for decision in record["decisions"]]


def evaluate_method(
    envs: OGBenchEnvs,
    decide: Decide,
    path: Path,
    *,
    episodes: int,
    seed: int,
    description: dict,
    backup: int,
    reward_discount: float,
    bootstrap_discount: float,
) -> dict:
    """Plays a method in its evaluation scenes, or finds it played; an interrupted one goes on with its next block.

    Args:
        envs: of the task.
        decide: the method.
        path: JSON file of the outcome: `method`, `episodes` (records of `play_episodes`, each decision with `mc`, see
            `monte_carlo`) and `cpu_seconds`. What is played of an unfinished evaluation lies beside it as
            ``NAME.begun``.
        episodes: how many, at most 10,000.
        seed: of the run, 0 to 99: chooses the scenes and the noise, for all agents alike.
        description: what the method is, as JSON values.
        backup: steps of the agent's options, as in its training.
        reward_discount: the agent's γ₁.
        bootstrap_discount: the agent's γ₂.

    Returns:
        What is in the file.

    Raises:
        UserError: if the file holds another method or other scenes.
    """
    path, scenes = Path(path), scenes_of("evaluation", episodes, seed)
    begun = path.with_name(f"{path.name}.begun")
    for file in (path, begun):
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            played = [episode["scene"] for episode in content["episodes"]]
            if content["method"] != description or played != scenes[: None if file == path else len(played)]:
                raise UserError(f"{file} was played with other settings or in other scenes; delete it to play anew")
            break
    else:
        content = {"method": description, "episodes": [], "cpu_seconds": 0.0}
    done = content["episodes"]
    if len(done) == episodes:
        return content

    wins = sum(episode["success"] for episode in done)
    name = f"{envs.task.env}-task{envs.task.number} {path.stem}"
    with tqdm(total=episodes, initial=len(done), desc=name, unit="episode", dynamic_ncols=True) as bar:

        def finished(record: dict) -> None:
            nonlocal wins
            wins += record["success"]
            bar.update()
            bar.set_postfix(success=f"{wins / bar.n:.0%}", refresh=False)

        while len(done) < episodes:
            before = time.process_time()
            part = play_episodes(envs, decide, scenes[len(done) :][:BLOCK], seed, finished=finished)
            for record in part:
                returns = monte_carlo(
                    record, backup=backup, reward_discount=reward_discount, bootstrap_discount=bootstrap_discount
                )
                for decision, mc in zip(record["decisions"], returns, strict=True):
                    decision["mc"] = round(mc, 4)
            done += part
            content["cpu_seconds"] = round(content["cpu_seconds"] + time.process_time() - before, 3)
            write_json(begun if len(done) < episodes else path, content)
    begun.unlink(missing_ok=True)
    return content


def _rounded(numbers: Tensor | None, count: int) -> list[float | None]:
    return [None] * count if numbers is None else [round(number, 4) for number in numbers.tolist()]
