"""Images that stay on disk: the same frames, features and weights as from memory, decoded when they are asked for."""

import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from data_example import example_contract, example_episode
from torch import nn
from v2_example import v2_contract, write_v2

from deas_vla.data.ahead import ahead
from deas_vla.data.contract import Camera
from deas_vla.data.frames import FrameTable
from deas_vla.data.images import StoredImages
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.errors import UserError
from deas_vla.features.cache import FrameCache, SmallImageCache
from deas_vla.features.image_encoder import SIDE, ImageEncoder
from deas_vla.training.loop import TrainingConfig, train

WIDE = example_contract(cameras=(Camera("left", 64, 80), Camera("wrist", 64, 80)))


def write_wide(root, storage):
    rng = np.random.default_rng(0)
    episodes = [example_episode(rng, 6 + i, i % 2 == 0, every=2) for i in range(3)]
    for episode in episodes:
        for camera in episode.images:
            colours = rng.integers(0, 255, (len(episode.frame_steps), 1, 1, 3))
            episode.images[camera] = np.broadcast_to(colours, (len(colours), 64, 80, 3)).astype(np.uint8)
    write_dataset(root, episodes, WIDE, "local/toy", storage=storage)
    return root


@pytest.fixture(scope="module", params=["v3 image", "v3 video", "v2 video"])
def folder(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("stored") / "dataset"
    return write_v2(root) if request.param == "v2 video" else write_wide(root, request.param.split()[1])


def read(folder, **options):
    expected = v2_contract() if (folder / "meta" / "modality.json").is_file() else None
    return read_dataset(folder, expected, **options)[0]


@pytest.fixture
def tables(folder):
    return FrameTable.of(read(folder)), FrameTable.of(read(folder, in_memory=0))


def test_any_rows_are_those_of_the_decoded_data_set(tables):
    decoded, stored = tables
    assert stored.on_disk and not decoded.on_disk and len(stored) == len(decoded)
    rng = np.random.default_rng(0)
    rows = torch.from_numpy(rng.integers(0, len(stored), 25))
    for camera, images in stored.images.items():
        assert images.shape == decoded.images[camera].shape
        assert torch.equal(images[rows], decoded.images[camera][rows])
        assert torch.equal(images[2:7], decoded.images[camera][2:7])
        assert torch.equal(images.subset(rows)[torch.tensor([3, 0, 3])], decoded.images[camera][rows[[3, 0, 3]]])
        assert images[:0].shape == (0, *images.shape[1:])
    seen, same = stored.observation(rows), decoded.observation(rows)
    assert torch.equal(seen.state, same.state) and seen.instruction == same.instruction


def test_nothing_is_decoded_before_it_is_asked_for(folder, monkeypatch):
    asked = []
    original = StoredImages.__getitem__
    monkeypatch.setattr(StoredImages, "__getitem__", lambda self, index: asked.append(index) or original(self, index))
    frames = FrameTable.of(read(folder, in_memory=0))
    some = frames.subset(torch.tensor([1, 4]))
    assert len(some.fingerprint) == 64 and not asked
    some.observation(torch.tensor([1]))
    assert len(asked) == len(frames.images)


def test_the_fingerprint_follows_the_content_not_the_place(folder, tmp_path):
    there = FrameTable.of(read(folder, in_memory=0)).fingerprint
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert FrameTable.of(read(moved, in_memory=0)).fingerprint == there
    # One image fewer, and one byte of a file.
    frames = FrameTable.of(read(moved, in_memory=0))
    assert frames.subset(slice(1, None)).fingerprint != there
    stored = next(iter(frames.images.values()))._parts[0]
    content = bytearray(stored._file.read_bytes())
    content[len(content) // 2] ^= 1
    stored._file.write_bytes(content)
    assert FrameTable.of(frames_of_same_rows(frames)).fingerprint != there


def frames_of_same_rows(frames):
    """Episodes that share what `frames` shows, for files whose bytes no reader would take any more."""

    class Shown:
        pass

    episodes = []
    for number in range(int(frames.episode.max()) + 1):
        rows = torch.where(frames.episode == number)[0]
        episode = Shown()
        episode.instruction = frames.instructions[int(frames.instruction[rows[0]])]
        episode.frame_steps = np.arange(len(rows))
        episode.states = frames.state[rows].numpy()
        episode.images = {name: images._parts[number] for name, images in frames.images.items()}
        episodes.append(episode)
    return episodes


def test_a_missing_video_is_named_at_once(tmp_path):
    root = write_wide(tmp_path / "dataset", "video")
    video = next(root.rglob("*.mp4"))
    video.unlink()
    with pytest.raises(UserError, match=f"{video.name} is missing"):
        read(root, in_memory=0)


class Brightness(FrameCache):
    block = 4

    def compute(self, rows, loaded):
        return torch.stack([image.float().mean((1, 2, 3)) for image in loaded.images.values()], 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_cache_is_the_same_from_disk_and_with_processes_that_decode_ahead(tables, tmp_path, workers):
    decoded, stored = tables
    caches = [Brightness(tmp_path, frames, "brightness") for frames in (decoded, stored)]
    state = torch.random.get_rng_state()
    caches[0].fill()
    caches[1].fill(workers=workers)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(caches[0].read(), caches[1].read())
    rows = torch.tensor([5, 1, 5, 9, 0])
    assert torch.equal(caches[1][rows], caches[0].read()[rows]) and caches[1].shape == caches[0].read().shape


def test_a_cache_that_is_large_is_mapped_from_a_file(tables, tmp_path, monkeypatch):
    cache = Brightness(tmp_path, tables[0], "brightness")
    cache.fill()
    whole = cache.read()
    monkeypatch.setattr("deas_vla.features.cache.IN_MEMORY", 8)
    assert torch.equal(cache.read(), whole)
    (file,) = cache.folder.glob("all-*.bin")
    assert file.stat().st_size == whole.nbytes and torch.equal(cache.read(), whole)


def test_the_image_encoder_sees_small_images_as_it_sees_large_ones(tables, tmp_path):
    decoded, stored = tables
    contract = WIDE if "wrist" in stored.images else v2_contract()
    small = SmallImageCache(tmp_path, contract, stored)
    assert small.needed
    small.fill()
    torch.manual_seed(0)
    encoder = ImageEncoder(len(contract.cameras), 4).eval()
    images = small.read()
    assert images.shape == (len(stored), len(contract.cameras), SIDE, SIDE, 3) and images.dtype == torch.uint8
    with torch.no_grad():
        large = encoder([decoded.images[camera.name][:] for camera in contract.cameras])
        assert torch.equal(encoder(list(images.unbind(1))), large)


def test_processes_that_decode_ahead_share_no_open_video(tmp_path):
    """A video that was open before is opened anew in each: an open file has one position for all (defect)."""
    from lerobot.datasets.video_utils import _default_decoder_cache as opened

    frames = FrameTable.of(read(write_wide(tmp_path / "dataset", "video"), in_memory=0))
    first = frames.observation(torch.tensor([0, 3]))
    assert len(opened._cache) > 0
    assert set(ahead(lambda _: len(opened._cache), range(4), 2)) == {0}
    for seen in ahead(frames.observation, [torch.tensor([0, 3])] * 4, 2):
        assert all(torch.equal(image, first.images[name]) for name, image in seen.images.items())


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_is_loaded_ahead_comes_in_order(workers):
    assert list(ahead(lambda item: item * item, range(11), workers)) == [item * item for item in range(11)]
    assert list(ahead(len, [], workers)) == []


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)

    def forward(self, observation, target):
        mean = observation.images["left" if "left" in observation.images else "front"].float().mean((1, 2)) / 255
        return (self.layer(mean) - target).square().mean(), {}


def test_training_from_disk_gives_the_same_weights(tables, tmp_path):
    def weights(frames, workers):
        def batch_at(step):
            rows = torch.randint(len(frames), (4,), generator=torch.Generator().manual_seed(step))
            return frames.observation(rows), rows[:, None].float()

        module, config = Probe(), TrainingConfig(steps=5, batch_size=4)
        folder = tmp_path / f"{frames.on_disk} {workers}"
        train(Accelerator(cpu=True), module, batch_at, config, folder, name="probe", seed=1, workers=workers)
        return torch.cat([parameter.flatten() for parameter in module.parameters()])

    decoded, stored = tables
    expected = weights(decoded, 0)
    assert torch.equal(weights(stored, 0), expected) and torch.equal(weights(stored, 2), expected)
