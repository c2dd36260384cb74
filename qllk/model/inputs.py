"""What a model adds to the embedding of an id: tables of hashed contexts, and a recall by address.

Both read ids and not vectors, and both find their rows by the hashes of `contexts`. They are called
like mixers, `y, state = part(ids, state)`, with y (B,T,D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import spec
from .addresses import addressed_runs
from .contexts import Context, ContextState, check_contexts, hash_contexts, mix
from .layers import Dropout, LinearHead

_OWNERS = 256  # addresses that share a row of a recall, told apart by a byte


def to_rows(hashes: Tensor, rows: int) -> Tensor:
    """The row that each hash chooses among `rows`, by its highest 31 bits.  Shapes  any, int64"""
    return ((hashes >> 33) & 0x7FFFFFFF) % rows


class Lookup(nn.Embedding):
    """Sum one row of each of K tables, the row that a hash chooses.

    The gradient is sparse: it has the rows that were read, so neither it nor the optimizer's step
    costs more for larger tables. All rows start at zero.

    Dropout leaves out whole rows, so that a model does not lean on a single long context, whose row
    it can learn by heart.

    Options  tables K; rows of each; D; dropout, the probability of leaving out a row in training
    Shapes   hashes (B,K,T) int64  ->  (B,T,D)
    Cost     time O(T K D), and O(T K log(T K)) backward
    Paper    Weinberger 2009, 0902.2206, for hashed features
    """

    def __init__(self, tables: int, rows: int, d_model: int, *, dropout: float = 0.0):
        super().__init__(tables * rows, d_model, sparse=True)
        self.rows = rows
        self.dropout = Dropout(dropout)
        self.register_buffer("start", rows * torch.arange(tables)[:, None], persistent=False)
        nn.init.zeros_(self.weight)

    def forward(self, hashes: Tensor) -> Tensor:
        B, K, T = hashes.shape
        rows = (to_rows(hashes, self.rows) + self.start).transpose(1, 2).reshape(B * T, K)
        share = self.dropout(self.weight.new_ones(B * T, K)) if self.dropout.acts else None
        return _SumRows.apply(rows, self.weight, share).view(B, T, -1)


class _SumRows(torch.autograd.Function):
    """`F.embedding_bag(…, mode="sum", sparse=True)` with a gradient that names each row once, in
    ascending order, which makes a training step shorter by a tenth.

    The gradient of a row is again a bag: the sum over the steps that read the row, each times its
    share. A row whose shares are all 0 was not read, and the gradient does not name it.

    Shapes   rows (N,K), weight (R,D), share (N,K) or None for ones  ->  (N,D)
    Twin     F.embedding_bag with a dense gradient
    """

    @staticmethod
    def forward(ctx, rows, weight, share):
        ctx.save_for_backward(rows, share)
        ctx.size = weight.shape
        return F.embedding_bag(rows, weight, mode="sum", per_sample_weights=share)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        rows, share = ctx.saved_tensors
        ascending, places = rows.flatten().sort(stable=True)
        if share is not None:
            share = share.flatten()[places]
            read = share != 0
            ascending, places, share = ascending[read], places[read], share[read]
        unique, counts = ascending.unique_consecutive(return_counts=True)
        steps, starts = places // rows.shape[1], counts.cumsum(0) - counts
        total = F.embedding_bag(steps, gradient, starts, mode="sum", per_sample_weights=share)
        total = torch.sparse_coo_tensor(
            unique[None], total, ctx.size, is_coalesced=True, check_invariants=False
        )
        return None, total, None


class Ngrams(nn.Module):
    """Add a row for each context of an id: the last n ids, or words.

    Different contexts that share a row are told apart by the other contexts.

    Shapes   ids (B,T)  ->  (B,T,D)
    State    ContextState
    Paper    hashed n-grams in a byte model: BLT, Pagnoni 2024, 2412.09871, 3.2.1
    Raises   ValueError for an unknown context
    """

    def __init__(self, d_model: int, options: spec.Ngrams):
        super().__init__()
        self.contexts = check_contexts("Ngrams", options.contexts)
        self.table = Lookup(len(self.contexts), options.rows, d_model, dropout=options.dropout)

    def forward(
        self, ids: Tensor, state: ContextState | None = None
    ) -> tuple[Tensor, ContextState]:
        hashes, state = hash_contexts(ids, self.contexts, state)
        return self.table(hashes), state


class RecallState(NamedTuple):
    """State of a recall: a row of five whole numbers for each address of each context."""

    rows: Tensor  # (B,C,A,5): see `addressed_runs`
    address: Tensor  # (B,C): where each context wrote last, -1 before the text
    contexts: ContextState
    kind = "recall"


class Recall(nn.Module):
    """Read what followed each context earlier in the text.

    At byte t, the address that a context had one step ago learns that x_t followed; then the
    context's address of now tells what followed it before: the last id, the one before that was
    another, and how often. Two rows of a table, chosen by these, are added to the embedding.
    `vote` also lets the model vote for the ids themselves, with strengths that it computes:
    a copy that needs no detour through D numbers.

    Shapes   ids (B,T)  ->  y (B,T,D), found (B,T,2C): ids that followed, or -1
    State    RecallState: 5 C A numbers, in bytes for up to 256 ids
    Cost     time O(C T (log T + D)), and O(C A) for the new state
    Paper    the neural cache, Grave 2016, 1612.04426, of what followed equal contexts instead of
             similar ones; these contexts are those of PAQ, Mahoney 2005
    Raises   ValueError for an unknown context
    """

    def __init__(self, d_model: int, options: spec.Recall, vocab_size: int):
        super().__init__()
        self.contexts = check_contexts("Recall", options.contexts)
        self.addresses = options.addresses
        self.dtype = torch.uint8 if vocab_size <= 256 else torch.int32
        self.table = Lookup(2 * len(self.contexts), options.rows, d_model)
        self.strength = LinearHead(d_model, 2 * len(self.contexts))

    def forward(
        self, ids: Tensor, state: RecallState | None = None
    ) -> tuple[Tensor, Tensor, RecallState]:
        if state is None:
            state = start_recall(ids, self.contexts, self.addresses, self.dtype)
        readings, state = look_back(ids, self.contexts, state)
        keys, found = describe(readings)
        return self.table(keys), found, state

    def vote(self, logits: Tensor, x: Tensor, found: Tensor) -> Tensor:
        """Add to the logits of the ids that were found.

        Shapes   logits (B,T,vocab_size), x (B,T,D), found (B,T,2C)  ->  (B,T,vocab_size)
        """
        strength = (self.strength(x) * (found >= 0)).to(logits.dtype)
        return logits.scatter_add(2, found.clamp(min=0), strength)


def start_recall(
    ids: Tensor, contexts: tuple[Context, ...], addresses: int, dtype: torch.dtype
) -> RecallState:
    """The state of a recall before it has read anything."""
    B, C = len(ids), len(contexts)
    rows = torch.zeros(B, C, addresses, 5, dtype=dtype, device=ids.device)
    return RecallState(rows, ids.new_full((B, C), -1), None)


def look_back(
    ids: Tensor, contexts: tuple[Context, ...], state: RecallState
) -> tuple[Tensor, RecallState]:
    """What followed each context earlier: the last id, another one, the run and the count.

    Shapes   ids (B,T)  ->  readings (B,C,T,4), as `addressed_runs`
    """
    (B, T), (C, A) = ids.shape, state.rows.shape[1:3]
    hashes, seen = hash_contexts(ids, contexts, state.contexts)
    read = to_rows(hashes, A) * _OWNERS + (hashes & (_OWNERS - 1))
    write = torch.cat((state.address[..., None], read[..., :-1]), dim=2)
    x = ids[:, None].expand(B, C, T)
    readings, rows = addressed_runs(
        *(each.flatten(0, 1) for each in (read, write, x, state.rows)), _OWNERS
    )
    state = RecallState(rows.unflatten(0, (B, C)), read[..., -1], seen)
    return readings.long().view(B, C, T, 4), state


def describe(readings: Tensor) -> tuple[Tensor, Tensor]:
    """The hashes of two rows for each context, and the ids that they are about, or -1.

    Shapes   readings (B,C,T,4)  ->  hashes (B,2C,T), ids (B,T,2C)
    """
    last, other, run, count = (x.contiguous() for x in readings.unbind(dim=3))
    edges = torch.tensor([1, 2, 3, 4, 8, 16, 32], device=last.device)
    run_level, count_level = (torch.bucketize(n, edges, right=True) for n in (run, count))
    known = count > run  # there was another id
    first = mix((last * 8 + count_level) * 8 + run_level)
    second = mix((other * 8 + run_level) * 2 + known)
    found = torch.stack((torch.where(count > 0, last, -1), torch.where(known, other, -1)), dim=2)
    return torch.stack((first, second), dim=2).flatten(1, 2), found.flatten(1, 2).transpose(1, 2)
