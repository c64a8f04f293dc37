"""Monte-Carlo returns of candidates: at decisions of a policy's episodes, each candidate is played out several times.

It is collected once for a policy and judges any critic of its chunks in a second, without playing an episode. One
continuation of a chunk is a coin toss; several tell how good it was.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

from deas_vla.critic.critic import CriticConfig
from deas_vla.data.observation import Observation
from deas_vla.envs.vector import EnvWorkers
from deas_vla.errors import UserError
from deas_vla.files import atomic_path
from deas_vla.improvement.best_of_n import BestOfN, Choice, NoiseKey
from deas_vla.rollouts.oracle import CONTINUATION_SAMPLE, play_branches, returns_of
from deas_vla.rollouts.play import Job, play_episodes

PROBE_STREAM = 3  # of the random numbers that choose which decisions are probed


@dataclass
class MonteCarloReturns:
    """D probed decisions with N candidates, each played out K times.

    Attributes:
        images: camera name to (D, height, width, 3) uint8: what the policy saw.
        state: (D, S) float32, raw units.
        instruction: D sentences.
        candidates: (D, N, H, A) float32 commands.
        steps: (D, N, K) int32, steps from the decision to the end of the branch.
        success: (D, N, K) bool.
        scene: (D,) int64.
        step: (D,) int64, steps played before the decision.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    instruction: list[str]
    candidates: np.ndarray
    steps: np.ndarray
    success: np.ndarray
    scene: np.ndarray
    step: np.ndarray

    def __len__(self) -> int:
        return len(self.state)

    def observation(self, rows: slice) -> Observation:
        """What the policy saw at these decisions."""
        return Observation(
            images={name: torch.from_numpy(image[rows]) for name, image in self.images.items()},
            state=torch.from_numpy(self.state[rows]),
            instruction=self.instruction[rows],
        )

    def returns(self, config: CriticConfig) -> np.ndarray:
        """(D, N, K) a critic's return of each branch: -1 a step, and failing goes on for ever."""
        lengths = range(1, int(self.steps.max()) + 1)
        won = np.array([0.0] + [returns_of(np.arange(n) == n - 1, config)[0] for n in lengths])
        lost = np.array([0.0] + [returns_of(np.zeros(n, bool), config)[0] for n in lengths])
        return np.where(self.success, won[self.steps], lost[self.steps])

    def save(self, path: Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        arrays |= {f"images.{name}": image for name, image in self.images.items()}
        facts = {"instruction": self.instruction, "cameras": list(self.images)}
        with atomic_path(path) as temporary:
            arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            save_file(arrays, temporary, metadata={"monte_carlo": json.dumps(facts)})

    @classmethod
    def load(cls, path: Path) -> "MonteCarloReturns":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, cut off or something else.
        """
        try:
            with safe_open(path, "numpy") as file:
                facts = json.loads(file.metadata()["monte_carlo"])
                return cls(
                    images={name: file.get_tensor(f"images.{name}") for name in facts["cameras"]},
                    instruction=facts["instruction"],
                    **{name: file.get_tensor(name) for name in _ARRAYS},
                )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: not the Monte-Carlo returns of candidates ({error}); collect it again") from error

    @classmethod
    def concatenate(cls, parts: list["MonteCarloReturns"]) -> "MonteCarloReturns":
        """Several as one; at least one."""
        return cls(
            images={name: np.concatenate([part.images[name] for part in parts]) for name in parts[0].images},
            instruction=[sentence for part in parts for sentence in part.instruction],
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS},
        )


_ARRAYS = ("state", "candidates", "steps", "success", "scene", "step")


def collect_monte_carlo(
    workers: EnvWorkers,
    proposer: BestOfN,
    scenes: list[int],
    folder: Path,
    *,
    seed: int,
    continuations: int,
    share: float,
    execute_steps: int,
    block: int = 10,
) -> MonteCarloReturns:
    """Plays the policy in each scene and probes some of its decisions; kept in blocks of scenes.

    Args:
        workers: simulators that can be branched.
        proposer: the policy with its number of candidates; the first candidate is played.
        scenes: one episode in each.
        folder: of the blocks.
        seed: of the policy's noise.
        continuations: K.
        share: chance of a decision to be probed; a scene without any gives nothing.
        execute_steps: actions played of each chunk.
        block: scenes between two saves.

    Raises:
        UserError: if no decision was probed.
    """
    files = []
    with tqdm(total=len(scenes), desc="monte_carlo", unit="scene", dynamic_ncols=True) as bar:
        for start in range(0, len(scenes), block):
            part = scenes[start : start + block]
            path = Path(folder) / f"monte_carlo-{start:05d}.safetensors"
            if path.is_file():
                bar.update(len(part))
            else:
                probes = []
                for scene in part:
                    prober = _Prober(workers, proposer, continuations, share, execute_steps)
                    play_episodes(workers, prober, [Job(scene)], seed=seed, parallel=1, execute_steps=execute_steps)
                    probes += [replace(probe, scene=np.array([scene])) for probe in prober.probes]
                    bar.update()
                if not probes:
                    continue
                MonteCarloReturns.concatenate(probes).save(path)
            files.append(path)
    if not files:
        raise UserError(f"no decision of {len(scenes)} scenes was probed; raise --monte_carlo.share")
    return MonteCarloReturns.concatenate([MonteCarloReturns.load(path) for path in files])


class _Prober:
    """A `Decider`: the policy's first candidate is played; at some decisions all of them are played out before.

    Args: as of `collect_monte_carlo`.
    """

    def __init__(self, workers: EnvWorkers, proposer: BestOfN, continuations: int, share: float, execute_steps: int):
        self.workers, self.proposer, self.policy = workers, proposer, BestOfN(proposer.policy)
        self.continuations, self.share, self.execute_steps = continuations, share, execute_steps
        self.probes: list[MonteCarloReturns] = []

    def choose(self, observation: Observation, keys: list[NoiseKey]) -> Choice:
        choice, (key,) = self.proposer.choose(observation, keys, whole=True), keys
        if key.generator(PROBE_STREAM).random() < self.share:
            state = self.workers.save([0])[0]
            self.probes.append(self._probe(state, observation, choice, key))
            self.workers.restore([0], [state])
        return replace(choice, index=torch.zeros_like(choice.index))

    def _probe(self, state: object, observation: Observation, choice: Choice, key: NoiseKey) -> MonteCarloReturns:
        frame, candidates = observation.frame(0), choice.candidates[0].cpu().numpy()
        played = candidates[:, : self.execute_steps]
        branches = play_branches(
            self.workers,
            self.policy,
            state,
            frame,
            played.repeat(self.continuations, 0),
            [CONTINUATION_SAMPLE - k for k in range(self.continuations)] * len(candidates),
            seed=key.seed,
            episode_id=key.scene,
            execute_steps=self.execute_steps,
        )
        shape = (1, len(candidates), self.continuations)
        return MonteCarloReturns(
            images={name: image[None] for name, image in frame["images"].items()},
            state=frame["state"][None].astype(np.float32),
            instruction=[frame["instruction"]],
            candidates=candidates[None],
            steps=np.array([len(branch) for branch in branches], np.int32).reshape(shape),
            success=np.array([branch[-1] for branch in branches]).reshape(shape),
            scene=np.array([0]),
            step=np.array([key.decision * played.shape[1]]),
        )
