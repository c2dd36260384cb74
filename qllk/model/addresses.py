"""Sums with an address: each step writes to one row of a state and reads from one.

    S_t = S_{t-1},  then  S_t[write_t] += v_t        y_t = S_t[read_t]

This is linear attention whose keys and queries are one-hot: instead of H K V numbers that every
step changes, the state has A rows, of which a step touches two. Over a whole sequence the writes
are sorted by address and then by time, so that those of one row stand next to each other, and the
sum runs within each row: O(T log T) and no table of T x T. Streaming reads and writes one row.

Axes     B batch, T time, A addresses, V value width
Address  0 … A-1, or -1: such a step writes or reads nothing
State    S (B,A,…), a new value; default: zeros
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
    """The writes of a sequence sorted by address, then by time, and how each read finds its own."""

    order: Tensor  # (B,T): the time of each sorted write
    row: Tensor  # (B,T): its address, -1 first
    first: Tensor  # (B,T): where the writes of its address begin
    found: Tensor  # (B,T), by time: the last write that the read at t sees
    seen: Tensor  # (B,T) bool, by time: whether there is one


def sort_visits(read: Tensor, write: Tensor) -> Visits:
    """Sort the writes, and find for each read the last write to its address, its own step included.

    Shapes   read, write (B,T) int64, -1 for none  ->  Visits
    Cost     time O(T log T)
    """
    T = write.shape[1]
    time = torch.arange(T, device=write.device)
    keys = (write * T + time).sort(dim=1).values  # no two are equal
    row = keys.div(T, rounding_mode="floor")
    begins = F.pad(row[:, 1:] != row[:, :-1], (1, 0), value=True)
    first = torch.where(begins, time, 0).cummax(dim=1).values
    found = torch.searchsorted(keys, read * T + time, right=True) - 1
    seen = (read >= 0) & (found >= 0) & (row.gather(1, found.clamp(min=0)) == read)
    return Visits(keys.remainder(T), row, first, found.clamp(min=0), seen)


def addressed_sum(
    read: Tensor,
    write: Tensor,
    v: Tensor,
    S: Tensor,
    log_decay: float = 0.0,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Add each value to the row at its address, which first forgets a little; read another row.

        S_t = S_{t-1},  then  S_t[write_t] = exp(g) S_{t-1}[write_t] + v_t        y_t = S_t[read_t]

    With g = 0 it is `linear_attention` with one-hot q and k. A row decays when it is written, not
    with time. With v = 1 and g = 0 it counts; the quotient of a sum and its count is the mean.
    Rows are summed up from their own values alone, in chunks: taking the difference of two sums
    over the whole sequence instead would lose a row's sum in the rounding of everybody else's.

    Shapes   read, write (B,T) int64   v (B,T,V)   S (B,A,V)   log_decay g, at most 0
             ->  y (B,T,V), S (B,A,V), in float32 or wider
    State    A V numbers, for any T
    Cost     time O(T (log T + C V)) in chunks of C, and O(A V) for the new state; memory O(T V)
    Twin     addressed_sum_loop, equal to 1e-12 in float64
    """
    v, S = _widen(v), _widen(S)
    visits = sort_visits(read, write)
    steps = torch.arange(v.shape[1], device=v.device) - visits.first + 1
    old = _gather(S, visits.row.clamp(min=0)) * _fade(log_decay, steps, v.dtype)[..., None]
    with _disable_autocast(v.device):
        sums = _sums_by_row(_gather(v, visits.order), visits.row, log_decay, chunk)
    return _read_rows(visits, old + sums, S, read)


def _sums_by_row(v, row, log_decay, chunk):
    """The sum of each value and those before it in its row; rows stand together.  (B,T,V)"""
    steps = torch.arange(min(chunk, v.shape[1]), device=v.device)
    ages = steps[:, None] - steps
    fade = _fade(log_decay, ages.clamp(min=0), v.dtype).tril()  # (C,C)
    shares = _fade(log_decay, steps + 1, v.dtype)  # of what the row held before the chunk
    carry, last, pieces = torch.zeros_like(v[:, 0]), row[:, 0], []
    for piece, its in zip(v.split(chunk, dim=1), row.split(chunk, dim=1), strict=True):
        C = piece.shape[1]
        same = its[:, :, None] == its[:, None]
        kept = shares[:C] * (its == last[:, None])  # (B,C)
        sums = (fade[:C, :C] * same) @ piece + kept[..., None] * carry[:, None]
        carry, last = sums[:, -1], its[:, -1]
        pieces.append(sums)
    return torch.cat(pieces, dim=1)


def _fade(log_decay, steps, dtype):
    return (log_decay * steps.to(dtype)).exp()


