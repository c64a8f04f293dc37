"""What LeRobot's own code gives, to compare with: its batches, chunks and losses."""

import torch
from lerobot_example import SENTENCES, A, H, normal, observations

from deas_vla.policies.flow import TIME_BETA, TIME_CUTOFF, sample_time
from deas_vla.policies.lerobot.modeling import LeRobotPolicy
from deas_vla.policies.lerobot.noise import GivenNoise, widen


def own_batch(policy: LeRobotPolicy, observation, commands=None) -> dict:
    """What LeRobot's own preprocessor makes of an observation."""
    batch = {"observation.state": observation.state, "task": list(observation.instruction)}
    for name, image in observation.images.items():
        batch[f"observation.images.{name}"] = image.permute(0, 3, 1, 2).float() / 255
    if commands is not None:
        batch["action"] = commands
    made = policy.processors.preprocessor(batch)
    if policy.policy.config.type in ("diffusion", "multi_task_dit"):  # these read a history
        made = {
            key: value[:, None] if key.startswith(("observation.state", "observation.images.")) else value
            for key, value in made.items()
        }
    return made


@torch.no_grad()
def own_chunks(policy: LeRobotPolicy, observation, noise: torch.Tensor) -> torch.Tensor:
    """(B, n, A) what LeRobot's policy and postprocessor give for the noise (B, H, A), normalised by the contract."""
    inner, batch = policy.policy, own_batch(policy, observation)
    inner.reset()
    if inner.config.type == "multi_task_dit":
        # It takes no noise: it draws what `noise_for` drew.
        torch.manual_seed(3)
        chunk = inner._generate_actions(inner._prepare_batch(batch))
    elif inner.config.type in ("groot", "xvla"):
        with GivenNoise(policy.adapter.widened(noise), first=True):
            chunk = inner.predict_action_chunk(batch)
    else:
        chunk = inner.predict_action_chunk(batch, noise=policy.adapter.widened(noise))
    return policy.contract.normalize_action(policy.processors.postprocessor(chunk))


def alike(kind: str, count: int):
    """Observations of one sentence where LeRobot's own code reads the padding of a mixed batch."""
    return observations(count, sentences=SENTENCES[:1] if kind == "groot" else SENTENCES)


def noise_for(count: int) -> torch.Tensor:
    """(B, H, A), the first that torch's own generator draws after one seed."""
    torch.manual_seed(3)
    return torch.randn(count, H, A)


def own_loss(policy: LeRobotPolicy, observation, commands: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """LeRobot's mean loss, and the noise (B, 1, H, A) and the project's flow times (B, 1) that it drew."""
    inner, batch, count = policy.policy, own_batch(policy, observation, commands), len(commands)
    kind = inner.config.type
    if kind in ("smolvla", "pi0", "pi05"):
        noise, time = normal(count, H, A, seed=5), sample_time((count,), torch.Generator().manual_seed(5))
        wide = policy.adapter.widened(noise)
        if kind == "smolvla":
            return inner.forward(batch, noise=wide, time=1 - time)[0], noise[:, None], time[:, None]
        images, present = inner._preprocess_images(batch)
        words = [batch[f"observation.language.{name}"] for name in ("tokens", "attention_mask")]
        state = [inner.prepare_state(batch)] if kind == "pi0" else []
        losses = inner.model.forward(images, present, *words, *state, inner.prepare_action(batch), wide, 1 - time)
        return losses[..., :A].mean(), noise[:, None], time[:, None]
    if kind == "xvla":  # it draws levels of noise that are spread over the batch, then noise
        torch.manual_seed(5)
        loss = inner.forward(batch)[0]
        torch.manual_seed(5)
        level = (torch.rand(1) + torch.arange(count) / count) % (1 - 1e-5)
        noise = torch.randn(count, H, A)
        return loss, noise[:, None], 1 - level[:, None] ** (1 / TIME_BETA) / TIME_CUTOFF
    if kind == "groot":  # it draws noise, then times
        noise = normal(count, H, A, seed=5)
        wide = widen(noise, H, policy.adapter.width)
        torch.manual_seed(5)
        with GivenNoise(wide, first=True):
            loss = inner.forward(batch)[0]
        torch.manual_seed(5)
        torch.randn(wide.shape)
        time = policy.adapter.head.sample_time(count, noise.device, noise.dtype)
        return loss, noise[:, None], time[:, None]
    torch.manual_seed(5)
    batch["action_is_pad"] = torch.zeros(count, H, dtype=torch.bool)
    loss = inner.forward(batch)[0]
    torch.manual_seed(5)
    noise = torch.randn(count, H, A)
    if kind == "multi_task_dit" and inner.config.is_flow_matching:
        return loss, noise[:, None], inner.objective._sample_timesteps(count, noise.device)[:, None]
    steps = torch.randint(0, 20, (count,))
    time = 1 - ((steps + 0.5) / 20) ** (1 / TIME_BETA) / TIME_CUTOFF
    return loss, noise[:, None], time[:, None]


def commands_for(count: int) -> torch.Tensor:
    commands = normal(count, H, A, seed=8).clamp(-1, 1)
    commands[..., 1] = (commands[..., 1] > 0).float()
    return commands
