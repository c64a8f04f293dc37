"""Data in the forms that other people's tools give them: codecs, clocks, kinds of images, names of folders, stubs."""

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_reader_faults import VERSIONS, moved, read, refused
from told_example import (
    FRONT,
    LENGTHS,
    RATE,
    SIZE,
    VIDEO_SIZE,
    encoded,
    feature,
    own_contract,
    picture,
    write_frames,
    write_told,
    write_told_video,
)

from deas_vla.data.lerobot.reader import read_dataset

# ---- videos ---------------------------------------------------------------------------------------------------------

CODECS = {
    "AV1": {"name": "libsvtav1", "preset": "10"},
    "HEVC": {"name": "libx265"},
    "10 bits": {"format": "yuv420p10le"},
    "4:4:4": {"format": "yuv444p"},
    "8 B frames": {"g": "100", "bf": "8"},
    "MPEG-4": {"name": "mpeg4"},
    "VP9": {"name": "libvpx-vp9"},
}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_frames_of_any_codec_are_those_of_their_rows(tmp_path, codec):
    root = write_told_video(tmp_path / "set")
    (path,) = (root / "videos").rglob("*.mp4")
    path.unlink()
    frames = [picture(number, row, VIDEO_SIZE) for number, length in enumerate(LENGTHS) for row in range(length)]
    write_frames(path, frames, **codec)
    assert len(read(root)) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_a_video_that_was_cut_without_encoding_it_anew_begins_at_its_first_shown_frame(tmp_path, version):
    """The frames before it are still in the file, and a list of edits leaves them out."""
    root = write_told_video(tmp_path / "set", version, lengths=(5,), successes=(True,))
    (path,) = (root / "videos").rglob("*.mp4")
    whole, before = tmp_path / "whole.mp4", 3
    frames = [picture(9, 9, VIDEO_SIZE)] * before + [picture(0, row, VIDEO_SIZE) for row in range(5)]
    write_frames(whole, frames, g="100", bf="2")
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                earlier = round(before / RATE / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - earlier, packet.dts - earlier, stream
                target.mux(packet)
    with av.open(str(path)) as container:
        assert len(list(container.demux(video=0))) > len(frames)
    assert read(root)[0].length == 5


def test_a_rate_of_video_cameras_is_read(tmp_path):
    """29.97 frames a second, which is 30000 / 1001."""
    step = 1001 / 30000

    def rated(info):
        info["fps"] = 29.97

    def places(rows):
        for row in rows:
            row |= {name: row[name] * RATE * step for name in row if name.endswith("_timestamp")}

    def clocked(number, columns):
        columns["timestamp"] = (np.asarray(columns["frame_index"]) * step).astype(np.float32)

    times = {"times": lambda frames: np.arange(frames) * step}
    root = write_told_video(tmp_path / "set", info=rated, listed=places, columns=clocked, **times)
    assert own_contract(root).rate_hz == 29.97 and len(read(root)) == 3


@pytest.mark.parametrize("name", ["chunk_index", "from_timestamp"])
def test_an_episode_whose_video_nobody_names_is_refused(tmp_path, name):
    def emptied(rows):
        rows[1][f"videos/{FRONT}/{name}"] = None

    root = write_told_video(tmp_path / "set", listed=emptied)
    refused(root, rf"meta/episodes: episode 1 has no videos/{FRONT}/{name}; copy the data set again")


# ---- images and numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_images_that_are_grey_or_transparent_are_read(tmp_path, mode):
    def converted(number, columns):
        images = [Image.fromarray(picture(number, row)).convert(mode) for row in range(len(columns["index"]))]
        columns[FRONT] = [encoded(image) for image in images]

    assert len(read(write_told(tmp_path / "set", columns=converted))) == 3


@pytest.mark.parametrize("names", [None, ["channels", "height", "width"]], ids=str)
@pytest.mark.parametrize("shape", [(SIZE, SIZE, 3), (3, SIZE, SIZE)], ids=str)
def test_the_size_of_images_is_read_however_it_is_written(tmp_path, shape, names):
    if names and shape[0] != 3:
        names = ["height", "width", "channels"]
    written = feature("image", shape, names)
    root = write_told(tmp_path / "set", info=lambda info: info["features"].update({FRONT: written}))
    assert read(root)[0].images["front"].shape[1:] == (SIZE, SIZE, 3)


@pytest.mark.parametrize("name", ["observation.state", "action", "next.reward"])
@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "infinite")])
def test_numbers_that_are_none_are_refused(tmp_path, name, value, word):
    def spoiled(number, columns):
        columns[name].reshape(len(columns[name]), -1)[2, -1] = value

    root = write_told(tmp_path / "set", lengths=(20,) * 4, columns=spoiled)  # as long as the audit compares films of
    refused(root, rf"episode 0: {name}.* is {word} at row 2")


# ---- folders and files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_told, write_told_video])
def test_a_folder_may_have_any_name(tmp_path, write):
    assert len(read(write(tmp_path / "a [b] *? {c} %s" / "set"))) == 3


def test_a_camera_may_have_any_name(tmp_path):
    other = "observation.images.cam high.left"

    def renamed(number, columns):
        columns[other] = columns.pop(FRONT)

    def described(info):
        info["features"][other] = info["features"].pop(FRONT)

    root = write_told(tmp_path / "set", columns=renamed, info=described)
    episodes, contract, _ = read_dataset(root, own_contract(root))
    assert [camera.name for camera in contract.cameras] == ["cam high.left"] == list(episodes[0].images)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
FILES = {
    "rows": "data/chunk-000/file-000.parquet",
    "video": f"videos/{FRONT}/chunk-000/file-000.mp4",
    "list of episodes": "meta/episodes/chunk-000/file-000.parquet",
    "instructions": "meta/tasks.parquet",
    "description": "meta/info.json",
}


@pytest.mark.parametrize("content", [b"", POINTER], ids=["empty", "a pointer of git-lfs"])
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_a_file_that_was_not_downloaded_is_named(tmp_path, file, content):
    root = write_told_video(tmp_path / "set")
    (root / file).write_bytes(content)
    refused(root, file)


def test_what_a_mac_leaves_beside_a_file_is_named(tmp_path):
    root = write_told(tmp_path / "set")
    (root / "data/chunk-000/._file-000.parquet").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    refused(root, r"\._file-000\.parquet cannot be read")


def test_a_file_that_is_there_twice_is_named(tmp_path):
    root = write_told(tmp_path / "set")
    file = root / FILES["rows"]
    file.with_name("file-000 (copy).parquet").write_bytes(file.read_bytes())
    refused(root, r"episode 0: it begins again in file-000( \(copy\))?\.parquet|total_frames")


def test_a_list_of_episodes_of_no_video_at_all_is_named(tmp_path):
    root = write_told_video(tmp_path / "set")
    file = root / FILES["list of episodes"]
    table = pq.read_table(file, partitioning=None)
    kept = [name for name in table.column_names if not name.startswith("videos/")]
    pq.write_table(pa.table(table.select(kept)), file)
    refused(root, rf"meta/episodes: episode 0 has no videos/{FRONT}/chunk_index; copy the data set again")


def test_a_list_of_episodes_that_points_behind_a_video_is_refused(tmp_path):
    refused(write_told_video(tmp_path / "set", listed=moved(2, 1.0)), r"file-000\.mp4")
