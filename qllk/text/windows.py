"""Windows drawn from a text, and documents packed into rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F

from ..checks import check_positive

# ---------------------------------------------------------------- windows


def sample_windows(data: np.ndarray, rows: int, window: int, generator: torch.Generator):
    """Random windows, each with the byte that follows.

    Shapes   data (n,) uint8  ->  (rows, window + 1) uint8
    """
    starts = torch.randint(len(data) - window, (rows,), generator=generator)
    return torch.from_numpy(np.stack([data[s : s + window + 1] for s in starts.tolist()]))


def iterate_windows(data: np.ndarray, rows: int, window: int):
    """Every byte but the first once as a target, in order: neighbours share one byte.

    Shapes   data (n,) uint8  ->  yields (up to rows, window + 1), at the end (1, what is left)
    """
    full = (len(data) - 1) // window
    for first in range(0, full, rows):
        count = min(rows, full - first)
        starts = range(first * window, (first + count) * window, window)
        yield torch.from_numpy(np.stack([data[s : s + window + 1] for s in starts]))
    if len(rest := data[full * window :]) > 1:
        yield torch.from_numpy(np.array(rest))[None]


def shard(items: Iterable, rank: int, world: int) -> Iterator:
    """One worker's share of anything that can be walked: every `world`-th, from the `rank`-th on.

    All workers together take each item exactly once, and none takes two more than another. For a
    random order walk a permutation that all workers draw from the same seed. A stream is read by
    each worker in full, and all but its share is dropped.

    Raises   ValueError when there is no such worker
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank must lie in 0 … {world - 1} for a world of {world}, got {rank}")
    return islice(items, rank, None, world)


def pack(documents: Iterable, window: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Lay documents end to end and cut rows, with which document each id is from.

    Neighbouring rows share one id, so that every id but the first of its document is a target once.
    Documents are cut where a row ends, and only the last row is padded: id 0, document -1. A mark
    between documents is the caller's to append to them.

    Shapes   documents: any number of (n,) arrays  ->  yields ids (window + 1,), of the documents'
             type, and documents (window + 1,) int64, numbered from 0
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
        short = (0, window + 1 - len(ids))
        yield F.pad(ids, short), F.pad(owners, short, value=-1)
