"""Windows drawn from a text, and documents packed into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checks import check_positive

_Item = TypeVar("_Item")


def sample_windows(data: np.ndarray, rows: int, window: int, generator: torch.Generator) -> Tensor:
    """Draw random windows, each with the id that follows it.

    Shapes   data (n,) uint8  ->  (rows, window + 1) uint8
    """
    starts = torch.randint(len(data) - window, (rows,), generator=generator)
    return torch.from_numpy(np.stack([data[s : s + window + 1] for s in starts.tolist()]))


class Documents:
    """The number of the document at each position of a text, as an array that takes no memory.

    `sample_windows(documents, …)` draws the numbers for the windows that `sample_windows(data, …)`
    draws from an equal generator.

    Args     ends     where each document ends: (number of documents,), ascending
    """

    def __init__(self, ends: np.ndarray):
        self.ends = np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, at: slice) -> np.ndarray:
        """Shapes   n positions -> (n,) int64, numbered from 0"""
        return np.searchsorted(self.ends, np.arange(*at.indices(len(self))), side="right")

    def padding_share(self, window: int) -> float:
        """The share of padding in rows of `window` ids, if no two documents shared a row."""
        sizes = np.diff(self.ends, prepend=0)
        return float(1 - sizes.sum() / (np.ceil(sizes / window).sum() * window))


def iterate_windows(data: np.ndarray, rows: int, window: int) -> Iterator[Tensor]:
    """Yield neighbouring windows in order, each with the id that follows it.

    Windows share one id with the next, so that every id but the first is a target exactly once.

    Shapes   data (n,) uint8  ->  yields (up to rows, window + 1), and last (1, rest)
    """
    full = (len(data) - 1) // window
    for first in range(0, full, rows):
        count = min(rows, full - first)
        starts = range(first * window, (first + count) * window, window)
        yield torch.from_numpy(np.stack([data[s : s + window + 1] for s in starts]))
    if len(rest := data[full * window :]) > 1:
        yield torch.from_numpy(np.array(rest))[None]


def shard(items: Iterable[_Item], rank: int, world: int) -> Iterator[_Item]:
    """Yield one worker's share of `items`: every `world`-th item, starting at number `rank`.

    Together the workers get each item exactly once, and their shares differ by at most one item.
    For a random order, iterate over a permutation that all workers draw from the same seed. Every
    worker reads a stream in full and drops the shares of the others.

    Raises   ValueError when the rank is not in 0 … world - 1
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0 … {world - 1} for a world of {world}, got {rank}")
    return islice(items, rank, None, world)


def pack(documents: Iterable[np.ndarray], window: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Concatenate documents, cut them into rows, and yield each row with its documents' numbers.

    Neighbouring rows share one id, so that every id is a target once, except the first of each
    document. Rows may cut documents; only the last row is padded, with id 0 and document -1. If
    you want a separator, append its id to each document.

    Shapes   documents: any number of (n,) arrays  ->  yields ids (window + 1,) of their dtype, and
             documents (window + 1,) int64, numbered from 0
    Raises   ValueError when the window is below 1
    """
    check_positive("pack", window=window)
    ids = owners = None
    for number, document in enumerate(documents):
        new = torch.from_numpy(np.array(document))
        owner = torch.full(new.shape, number)
        ids = new if ids is None else torch.cat((ids, new))
        owners = owner if owners is None else torch.cat((owners, owner))
        while len(ids) > window:
            yield ids[: window + 1], owners[: window + 1]
            ids, owners = ids[window:], owners[window:]
    if ids is not None and len(ids) > 1:
        missing = (0, window + 1 - len(ids))
        yield F.pad(ids, missing), F.pad(owners, missing, value=-1)
