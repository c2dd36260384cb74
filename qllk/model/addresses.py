"""Sums with an address: each step writes to one row of a state and reads from one.

    S_t = S_{t-1},  then  S_t[write_t] += v_t        y_t = S_t[read_t]

This is linear attention whose keys and queries are one-hot: of the A rows of the state, a step
changes one and reads one, where `linear_attention` multiplies all of them. Over a whole sequence
the writes are sorted by address and then by time, so that those of one row stand next to each
other, and the sum runs within each row: O(T log T) and no table of T x T.

Axes     B batch, T time, A addresses, V value width, C chunk
Address  0 … A-1; at -1 a step writes nothing, or reads zeros
State    S (B,A,V), zeros at the start of a sequence. A new state is returned, and the one passed
         in stays valid, which costs a copy of it.
Twins    `name_loop` is the definition, as in `kernels`
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import _disable_autocast, _widen

_MOST = 255  # a run or a count in the state of `addressed_runs` stops here, and fits in a byte


class Visits(NamedTuple):
    """The writes of a sequence, sorted by address and then by time, and what each read finds."""

    order: Tensor  # (B,T): the time of each sorted write
    row: Tensor  # (B,T): its address, -1 first
    first: Tensor  # (B,T): the place among the sorted writes where those to its address begin
    found: Tensor  # (B,T), by time: the place of the last write that the read at t sees
    seen: Tensor  # (B,T) bool, by time: whether there is one; if not, `found` means nothing


def sort_visits(read: Tensor, write: Tensor) -> Visits:
    """Sort the writes, and find for each read the last write to its address, its own step included.

    Shapes   read, write (B,T) int64, -1 for none  ->  Visits
    Cost     time O(T log T)
    """
    T = write.shape[1]
    time = torch.arange(T, device=write.device)
    keys, order = (write * T + time).sort(dim=1)  # no two are equal
    row = write.gather(1, order)
    begins = F.pad(row[:, 1:] != row[:, :-1], (1, 0), value=True)
    first = torch.where(begins, time, 0).cummax(dim=1).values
    before = torch.searchsorted(keys, read * T + time, right=True)  # how many writes stand before
    found = (before - 1).clamp(min=0)
    seen = (read >= 0) & (before > 0) & (row.gather(1, found) == read)
    return Visits(order, row, first, found, seen)


def addressed_sum(
    read: Tensor,
    write: Tensor,
    v: Tensor,
    S: Tensor,
    log_decay: float = 0.0,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Let the row at one address fade and add a value to it; read the row at another.

        S_t = S_{t-1},  then  S_t[write_t] = exp(g) S_{t-1}[write_t] + v_t        y_t = S_t[read_t]

    With g = 0 it is `linear_attention` with one-hot q and k. A row fades when it is written, not
    with time. With v = 1 and g = 0 it counts; the quotient of a sum and its count is the mean.
    Each row is summed from its own values alone, in chunks: the difference of two running sums
    over the sorted values would carry the rounding errors of all rows before it.

    Shapes   read, write (B,T) int64   v (B,T,V)   S (B,A,V)   log_decay g, at most 0
             ->  y (B,T,V), S (B,A,V), in float32 or wider
    State    A V numbers, for any T
    Cost     time O(T (log T + C V)) in chunks of C, memory O(T (C + V)); for the new state O(A V)
    Twin     addressed_sum_loop, equal to 1e-12 in float64
    """
    v, S = _widen(v), _widen(S)
    visits = sort_visits(read, write)
    writes = torch.arange(v.shape[1], device=v.device) - visits.first + 1  # to this row so far
    old = _rows(S, visits.row) * _fade(log_decay, writes, v.dtype)[..., None]
    with _disable_autocast(v.device):
        sums = _sum_by_row(_permute(v, visits.order), visits.row, log_decay, chunk)
    return _read_rows(visits, old + sums, S, read)


