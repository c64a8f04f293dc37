"""Work of the processor that is done ahead of the one that waits for it."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import DataLoader, Dataset

# More processes than this decode faster than anything here trains.
MOST_WORKERS = 4


def spare_workers(processes: int) -> int:
    """How many processes may decode ahead for each of `processes` on this machine, which each keep a core."""
    return max(0, min(MOST_WORKERS, len(os.sched_getaffinity(0)) // processes - 1))


class _Items(Dataset):
    def __init__(self, load: Callable, items: Sequence):
        self.load, self.items = load, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.load(self.items[index])


def ahead[T, U](load: Callable[[T], U], items: Sequence[T], workers: int) -> Iterator[U]:
    """`load` of each item, in order; with workers, so many processes load while the caller works.

    `load` must depend on its item alone and stay off the accelerator; the order of what comes does not depend on the
    number of workers, and no global random state is read or changed.
    """
    if not workers or not len(items):
        return map(load, items)
    return iter(
        DataLoader(
            _Items(load, items),
            batch_size=None,
            num_workers=workers,
            collate_fn=_unchanged,
            worker_init_fn=_close_inherited,
            generator=torch.Generator(),
        )
    )


def _close_inherited(worker: int) -> None:
    """Closes the videos that were open when this process was forked.

    An open file has one position, which all processes share: two of them that seek and read in it would get each
    other's bytes.
    """
    if videos := sys.modules.get("lerobot.datasets.video_utils"):
        videos._default_decoder_cache.clear()


def _unchanged[T](item: T) -> T:
    return item
