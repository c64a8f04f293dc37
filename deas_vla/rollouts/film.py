"""Films one scene for people: full-quality pictures of every step, with what the critic thought."""

import json
from pathlib import Path

import numpy as np

from deas_vla.data.observation import Observation, episode_ids
from deas_vla.envs.protocol import ChunkEnv
from deas_vla.envs.vector import frame_after
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.report.video import Decision, Panel, write_video

PICTURE = 288  # side of a picture in pixels


def film(
    env: ChunkEnv,
    deciders: dict[str, BestOfN],
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
    try:
        panels = [
            _play(env, label, decider, scene, seed, execute_steps) for label, decider in deciders.items()
        ]
    finally:
        env.close()
    write_video(path, panels, env.contract.rate_hz)
    write_json(
        path.with_suffix(".json"),
        {"caption": f"Evaluation scene {scene}, {why}: {' beside '.join(deciders)}, same noise."},
    )


def _play(env: ChunkEnv, label: str, decider: BestOfN, scene: int, seed: int, execute_steps: int) -> Panel:
    frame = env.reset(scene)
    pictures, steps, values, decisions = [env.picture(PICTURE, PICTURE)], [], [], []
    success_step, done, episode_id = None, False, episode_ids(Observation.stack([frame]))[0]
    while not done:
        step = len(pictures) - 1
        choice = decider.choose(Observation.stack([frame]), [NoiseKey(seed, episode_id, 0, len(decisions))])
        steps.append(step)
        values.append(float(choice.value[0]))
        decisions.append(Decision(step, choice.scores[0].cpu().numpy(), int(choice.index[0])))
        for command in choice.commands[0, :execute_steps].cpu().numpy():
            played = env.play(command[None])
            pictures.append(env.picture(PICTURE, PICTURE))
            frame = frame_after(played, frame["instruction"])
            if played.done:
                success_step = len(pictures) - 1 if played.success[-1] else None
                done = True
                break
    return Panel(label, pictures, np.array(steps), np.array(values), decisions, success_step)
