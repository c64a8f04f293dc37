"""An episode as it is played: states at every tick, pictures where the policy decides and every few ticks besides."""

import numpy as np

from deas_vla.data.episodes import Episode


class Recording:
    """Collects one episode.

    Args:
        frame: the first one: ``images``, ``state``, ``instruction``.
        scene: number of the episode's initial state.
    """

    def __init__(self, frame: dict, scene: int):
        self.instruction, self.scene = frame["instruction"], scene
        self.states, self.actions = [frame["state"]], []
        self.frame_steps, self.frames = [0], [frame["images"]]

    @property
    def steps(self) -> int:
        return len(self.actions)

    def add(self, sent: np.ndarray, state: np.ndarray, images: dict[str, np.ndarray] | None) -> None:
        """One tick: (A,) what was sent, (S,) the state after it, and pictures if some were taken."""
        self.actions.append(sent)
        self.states.append(state)
        if images is not None:
            self.frame_steps.append(self.steps)
            self.frames.append(images)

    def episode(self, success: bool) -> Episode:
        """The finished episode; a success is credited to its last step, which earns the reward 1."""
        done = np.zeros(self.steps, bool)
        done[-1] = success
        return Episode(
            instruction=self.instruction,
            source="rollout",
            scene=self.scene,
            states=np.stack(self.states).astype(np.float32),
            actions=np.stack(self.actions).astype(np.float32),
            rewards=done.astype(np.float32),
            success=done,
            truncated=not success,
            frame_steps=np.array(self.frame_steps, np.int64),
            images={name: np.stack([frame[name] for frame in self.frames]) for name in self.frames[0]},
        )
