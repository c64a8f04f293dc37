"""LeRobot data sets into episodes: ours as they were written, those of others once success and reward are declared."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.images import IN_MEMORY
from deas_vla.data.labels import RECORDED, REWARD_RULES, SUCCESS_RULES, GivenOutcomes, LabelRules
from deas_vla.data.lerobot import SIDECAR, rows
from deas_vla.data.lerobot.findings import refuse
from deas_vla.data.lerobot.folder import LerobotFolder, Rows
from deas_vla.data.lerobot.layout import UNKNOWN, Layout, gather
from deas_vla.data.lerobot.outcomes import OUTCOMES, read_outcomes, recorded_outcome
from deas_vla.data.lerobot.videos import misplaced
from deas_vla.errors import ContractMismatch, UserError, as_user_error


def read_dataset(
    root: Path,
    expected: Contract | None = None,
    *,
    source: str = "demonstration",
    labels: LabelRules = RECORDED,
    image_every: int = 1,
    in_memory: int = IN_MEMORY,
) -> tuple[list[Episode], Contract, dict]:
    """Reads and checks a data set: LeRobot v3, or v2.0 and v2.1 as GR00T has them.

    One of others is read too if success and reward are columns of it or are declared, and its contract is known: from
    the caller, from `declare.declare_dataset`, or without units from GR00T's ``modality.json``. An episode is then cut
    at its first success. One without success gives its last row as the last observation.

    Args:
        root: folder of the data set.
        expected: the contract of its columns (picked by name where there is a ``modality.json``), cameras and rate.
        source, labels: what its episodes are, and what counts as success and reward in it, if it does not say.
        image_every: of a data set of others, use the images of every so many rows (and of the last). Options start and
            end at these images: a divisor of the chunk length.
        in_memory: if its images take more bytes than this, they stay on disk and are decoded when they are asked for.

    Returns:
        Its episodes in the order of their numbers, its contract (with statistics if it was written with them) and the
        metadata written with it.

    Raises UserError if something is missing, broken, NaN or too little, naming the file and the column: the first of
    what `deas-vla audit` calls an error; images on disk are looked at when they are decoded. Raises ContractMismatch if
    it disagrees with `expected`, with every difference.
    """
    folder = LerobotFolder(root)
    labels = declared_labels(folder, labels)
    for name in labels.columns:
        if name not in folder.features:
            fix = "record it, or declare what success and reward are (--success, --reward of `deas-vla declare`)"
            if SUCCESS_RULES[labels.success] not in (None, *folder.features):
                fix += f", or look at each episode: deas-vla label {root}"
            columns = ", ".join(sorted(folder.features))
            raise UserError(f"{root}: column {name} is missing; {fix}; its columns are {columns}")
    layout = Layout.of(folder)
    contract, declared = own_contract(folder, layout)
    if declared and expected is not None:
        contract = contract.with_cameras_of(expected)
        expected.require_same(contract, "what is expected", str(root))
    elif not declared:
        if expected is None and folder.modality is None:
            fix = f"write it down with: deas-vla declare {root} --units=UNIT"
            raise UserError(f"{root}: nothing says the units of its columns; {fix}")
        contract = expected or contract
    if misfits := layout.misfits(folder, contract):
        raise ContractMismatch(f"{root} and its contract do not fit together: {'; '.join(misfits)}")
    layout = layout.with_columns_of(contract)

    parts = refuse(folder.root, rows.read_rows(folder, layout, labels, desc=folder.root.name))
    if not parts:
        raise UserError(f"{root}: there are no episodes in it; collect some")
    refuse(folder.root, misplaced(folder, layout, parts))
    if declared:
        facts = rows.column_facts(layout, parts)
        refuse(folder.root, rows.beyond_contract(facts, contract, f"the contract in {SIDECAR}"))
    source = folder.sidecar.get("source", source)
    episodes = [_episode(folder, layout, labels, part, source, image_every) for part in parts]
    frames = [episode.frame_steps for episode in episodes]
    pixels = sum(camera.height * camera.width for camera in contract.cameras)
    on_disk = 3 * pixels * sum(map(len, frames)) > in_memory
    for camera in contract.cameras:
        key, size = layout.cameras[camera.name], (camera.height, camera.width)
        if on_disk:
            images = folder.stored_images(key, size, parts, frames)
        else:
            images = folder.images(key, size, parts, frames, f"{folder.root.name} {camera.name}")
        for episode, shown in zip(episodes, images, strict=True):
            episode.images[camera.name] = shown
    # Whatever file an episode lies in: two copies of a data set are one.
    pairs = sorted(zip(parts, episodes, strict=True), key=lambda pair: pair[0].number)
    for part, episode in pairs:
        episode.validate(contract, f"{root}, episode {part.number}")
    return [episode for _, episode in pairs], contract, folder.sidecar.get("metadata", {})


def own_contract(folder: LerobotFolder, layout: Layout) -> tuple[Contract, bool]:
    """The contract beside a data set, else what it says of itself; and whether all of it is declared, units too."""
    if "contract" in folder.sidecar:
        contract = Contract.from_json(folder.sidecar["contract"], folder.root / SIDECAR)
        units = {column.unit for column in (*contract.state, *contract.action)}
        return contract, not (folder.declared and UNKNOWN in units)
    return layout.contract(folder), False


def declared_labels(folder: LerobotFolder, labels: LabelRules) -> LabelRules:
    """What the data set itself declares of success and reward, or has recorded, else what the caller says.

    A column ``next.success`` of others, everything that this project wrote, and a data set whose episodes were given
    their outcomes by `deas-vla label`, keep their own: what a caller says is meant for data that do not say.
    """
    if (declared := folder.sidecar.get("labels")) is not None:
        with as_user_error(f"{folder.root / SIDECAR}: labels cannot be read", UserError):
            labels = LabelRules(**declared)
    elif folder.sidecar and not folder.declared:
        labels = RECORDED
    elif SUCCESS_RULES["column"] in folder.features:
        labels = replace(labels, success="column")
    given = {outcome.episode: outcome.success for outcome in read_outcomes(folder)}
    if not given:
        return labels
    if recorded := recorded_outcome(folder):
        raise UserError(f"{folder.root}: outcomes are given in {OUTCOMES} and by {recorded}; delete one of the two")
    if missing := folder.episodes.keys() - given.keys():
        count = f"{len(missing)} of {len(folder.episodes)} episodes have no outcome yet"
        raise UserError(f"{folder.root / OUTCOMES}: {count}; go on with: deas-vla label {folder.root}")
    # Where no reward was recorded, success is all that is known of it.
    recorded = labels.reward == "column" and REWARD_RULES["column"] in folder.features
    return GivenOutcomes(reward="column" if recorded else "success", outcomes=given)


def _episode(
    folder: LerobotFolder, layout: Layout, labels: LabelRules, part: Rows, source: str, image_every: int
) -> Episode:
    """An episode without images; `frame_steps` says which rows to decode."""
    columns = part.columns
    states = gather(layout.state, columns)
    success, rewards = labels.of(columns, len(part))
    if isinstance(labels, GivenOutcomes) and not success.any():
        source = "rollout"  # somebody saw it fail: it is nothing to imitate
    steps, frames = rows.steps_of(part, success), rows.frames_of(part, success, image_every)
    if success.any() and not rows.has_final(part):
        # Nothing comes after a success, so nothing will be read off the state after it.
        states = np.append(states[:steps], states[steps - 1 : steps], 0)
    tasks = {} if rows.is_text(folder, layout.instruction) else folder.tasks
    return Episode(
        instruction=rows.instruction_of(part, layout.instruction, tasks),
        source=source,
        scene=int(columns["scene"].flat[0]) if "scene" in columns else part.number,
        states=np.ascontiguousarray(states),
        actions=gather(layout.action, columns)[:steps].copy(),
        rewards=rewards[:steps].copy(),
        success=success[:steps].copy(),
        truncated=not success[:steps].any(),
        frame_steps=frames,
        images={},
    )
