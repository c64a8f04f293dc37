"""A small robot, random episodes and a policy's encoder, for tests of the data floor."""

import hashlib

import numpy as np
import torch
from torch import Tensor

from deas_vla.data.contract import Camera, Column, Contract, Statistics
from deas_vla.data.episodes import Episode
from deas_vla.data.observation import Context, Observation

SIZE = 16


def example_contract(**changes) -> Contract:
    """Three state columns, two action columns of which the last is binary, two cameras."""
    values = {
        "embodiment": "toy",
        "rate_hz": 20.0,
        "state": tuple(Column(f"position.{axis}", "m") for axis in "xyz"),
        "action": (
            Column("move.x", "command", "continuous", -1.0, 1.0),
            Column("gripper_close", "flag", "binary", 0.0, 1.0),
        ),
        "cameras": (Camera("left", SIZE, SIZE), Camera("wrist", SIZE, SIZE)),
        "statistics": Statistics((0.5, 0.0, -0.5), (2.0, 1.0, 0.5), (0.1, 0.5), (0.4, 0.5)),
    }
    return Contract(**(values | changes))


def example_episode(
    rng: np.random.Generator,
    steps: int,
    success: bool,
    *,
    every: int = 4,
    frames: list[int] | None = None,
    source: str = "rollout",
    instruction: str = "lift the cube",
    scene: int = 0,
) -> Episode:
    """Random numbers in the shape of an episode; rendered every few steps and after the last, or at `frames`."""
    if frames is None:
        frames = sorted({*range(0, steps + 1, every), steps})
    done = np.zeros(steps, bool)
    done[-1] = success
    actions = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    actions[:, 1] = actions[:, 1] > 0
    shape = (len(frames), SIZE, SIZE, 3)
    return Episode(
        instruction=instruction,
        source=source,
        scene=scene,
        states=rng.normal(size=(steps + 1, 3)).astype(np.float32),
        actions=actions,
        rewards=done.astype(np.float32),
        success=done,
        truncated=not success,
        frame_steps=np.array(frames),
        images={name: rng.integers(0, 256, shape, dtype=np.uint8) for name in ("left", "wrist")},
    )


def assert_same_episode(a: Episode, b: Episode, images: bool = True) -> None:
    """Bit for bit, types included."""
    for name in ("instruction", "source", "scene", "truncated"):
        assert getattr(a, name) == getattr(b, name), name
    arrays = {name: (getattr(a, name), getattr(b, name)) for name in ("states", "actions", "rewards", "success")}
    arrays["frame_steps"] = (a.frame_steps, b.frame_steps)
    assert a.images.keys() == b.images.keys()
    if images:
        arrays |= {name: (a.images[name], b.images[name]) for name in a.images}
    for name, (x, y) in arrays.items():
        assert x.dtype == y.dtype and np.array_equal(x, y), name


class ExampleEncoder(torch.nn.Module):
    """Encodes like a policy: a 4x4 grid of tokens for each camera, text between padding, all of width 6."""

    def __init__(self, contract: Contract, words: int = 5, seed: int = 0):
        super().__init__()
        self.contract, self.words, self.calls = contract, words, 0
        generator = torch.Generator().manual_seed(seed)
        self.patch = torch.nn.Parameter(torch.randn(SIZE * SIZE * 3 // 16, 6, generator=generator))

    @property
    def encoder_fingerprint(self) -> str:
        return hashlib.sha256(self.patch.detach().numpy().tobytes()).hexdigest()

    def encode(self, observation: Observation) -> Context:
        self.calls += len(observation)
        return Context(state=self.contract.normalize_state(observation.state), **self._tokens(observation))

    def _tokens(self, observation: Observation) -> dict[str, Tensor]:
        batch, side = len(observation), SIZE // 4
        tokens, camera = [], []
        for number, images in enumerate(observation.images.values()):
            patches = images.float().div(255).view(batch, 4, side, 4, side, 3).transpose(2, 3).flatten(3)
            tokens.append((patches.reshape(batch, 16, -1) @ self.patch).tanh())
            camera += [number] * 16
        text = torch.zeros(batch, self.words, 6)
        mask = torch.zeros(batch, self.words, dtype=torch.bool)
        for row, instruction in enumerate(observation.instruction):
            for place, word in enumerate(instruction.split()[: self.words]):
                text[row, place], mask[row, place] = len(word) / 10, True
        camera = torch.tensor([*camera, *[-1] * self.words]).expand(batch, -1)
        mask = torch.cat([torch.ones(batch, 32, dtype=torch.bool), mask], 1)
        return {"tokens": torch.cat([*tokens, text], 1), "mask": mask, "camera": camera}
