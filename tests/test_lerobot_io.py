"""LeRobotDataset v3: what is written is what LeRobot reads, and what is read back is what was written."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from data_example import SIZE, assert_same_episode, example_contract, example_episode

from deas_vla.data.audit.audit import audit
from deas_vla.data.contract import Camera, Statistics
from deas_vla.data.frames import FrameTable
from deas_vla.data.lerobot import IMAGES
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import columns_of, features, shown_frame, write_dataset
from deas_vla.data.options import RewardSpec, build_options
from deas_vla.errors import ContractMismatch, UserError
from deas_vla.rollouts import outputs

CONTRACT = example_contract()


def example_episodes():
    rng = np.random.default_rng(0)
    words = ("lift the cube", "open the door")
    # A row of random images is near 2 kB; long enough for held images, short options and several batches.
    return [example_episode(rng, 6 + 3 * i, i % 2 == 0, instruction=words[i % 2], scene=100 + i) for i in range(5)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("written") / "dataset"
    write_dataset(root, iter(example_episodes()), CONTRACT, "local/toy", metadata={"seed": 3})
    return root


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written, tmp_path / "dataset")


def edit_info(root, change):
    info = json.loads((root / "meta/info.json").read_text())
    change(info)
    (root / "meta/info.json").write_text(json.dumps(info))


def edit_table(root, change):
    file = next((root / "data").glob("*/*.parquet"))
    pq.write_table(change(pq.read_table(file, partitioning=None)), file)


def set_column(root, name, values):
    def change(table):
        place = table.column_names.index(name)
        return table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))

    edit_table(root, change)


def stock_reader(root, **options):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset("local/toy", root=root, **options)


def test_episodes_come_back_bit_for_bit(written):
    episodes, contract, metadata = read_dataset(written, CONTRACT)
    assert (contract, metadata) == (CONTRACT, {"seed": 3})
    for a, b in zip(example_episodes(), episodes, strict=True):
        assert_same_episode(a, b)


def test_several_files_and_row_groups_come_back(written, tmp_path, monkeypatch):
    """Files are split at LeRobot's size limit; other tools merge row groups."""
    from lerobot.datasets import feature_utils

    monkeypatch.setattr(feature_utils, "DEFAULT_DATA_FILE_SIZE_IN_MB", 0.03)
    write_dataset(tmp_path / "split", example_episodes(), CONTRACT, "local/toy")
    files = sorted((tmp_path / "split/data").glob("*/*.parquet"))
    assert len(files) > 2
    stock = stock_reader(tmp_path / "split")
    assert len(stock) == sum(episode.length + 1 for episode in example_episodes())
    assert {str(stock.meta.get_data_file_path(i)) for i in range(5)} == {
        str(file.relative_to(tmp_path / "split")) for file in files
    }
    for a, b in zip(example_episodes(), read_dataset(tmp_path / "split")[0], strict=True):
        assert_same_episode(a, b)
    merged = shutil.copytree(written, tmp_path / "merged")
    edit_table(merged, lambda table: table)
    for a, b in zip(example_episodes(), read_dataset(merged)[0], strict=True):
        assert_same_episode(a, b)


def test_stock_reader_reads_it(written):
    stock = stock_reader(
        written,
        delta_timestamps={
            f"{IMAGES}left": [0.0, 0.1],
            "action": [k / 20 for k in range(4)],
            "next.reward": [0.0, 0.05],
        },
    )
    episodes = example_episodes()
    assert (stock.meta.total_episodes, stock.meta.fps, stock.meta.robot_type) == (5, 20, "toy")
    assert stock.meta.features["action"]["names"] == ["move.x", "gripper_close"]
    row = 0
    for number, episode in enumerate(episodes):
        held = shown_frame(episode)
        actions = torch.from_numpy(np.append(episode.actions, episode.actions[-1:], 0))
        for t in range(episode.length + 1):
            item = stock[row]
            row += 1
            assert (int(item["episode_index"]), int(item["frame_index"]), item["task"]) == (
                number,
                t,
                episode.instruction,
            )
            assert item["timestamp"].item() == pytest.approx(t / 20)
            assert torch.equal(item["observation.state"], torch.from_numpy(episode.states[t]))
            later = (t + torch.arange(4)).clamp(max=episode.length)
            assert torch.equal(item["action"], actions[later])
            assert item["action_is_pad"].tolist() == [t + k > episode.length for k in range(4)]
            for camera in ("left", "wrist"):
                image = torch.from_numpy(episode.images[camera][held[t]]).permute(2, 0, 1) / 255
                shown = item[f"{IMAGES}{camera}"]
                assert torch.equal(shown[0] if camera == "left" else shown, image)
            assert bool(item["next.done"]) == (t >= episode.length - 1)
            assert bool(item["next.truncated"]) == (t >= episode.length - 1 and episode.truncated)
            assert bool(item["next.success"]) == (t >= episode.length - 1 and episode.terminated)
            assert bool(item["frame.is_fresh"]) == (t in episode.frame_steps)
            assert bool(item["frame.is_final"]) == (t == episode.length)
            assert int(item["scene"]) == episode.scene
    assert row == len(stock)


