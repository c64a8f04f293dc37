"""Meta-World's scripted experts, made noisy on purpose.

They are functions of what they see: where the hand, the object and the goal are. Commands are noisy (`expert_noise`),
and the object is believed to be a little beside where it is (`expert_grasp_bias`), in another place after each half
second: an expert that missed sees so and tries again.
"""

import warnings

import numpy as np

from deas_vla.envs.mujoco_env import ExpertMemory

ATTEMPT_STEPS = 40
OBJECT_XY = slice(4, 6)  # of Meta-World's observation


class NoisyExpert:
    """One of Meta-World's scripted policies with noise on its commands and on the position that it sees.

    `noise` and `bias` are standard deviations: in units of a full command, and in metres per axis.
    """

    def __init__(self, policy, noise: float, bias: float):
        self.policy, self.noise, self.bias = policy, noise, bias
        self.memory = ExpertMemory()

    def command(self, observation: np.ndarray, noise: np.random.Generator) -> np.ndarray:
        """(4,) float32 the next command within the limits, from Meta-World's (39,) observation."""
        if self.memory.steps % ATTEMPT_STEPS == 0:
            self.memory.bias = self.bias * noise.standard_normal(2)
        self.memory.steps += 1
        seen = observation.copy()  # some of the experts write into it
        seen[OBJECT_XY] += self.memory.bias
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that commands will be clipped: they are
            command = np.clip(self.policy.get_action(seen), -1, 1)
        command[:3] += self.noise * noise.standard_normal(3)
        return np.clip(command, -1, 1).astype(np.float32)
