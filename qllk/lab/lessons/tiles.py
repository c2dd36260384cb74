"""Lesson 13, Tile the attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...model import kernels, masks
from ...probes import measure
from ...study.figures import Bars, Heat, Note
from ..explore import explorer, slider, switch
from ..ledger import DOES_NOT, HOLDS, IN_PART, Claim, holds_if
from ..show import TEXT, letters_of, tiny
from .exercises.tiles import kinds, step

CHANNELS, SEED = 4, 1  # of the small tensors in the lesson

# ---------------------------------------------------------------- the cost model


class FastMemory:
    """A fast memory of `size` numbers that counts what is moved between it and a slow one.

    Whatever is computed with is loaded first, and a result is made here. Arithmetic is free.

    State    held: numbers in it now; most: at any time; moved: loads and stores so far
    Raises   ValueError when something does not fit
    """

    def __init__(self, size: int):
        self.size = size
        self.held = self.most = self.moved = 0

    def make(self, x: Tensor) -> Tensor:
        """Make room for x."""
        self.held += x.numel()
        self.most = max(self.most, self.held)
        if self.held > self.size:
            raise ValueError(
                f"a fast memory of {self.size:,} numbers cannot hold {self.held:,}; take smaller "
                "tiles"
            )
        return x

    def load(self, x: Tensor) -> Tensor:
        self.moved += x.numel()
        return self.make(x)

    def store(self, x: Tensor) -> Tensor:
        self.moved += x.numel()
        return x

    @contextmanager
    def room(self) -> Iterator[None]:
        """Drop at the end of the block what was loaded or made in it."""
        before = self.held
        yield
        self.held = before


def attend_by_table(q, k, v, memory: FastMemory, rows: int, columns: int) -> Tensor:
    """Attention in three operations, each of which loads and stores the whole table.

    Shapes   q (N,K)   k (N,K)   v (N,V)  ->  o (N,V)
    """
    table, outputs = q.new_empty(len(q), len(k)), []
    for q_tile, band in zip(q.split(rows), table.split(rows), strict=True):
        with memory.room():  # the scores
            q_tile = memory.load(q_tile)
            for k_tile, tile in zip(k.split(columns), band.split(columns, dim=1), strict=True):
                with memory.room():
                    scores = q_tile @ memory.load(k_tile).T * q.shape[1] ** -0.5
                    tile.copy_(memory.store(memory.make(scores)))
    for row in table:
        with memory.room():  # the softmax
            row.copy_(memory.store(memory.load(row).softmax(dim=0)))
    for band in table.split(rows):
        with memory.room():  # the average
            o = memory.make(torch.zeros(len(band), v.shape[1], dtype=v.dtype))
            for tile, v_tile in zip(band.split(columns, dim=1), v.split(columns), strict=True):
                with memory.room():
                    o += memory.load(tile) @ memory.load(v_tile)
            outputs.append(memory.store(o))
    return torch.cat(outputs)


class Visit(NamedTuple):
    """A tile while it is in fast memory: its place, the running maximum and sum of its queries,
    and what the memory holds and has moved."""

    row: int
    column: int
    m: Tensor
    total: Tensor
    held: int
    moved: int


def visit_tiles(
    q, k, v, o, memory: FastMemory, rows: int, columns: int, causal: bool = False
) -> Iterator[Visit]:
    """Attention tile by tile: writes into o, yields after each tile, and stores no table.

    Shapes   q (N,K)   k (N,K)   v (N,V)   o (N,V)
    """
    for row, (q_tile, out) in enumerate(zip(q.split(rows), o.split(rows), strict=True)):
        with memory.room():
            q_tile, first = memory.load(q_tile), row * rows
            m = memory.make(q.new_full((len(q_tile),), -math.inf))
            total, sums = memory.make(torch.zeros_like(m)), memory.make(torch.zeros_like(out))
            end = first + len(q_tile) if causal else len(k)
            for column in range(0, end, columns):
                with memory.room():
                    k_tile, v_tile = (memory.load(x[column : column + columns]) for x in (k, v))
                    scores = memory.make(q_tile @ k_tile.T * q.shape[1] ** -0.5)
                    if causal:
                        late = torch.arange(len(k_tile)) + column
                        scores[late > first + torch.arange(len(q_tile))[:, None]] = -math.inf
                    m, total, sums = step(m, total, sums, scores, v_tile)
                    yield Visit(first, column, m, total, memory.held, memory.moved)
            out.copy_(memory.store(sums / total[:, None]))
            memory.store(m + total.log())


def attend_in_tiles(
    q, k, v, memory: FastMemory, rows: int, columns: int, causal: bool = False
) -> Tensor:
    """All of `visit_tiles`.

    Shapes   q (N,K)   k (N,K)   v (N,V)  ->  o (N,V)
    """
    o = torch.empty_like(v)
    for _ in visit_tiles(q, k, v, o, memory, rows, columns, causal):
        pass
    return o


# ---------------------------------------------------------------- the claims

LENGTHS = (512, 1024, 2048)  # at which memory and traffic are measured
PUBLISHED = (128, 512)  # lengths of the published benchmarks
_LINEAR = 1.2  # the largest exponent that still counts as linear
_LARGE = 100.0  # what multiplies scores, so that exponentials overflow in float32


def _table_form(q, k, v):
    return kernels.softmax_attention(q, k, v, masks.causal_mask(q.shape[2], k.shape[2]))


def kept_bytes(attend: Callable, length: int, width: int = 64) -> int:
    """The bytes that attention with one head keeps for its backward pass."""
    q, k, v = (torch.zeros(1, 1, length, width, requires_grad=True) for _ in range(3))
    return measure.saved_bytes(lambda: attend(q, k, v))


@dataclass(frozen=True)
class Evidence:
    """What the tests look at.

    ratios     the seconds of the table divided by those of tiles, by length, from one run
    attend     causal attention q, k, v -> o, (B,H,T,K) each
    moved      maps a length to the numbers moved between slow and fast memory
    """

    ratios: dict[int, float]
    attend: Callable[..., Tensor]
    moved: Callable[[int], int]


def _online_equals_softmax(seen):
    """In float32, as close to float64 as the table in float32 is: for small scores and large."""
    generator, close, gaps = torch.Generator().manual_seed(0), [], []
    q, k, v = torch.randn(3, 1, 2, 200, 16, generator=generator)
    for size in (1.0, _LARGE):
        exact = _table_form(*(x.double() for x in (size * q, k, v)))
        gap, rounding = (
            (attend(size * q, k, v).double() - exact).abs().max().item()
            for attend in (seen.attend, _table_form)
        )
        gaps.append(f"{gap:.0e}")
        close.append(gap <= 4 * rounding + 1e-6)  # False for nan
    verdict = HOLDS if all(close) else IN_PART if close[0] else DOES_NOT
    return verdict, f"gaps of {gaps[0]}, and {gaps[1]} with scores {_LARGE:.0f} times as large"


def _linear_in_length(seen):
    """Both halves of the claim: what is kept, and what is moved."""
    counted = [kept_bytes(seen.attend, N) for N in LENGTHS], [seen.moved(N) for N in LENGTHS]
    exponents = [measure.fit_exponent(LENGTHS, numbers).exponent for numbers in counted]
    linear = [exponent <= _LINEAR for exponent in exponents]
    verdict = HOLDS if all(linear) else IN_PART if any(linear) else DOES_NOT
    return verdict, "exponents: {:.2f} of memory, {:.2f} of numbers moved".format(*exponents)


def _twice_as_fast(seen):
    """At the lengths of the published benchmarks, or at least at some length."""
    fast = all(seen.ratios[length] >= 2 for length in PUBLISHED)
    words = ", ".join(f"{ratio:.1f} at {length:,}" for length, ratio in seen.ratios.items())
    otherwise = IN_PART if max(seen.ratios.values()) >= 2 else DOES_NOT
    return holds_if(fast, otherwise), f"times as fast: {words}"


CLAIMS = (
    Claim("L45", "online softmax equals softmax", _online_equals_softmax),
    Claim("L46", "memory and accesses O(N²) -> O(N)", _linear_in_length),
    Claim("L47", "two to four times as fast", _twice_as_fast),
)


# ---------------------------------------------------------------- widget


def _map(visits: list[Visit], here: int, rows: int, columns: int) -> Heat:
    """The table of pairs: the tile in fast memory in dark blue, earlier ones in light blue, and in
    orange those that are never visited."""
    N, letters = len(TEXT), letters_of(TEXT)
    table = torch.full((N, N), -0.35)
    for i, visit in enumerate(visits):
        level = 1.0 if i == here else 0.3 if i < here else 0.0
        table[visit.row : visit.row + rows, visit.column : visit.column + columns] = level
    never = (table < 0).sum().item()
    said = f"Tile {here + 1} of {len(visits)} is in fast memory; {never} pairs are never computed."
    title = "dark: in fast memory" + ("; orange: never" if never else "")
    return Heat(title, table.tolist(), letters, letters, said=said)


@explorer(
    "Which side of a tile decides how much is moved?",
    rows=slider("queries", [2, 4, 8, 16]),
    columns=slider("keys", [2, 4, 8]),
    percent=slider("percent done", list(range(0, 101, 20))),
    causal=switch("causal"),
)
def walk(rows: int = 4, columns: int = 4, percent: int = 40, causal: bool = True):
    """Which tile is in fast memory, what is known of its queries, and what has been moved."""
    _, q, k, v = (x[0] for x in tiny(CHANNELS, SEED, "q", "k", "v"))
    memory, N = FastMemory(10**6), len(TEXT)
    visits = list(visit_tiles(q, k, v, torch.empty_like(v), memory, rows, columns, causal))
    by_table = FastMemory(10**6)
    attend_by_table(q, k, v, by_table, rows, columns)
    here = round(percent / 100 * (len(visits) - 1))
    visit = visits[here]
    known = Heat(
        f"after tile {here + 1} of {len(visits)}",
        torch.stack((visit.m, visit.total), dim=1).tolist(),
        letters_of(TEXT)[visit.row : visit.row + rows],
        ["max", "sum"],
        numbers=True,
    )
    moved = {
        "so far": visit.moved,
        "in the end": memory.moved,
        "with the table": by_table.moved,
    }
    empty, masked, full = kinds(N, rows, columns)
    pairs = f"{empty} tiles hold no pair, {masked} need the mask, {full} do not"
    note = Note(
        f"{rows} queries by {columns} keys",
        [
            f"fast memory must hold {memory.most:,} numbers, now {visit.held:,}",
            pairs if causal else f"{len(visits)} tiles, none of them empty",
        ],
    )
    return [
        (_map(visits, here, rows, columns), known),
        Bars("numbers moved", moved, "numbers"),
        note,
    ]
