"""An SO-101 on the emulated bus: its calibration, a camera, and a small reranker that was exported for it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lerobot.cameras import Camera as LerobotCamera
from lerobot.cameras import CameraConfig
from policy_example import SENTENCES, shake, small_config
from reranker_example import FEATURES

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.contract import Camera, Column, Contract, Statistics
from deas_vla.data.observation import Observation
from deas_vla.export.export import export_reranker
from deas_vla.features.features import Features, fit_projection, pool_tokens
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from deas_vla.scorers.deas import DeasScorer

SIZE = 16
JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
RATE_HZ = 25.0
# Homing offset and range of every servo.
CALIBRATION = {
    "shoulder_pan": (-100, 1000, 3000),
    "shoulder_lift": (50, 900, 3200),
    "elbow_flex": (0, 800, 3100),
    "wrist_flex": (10, 850, 3250),
    "wrist_roll": (0, 0, 4095),
    "gripper": (-20, 1500, 2900),
}


@CameraConfig.register_subclass("pattern")
@dataclass(kw_only=True)
class PatternCameraConfig(CameraConfig):
    """A camera without a lens, for a robot without a world."""


class PatternCamera(LerobotCamera):
    """Counts its pictures by their brightness."""

    def __init__(self, config: PatternCameraConfig):
        super().__init__(config)
        self.open, self.count = False, 0

    @property
    def is_connected(self) -> bool:
        return self.open

    @staticmethod
    def find_cameras() -> list:
        return []

    def connect(self, warmup: bool = True) -> None:
        self.open = True

    def read(self) -> np.ndarray:
        self.count += 1
        return np.full((self.height, self.width, 3), self.count % 256, np.uint8)

    def async_read(self, timeout_ms: float = 0) -> np.ndarray:
        return self.read()

    def read_latest(self, max_age_ms: int = 0) -> np.ndarray:
        return self.read()

    def disconnect(self) -> None:
        self.open = False


def calibration_file(folder: Path) -> Path:
    path = folder / "arm.json"
    values = {
        name: {"id": number, "drive_mode": 0, "homing_offset": offset, "range_min": low, "range_max": high}
        for number, (name, (offset, low, high)) in enumerate(CALIBRATION.items(), start=1)
    }
    path.write_text(json.dumps(values))
    return path


def so101_contract(**changes) -> Contract:
    """What a policy for this arm was trained under: the gripper never more than 80 % open.

    The policy wants the shoulder lifted by 150 degrees, which the arm cannot, and the gripper open.
    """
    units = dict.fromkeys(JOINTS, "deg") | {"gripper": "range_0_100"}
    joints = [Column(f"{name}.pos", unit) for name, unit in units.items()]
    action = (*joints[:-1], Column("gripper.pos", "range_0_100", "continuous", 0.0, 80.0))
    centre, spread = (0.0, 150.0, 0.0, 0.0, 0.0, 150.0), (40.0,) * 6
    values = {
        "embodiment": "so101_follower",
        "rate_hz": RATE_HZ,
        "state": tuple(joints),
        "action": action,
        "cameras": (Camera("front", SIZE, SIZE),),
        "statistics": Statistics((0.0,) * 6, spread, centre, spread),
    }
    return Contract(**(values | changes))


def random_reranker(folder: Path, contract: Contract) -> Path:
    """A reranker of random weights, whose chunks go all over the place."""
    torch.manual_seed(0)
    policy = shake(SmallVLAPolicy(small_config(), contract, SENTENCES)).eval()
    observation = random_observations(contract, 12)
    with torch.no_grad():
        pooled = pool_tokens(policy.encode(observation), FEATURES, len(contract.cameras))
    projection = fit_projection(pooled, FEATURES.dim)
    features = Features(contract, FEATURES, projection)
    config = CriticConfig(horizon=policy.horizon, hidden_dim=16, num_layers=2)
    scorer = DeasScorer.untrained(features, config, policy.encoder_fingerprint).eval()
    export_reranker(
        folder, policy=policy, scorer=scorer, observation=observation[:2], num_candidates=3, execute_steps=3
    )
    return folder


def flags(folder: Path, port: str, changes: dict | None = None) -> list[str]:
    """A command line that plays this arm; a change to None leaves a flag out."""
    values = {
        "robot.type": "so101_follower",
        "robot.port": port,
        "robot.id": "arm",
        "robot.calibration_dir": folder,
        "robot.cameras": f"{{front: {{type: pattern, width: {SIZE}, height: {SIZE}, fps: 30}}}}",
        "policy.path": folder / "reranker",
        "task": SENTENCES[0],
        "rate_hz": RATE_HZ,
        "outcome": "failure",
        "episodes": 2,
        "seconds": 0.6,
        "safety.hold_s": 0.1,
        "output": folder / "recorded",
    } | (changes or {})
    return [f"--{name}={value}" for name, value in values.items() if value is not None]


def random_observations(contract: Contract, count: int) -> Observation:
    generator = torch.Generator().manual_seed(1)
    shape = (count, SIZE, SIZE, 3)
    return Observation(
        images={
            camera.name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            for camera in contract.cameras
        },
        state=torch.randn(count, contract.state_dim, generator=generator),
        instruction=[SENTENCES[0]] * count,
    )
