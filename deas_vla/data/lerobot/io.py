"""Episodes to a LeRobotDataset v3 on disk and back; what is in it: lerobot_format.py. Data sets v2 are read too.

LeRobot's own recorder spends most of its time on statistics over every pixel and on images that travel through files.
Episodes that are complete in memory are written here through the same pieces (LeRobot's metadata, features, and
statistics of the numeric columns) without that; a test compares both row by row.
"""

import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.format import FORMAT, SIDECAR, columns_of, features, fps
from deas_vla.data.outcome import RECORDED, Outcome
from deas_vla.errors import UserError, require
from deas_vla.files import atomic_path, write_json


def write_dataset(
    root: Path,
    episodes: Iterable[Episode],
    contract: Contract,
    repo_id: str,
    *,
    storage: str = "image",
    metadata: dict | None = None,
) -> None:
    """Writes a LeRobotDataset v3, whole or not at all.

    Args:
        root: folder of the data set; must not exist.
        episodes: at least one, all of one source; may be a generator (or a progress bar around one).
        contract: their contract; statistics included once there are some.
        repo_id: LeRobot's name of the data set, for example ``local/lift-demonstrations``.
        storage: ``image`` (PNG, without loss) or ``video`` (LeRobot's default codec: smaller, lossy, slower to write).
        metadata: anything JSON that says how the episodes came about: seeds, versions, settings of the environment.

    Raises:
        UserError: if `root` exists, an episode is not valid, or there is none.
    """
    root = Path(root)
    if root.exists():
        raise UserError(f"{root} exists already; choose another folder, or delete it to make it anew")
    if storage not in ("image", "video"):
        raise UserError(f"storage is {storage!r}; choose image or video")
    require("lerobot", "lerobot")
    from deas_vla.data.lerobot import writers

    with atomic_path(root) as temporary:
        open_writer = {"image": writers.ImageWriter, "video": writers.VideoWriter}[storage]
        writer = open_writer(
            temporary, repo_id, fps(contract), features(contract, storage), contract.embodiment
        )
        source = None
        # Closed even after an error: an open writer of LeRobot's writes its last rows when it is collected, after
        # the folder was cleared away.
        with closing(writer):
            for number, episode in enumerate(episodes):
                where = f"{root}, episode {number}"
                episode.validate(contract, where)
                source = source or episode.source
                if episode.source != source:
                    raise UserError(
                        f"{where}: source {episode.source} among episodes of source {source}; write them apart"
                    )
                writer.write(columns_of(episode), episode)
        if source is None:
            raise UserError(f"{root}: there are no episodes to write; collect some first")
        _sort_statistics(temporary / "meta" / "stats.json")
        sidecar = {
            "format": FORMAT,
            "source": source,
            "contract": contract.to_json(),
            "metadata": metadata or {},
        }
        (temporary / SIDECAR).write_text(json.dumps(sidecar, indent=1) + "\n")


def read_dataset(
    root: Path,
    expected: Contract | None = None,
    *,
    source: str = "demonstration",
    outcome: Outcome = RECORDED,
    image_every: int = 1,
    minimum_episodes: int = 1,
) -> tuple[list[Episode], Contract, dict]:
    """Reads and checks a data set: LeRobot v3, or v2.0 and v2.1 as GR00T has them.

    One that was not written by this project is read too if success and reward are columns of it or are declared,
    and its contract is known: from the caller, or without units from GR00T's ``modality.json``. An episode is then
    cut at its first success. One without success gives its last row as the last observation, since nothing was
    stored after its last action.

    Args:
        root: folder of the data set.
        expected: the contract that its columns, cameras and rate must have; may be left out if the data set
            carries its own. Of a data set with ``modality.json``, columns and cameras are picked by name.
        source: what its episodes are, if the data set does not say.
        outcome: what counts as success and reward in it, if the data set does not say.
        image_every: of a data set of others, keep the images of every so many rows (and of the last), since all of
            them seldom fit in memory. Options start and end at kept images: a divisor of the chunk length.
        minimum_episodes: fewer are refused.

    Returns:
        Its episodes, its contract (with statistics if it was written with them) and the metadata it was written
        with.

    Raises:
        UserError: if something is missing, broken, NaN or too little, naming the file and the column.
        ContractMismatch: if it disagrees with `expected`, with every difference.
    """
    require("pyarrow", "lerobot")
    from deas_vla.data.lerobot.reader import read

    return read(Path(root), expected, source, outcome, image_every, minimum_episodes)


def declare_dataset(
    root: Path,
    contract: Contract,
    *,
    source: str = "demonstration",
    outcome: Outcome = RECORDED,
) -> None:
    """Writes down beside a data set of others what it does not say itself: units, limits, source, success, reward.

    Args:
        root: folder of the data set.
        contract: what its columns mean.
        source: ``demonstration`` or ``rollout``.
        outcome: what counts as success and reward.

    Raises:
        UserError: if the data set says already.
    """
    path = Path(root) / SIDECAR
    if path.exists():
        raise UserError(f"{path} says already what its columns mean; delete it to declare it anew")
    write_json(
        path,
        {
            "format": FORMAT,
            "source": source,
            "contract": contract.to_json(),
            "outcome": asdict(outcome),
            "metadata": {},
        },
    )


def _sort_statistics(path: Path) -> None:
    """LeRobot writes its features in the order of a set, another in every process: equal data, equal files."""
    path.write_text(json.dumps(json.loads(path.read_text()), indent=4, sort_keys=True) + "\n")
