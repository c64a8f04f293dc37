"""Filtered behaviour cloning: imitate demonstrations and the rollouts that succeeded, each step alike."""

import torch
from torch import Tensor

from deas_vla.data.options import Chunks


def filtered_bc_weights(options: Chunks) -> Tensor:
    """(O,) weight 1 for options of demonstrations and successful rollouts, 0 for those of failures."""
    return (options.group != options.FAILURE).float()


def demonstration_weights(options: Chunks) -> Tensor:
    """(O,) weight 1 for options of demonstrations: plain behaviour cloning."""
    return torch.as_tensor(options.group == options.DEMONSTRATION).float()