def _sum_by_row(v, row, log_decay, chunk):
    """Add to each sorted value those before it in its row.

    Within a chunk, one matrix says which values are added; between chunks, the sum of an unfinished
    row is carried.

    Shapes   v (B,T,V), row (B,T)  ->  (B,T,V)
    """
    T, C = v.shape[1], min(chunk, v.shape[1])
    v = F.pad(v, (0, 0, 0, -T % C)).unflatten(1, (-1, C))  # (B,N,C,V) in N chunks
    row = F.pad(row, (0, -T % C)).unflatten(1, (-1, C))
    steps = torch.arange(C, device=v.device)
    fade = _fade(log_decay, (steps[:, None] - steps).clamp(min=0), v.dtype).tril()  # (C,C)
    sums = (fade * (row[..., :, None] == row[..., None, :])) @ v
    goes_on = F.pad(row[:, 1:] == row[:, :-1, -1:], (0, 0, 1, 0))  # from the chunk before
    share = (goes_on * _fade(log_decay, steps + 1, v.dtype))[..., None]  # (B,N,C,1) of the carry
    carry = [torch.zeros_like(v[:, 0, 0])]
    ends = sums[:, :-1, -1].unbind(dim=1), share[:, :-1, -1].unbind(dim=1)
    for last, kept in zip(*ends, strict=True):
        carry.append(last + kept * carry[-1])
    sums = sums + share * torch.stack(carry, dim=1)[:, :, None]
    return sums.flatten(1, 2)[:, :T]


def _fade(log_decay, steps, dtype):
    """The share of a row that so many writes leave of it."""
    return (log_decay * steps.to(dtype)).exp()


