"""Any other LeRobot policy: the observation is repeated for each candidate, and everything runs on one batch.

It works for policies that read the batch they are given, and draw normal noise for each of its rows while they sample.
The critic reads the output of one module, which the user names: the encoder of the images.
"""

import inspect

import torch
from torch import Tensor, nn

from deas_vla.errors import UserError
from deas_vla.policies.lerobot.base import ADAPTERS, Adapter, Encoded, camera_tokens, outputs_of, repeated
from deas_vla.policies.lerobot.noise import GivenNoise, seed_of
from deas_vla.policies.lerobot.processing import TASK, instructions_of

# Kinds that sample from queues of past observations, which only LeRobot's own loop fills.
FROM_QUEUES = ("diffusion", "multi_task_dit", "tdmpc", "vqbet")
# Kinds that compute in bfloat16 by themselves, at least on some processors.
AUTOCAST = ("evo1", "groot", "molmoact2", "vla_jepa")


class Batched(Adapter):
    """Tokens are what the module named `feature` returns, for one camera after another; there are none of the text."""

    # Of a module that is called once for several observations and cameras nothing says in which order it sees them.
    largest_batch = 1

    def __init__(self, policy: nn.Module, cameras: list[int], feature: str) -> None:
        kind = policy.config.type
        if kind in FROM_QUEUES:
            hint = "name no feature: its kind has an adapter" if kind in ADAPTERS.names() else "it needs an adapter"
            raise UserError(f"the {kind} policy samples from queues of observations, not a batch; {hint}")
        if not hasattr(policy.config, "n_action_steps"):
            raise UserError(f"the {kind} policy has no n_action_steps, the length of its chunks; it needs an adapter")
        try:
            self.module = policy.get_submodule(feature)
        except AttributeError as error:
            raise UserError(f"the {kind} policy has no module '{feature}' ({error})") from error
        # All that every policy returns; its model may make longer chunks.
        super().__init__(policy, cameras, [self.module], policy.config.n_action_steps)
        self.autocasts = kind in AUTOCAST

    @torch.no_grad()
    def encode(self, batch: dict[str, Tensor]) -> Encoded:
        first = next(iter(batch.values()))
        count, views = len(first), len(self.cameras)
        for name, value in batch.items():
            if value.shape[:1] != (count,):
                raise UserError(f"the {self.config.type} policy reads {name}, which has no row for each observation")
        # Such a policy cannot only encode: it samples, and what the module returns meanwhile is kept.
        with outputs_of(self.module) as outputs:
            self.sample(batch, torch.zeros(count, self.horizon, self.width, device=first.device))
        grids = [getattr(output, "last_hidden_state", output) for output in outputs[:views]]
        if grids and len(grids[0]) == count * views:
            grids = grids[:1]
        elif [len(grid) for grid in grids] != [count] * views:
            raise UserError(f"the named module does not return one grid for each of {views} cameras")
        return Encoded(*camera_tokens(grids, count, self.cameras), batch)

    def sample(self, memory: dict[str, Tensor], noise: Tensor) -> Tensor:
        self.policy.reset()
        modes = {module: module.training for module in self.policy.modules()}
        self.policy.eval()
        with GivenNoise(noise, first=True) as given:
            chunks = self.policy.predict_action_chunk(_as_text(repeated(memory, len(noise))))
        for module, training in modes.items():
            module.training = training
        if not given.draws:
            raise UserError(f"the {self.config.type} policy draws no noise: all candidates would be the same")
        return chunks[:, : self.horizon, : self.action_dim].float()

    def error(self, memory: dict[str, Tensor], actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The policy's own loss of each row, with levels of noise that the noise seeds."""
        length = len(self.config.action_delta_indices)
        steps = torch.arange(length, device=actions.device)
        batch = memory | {
            "action": actions[:, steps.clamp_max(actions.shape[1] - 1)],
            "action_is_pad": (steps >= actions.shape[1]).expand(len(actions), -1),
        }
        with torch.random.fork_rng([actions.device] if actions.is_cuda else []):
            torch.manual_seed(seed_of(noise))
            if "reduction" in inspect.signature(self.policy.forward).parameters:
                losses = self.policy.forward(_as_text(batch), reduction="none")[0]
            else:
                rows = [{name: value[[row]] for name, value in batch.items()} for row in range(len(actions))]
                losses = torch.stack([self.policy.forward(_as_text(row))[0] for row in rows])
        return losses[:, None, None].expand(-1, actions.shape[1], 1)


def _as_text(batch: dict[str, Tensor]) -> dict:
    """A batch as the policy reads it: with its instructions as text."""
    return batch | ({TASK: instructions_of(batch[TASK])} if TASK in batch else {})
