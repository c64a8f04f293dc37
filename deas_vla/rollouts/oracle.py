"""The oracle: every candidate is played in a branch of the simulator, and the best is chosen.

What choosing among the policy's candidates is worth to one who knows how each of them ends if it is followed by one
candidate after another, none chosen (the headroom); its branches are the returns against which a critic's ranking is
scored. It is no upper bound: each candidate is tried once, and a critic that goes on choosing may do better.
"""

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.observation import Observation, episode_ids
from deas_vla.envs.vector import EnvWorkers, frame_after
from deas_vla.files import write_json
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey
from deas_vla.rollouts.branches import CONTINUATION_SAMPLE, play_branches, return_of

RETURNS = (
    "return of playing the candidate and then one of the candidates at each decision, once, "
    "with the same noise for all"
)


def play_oracle(
    workers: EnvWorkers,
    decider: BestOfN,
    scenes: list[int],
    folder: Path,
    *,
    seed: int,
    execute_steps: int,
    line: int = 0,
) -> list[dict]:
    """Plays each scene once, choosing the candidate whose branch ends best; kept scene by scene.

    Args:
        workers: simulators that can be branched.
        decider: policy, critic and number of candidates; its critic scores every candidate for the record.
        scenes: evaluation scenes; the noise is that of sample 0 in the other methods.
        folder: outcomes are kept in ``folder/oracle.json``.
        seed: seed of the policy's noise.
        execute_steps: actions played of each chunk.
        line: of the progress bar.

    Returns:
        One record a scene, as of `evaluate_method`; each decision also has ``returns``, those of its candidates.
    """
    path = folder / "oracle.json"
    done: list[dict] = json.loads(path.read_text()) if path.is_file() else []
    policy = BestOfN(decider.policy, selection=decider.selection)
    bar = tqdm(
        total=len(scenes),
        initial=len(done),
        desc="oracle",
        unit="scene",
        dynamic_ncols=True,
        position=line,
        leave=False,
    )
    with bar:
        for scene in scenes[len(done) :]:
            done.append(_episode(workers, decider, policy, scene, seed, execute_steps))
            write_json(path, done)
            bar.update()
            bar.set_postfix(success=f"{np.mean([e['success'] for e in done]):.0%}", refresh=False)
    if bar.n > bar.initial:
        tqdm.write(f"oracle: {np.mean([e['success'] for e in done]):.0%} of {len(done)} episodes")
    return done


def _episode(
    workers: EnvWorkers, decider: BestOfN, policy: BestOfN, scene: int, seed: int, execute_steps: int
) -> dict:
    frame, steps, decisions, played = workers.reset([0], [scene])[0], 0, [], None
    episode_id = episode_ids(Observation.stack([frame]))[0]
    while played is None or not played.done:
        choice = decider.choose(Observation.stack([frame]), [NoiseKey(seed, episode_id, 0, len(decisions))])
        candidates = choice.candidates[0, :, :execute_steps].cpu().numpy()
        state = workers.save([0])[0]
        branches = play_branches(
            workers,
            policy,
            state,
            candidates,
            frame["instruction"],
            [CONTINUATION_SAMPLE] * len(candidates),
            seed=seed,
            episode_id=episode_id,
            execute_steps=execute_steps,
        )
        returns = [return_of(branch, decider.scorer.return_config) for branch in branches]
        best = int(np.argmax(returns))
        workers.restore([0], [state])
        played = workers.play([0], candidates[best][None])[0]
        decisions.append(
            {
                "step": steps,
                "index": best,
                "value": float(choice.value[0]),
                "scores": choice.scores[0].tolist(),
                "returns": returns,
            }
        )
        steps += len(played.actions)
        frame = frame_after(played, frame["instruction"])
    return {
        "scene": scene,
        "sample": 0,
        "success": bool(played.success[-1]),
        "steps": steps,
        "decisions": decisions,
    }
