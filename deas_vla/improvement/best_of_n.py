"""Best-of-N (DEAS, policy extraction): the policy proposes N chunks, the critic scores them, one is played."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deas_vla.data.contract import Column, Contract
from deas_vla.data.observation import Context, Observation
from deas_vla.errors import UserError
from deas_vla.improvement.selection import RULES, NoiseKey, RuleName, SelectionConfig, rule_named, select
from deas_vla.policies.chunk_policy import ChunkPolicy, candidate_noise, require_noise_scale
from deas_vla.scorers.scorer import Scorer


@dataclass(frozen=True)
class Prefix:
    """The rest of the last chunk, from the step at which the new one begins."""

    commands: Tensor  # (B, P, A) in the contract's units, as they are played
    committed: int  # how many of its steps are played before the new chunk is there


@dataclass
class Choice:
    """What was chosen for B observations among (B, N, H, A) candidates."""

    candidates: Tensor  # the chunks as they would be played (raw units, clipped, thresholded), or how they begin
    index: Tensor  # (B,) which candidate was chosen
    scores: Tensor | None  # (B, N) the critic's; None without a critic
    value: Tensor | None  # (B,) V; None without a critic
    returns: Tensor | None = None  # (B, N) Monte-Carlo returns of candidates that were played out (the oracle)
    whole: Tensor | None = None  # (B, H, A) the chosen chunks, where of the candidates only the beginning was sampled
    features: Tensor | None = None  # (B, F) what the critic saw of the observations; None without a critic

    @property
    def commands(self) -> Tensor:
        """(B, H, A) the chosen chunks."""
        if self.whole is not None:
            return self.whole
        return self.candidates[torch.arange(len(self.index), device=self.index.device), self.index]


class BestOfN:
    """A policy and a critic as one decision maker.

    Args:
        policy: proposes the candidates.
        num_candidates: N. Candidates are nested: the first n of N are those of a smaller n.
        rule: how one of the N is chosen (`deas_vla.improvement.selection`); ``first`` is the policy alone.
        scorer: on the policy's device; without it only ``first`` and ``random`` work, and no values are reported.
        selection: hyper-parameters of the rules, and how noisy candidates are; None: the defaults.

    Raises UserError if the rule needs a critic that is not there, the critic does not fit the policy (encoder, length
    of chunks, contract), or the policy's noise cannot be scaled so.
    """

    def __init__(
        self,
        policy: ChunkPolicy,
        num_candidates: int = 1,
        rule: RuleName = "first",
        scorer: Scorer | None = None,
        selection: SelectionConfig | None = None,
    ):
        if num_candidates < 1:
            raise UserError(f"best-of-N needs at least one candidate, got {num_candidates}")
        rule_named(rule, scorer is not None)
        if scorer is not None:
            require_same_encoder(policy, scorer)
            require_fitting_horizon(policy, scorer.horizon)
        self.policy, self.num_candidates, self.rule = policy, num_candidates, rule
        self.scorer, self.selection = scorer, selection or SelectionConfig()
        require_noise_scale(policy, self.selection.noise_scale)

    @torch.inference_mode()
    def choose(
        self, observation: Observation, keys: list[NoiseKey], prefix: Prefix | None = None, whole: bool = False
    ) -> Choice:
        """Encodes B observations once, samples N candidates for each, scores them all, picks one.

        Candidates that are not consistent with a prefix are dropped before the scoring. Of a causal policy's chunks
        only what is scored is sampled, then the chosen one to its end; `whole`: all of them to their end.
        """
        contract = self.policy.contract
        _require_finite(observation.state, contract.state, "the observation's state")
        context = self.policy.encode(observation)
        device = context.tokens.device
        shape = (self.num_candidates, self.policy.horizon, contract.action_dim)
        noise = [candidate_noise(key.seed, key.scene, key.sample, key.decision, *shape) for key in keys]
        noise = self.selection.noise_scale * torch.stack(noise).to(device)
        steps = self.policy.horizon if whole or prefix is not None else self._steps()
        candidates = self._commands(context, noise, steps)
        if prefix is not None:
            candidates = prefix_consistent(candidates, prefix, contract)
        q_values = scores = value = features = None
        compared = candidates
        if self.scorer is not None:
            encoded = self.scorer.encode(context, observation)
            q_values = self.scorer.checked_q_values(encoded, self.scorer.chunks(candidates))
            scores, value, features = self.scorer.aggregate(q_values), self.scorer.value(encoded), encoded.features
            # Chunks that are alike where they were scored are alike.
            compared = candidates[:, :, : self.scorer.horizon]
        index = select(self.selection, self.rule, q_values, compared, keys, scores)
        choice = Choice(candidates, index, scores, value, features=features)
        if steps < self.policy.horizon:
            chosen = noise[torch.arange(len(index), device=device), index][:, None]
            choice.whole = self._commands(context, chosen, self.policy.horizon)[:, 0]
        return choice

    def _steps(self) -> int:
        """Steps of every candidate that are sampled: those that are scored, where that is less work."""
        horizon, count = self.policy.horizon, self.num_candidates
        scored = horizon if self.scorer is None else self.scorer.horizon
        return scored if self.policy.causal and count * scored + horizon < count * horizon else horizon

    def _commands(self, context: Context, noise: Tensor, steps: int) -> Tensor:
        """(B, N, steps, A) commands from (B, N, H, A) noise."""
        commands = self.policy.contract.to_command(self.policy.sample_first(context, noise, steps))
        _require_finite(commands, self.policy.contract.action, "the policy's commands")
        return commands


def _require_finite(numbers: Tensor, columns: tuple[Column, ...], whose: str) -> None:
    """Refuses (..., columns) numbers that an arm must not be sent, and a network makes such numbers of, by name."""
    finite = torch.isfinite(numbers)
    if not finite.all():
        names = [column.name for column, right in zip(columns, finite.flatten(0, -2).all(0), strict=True) if not right]
        raise UserError(f"{whose} hold NaN or infinite numbers ({', '.join(names)}); nothing is decided from them")


def require_same_encoder(policy: ChunkPolicy, scorer: Scorer) -> None:
    """Refuses a critic that would be shown features it was never trained on (a defect of published code, W10)."""
    scorer.contract.require_same(policy.contract, "the critic", "the policy")
    if scorer.encoder_fingerprint not in ("", policy.encoder_fingerprint):
        theirs, mine = scorer.encoder_fingerprint[:12], policy.encoder_fingerprint[:12]
        fix = "train a critic on this policy's features, or fine-tune with --freeze_encoder=true"
        what = f"the critic was trained on features of another backbone ({theirs}) than this policy's ({mine})"
        raise UserError(f"{what}; {fix}")


def require_fitting_horizon(policy: ChunkPolicy, horizon: int) -> None:
    """Refuses a critic of longer chunks than the policy makes; one of shorter chunks scores how they begin."""
    if policy.horizon < horizon:
        what = f"the critic scores chunks of {horizon} steps and the policy makes chunks of {policy.horizon}"
        raise UserError(f"{what}; train the critic with --critic.horizon={policy.horizon}")


def require_scored(execute_steps: int, horizon: int, rule: str) -> None:
    """Refuses to play actions of a chunk that the critic never scored (design rule 8)."""
    if execute_steps > horizon and RULES[rule].needs_scorer:
        what = f"{execute_steps} actions of a chunk would be played, of which the critic scores the first {horizon}"
        flags = f"(--execute_steps={horizon}; in LeRobot --policy.n_action_steps={horizon})"
        raise UserError(f"{what}: play {horizon} {flags}, or train a critic with --critic.horizon={execute_steps}")


def prefix_consistent(candidates: Tensor, prefix: Prefix, contract: Contract) -> Tensor:
    """(B, N, H, A) commands to the (B, ⌈N / 2⌉, H, A) nearest to the last chunk, in the order that they had.

    While a decision is made, the robot plays on from the last chunk: every candidate begins with what is really played
    then, which is also what the critic scores. Committed steps count fully in the distance, the steps after them less
    and less, up to the last chunk's end. (Real-time chunking, Black, Galliker and Levine, 2025, guides the sampler
    instead, which needs its gradients; backward coherence is of bidirectional decoding, Liu et al., 2024.)
    """
    played = prefix.commands[:, None, : candidates.shape[2]].to(candidates)
    length = played.shape[2]
    committed = min(prefix.committed, length)
    error = contract.normalize_action(candidates[:, :, :length]) - contract.normalize_action(played)
    after = torch.arange(length, device=candidates.device) - committed
    weight = (1 - (after + 1) / (length - committed + 1)).clamp(0, 1)
    distance = (error.square().mean(3) * torch.where(after < 0, 1.0, weight)).sum(2)
    nearest = distance.argsort(dim=1, stable=True)[:, : (candidates.shape[1] + 1) // 2].sort(1).values
    kept = candidates[torch.arange(len(candidates), device=candidates.device)[:, None], nearest]
    return torch.cat([played[:, :, :committed].expand(-1, kept.shape[1], -1, -1), kept[:, :, committed:]], 2)
