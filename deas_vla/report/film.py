"""The film of an evaluation: one of its scenes played again by several methods, side by side."""

import json
from pathlib import Path

import numpy as np

from deas_vla.envs.protocol import ChunkEnv
from deas_vla.files import write_json
from deas_vla.report.video import Panel, write_video
from deas_vla.rollouts.film import film
from deas_vla.rollouts.play import Decider, Job


def film_methods(
    env: ChunkEnv,
    deciders: dict[str, Decider],
    methods: list[Path],
    path: Path,
    *,
    seed: int,
    execute_steps: int,
) -> None:
    """Plays the same scene once with each decider and writes a video of them side by side.

    The scene is the first in which the methods ended differently, so that there is something to see; if there is
    none, the first. A caption beside the video says so.

    Args:
        env: the simulator; it is closed.
        deciders: label to decision maker, with a critic.
        methods: outcomes of the same methods, as `evaluate_method` wrote them, in the same order.
        path: the mp4 file; ``path`` with suffix ``.json`` gets the caption.
        seed: seed of the policy's noise.
        execute_steps: actions played of each chunk.
    """
    outcomes = [[e for e in json.loads(method.read_text()) if e["sample"] == 0] for method in methods]
    differing = [
        row[0]["scene"] for row in zip(*outcomes, strict=True) if len({e["success"] for e in row}) > 1
    ]
    scene = differing[0] if differing else outcomes[0][0]["scene"]
    why = "the first in which the two ended differently" if differing else "the first"
    panels = []
    try:
        for label, decider in deciders.items():
            frames, rollout = film(env, decider, Job(scene), seed=seed, execute_steps=execute_steps)
            success_step = rollout.episode.length if rollout.episode.terminated else None
            steps, values = (
                np.array([getattr(decision, name) for decision in rollout.decisions])
                for name in ("step", "value")
            )
            panels.append(Panel(label, frames, steps, values, rollout.decisions, success_step))
    finally:
        env.close()
    write_video(path, panels, env.contract.rate_hz)
    write_json(
        path.with_suffix(".json"),
        {"caption": f"Evaluation scene {scene}, {why}: {' beside '.join(deciders)}, same noise."},
    )
