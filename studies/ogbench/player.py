"""How an agent plays: N candidates a decision, one chosen by a rule, the first actions of it executed."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.errors import UserError
from deas_vla.improvement.best_of_n import NoiseKey
from deas_vla.improvement.selection import RULES, SelectionConfig, select
from deas_vla.policies.chunk_policy import candidate_noise
from studies.ogbench.agents.agent import Agent
from studies.ogbench.evaluate import Decision


@dataclass(frozen=True)
class Method:
    """One way to play an agent, as a name: ``best-8`` or ``best-8-execute-1``.

    Attributes:
        rule: selection rule, see `deas_vla.improvement.selection`.
        num_candidates: N.
        execute: actions played of the chosen chunk; 0: all.
    """

    rule: str
    num_candidates: int
    execute: int = 0

    @classmethod
    def parse(cls, name: str) -> "Method":
        match = re.fullmatch(r"([a-z_]+)-(\d+)(?:-execute-(\d+))?", name)
        if not match or int(match[2]) < 1:
            raise UserError(f"method {name!r} is not RULE-N or RULE-N-execute-STEPS, for example best-8")
        return cls(match[1], int(match[2]), int(match[3] or 0))


class Player:
    """Decides for many running episodes at once.

    Args:
        agent: proposes and, where N > 1, scores chunks.
        method: rule, N and executed length.
        selection: numbers of the rules.
        mean: (S,) subtracted from observations, as in training.
        scale: (S,) observations are divided by it.
        action_dim: A.
    """

    def __init__(
        self, agent: Agent, method: Method, selection: SelectionConfig, mean: Tensor, scale: Tensor, action_dim: int
    ):
        if not 0 <= method.execute <= agent.horizon:
            raise UserError(f"execute {method.execute} is more than the agent's chunk of {agent.horizon} actions")
        self.agent, self.method, self.selection, self.mean, self.scale = agent, method, selection, mean, scale
        self.action_dim, self.execute = action_dim, method.execute or agent.horizon

    @property
    def description(self) -> dict:
        """The method as JSON values, with the numbers that its rule heeds."""
        heeded = ("noise_scale", *RULES[self.method.rule].hyper_parameters)
        numbers = {name: getattr(self.selection, name) for name in heeded}
        method = {"rule": self.method.rule, "num_candidates": self.method.num_candidates, "execute": self.execute}
        return method | numbers

    @torch.inference_mode()
    def __call__(self, observations: Tensor, keys: list[NoiseKey]) -> Decision:
        """(b, S) raw observations to (b, h, A) actions, with Q of what was chosen and V where there are any."""
        observations = (observations - self.mean) / self.scale
        shape = (self.method.num_candidates, self.agent.horizon, self.action_dim)
        noise = torch.stack([candidate_noise(k.seed, k.scene, k.sample, k.decision, *shape) for k in keys])
        chunks = self.agent.propose(observations, self.selection.noise_scale * noise)
        scored = chunks[:, :, : self.execute] if self.agent.scores_parts else chunks
        q_values = self.agent.q_values(observations, scored)
        played = chunks[:, :, : self.execute]
        index = select(self.selection, self.method.rule, q_values, scored, keys)
        rows = torch.arange(len(index))
        if q_values is None:
            return Decision(played[rows, index], None, None)
        return Decision(played[rows, index], q_values.amin(0)[rows, index], self.agent.value(observations))