def addressed_sum_loop(
    read: Tensor, write: Tensor, v: Tensor, S: Tensor, log_decay: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The definition of `addressed_sum`."""
    outputs = []
    for t in range(v.shape[1]):
        k, q = (_one_hot(x[:, t], S.shape[1]).to(S.dtype)[..., None] for x in (write, read))
        S = S - k * S + k * (math.exp(log_decay) * S + v[:, t, None])
        outputs.append((q * S).sum(1))
    return torch.stack(outputs, dim=1), S


def addressed_last(read: Tensor, write: Tensor, v: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Replace the row at one address by v; read another row.

        S_t = S_{t-1},  then  S_t[write_t] = v_t        y_t = S_t[read_t]

    This is `delta_rule` with one-hot keys and a strength of 1, for values of any dtype.

    Shapes   read, write (B,T) int64   v (B,T,V)   S (B,A,V)  ->  y (B,T,V), S (B,A,V)
    State    A V numbers, for any T
    Cost     time O(T (log T + V)), and O(A V) for the new state; memory O(T V)
    Twin     addressed_last_loop, equal exactly
    """
    visits = sort_visits(read, write)
    return _read_rows(visits, _gather(v, visits.order), S, read)


def addressed_last_loop(read: Tensor, write: Tensor, v: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """The definition of `addressed_last`."""
    outputs = []
    for t in range(v.shape[1]):
        k, q = (_one_hot(x[:, t], S.shape[1]).to(S.dtype)[..., None] for x in (write, read))
        S = S - k * S + k * v[:, t, None]
        outputs.append((q * S).sum(1, dtype=S.dtype))
    return torch.stack(outputs, dim=1), S


def addressed_runs(
    read: Tensor, write: Tensor, x: Tensor, S: Tensor, owners: int = 1
) -> tuple[Tensor, Tensor]:
    """Keep the history of whole numbers at each address in four of them; read another address.

        (last, other, run, count)    last    what was written last
                                     other   the last one that differed from it, else 0
                                     run     how many of the last writes were `last`
                                     count   how many writes there were

    So `last` is `addressed_last`, and `count` an `addressed_sum` of ones. Runs and counts stop at
    255: a row of ids below 256 fits in bytes, and a long stream cannot make it grow.

    `owners` addresses share one row, and the last one that wrote owns it: another one finds
    nothing, and starts anew when it writes. So a memory that is full forgets what is oldest,
    instead of mixing up unrelated histories.

    Shapes   read, write (B,T) int64, in 0 … A owners - 1 or -1   x (B,T) int64
             S (B,A,5) of an integer type: the owner, and its four numbers
             ->  y (B,T,4), S (B,A,5)
    State    5 A numbers, for any T
    Cost     time O(T log T), and O(A) for the new state; memory O(T)
    Twin     addressed_runs_loop, equal exactly
    """
    row, owner = _split(read, owners)
    rows, writer = _split(write, owners)
    visits = sort_visits(row, rows)
    x, writer = x.gather(1, visits.order), writer.gather(1, visits.order)
    time = torch.arange(x.shape[1], device=x.device)
    taken = (visits.first == time) | F.pad(writer[:, 1:] != writer[:, :-1], (1, 0))
    first = torch.where(taken, time, 0).cummax(dim=1).values  # of the owner's writes
    began = taken | F.pad(x[:, 1:] != x[:, :-1], (1, 0))
    began = torch.where(began, time, 0).cummax(dim=1).values  # of the run
    old = _gather(S, visits.row.clamp(min=0)).long()
    old = old * ((old[..., 0] == writer) & (first == visits.first))[..., None]
    _, last, other, run, count = old.unbind(dim=2)
    fresh = began > first  # the run follows another one among these writes
    repeats = (last == x) & (count > 0) & ~fresh
    before = x.gather(1, (began - 1).clamp(min=0))
    other = torch.where(fresh, before, torch.where(repeats, other, last))
    run = time - began + 1 + torch.where(repeats, run, 0)
    count = time - first + 1 + count
    after = (writer, x, other, run.clamp(max=_MOST), count.clamp(max=_MOST))
    y, S = _read_rows(visits, torch.stack(after, dim=2).to(S.dtype), S, row)
    return y[..., 1:] * (y[..., :1] == owner[..., None]), S


def _split(address, owners):
    """The row of an address and its number among the row's owners; -1 has the row -1."""
    return address.div(owners, rounding_mode="floor"), address.remainder(owners)


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
                    last, other, run, count = 0, 0, 0, 0
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
    """What each read finds, and the new state, given every row as it is after each sorted write.

    Shapes   after (B,T,V), S (B,A,V), read (B,T)  ->  y (B,T,V), S (B,A,V)
    """
    A = S.shape[1]
    old = _gather(S, read.clamp(min=0)) * (read >= 0)[..., None]
    y = torch.where(visits.seen[..., None], _gather(after, visits.found), old)
    # Only the last write to a row stays: the others go to a row that is cut off again.
    ends = F.pad(visits.row[:, 1:] != visits.row[:, :-1], (0, 1), value=True)
    row = torch.where(ends & (visits.row >= 0), visits.row, A)
    index = row[..., None].expand_as(after)
    return y, F.pad(S, (0, 0, 0, 1)).scatter(1, index, after)[:, :A]


def _gather(rows, index):
    """Rows by number.  Shapes  (B,N,V), (B,T) -> (B,T,V)"""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def _one_hot(address, A):
    """(B,) -> (B,A); a row of zeros for -1."""
    return address[:, None] == torch.arange(A, device=address.device)
