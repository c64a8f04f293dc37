"""Episodes: what is refused, and blocks on disk."""

import numpy as np
import pytest
from data_example import assert_same_episode, example_contract, example_episode

from deas_vla.data.episodes import load_block, save_block
from deas_vla.errors import UserError

pytestmark = pytest.mark.unit


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_good_episode_is_accepted(rng):
    for success in (True, False):
        episode = example_episode(rng, 9, success)
        episode.validate(example_contract(), "here")
        assert (episode.length, episode.terminated, episode.truncated) == (9, success, not success)


def test_groups(rng):
    assert example_episode(rng, 5, True).group == "success"
    assert example_episode(rng, 5, False).group == "failure"
    assert example_episode(rng, 5, False, source="demonstration").group == "demonstration"


def set_nan(episode):
    episode.states[3, 1] = np.nan


def set_infinite(episode):
    episode.actions[2, 1] = np.inf


def set_reward_nan(episode):
    episode.rewards[4] = np.nan


def early_success(episode):
    episode.success[2] = True


def both_ends(episode):
    episode.success[-1] = True


def neither_end(episode):
    episode.truncated = False


def other_columns(episode):
    episode.actions = episode.actions[:, :1]


def missing_observation(episode):
    episode.states = episode.states[:-1]


def missing_camera(episode):
    del episode.images["wrist"]


def other_size(episode):
    episode.images["left"] = episode.images["left"][:, :-1]


def frame_past_the_end(episode):
    episode.frame_steps[-1] += 1


def frames_out_of_order(episode):
    episode.frame_steps[1] = episode.frame_steps[0]


def no_instruction(episode):
    episode.instruction = ""


def wrong_source(episode):
    episode.source = "dream"


FAULTS = {
    set_nan: r"states \(position\.y\) is NaN or infinite at step 3",
    set_infinite: r"actions \(gripper_close\) is NaN or infinite at step 2",
    set_reward_nan: "rewards is NaN or infinite at step 4",
    early_success: "success at step 2, before its last step 8",
    both_ends: "both truncated and terminated",
    neither_end: "neither truncated nor terminated",
    other_columns: r"actions is float32 \(9, 1\), expected float32 \(9, 2\)",
    missing_observation: r"states is float32 \(9, 3\), expected float32 \(10, 3\)",
    missing_camera: "cameras are left, expected left, wrist",
    other_size: r"images of left are uint8 \(4, 15, 16, 3\), expected uint8 \(4, 16, 16, 3\)",
    frame_past_the_end: "frame_steps",
    frames_out_of_order: "frame_steps",
    no_instruction: "no instruction",
    wrong_source: "source is 'dream'",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_faults_are_named(rng, fault):
    episode = example_episode(rng, 9, False)
    fault(episode)
    with pytest.raises(UserError, match=FAULTS[fault]) as error:
        episode.validate(example_contract(), "demos, episode 7")
    assert str(error.value).startswith("demos, episode 7: ") and "\n" not in str(error.value)


def test_blocks_come_back_bit_for_bit(rng, tmp_path):
    episodes = [
        example_episode(rng, 9, True, scene=4),
        example_episode(rng, 1, False, source="demonstration", instruction="öffne die Tür"),
    ]
    save_block(tmp_path / "block.safetensors", episodes)
    for a, b in zip(episodes, load_block(tmp_path / "block.safetensors"), strict=True):
        assert_same_episode(a, b)


def test_rule_12_a_block_is_whole_or_absent(rng, tmp_path, monkeypatch):
    path = tmp_path / "block.safetensors"

    def full_disk(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deas_vla.data.episodes.save_file", full_disk)
    with pytest.raises(OSError):
        save_block(path, [example_episode(rng, 9, True)])
    assert list(tmp_path.iterdir()) == []


def test_a_cut_off_block_is_refused(rng, tmp_path):
    path = tmp_path / "block.safetensors"
    save_block(path, [example_episode(rng, 9, True)])
    content = path.read_bytes()
    for cut in (0, 5, 100, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"block\.safetensors: not a block of episodes"):
            load_block(path)
