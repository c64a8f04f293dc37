"""A world of one line, a policy and a critic small enough to know what every rollout must be.

The hand starts at a scene's place and wins when it has moved past 1. The policy proposes chunks around a drift, the
critic prefers chunks that move right.
"""

import numpy as np
from data_example import SIZE, ExampleEncoder, example_contract

from deas_vla.data.contract import Statistics
from deas_vla.data.observation import Context
from deas_vla.envs.protocol import ChunkResult
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.scorers.scorer import Scorer

HORIZON = 4
LIMIT = 14  # not a multiple of the horizon: the last chunk is cut
CONTRACT = example_contract(statistics=Statistics((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.0, 0.5), (0.1, 0.5)))


class LineWorkers:
    """Speaks the interface of EnvWorkers; counts what was played."""

    contract, horizon = CONTRACT, LIMIT

    def __init__(self):
        self.slots: dict[int, tuple[float, int]] = {}
        self.steps_played = 0

    def reset(self, slots, scenes):
        for slot, scene in zip(slots, scenes, strict=True):
            self.slots[slot] = (-0.2 + 0.05 * (scene % 7), 0)
        return [self._frame(slot) | {"instruction": "go right"} for slot in slots]

    def play(self, slots, chunks, frame_every=0):
        return [self._play(slot, chunk, frame_every) for slot, chunk in zip(slots, chunks, strict=True)]

    def save(self, slots):
        return [self.slots[slot] for slot in slots]

    def restore(self, slots, states):
        self.slots |= dict(zip(slots, states, strict=True))

    def _play(self, slot, chunk, frame_every):
        states, actions, success, frames, images = [], [], [], [], []
        for number, command in enumerate(chunk, start=1):
            place, step = self.slots[slot]
            self.slots[slot] = (place + float(command[0]), step + 1)
            self.steps_played += 1
            states.append(self._state(slot))
            actions.append(command)
            success.append(self.slots[slot][0] > 1)
            over = success[-1] or step + 1 == LIMIT or number == len(chunk)
            if over or (frame_every and (step + 1) % frame_every == 0):
                frames.append(number)
                images.append(self._frame(slot)["images"])
            if over:
                break
        return ChunkResult(
            states=np.stack(states),
            actions=np.stack(actions),
            rewards=np.array(success, np.float32),
            success=np.array(success),
            truncated=self.slots[slot][1] == LIMIT and not success[-1],
            frames=np.array(frames),
            images={name: np.stack([image[name] for image in images]) for name in images[0]},
        )

    def _state(self, slot):
        return np.array([self.slots[slot][0], 0, 0], np.float32)

    def _frame(self, slot):
        level = np.uint8(np.clip(100 + 50 * self.slots[slot][0], 0, 255))
        image = np.full((SIZE, SIZE, 3), level)
        return {"images": {"left": image, "wrist": image}, "state": self._state(slot)}


class LinePolicy(ChunkPolicy):
    """Proposes its drift plus the noise, so that candidate k is known from noise k."""

    def __init__(self, drift: float = 0.0):
        super().__init__()
        self.contract, self.horizon, self.encoder = CONTRACT, HORIZON, ExampleEncoder(CONTRACT)
        self.drift, self.encoded = drift, 0

    def encode(self, observation) -> Context:
        self.encoded += len(observation)
        return self.encoder.encode(observation)

    def sample(self, context, noise):
        return noise + self.drift

    def loss(self, context, chunks, noise, time, valid=None):
        raise NotImplementedError

    @property
    def encoder_fingerprint(self):
        return self.encoder.encoder_fingerprint


class MovesRight(Scorer):
    """Scores a chunk by how far it moves: on the line, how good it is."""

    def __init__(self, policy: LinePolicy, horizon: int = HORIZON):
        super().__init__(CONTRACT, horizon, policy.encoder_fingerprint)

    def q_values(self, encoded, chunks):
        return chunks[..., 0].sum(-1).unsqueeze(0)

    def value(self, encoded):
        return encoded.state[:, 0]
