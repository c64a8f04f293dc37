"""Computations in groups of one fixed size, so that a row's result does not depend on its neighbours.

A matrix product may round differently for 3 rows than for 64: the library picks another kernel. A feature that was
cached in a large batch would then differ in its last bits from the one computed live. Running every computation in
groups of the same size removes the difference (design rule 1), as long as each row is computed on its own inside a
group, which holds for every layer that does not mix items of a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def in_fixed_groups(
    function: Callable[[list[int]], dict[str, Tensor] | Tensor], count: int, group: int
) -> dict[str, Tensor] | Tensor:
    """Calls a function on groups of exactly `group` rows and joins what it returns.

    Args:
        function: takes `group` row indices, returns a tensor, or a dictionary of tensors, of first dimension
            `group`. The last group is filled up by repeating its last row.
        count: rows in all, at least 1.
        group: rows a call.

    Returns:
        The results of all rows in order, first dimension `count`; a dictionary if the function returns one.

    Raises:
        ValueError: if `count` or `group` is below 1, or a result has another first dimension.
    """
    if count < 1 or group < 1:
        raise ValueError(f"count and group must be at least 1, got {count} and {group}")
    parts = []
    for start in range(0, count, group):
        rows = [min(row, count - 1) for row in range(start, start + group)]
        result = function(rows)
        for tensor in result.values() if isinstance(result, dict) else (result,):
            if len(tensor) != group:
                raise ValueError(f"expected {group} rows from a group, got {len(tensor)}")
        parts.append(result)
    if isinstance(parts[0], dict):
        return {key: torch.cat([part[key] for part in parts])[:count] for key in parts[0]}
    return torch.cat(parts)[:count]
