"""LeRobot data sets into episodes: ours as they were written, those of others once success and reward are declared."""

from pathlib import Path

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.labels import RECORDED, LabelRules
from deas_vla.data.lerobot import SIDECAR
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import Layout, gather
from deas_vla.errors import ContractMismatch, UserError, as_user_error


def read_dataset(
    root: Path,
    expected: Contract | None = None,
    *,
    source: str = "demonstration",
    labels: LabelRules = RECORDED,
    image_every: int = 1,
) -> tuple[list[Episode], Contract, dict]:
    """Reads and checks a data set: LeRobot v3, or v2.0 and v2.1 as GR00T has them.

    One of others is read too if success and reward are columns of it or are declared, and its contract is known: from
    the caller, from `declare.declare_dataset`, or without units from GR00T's ``modality.json``. An episode is then cut
    at its first success. One without success gives its last row as the last observation.

    Args:
        root: folder of the data set.
        expected: the contract of its columns (picked by name where there is a ``modality.json``), cameras and rate.
        source, labels: what its episodes are, and what counts as success and reward in it, if it does not say.
        image_every: of a data set of others, keep the images of every so many rows (and of the last), since all of
            them seldom fit in memory. Options start and end at kept images: a divisor of the chunk length.

    Returns:
        Its episodes, its contract (with statistics if it was written with them) and the metadata written with it.

    Raises:
        UserError: if something is missing, broken, NaN or too little, naming the file and the column.
        ContractMismatch: if it disagrees with `expected`, with every difference.
    """
    folder = LerobotFolder(root)
    labels = declared_labels(folder, labels)
    for name in labels.columns:
        if name not in folder.features:
            fix = "record it, or declare what success and reward are (--success, --reward of `deas-vla declare`)"
            columns = ", ".join(sorted(folder.features))
            raise UserError(f"{root}: column {name} is missing; {fix}; its columns are {columns}")
    layout = Layout.of(folder)
    contract, declared = own_contract(folder, layout)
    if declared and expected is not None:
        expected.require_same(contract, "what is expected", str(root))
    elif not declared:
        if expected is None and folder.modality is None:
            fix = f"write it with: deas-vla declare {root} --units=UNIT"
            raise UserError(f"{root} has no {SIDECAR} to say what its columns mean; {fix}")
        contract = expected or contract
    if misfits := layout.misfits(folder, contract):
        raise ContractMismatch(f"{root} and its contract do not fit together: {'; '.join(misfits)}")
    layout = layout.with_columns_of(contract)

    optional = ("frame.is_fresh", "frame.is_final", "scene")
    rows = list(folder.rows([*layout.keys, layout.instruction, *labels.columns], optional))
    if len({part.number for part in rows}) < len(rows):
        raise UserError(f"{root}: an episode is in two places; `deas-vla audit {root}` says which")
    if not rows:
        raise UserError(f"{root}: there are no episodes in it; collect some")
    source = folder.sidecar.get("source", source)
    episodes = [_episode(folder, layout, labels, number, part, source, image_every) for number, part in enumerate(rows)]
    frames = [episode.frame_steps for episode in episodes]
    for camera in contract.cameras:
        key, name = layout.cameras[camera.name], f"{folder.root.name} {camera.name}"
        images = folder.images(key, (camera.height, camera.width), rows, frames, name)
        for episode, part in zip(episodes, images, strict=True):
            episode.images[camera.name] = part
    for number, episode in enumerate(episodes):
        episode.validate(contract, f"{root}, episode {number}")
    return episodes, contract, folder.sidecar.get("metadata", {})


def own_contract(folder: LerobotFolder, layout: Layout) -> tuple[Contract, bool]:
    """The contract that is declared beside a data set, else what it says of itself; and whether it is declared."""
    if "contract" in folder.sidecar:
        return Contract.from_json(folder.sidecar["contract"], folder.root / SIDECAR), True
    return layout.contract(folder), False


def declared_labels(folder: LerobotFolder, labels: LabelRules) -> LabelRules:
    """What the data set itself declares of success and reward, else what the caller does."""
    if folder.sidecar.get("labels") is None:
        return labels
    with as_user_error(f"{folder.root / SIDECAR}: labels cannot be read", UserError):
        return LabelRules(**folder.sidecar["labels"])


def _episode(
    folder: LerobotFolder, layout: Layout, labels: LabelRules, number: int, part: Rows, source: str, image_every: int
) -> Episode:
    """An episode without images; `frame_steps` says which rows to decode."""
    columns, rows = part.columns, len(part)
    states = gather(layout.state, columns)
    success, rewards = labels.of(columns, rows)
    fresh = columns.get("frame.is_fresh", np.arange(rows) % image_every == 0).astype(bool)
    if "frame.is_final" in columns and columns["frame.is_final"][-1]:
        steps = rows - 1
    elif success.any():
        # A success ends the episode, whatever was recorded after it. Nothing comes after it, so nothing will be read
        # off the state after it.
        steps = int(success.argmax()) + 1
        states, fresh = np.append(states[:steps], states[steps - 1 : steps], 0), fresh[:steps]
    else:
        # Nothing was stored after the last action: the last row is the observation that a timeout bootstraps from.
        steps, fresh[-1] = rows - 1, True
    task = int(columns[layout.instruction][0])
    if task not in folder.tasks:
        raise UserError(f"{folder.root}, episode {number}: instruction {task} is not in its list of tasks")
    return Episode(
        instruction=folder.tasks[task],
        source=source,
        scene=int(columns["scene"][0]) if "scene" in columns else number,
        states=np.ascontiguousarray(states),
        actions=gather(layout.action, columns)[:steps].copy(),
        rewards=rewards[:steps].copy(),
        success=success[:steps].copy(),
        truncated=not success[:steps].any(),
        frame_steps=np.flatnonzero(fresh),
        images={},
    )
