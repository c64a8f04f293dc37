"""A SmallVLAPolicy whose weights are all its own: adapters merged, and no checkpoint beside it that it refers to."""

import copy
from dataclasses import replace

from deas_vla.policies.adapters import Merged, merge_adapters
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy


def standalone(policy: SmallVLAPolicy) -> tuple[SmallVLAPolicy, Merged]:
    """A copy in evaluation mode that is saved whole; the policy itself stays as it is.

    The copy is one of a fully tuned backbone, which is the kind that stores all its weights. For a moment both are
    in memory.

    Raises:
        UserError: if there are adapters that change nothing.
    """
    # Prompts and processor hold no weights and are shared.
    shared = {id(part): part for part in (policy.prompts, policy.processor)}
    copied = copy.deepcopy(policy, shared)
    merged = merge_adapters(copied)
    copied.config = replace(copied.config, tune="full")
    copied.backbone.tune, copied.backbone.base_hash = "full", None
    return copied.eval(), merged