def test_lerobot_takes_only_state_and_images_for_inputs(written):
    """Columns of bookkeeping must not become inputs of LeRobot's own policies."""
    from lerobot.utils.feature_utils import dataset_to_policy_features

    found = dataset_to_policy_features(stock_reader(written).meta.features)
    assert set(found) == {"observation.state", "action", f"{IMAGES}left", f"{IMAGES}wrist"}


def test_equal_to_the_stock_recorder(written, tmp_path):
    """The same episodes through LeRobot's add_frame and save_episode: same rows, metadata and statistics."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    recorder = LeRobotDataset.create(
        "local/toy", 20, features(CONTRACT, "image"), root=tmp_path / "stock", robot_type="toy", use_videos=False
    )
    for episode in example_episodes():
        held = shown_frame(episode)
        for t in range(episode.length + 1):
            frame = {name: np.atleast_1d(values[t]) for name, values in columns_of(episode).items()}
            images = {IMAGES + name: array[held[t]] for name, array in episode.images.items()}
            recorder.add_frame({**frame, **images, "task": episode.instruction})
        recorder.save_episode()
    recorder.finalize()
    ours, stock = stock_reader(written), stock_reader(tmp_path / "stock")
    assert ours.hf_dataset.features == stock.hf_dataset.features
    assert len(ours) == len(stock)
    for i in range(len(stock)):
        a, b = ours[i], stock[i]
        assert a.keys() == b.keys()
        for key, value in b.items():
            assert a[key] == value if key == "task" else torch.equal(a[key], value), key
    assert ours.meta.info.to_dict() == stock.meta.info.to_dict()
    assert ours.meta.episodes.column_names == stock.meta.episodes.column_names
    assert ours.meta.episodes[:] == stock.meta.episodes[:]
    assert ours.meta.stats.keys() == stock.meta.stats.keys()
    for key, statistics in stock.meta.stats.items():
        assert ours.meta.stats[key].keys() == statistics.keys()
        for name, value in statistics.items():
            mine = ours.meta.stats[key][name]
            assert mine.shape == value.shape
            if not key.startswith(IMAGES):
                assert np.array_equal(mine, value)
            elif name != "count":
                assert np.allclose(mine, value, atol=0.05), (key, name)  # from fewer pixels, random ones here


def test_videos_show_the_right_frames(tmp_path):
    """Lossy, so frames are plain colours: every row must show its own, in every episode of the shared file."""
    rng = np.random.default_rng(0)
    contract = example_contract(cameras=(Camera("left", 64, 64), Camera("wrist", 64, 64)))
    episodes = [example_episode(rng, 9 + i, i == 0, every=3) for i in range(2)]
    for episode in episodes:
        for camera in episode.images:
            colours = rng.integers(30, 220, (len(episode.frame_steps), 1, 1, 3))
            episode.images[camera] = np.broadcast_to(colours, (len(colours), 64, 64, 3)).astype(np.uint8)
    write_dataset(tmp_path / "dataset", episodes, contract, "local/toy", storage="video")
    back, _, _ = read_dataset(tmp_path / "dataset", contract)
    for a, b in zip(episodes, back, strict=True):
        assert_same_episode(a, b, images=False)
        for camera in a.images:
            difference = np.abs(a.images[camera].astype(int) - b.images[camera]).mean((1, 2, 3))
            assert difference.max() < 6, (camera, difference)
            assert b.images[camera].flags["C_CONTIGUOUS"]
    # And on to options and features, which hash the images and pool what a policy makes of them.
    frames = FrameTable.of(back)
    options = build_options(
        back, contract, horizon=3, reward_discount=0.9, bootstrap_discount=0.99, reward=RewardSpec()
    )
    assert len(options) > 2 and len(frames.fingerprint) == 64
    for camera in ("left", "wrist"):
        seen = frames.observation(options.start_frame).images[camera]
        assert seen.shape == (len(options), 64, 64, 3) and seen.dtype == torch.uint8


def test_images_that_would_crash_the_video_encoder_are_refused(tmp_path):
    contract = example_contract(cameras=(Camera("left", 64, 16), Camera("wrist", 64, 64)))
    with pytest.raises(UserError, match=r'images of left are under 32 pixels wide.*storage="image"'):
        write_dataset(tmp_path / "dataset", [], contract, "local/toy", storage="video")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_vector_of_one_column_comes_back(tmp_path, storage):
    """LeRobot stores it as a number a row."""
    size = 64
    contract = example_contract(
        state=CONTRACT.state[:1],
        action=CONTRACT.action[:1],
        cameras=(Camera("left", size, size), Camera("wrist", size, size)),
        statistics=None,
    )
    episode = example_episode(np.random.default_rng(0), 8, True)
    episode.states, episode.actions = episode.states[:, :1].copy(), episode.actions[:, :1].copy()
    episode.images = {name: np.zeros((len(episode.frame_steps), size, size, 3), np.uint8) for name in episode.images}
    write_dataset(tmp_path / "dataset", [episode], contract, "local/toy", storage=storage)
    (back,), _, _ = read_dataset(tmp_path / "dataset", contract)
    assert_same_episode(episode, back, images=storage == "image")
    assert audit([tmp_path / "dataset"]).fit


# ---- data sets of others -----------------------------------------------------------------------------------------


def make_foreign(root):
    """A data set without our columns and sidecar; its successes go on being reported for another row."""
    (root / "meta/deas_vla.json").unlink()
    ours = ["next.truncated", "frame.is_fresh", "frame.is_final", "scene"]

    def strip(info):
        for name in ours:
            del info["features"][name]

    edit_info(root, strip)
    edit_table(root, lambda table: table.drop_columns(ours))


def test_a_data_set_of_someone_else_is_read(copy):
    make_foreign(copy)
    with pytest.raises(UserError, match=r"nothing says the units of its columns; .*deas-vla declare"):
        read_dataset(copy)
    episodes, contract, metadata = read_dataset(copy, CONTRACT, source="rollout")
    assert (contract, metadata) == (CONTRACT, {})
    for number, (a, b) in enumerate(zip(example_episodes(), episodes, strict=True)):
        held = shown_frame(a)
        assert (b.instruction, b.source, b.scene) == (a.instruction, "rollout", number)
        assert (b.terminated, b.truncated) == (a.terminated, a.truncated)
        assert np.array_equal(b.actions, a.actions) and np.array_equal(b.success, a.success)
        # Success ends the episode, whatever was recorded after it; without it the last row is the last observation.
        rows = a.length if a.terminated else a.length + 1
        assert np.array_equal(b.states[:rows], a.states[:rows]) and len(b.states) == a.length + 1
        assert b.frame_steps.tolist() == list(range(rows))
        for camera in a.images:
            assert np.array_equal(b.images[camera], a.images[camera][held[:rows]])


def test_rule_02_a_foreign_failure_ends_in_an_observation(copy):
    make_foreign(copy)
    episodes, _, _ = read_dataset(copy, CONTRACT)
    for episode in episodes:
        assert episode.terminated != episode.truncated
        if episode.truncated:
            assert episode.frame_steps[-1] == episode.length  # stored: a timeout can bootstrap from it


# ---- planted faults ----------------------------------------------------------------------------------------------


def refused(root, message, expected=CONTRACT, **options):
    with pytest.raises(UserError, match=message) as error:
        read_dataset(root, expected, **options)
    assert "\n" not in str(error.value)


def test_no_data_set(tmp_path):
    refused(tmp_path / "nothing", "nothing: not a LeRobot data set")


def test_other_version_of_the_format(copy):
    edit_info(copy, lambda info: info.update(codebase_version="v1.6"))
    refused(copy, r"LeRobot format v1\.6, this reads v2\.0, v2\.1 and v3")


@pytest.mark.parametrize("column", ["next.reward", "next.success", "action", "observation.state"])
def test_missing_column(copy, column):
    edit_info(copy, lambda info: info["features"].pop(column))
    refused(copy, f"column {column} is missing")


def test_nan_is_found(copy, written):
    rewards = pq.read_table(next((written / "data").glob("*/*.parquet")), partitioning=None)["next.reward"].to_pylist()
    rewards[9] = float("nan")  # the second episode starts at row 7
    set_column(copy, "next.reward", rewards)
    refused(copy, r"file-000\.parquet: episode 1: next\.reward is NaN at row 2")


def test_nan_in_a_state_names_the_column(copy, written):
    states = pq.read_table(next((written / "data").glob("*/*.parquet")), partitioning=None)["observation.state"]
    states = states.to_pylist()
    states[3][2] = float("nan")
    set_column(copy, "observation.state", states)
    refused(copy, r"episode 0: observation\.state position\.z is NaN at row 3")


def test_rule_07_columns_have_names(copy):
    renamed = dataclasses.replace(CONTRACT.action[0], name="move.y")
    refused(
        copy, r"action\[0\]: name 'move\.y' against 'move\.x'", example_contract(action=(renamed, CONTRACT.action[1]))
    )
    refused(copy, "rate: 10 Hz against 20 Hz", example_contract(rate_hz=10.0))
    refused(
        copy,
        "unit 'cm' against 'm'",
        example_contract(state=(*CONTRACT.state[:2], dataclasses.replace(CONTRACT.state[2], unit="cm"))),
    )
    further = dataclasses.replace(CONTRACT.cameras[0], name="above")
    refused(copy, "cameras: 3 entries against 2", example_contract(cameras=(*CONTRACT.cameras, further)))
    refused(copy, "cameras: 2 entries against 1", example_contract(cameras=(further, CONTRACT.cameras[1])))
    statistics = Statistics((0.5, 0.0, -0.5), (2.0, 1.0, 0.5), (0.1, 0.5), (0.9, 0.5))
    refused(copy, r"action_std differs in columns \[0\]", example_contract(statistics=statistics))
    # A contract that has no statistics yet takes those of the data set.
    _, contract, _ = read_dataset(copy, example_contract(statistics=None))
    assert contract.statistics == CONTRACT.statistics


def test_cameras_that_are_not_asked_for_are_left_out(copy):
    only = example_contract(cameras=CONTRACT.cameras[1:])
    episodes, contract, _ = read_dataset(copy, only)
    assert contract == only and all(episode.images.keys() == {"wrist"} for episode in episodes)


def test_rule_07_a_foreign_data_set_must_have_the_columns(copy):
    make_foreign(copy)
    renamed = dataclasses.replace(CONTRACT.action[0], name="move.y")
    with pytest.raises(ContractMismatch, match=r"action: 2 columns against 2; move\.x against move\.y"):
        read_dataset(copy, example_contract(action=(renamed, CONTRACT.action[1])))
    refused(copy, "rate: 20 Hz against 30 Hz", example_contract(rate_hz=30.0))
    refused(copy, "camera front is missing", example_contract(cameras=(Camera("front", SIZE, SIZE),)))
    refused(
        copy, r"camera left: \(16, 16, 3\) against \(32, 32, 3\)", example_contract(cameras=(Camera("left", 32, 32),))
    )
    edit_info(copy, lambda info: info["features"]["action"].update(names=None))
    refused(copy, "action: its columns have no names")


def test_cut_off_files(copy):
    file = next((copy / "data").glob("*/*.parquet"))
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    refused(copy, r"file-000\.parquet cannot be read")
    file.unlink()
    refused(copy, "no parquet files")


def test_rows_and_videos_belong_together_whatever_the_order_of_the_rows(tmp_path):
    """Episodes lie in another order in the parquet file than in the list: each must show its own video."""
    rng = np.random.default_rng(0)
    contract = example_contract(cameras=(Camera("left", 64, 64), Camera("wrist", 64, 64)))
    episodes = [example_episode(rng, 8, i == 0, every=4, scene=i) for i in range(3)]
    for level, episode in enumerate(episodes):
        for images in episode.images.values():
            images.resize((3, 64, 64, 3), refcheck=False)
            images[:] = 60 + 60 * level
    write_dataset(tmp_path / "dataset", episodes, contract, "local/toy", storage="video")
    edit_table(tmp_path / "dataset", lambda table: pa.concat_tables([table.slice(18), table.slice(0, 18)]))
    for episode in read_dataset(tmp_path / "dataset")[0]:
        assert abs(episode.images["left"].mean() - (60 + 60 * episode.scene)) < 4


def test_an_episode_in_two_places_is_refused(copy):
    edit_table(copy, lambda table: pa.concat_tables([table.slice(3), table.slice(0, 3)]))
    refused(copy, "episode 0: frame_index is 3 at row 0, expected 0; rows were lost or copied")
    # Even if the rows of both places are numbered as if they were whole.
    numbers = pq.read_table(next((copy / "data").glob("*/*.parquet")), partitioning=None)["frame_index"].to_pylist()
    set_column(copy, "frame_index", [*range(4), *numbers[4:]])
    refused(copy, "episode 0: it begins again in file-000")


def test_lost_rows(copy):
    edit_table(copy, lambda table: table.slice(0, 20))
    refused(copy, "info.json says total_frames 65, there are 20")


def test_broken_image(copy):
    def change(table):
        column = table[f"{IMAGES}wrist"].to_pylist()
        column[7]["bytes"] = column[7]["bytes"][:30]
        place = table.column_names.index(f"{IMAGES}wrist")
        field = table.schema.field(place)
        return table.set_column(place, field, pa.array(column, field.type))

    edit_table(copy, change)
    refused(copy, "wrist, row 7: not an image")


def test_broken_sidecar(copy):
    (copy / "meta/deas_vla.json").write_text("{")
    refused(copy, r"deas_vla\.json")
    (copy / "meta/deas_vla.json").write_text(json.dumps({"format": 99}))
    refused(copy, "format 99, this version reads 1")


# ---- writing -----------------------------------------------------------------------------------------------------


def test_rule_12_a_data_set_is_whole_or_absent(tmp_path):
    def killed():
        yield example_episodes()[0]
        raise KeyboardInterrupt

    root = tmp_path / "dataset"
    with pytest.raises(KeyboardInterrupt):
        write_dataset(root, killed(), CONTRACT, "local/toy")
    assert not root.exists()
    # What a kill -9 leaves behind does not stand in the way.
    (tmp_path / f".dataset.{os.getpid()}.partial").mkdir(exist_ok=True)
    write_dataset(root, example_episodes()[:1], CONTRACT, "local/toy")
    assert len(read_dataset(root)[0]) == 1 and [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_what_cannot_be_written_is_refused(written, tmp_path):
    with pytest.raises(UserError, match="exists already"):
        write_dataset(written, example_episodes(), CONTRACT, "local/toy")
    with pytest.raises(UserError, match="choose image or video"):
        write_dataset(tmp_path / "a", example_episodes(), CONTRACT, "local/toy", storage="pickle")
    with pytest.raises(UserError, match="no episodes to write"):
        write_dataset(tmp_path / "b", [], CONTRACT, "local/toy")
    mixed = example_episodes()
    mixed[3].source = "demonstration"
    with pytest.raises(UserError, match="episode 3: source demonstration among episodes of source rollout"):
        write_dataset(tmp_path / "c", mixed, CONTRACT, "local/toy")
    broken = example_episodes()
    broken[1].actions[0, 0] = np.nan
    with pytest.raises(UserError, match="episode 1: actions"):
        write_dataset(tmp_path / "d", broken, CONTRACT, "local/toy")
    assert list(tmp_path.iterdir()) == []


def test_the_same_episodes_make_the_same_files(written, tmp_path):
    """So that a hash of a data set says something."""
    from deas_vla.files import sha256_of

    write_dataset(tmp_path / "dataset", example_episodes(), CONTRACT, "local/toy", metadata={"seed": 3})
    assert sha256_of(tmp_path / "dataset") == sha256_of(written)


# ---- stages of a loop read the same data ------------------------------------------------------------------------


def test_what_a_stage_collected_is_read_once(copy, monkeypatch):
    def finished(fingerprint):
        (copy.parent / "stage.json").write_text(json.dumps({"fingerprint": fingerprint}))

    reads = []

    def counted(root, expected=None):
        reads.append(root)
        return read_dataset(root, expected)

    monkeypatch.setattr(outputs, "read_dataset", counted)
    stages, kept = outputs.Outputs(kept=3), 3
    read = stages.episodes
    finished("one")
    first, contract, metadata = read(copy.parent, CONTRACT)
    FrameTable.of(first)
    first.clear()
    again, same, _ = read(copy.parent)
    assert len(reads) == 1 and same == contract == CONTRACT and metadata["seed"] == 3
    for episode, expected in zip(again, read_dataset(copy)[0], strict=True):
        assert_same_episode(episode, expected)

    # What is remembered is held against what is expected, and what was made anew is read anew.
    other = example_contract(rate_hz=CONTRACT.rate_hz + 1)
    with pytest.raises(ContractMismatch, match="rate"):
        read(copy.parent, other)
    for number in range(kept + 1):
        finished(f"made anew {number}")
        read(copy.parent)
    assert len(reads) == kept + 2 and stages._read.cache_info().currsize == kept
