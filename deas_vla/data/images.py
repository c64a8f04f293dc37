"""Images of stored frames behind one index: small data sets are decoded once, large ones row by row from disk.

Shapes: F images of one camera, height h, width w.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from deas_vla.files import file_identity

IN_MEMORY = 1 << 30  # what takes more bytes than this stays on disk


class StoredImages:
    """The images of one camera and episode that stay on disk; indexed like an array (F, h, w, 3) uint8.

    `decode`: the numbers of rows, (B,) int64, to their (B, h, w, 3) uint8 images; `rows`: (F,) the episode's rows that
    these images belong to; `file`: where they are, which identifies them with `name`, of camera and episode in it.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, decode: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, size: tuple[int, int], file: Path, name: str
    ):
        self.shape, self._decode, self._rows, self._file, self._name = (len(rows), *size, 3), decode, rows, file, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        rows = self._rows[index]
        return self._decode(rows) if rows.ndim else self._decode(rows[None])[0]

    def identity(self, index: slice | np.ndarray) -> bytes:
        """Changes with the file and with the rows, not with the file's place."""
        return f"{file_identity(self._file)} {self._name}".encode() + self._rows[index].astype(np.int64).tobytes()


class FrameImages:
    """F images of one camera, part after part of the episodes; only the rows that are asked for are decoded."""

    def __init__(self, parts: list[np.ndarray | StoredImages], rows: Tensor | None = None):
        # Arrays of one data set are one array already; those that are not become one.
        groups = itertools.groupby(parts, lambda part: id(part.base) if isinstance(part, np.ndarray) else None)
        self._parts = [part for base, group in groups for part in (group if base is None else [joined(list(group))])]
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self._whole = rows is None
        self._rows = torch.arange(self._starts[-1]) if rows is None else rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self._parts[0].shape[1:])

    @property
    def on_disk(self) -> bool:
        return any(isinstance(part, StoredImages) for part in self._parts)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """(B, h, w, 3) uint8; a slice of images that are in memory shares it."""
        if isinstance(self._parts[0], np.ndarray) and len(self._parts) == 1:
            return torch.from_numpy(self._parts[0])[index if self._whole else self._rows[index]]
        rows = self._rows[index].numpy()
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(owner):
            mine = np.flatnonzero(owner == part)
            # Decoders go forward: each image once, in its order in the file.
            wanted, back = np.unique(rows[mine] - self._starts[part], return_inverse=True)
            images[mine] = self._parts[part][wanted][back]
        return torch.from_numpy(images)

    def subset(self, index: Tensor | slice) -> "FrameImages":
        """Those at these rows, decoded no sooner than asked for."""
        return FrameImages(self._parts, self._rows[index])

    def update(self, digest) -> None:
        """Adds to a hash all that these images depend on: themselves if they are in memory, else their files."""
        rows = self._rows.numpy()
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for part, group in itertools.groupby(range(len(rows)), owner.__getitem__):
            wanted, images = rows[list(group)] - self._starts[part], self._parts[part]
            if isinstance(images, StoredImages):
                digest.update(images.identity(wanted))
            elif (np.diff(wanted) == 1).all():
                digest.update(images[wanted[0] : wanted[-1] + 1])
            else:
                digest.update(images[wanted])


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """The parts as one array: the one that they lie in already, as `read_dataset` leaves them, or a copy."""
    whole, ends = parts[0].base, np.cumsum([len(part) for part in parts])
    shape = (ends[-1], *parts[0].shape[1:])
    if isinstance(whole, np.ndarray) and whole.flags["C_CONTIGUOUS"] and whole.shape == shape:
        pieces = np.split(whole, ends[:-1])
        pairs = zip(parts, pieces, strict=True)
        if all(part.base is whole and len(part) and np.shares_memory(part, piece) for part, piece in pairs):
            return whole
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def resized(images: Tensor, height: int, width: int) -> Tensor:
    """(B, h, w, 3) uint8 to (B, height, width, 3) uint8, each pixel the rounded mean of those it stands for."""
    if images.shape[1:3] == (height, width):
        return images
    means = functional.adaptive_avg_pool2d(images.permute(0, 3, 1, 2).float(), (height, width))
    return means.round_().byte().permute(0, 2, 3, 1).contiguous()
