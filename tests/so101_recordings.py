"""What an SO-101's owner has on disk: recordings by LeRobot's own writer, and a base policy that is like SmolVLA's."""

from pathlib import Path

import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from so101_example import JOINTS

INSTRUCTION, RATE_HZ = "lift the red cube", 30
CAMERAS = ("top", "wrist")
# Of the driver, which LeRobot's recorder notes as the robot.
DRIVER = "so_follower"


def record(
    folder: Path, outcomes: list[bool], frames: int, size: tuple[int, int], outcome_columns: bool = True
) -> Path:
    """One episode for each outcome: the shoulder turns to the bright stripe, or away from it; images are `size`.

    Without `outcome_columns` as lerobot-record leaves demonstrations: nothing says reward and success.
    """
    vector = {"dtype": "float32", "shape": (len(JOINTS),), "names": [f"{joint}.pos" for joint in JOINTS]}
    image = {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": vector, "action": vector}
    features |= {f"observation.images.{camera}": image for camera in CAMERAS}
    if outcome_columns:
        features["next.success"] = {"dtype": "bool", "shape": (1,), "names": None}
    dataset = LeRobotDataset.create(
        f"local/{folder.name}", RATE_HZ, features, root=folder, robot_type=DRIVER,
        rgb_encoder=RGBEncoderConfig(vcodec="h264", preset="ultrafast"),
    )  # fmt: skip
    rng = np.random.default_rng(len(outcomes))
    for success in outcomes:
        goal, state = rng.uniform(-0.8, 0.8), rng.normal(0, 5, len(JOINTS)).astype(np.float32)
        for step in range(frames):
            action = state + rng.normal(0, 0.3, len(JOINTS)).astype(np.float32)
            action[0] = state[0] + np.clip((1 if success else -1) * 90 * goal - state[0], -3, 3)
            frame = {"observation.state": state, "action": action, "task": INSTRUCTION}
            if outcome_columns:
                frame["next.success"] = np.array([success and step == frames - 1])
            for number, camera in enumerate(CAMERAS, 1):
                shown = np.full((*size, 3), 40 * number, np.uint8)
                column = int((goal + 1) / 2 * size[1] * 0.9)
                shown[:, column : column + max(2, size[1] // 10)] = (255, step % 256, int(state[0]) % 256)
                frame[f"observation.images.{camera}"] = shown
            dataset.add_frame(frame)
            state = action
        dataset.save_episode()
    dataset.finalize()
    return folder
