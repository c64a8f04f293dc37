"""Collection in blocks: episodes are kept as they come, and become one LeRobot data set at the end.

Several processes may collect at once: each takes a block that nobody is at.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode, load_block, save_block, statistics_of
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError
from deas_vla.rollouts.play import episode_of
from deas_vla.training.stages import try_lock

DATASET = "dataset"
BLOCKS = "blocks"  # while they are collected


def collect_in_blocks(
    folder: Path,
    name: str,
    scenes: list[int],
    collect: Callable[[list[int], Callable[[Episode], None]], list[Episode]],
    block: int = 48,
    show: bool = True,
) -> list[Path]:
    """Collects one episode a scene; a killed collection goes on with the block in which it was interrupted.

    Blocks are files in the folder `BLOCKS`, named after the task. `collect` takes the scenes of one and a function to
    call with each episode as it ends, and returns the episodes in the order of the scenes. The progress bar (`show`)
    counts what other processes collect as this one passes it.

    Returns the files in order, for `load_blocks`; first wait for all processes that collect.
    """
    paths, outcomes = [], []
    title = f"{folder.name} {name}"
    with tqdm(total=len(scenes), desc=title, unit="episode", dynamic_ncols=True, disable=not show) as bar:

        def count(episode: Episode) -> None:
            outcomes.append(episode.terminated)
            bar.set_postfix(success=f"{sum(outcomes) / len(outcomes):.0%}", refresh=False)
            bar.update()

        for start in range(0, len(scenes), block):
            part = scenes[start : start + block]
            path = folder / BLOCKS / f"{name}-{start:05d}.safetensors"
            with try_lock(path) as mine:
                if mine and not path.is_file():
                    save_block(path, collect(part, count))
                else:
                    bar.update(len(part))
            paths.append(path)
    return paths


def expert_episodes(
    workers: EnvWorkers, frame_every: int, scenes: list[int], finished: Callable[[Episode], None]
) -> list[Episode]:
    """One episode of the scripted expert in each scene; the scene's number also seeds the expert's imperfections.

    Images are stored every `frame_every` steps; `finished` is called with each episode as it ends.
    """
    episodes = []
    for scene, (first, played) in zip(scenes, workers.expert_episodes(scenes, scenes, frame_every), strict=True):
        episodes.append(episode_of(first, [played], scene, "demonstration"))
        finished(episodes[-1])
    return episodes


def load_blocks(paths: Iterable[Path]) -> list[Episode]:
    """All episodes of the blocks from `collect_in_blocks`, in order."""
    return [episode for path in paths for episode in load_block(path)]


def write_collected(
    folder: Path, attempts: list[Episode], contract: Contract, *, metadata: dict, demonstrations: bool = False
) -> None:
    """Writes episodes as a stage's LeRobot data set, ``folder/dataset``; if none is kept, a UserError.

    `contract`: of the environment, or, for rollouts, of the policy that was rolled out. `metadata`: how the episodes
    came about; counts and instructions are added. Of demonstrations only successes are kept, and their statistics.
    """
    names = [camera.name for camera in contract.cameras]
    episodes = [
        # A simulator may show more cameras than the policy that played sees.
        replace(episode, images={name: episode.images[name] for name in names})
        for episode in attempts
        if episode.terminated or not demonstrations
    ]
    if not episodes:
        raise UserError(f"{folder}: none of {len(attempts)} episodes succeeded; nothing could be learnt from them")
    if demonstrations:
        contract = contract.with_statistics(statistics_of(episodes))
    counts = {
        "attempts": len(attempts),
        "episodes": len(episodes),
        "successes": sum(episode.terminated for episode in attempts),
        "instructions": sorted({episode.instruction for episode in episodes}),
    }
    progress = tqdm(episodes, desc=f"{folder.name}: LeRobot data set", unit="episode", dynamic_ncols=True)
    write_dataset(folder / DATASET, progress, contract, f"local/{folder.name}", metadata=metadata | counts)