def addressed_sum_loop(
    read: Tensor, write: Tensor, v: Tensor, S: Tensor, log_decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The definition of `addressed_sum`."""
    outputs = []
    for t in range(v.shape[1]):
        S = torch.where(_at(write[:, t], S), math.exp(log_decay) * S + v[:, t, None], S)
        outputs.append(torch.where(_at(read[:, t], S), S, 0).sum(1))
    return torch.stack(outputs, dim=1), S


def addressed_last(read: Tensor, write: Tensor, v: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the row at one address by a value; read the row at another.

        S_t = S_{t-1},  then  S_t[write_t] = v_t        y_t = S_t[read_t]

    This is `delta_rule` with one-hot q and k and beta = 1.

    Shapes   read, write (B,T) int64   v (B,T,V)   S (B,A,V)
             ->  y (B,T,V), S (B,A,V), in the dtype of the given S, whole numbers included
    State    A V numbers, for any T
    Cost     time O(T (log T + V)), memory O(T V); for the new state O(A V)
    Twin     addressed_last_loop, equal exactly
    """
    visits = sort_visits(read, write)
    return _read_rows(visits, _permute(v, visits.order), S, read)


def addressed_last_loop(read: Tensor, write: Tensor, v: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The definition of `addressed_last`."""
    outputs = []
    for t in range(v.shape[1]):
        S = torch.where(_at(write[:, t], S), v[:, t, None].to(S.dtype), S)
        outputs.append(torch.where(_at(read[:, t], S), S, 0).sum(1, dtype=S.dtype))
    return torch.stack(outputs, dim=1), S


def addressed_runs(
    read: Tensor, write: Tensor, x: Tensor, S: Tensor, owners: int = 1
) -> tuple[Tensor, Tensor]:
    """Keep at one address what was written there and how often; read another address.

        y = (last, other, run, count)    last    the number that was written last
                                         other   the last one that differed from it, or 0
                                         run     how many of the latest writes were `last`
                                         count   how many writes there were

    So `last` is `addressed_last`, and `count` an `addressed_sum` of ones. Runs and counts stop at
    255, so that a row takes five bytes where the numbers are bytes, however long the text.

    `owners` addresses share one row, which belongs to the one that wrote last: another one finds
    zeros there, and starts anew when it writes. A memory that is full thus forgets the oldest,
    instead of mixing unrelated histories.

    Shapes   read, write (B,T) int64, in 0 … A owners - 1 or -1   x (B,T) int64
             S (B,A,5) of an integer type: the owner and its numbers  ->  y (B,T,4), S (B,A,5)
    State    5 A numbers, for any T
    Cost     time O(T log T), memory O(T); for the new state O(A)
    Twin     addressed_runs_loop, equal exactly
    """
    row, reader = _split(read, owners)
    rows, owner = _split(write, owners)
    visits = sort_visits(row, rows)
    time = torch.arange(x.shape[1], device=x.device)
    x, owner = x.gather(1, visits.order), owner.gather(1, visits.order)
    taken = (visits.first == time) | _differs(owner)
    first = torch.where(taken, time, 0).cummax(dim=1).values  # write of this owner
    began = torch.where(taken | _differs(x), time, 0).cummax(dim=1).values  # where the run began
    before = _rows(S, visits.row).long()  # these writes
    known = (before[..., 0] == owner) & (first == visits.first)
    _, last, other, run, count = (before * known[..., None]).unbind(dim=2)
    fresh = began > first  # after another run among these writes
    repeats = (last == x) & (count > 0) & ~fresh  # the run began before these writes
    previous = x.gather(1, (began - 1).clamp(min=0))
    other = torch.where(fresh, previous, torch.where(repeats, other, last))
    run = time - began + 1 + torch.where(repeats, run, 0)
    count = time - first + 1 + count
    after = torch.stack((owner, x, other, run.clamp(max=_MOST), count.clamp(max=_MOST)), dim=2)
    y, S = _read_rows(visits, after, S, row)
    return y[..., 1:] * (y[..., :1] == reader[..., None]), S


def _split(address, owners):
    """The row of an address, and its number among the row's owners; the row of -1 is -1."""
    return address.div(owners, rounding_mode="floor"), address.remainder(owners)


def _differs(x):
    """Whether each number differs from the one before it.  Shapes  (B,T) -> (B,T) bool"""
    return F.pad(x[:, 1:] != x[:, :-1], (1, 0))


def addressed_runs_loop(
    read: Tensor, write: Tensor, x: Tensor, S: Tensor, owners: int = 1
) -> tuple[Tensor, Tensor]:
    """The definition of `addressed_runs`."""
    S, outputs = S.clone(), []
    for t in range(x.shape[1]):
        outputs.append(S.new_zeros(len(S), 4))
        for b, table in enumerate(S):
            row, owner = divmod(write[b, t].item(), owners)
            if row >= 0:
                before, last, other, run, count = table[row].tolist()
                if before != owner:
                    last = other = run = count = 0
                if count and last == x[b, t]:
                    run += 1
                else:
                    other, run = last, 1
                after = owner, x[b, t].item(), other, min(run, _MOST), min(count + 1, _MOST)
                table[row] = torch.tensor(after, dtype=S.dtype)
            row, owner = divmod(read[b, t].item(), owners)
            if row >= 0 and table[row, 0] == owner:
                outputs[-1][b] = table[row, 1:]
    return torch.stack(outputs, dim=1), S


def _read_rows(visits, after, S, read):
    """What each read finds, and the new state, given the row that each sorted write leaves.

    Shapes   after (B,T,V), S (B,A,V), read (B,T)  ->  y (B,T,V), S (B,A,V)
    """
    after = after.to(S.dtype)
    old = _rows(S, read) * (read >= 0)[..., None]
    y = torch.where(visits.seen[..., None], _permute(after, visits.found), old)
    # Only the last write to a row stays: the others go to a row that is cut off again.
    ends = F.pad(visits.row[:, 1:] != visits.row[:, :-1], (0, 1), value=True)
    place = torch.where(ends, visits.row, -1) + 1
    S = torch.cat((torch.zeros_like(S[:, :1]), S), dim=1)
    return y, S.scatter_(1, place[..., None].expand_as(after), after)[:, 1:]


def _rows(S, address):
    """The rows at the addresses, and for -1 any row.  Shapes  (B,A,V), (B,T) -> (B,T,V)"""
    return S.gather(1, address.clamp(min=0)[..., None].expand(-1, -1, S.shape[2]))


def _permute(x, order):
    """Steps of a sequence by number: x.gather along the time, but moving whole rows of V.

    Shapes   x (B,T,V), order (B,T)  ->  (B,T,V)
    """
    B, T = order.shape
    flat = order + T * torch.arange(B, device=order.device)[:, None]
    return x.flatten(0, 1).index_select(0, flat.flatten()).unflatten(0, (B, T))


def _at(address, S):
    """Which row an address means: (B,), (B,A,V) -> (B,A,1) bool; none for -1."""
    return (address[:, None] == torch.arange(S.shape[1], device=S.device))[..., None]
