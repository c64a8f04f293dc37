"""Our Meta-World in LeRobot: found by its name, the same scenes, images and success as in our own evaluation."""

import numpy as np
import pytest

pytest.importorskip("lerobot_env_metaworld_small")

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import EnvConfig as LeRobotEnvConfig
from lerobot.envs.factory import make_env, make_env_pre_post_processors
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, env_to_policy_features, preprocess_observation
from lerobot.policies.factory import make_pre_post_processors
from lerobot.processor import PolicyProcessorPipeline
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot_env_metaworld_small import MetaworldSmallConfig
from policy_example import shake, small_config
from reranker_example import small_scorer

from deas_vla.data.contract import Statistics
from deas_vla.data.observation import Observation
from deas_vla.envs.metaworld.tasks import TASKS
from deas_vla.envs.registry import env_config
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError
from deas_vla.export.export import export_reranker
from deas_vla.export.lerobot_plugin.modeling_deas import DeasPolicy
from deas_vla.improvement.best_of_n import BestOfN
from deas_vla.improvement.selection import SelectionConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.rollouts.play import Job, play_episodes

pytestmark = pytest.mark.sim
TASK, SEEDS = "drawer-close-v3", [2_010_000, 2_010_001, 2_010_002]
START = {"options": {NEW_ROLLOUT_OPTION: True}}


@pytest.fixture(scope="module")
def vector():
    register_third_party_plugins()
    config = LeRobotEnvConfig.get_choice_class("metaworld_small")(task=TASK)
    env = make_env(config, n_envs=3)[TASK][0]
    yield env
    env.close()


@pytest.fixture(scope="module")
def ours():
    config = env_config("metaworld", TASK)
    with EnvWorkers(config, 0) as workers:
        yield workers


def test_a_batch_of_episodes_goes_as_ours_do_bit_for_bit(vector, ours):
    first = ours.reset(range(3), SEEDS)
    seen, _ = vector.reset(seed=SEEDS, **START)
    for row, frame in enumerate(first):
        assert np.array_equal(seen["agent_pos"][row], frame["state"])
        for name, image in frame["images"].items():
            assert np.array_equal(seen["pixels"][name][row], image)
    # The first episode is won by the expert's commands, the others do as they please.
    won = next(ours.expert_episodes(SEEDS[:1], [0]))[1]
    rng = np.random.default_rng(0)
    commands = rng.uniform(-1, 1, (3, TASKS[TASK].horizon, 4)).astype(np.float32)
    commands[0, : len(won.actions)] = won.actions
    played = ours.play(range(3), commands)
    ended, success = [None] * 3, [False] * 3
    for step in range(commands.shape[1]):
        seen, reward, terminated, truncated, info = vector.step(commands[:, step])
        for row in np.flatnonzero(terminated | truncated):
            if ended[row] is None:
                ended[row], success[row] = step + 1, bool(info["final_info"]["is_success"][row])
                assert reward[row] == success[row] == terminated[row] != truncated[row]
    assert ended == [len(part.actions) for part in played]
    assert success == [bool(part.success[-1]) for part in played] and success[0]
    for row, part in enumerate(played):
        assert np.array_equal(seen["agent_pos"][row], part.states[-1])
    assert vector.call("_max_episode_steps") == (TASKS[TASK].horizon,) * 3
    assert vector.call("task_description") == (TASKS[TASK].instruction,) * 3
    assert vector.envs[0].render().shape == (64, 128, 3)


def test_what_it_declares_is_what_a_policy_is_given(vector):
    seen, _ = vector.reset(seed=SEEDS, **START)
    batch = preprocess_observation(seen)
    declared = env_to_policy_features(MetaworldSmallConfig(task=TASK))
    assert declared.pop("action").shape == (4,)
    assert {name: tuple(value.shape[1:]) for name, value in batch.items()} == {
        name: feature.shape for name, feature in declared.items()
    }


def test_several_tasks_are_several_groups_and_nothing_is_built_before_it_is_played():
    envs = MetaworldSmallConfig(task="reach-v3, push-v3", camera_size=32, episode_length=48).create_envs(2)
    assert list(envs) == ["reach-v3", "push-v3"]
    env = envs["push-v3"][0]
    assert env.call("_max_episode_steps") == (48, 48)
    assert env.single_observation_space["pixels"]["gripper"].shape == (32, 32, 3)


def test_an_unknown_task_is_told_the_nearest():
    with pytest.raises(UserError, match="did you mean 'push-v3'"):
        MetaworldSmallConfig(task="reach-v3,psh-v3").create_envs(1)


def test_an_export_plays_in_lerobot_what_our_evaluation_plays(tmp_path, vector, ours):
    """The same scenes, seed and candidates: the same commands, so the same success."""
    frames = Observation.stack(ours.reset(range(6), range(6)))
    contract = ours.contract.with_statistics(Statistics.of(frames.state, torch.randn(20, 4)))
    torch.manual_seed(0)
    policy = shake(SmallVLAPolicy(small_config(), contract, frames.instruction[:1])).eval()
    scorer = small_scorer(policy, frames=frames)
    best = BestOfN(policy, 4, "best", scorer)
    jobs = [Job(scene) for scene in SEEDS]
    played = play_episodes(ours, best, jobs, seed=3, parallel=3, execute_steps=2)

    export_reranker(
        tmp_path / "reranker",
        policy=policy,
        scorer=scorer,
        observation=frames,
        num_candidates=4,
        selection=SelectionConfig(rule="best"),
        execute_steps=2,
    )
    config = PreTrainedConfig.from_pretrained(tmp_path / "reranker")
    config.seed = 3
    theirs = DeasPolicy.from_pretrained(tmp_path / "reranker", config=config)
    before, after = make_pre_post_processors(config, str(tmp_path / "reranker"))
    around = make_env_pre_post_processors(MetaworldSmallConfig(task=TASK), config)
    found = rollout(vector, theirs, *around, before, after, seeds=SEEDS)
    for row, one in enumerate(played):
        length = one.episode.length
        assert np.allclose(found["action"][row, :length], one.episode.actions, atol=1e-5)
        assert bool(found["success"][row].any()) == bool(one.episode.success[-1])


class StandsStill(torch.nn.Module):
    """A policy of LeRobot's shape."""

    def reset(self):
        pass

    def select_action(self, batch):
        return torch.zeros(len(batch["task"]), 4)


def test_stock_rollouts_are_recorded(tmp_path):
    """LeRobot's own environment declares names with a slash, which its recorder refuses."""
    config = MetaworldSmallConfig(task=TASK, episode_length=12)
    (env,) = config.create_envs(2)[TASK].values()
    nothing = PolicyProcessorPipeline(steps=[])
    played = rollout(
        env,
        StandsStill(),
        *[nothing] * 2,
        *[lambda value: value] * 2,
        seeds=SEEDS[:2],
        recording_dir=tmp_path / "recorded",
        env_features=config.features,
    )
    env.close()
    assert played["done"].shape == (2, 12) and not played["success"].any()
    recorded = LeRobotDataset("eval_recording_env_1", root=tmp_path / "recorded" / "env_1")
    assert recorded.num_frames == 12 and recorded.fps == 80
    assert recorded[0]["task"] == TASKS[TASK].instruction
    assert recorded[0]["observation.images.gripper"].shape == (3, 64, 64)
