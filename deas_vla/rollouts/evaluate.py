"""Paired evaluation: every method plays the same scenes with the same noise; each outcome is kept (design rule 10)."""

import json
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from deas_vla.envs.vector import EnvWorkers
from deas_vla.files import write_json
from deas_vla.rollouts.play import Decider, Job, Rollout, play_episodes

BLOCK = 64  # episodes between two saves


def paired_jobs(scenes: list[int], samples: int) -> list[Job]:
    """Every scene with every sample, scene by scene."""
    return [Job(scene, sample) for scene in scenes for sample in range(samples)]


def evaluate_method(
    name: str,
    workers: EnvWorkers,
    decider: Decider,
    jobs: list[Job],
    folder: Path,
    *,
    seed: int,
    parallel: int,
    execute_steps: int,
    block: int = BLOCK,
    line: int = 0,
) -> list[dict]:
    """Plays a method on every job, in blocks that are kept: an interrupted evaluation goes on with the next block.

    Outcomes are kept in ``folder/<name>.json``, written every `block` episodes. The rest is as in `play_episodes`; an
    `Oracle` plays one episode at a time. `line` is that of the progress bar, for processes that play different methods.

    Returns one record a job: scene, sample, success, steps, decisions (step, index, value, scores; oracle: returns).
    """
    path = folder / f"{name}.json"
    done: list[dict] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    successes = sum(episode["success"] for episode in done)
    counts = {"total": len(jobs), "initial": len(done), "unit": "episode"}
    with tqdm(desc=name, **counts, dynamic_ncols=True, position=line, leave=False) as bar:

        def finished(rollout: Rollout) -> None:
            nonlocal successes
            successes += rollout.episode.terminated
            bar.update()
            bar.set_postfix(success=f"{successes / bar.n:.0%}", refresh=False)

        settings = {"seed": seed, "parallel": parallel, "execute_steps": execute_steps, "finished": finished}
        while len(done) < len(jobs):
            done += map(record, play_episodes(workers, decider, jobs[len(done) : len(done) + block], **settings))
            write_json(path, done)
    if bar.n > bar.initial:  # silent about what another process played
        tqdm.write(f"{name}: {successes / len(jobs):.0%} of {len(jobs)} episodes")
    return done


def record(rollout: Rollout) -> dict:
    """What is kept of an episode."""
    return {
        "scene": rollout.job.scene,
        "sample": rollout.job.sample,
        "success": bool(rollout.episode.terminated),
        "steps": len(rollout.episode.actions),
        "decisions": [
            {key: value for key, value in asdict(decision).items() if key != "returns" or value}
            for decision in rollout.decisions
        ],
    }
