"""A LeRobot data set into episodes: ours bit for bit, and those of others once success and reward are declared."""

from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.folder import LerobotFolder
from deas_vla.data.lerobot.format import SIDECAR
from deas_vla.data.lerobot.layout import Layout, gather
from deas_vla.data.lerobot.v2 import EpisodeFiles
from deas_vla.data.lerobot.v3 import SharedFiles
from deas_vla.data.outcome import Outcome, played_steps
from deas_vla.errors import ContractMismatch, UserError

OPTIONAL = ("frame.is_fresh", "frame.is_final", "scene")
# Below this, a bar would only flicker.
EPISODES_WORTH_A_BAR = 50


def read(
    root: Path,
    expected: Contract | None,
    source: str,
    outcome: Outcome,
    image_every: int,
    minimum_episodes: int,
) -> tuple[list[Episode], Contract, dict]:
    """See `lerobot_io.read_dataset`."""
    folder = LerobotFolder(root)
    outcome = declared_outcome(folder, outcome)
    require_columns(folder, outcome)
    layout = Layout.of(folder)
    contract = _contract(folder, layout, expected)
    misfits = layout.misfits(folder, contract)
    if misfits:
        raise ContractMismatch(f"{root} and its contract do not fit together: {'; '.join(misfits)}")
    layout = layout.picked(contract)

    needed = list(dict.fromkeys((*layout.keys, layout.instruction, *outcome.columns)))
    files = (EpisodeFiles if folder.episodic else SharedFiles)(folder, needed, OPTIONAL)
    if len(files) < minimum_episodes:
        raise UserError(
            f"{root}: {len(files)} episodes, at least {minimum_episodes} are needed; collect more"
        )
    source = folder.sidecar.get("source", source)
    episodes = [
        _episode(folder, layout, outcome, number, columns, source, image_every)
        for number, columns in enumerate(files.rows())
    ]
    frames = [episode.frame_steps for episode in episodes]
    for camera in contract.cameras:
        pictures = files.pictures(layout.cameras[camera.name], camera, frames)
        name = f"{folder.root.name} {camera.name}"
        few = len(episodes) < EPISODES_WORTH_A_BAR
        bar = tqdm(zip(episodes, pictures, strict=True), name, len(episodes), disable=few, dynamic_ncols=True)
        for episode, images in bar:
            episode.images[camera.name] = images
    for number, episode in enumerate(episodes):
        episode.validate(contract, f"{root}, episode {number}")
    return episodes, contract, folder.sidecar.get("metadata", {})


def declared_outcome(folder: LerobotFolder, outcome: Outcome) -> Outcome:
    """What the data set itself declares of success and reward, else what the caller does."""
    declared = folder.sidecar.get("outcome")
    if declared is None:
        return outcome
    try:
        return Outcome(**declared)
    except (TypeError, UserError) as error:
        raise UserError(f"{folder.root / SIDECAR}: {error}") from error


def require_columns(folder: LerobotFolder, outcome: Outcome) -> None:
    """Refuses a data set whose info.json lacks a column that the rules read."""
    for name in outcome.columns:
        if name not in folder.features:
            raise UserError(
                f"{folder.root}: column {name} is missing; record it, or declare what success and reward are "
                f"(deas_vla.data.outcome); its columns are {', '.join(sorted(folder.features))}"
            )


def _contract(folder: LerobotFolder, layout: Layout, expected: Contract | None) -> Contract:
    """The data set's own contract, else the expected one, else what modality.json says."""
    if "contract" in folder.sidecar:
        contract = Contract.from_json(folder.sidecar["contract"], folder.root / SIDECAR)
        if expected is not None:
            expected.require_same(contract, "what is expected", str(folder.root))
        return contract
    if expected is not None:
        return expected
    if folder.modality is not None:
        return layout.contract(folder)
    raise UserError(f"{folder.root} has no {SIDECAR} to say what its columns mean; give a contract for it")


def _episode(
    folder: LerobotFolder,
    layout: Layout,
    outcome: Outcome,
    number: int,
    columns: dict[str, np.ndarray],
    source: str,
    image_every: int,
) -> Episode:
    """An episode without images; `frame_steps` says which rows to decode."""
    states = gather(layout.state, columns)
    rows = len(states)
    success, rewards = outcome.of(columns, rows)
    if "frame.is_fresh" in columns:
        fresh = columns["frame.is_fresh"].astype(bool)
    else:
        fresh = np.arange(rows) % image_every == 0
    if "frame.is_final" in columns and columns["frame.is_final"][-1]:
        steps = rows - 1
    else:
        steps = played_steps(success)
        if success.any():
            # Nothing comes after a success, so nothing will be read off the state after it.
            states, fresh = np.append(states[:steps], states[steps - 1 : steps], 0), fresh[:steps]
        else:
            fresh[-1] = True  # a timeout bootstraps from here
    sentence = int(columns[layout.instruction][0])
    if sentence not in folder.tasks:
        raise UserError(f"{folder.root}, episode {number}: sentence {sentence} is not in its list of tasks")
    return Episode(
        instruction=folder.tasks[sentence],
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
