"""Small policies and observations for tests of the policy floor."""

import torch
from data_example import SIZE, example_contract

from deas_vla.data.observation import Observation
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig, SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy

SENTENCES = ["lift the red cube", "open the left drawer of the cabinet"]


def small_config(**changes) -> SmallVLAConfig:
    """Two tokens by two a camera, chunks of four steps."""
    embedded = EmbeddedBackboneConfig(
        patch_size=4, merge=2, vision_width=32, text_width=32, text_layers=2, head_width=16
    )
    values = {"embedded": embedded, "horizon": 4, "width": 32, "head_width": 16, "layers": 4}
    return SmallVLAConfig(**(values | changes))


def trained(policy: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in policy.parameters() if parameter.requires_grad]


def close(a: torch.Tensor, b: torch.Tensor, relative: float = 1e-5) -> bool:
    """Whether two code paths agree in fp32: within 1e-5 of the largest value (design rules 1 and 14)."""
    return a.shape == b.shape and (a - b).abs().max() <= relative * b.abs().max().clamp_min(1e-30)


def shake(policy: SmallVLAPolicy, size: float = 0.1) -> SmallVLAPolicy:
    """Moves every trained weight: a new head is zero in places, where a mistake would not be seen."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in trained(policy):
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return policy


def small_policy(seed: int = 0, **changes) -> SmallVLAPolicy:
    """A policy in evaluation mode whose every weight matters."""
    torch.manual_seed(seed)
    return shake(SmallVLAPolicy(small_config(**changes), example_contract(), SENTENCES)).eval()


def observations(count: int, seed: int = 0, sentences: list[str] | None = None) -> Observation:
    """Random images and states; the sentences take turns."""
    generator = torch.Generator().manual_seed(seed)
    sentences = sentences or SENTENCES
    shape = (count, SIZE, SIZE, 3)
    return Observation(
        images={
            name: torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for name in ("left", "wrist")
        },
        state=torch.randn(count, 3, generator=generator),
        instruction=[sentences[i % len(sentences)] for i in range(count)],
    )


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
