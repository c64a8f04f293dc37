"""Work of the processor that is done ahead of the one that waits for it."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader

MOST_WORKERS = 4  # more processes than this decode faster than anything here trains


def spare_workers(processes: int) -> int:
    """How many processes may decode ahead for each of `processes` on this machine, which each keep a core."""
    return max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // processes - 1))


def ahead[T, U](load: Callable[[T], U], items: Sequence[T], workers: int) -> Iterator[U]:
    """`load` of each item, in order; with workers, so many processes load while the caller works.

    `load` must depend on its item alone and stay off the accelerator; the order of what comes does not depend on the
    number of workers, and no global random state is read or changed.
    """
    if not workers or not len(items):
        return map(load, items)
    # Without batches the collation is called with a single item, in the process that took it.
    settings = {"batch_size": None, "collate_fn": load, "worker_init_fn": _close_inherited}
    return iter(DataLoader(items, num_workers=workers, generator=torch.Generator(), **settings))


def _close_inherited(worker: int) -> None:
    """Closes the videos that were open when this process was forked: all processes would seek in one open file."""
    if videos := sys.modules.get("lerobot.datasets.video_utils"):
        videos._default_decoder_cache.clear()
