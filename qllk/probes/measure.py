"""Time, memory, work and growth, as data: what a claim about speed is tested with.

Seconds are noisy and belong to one machine: compare them as ratios inside one run. Bytes, numbers
and operations are counted, so they are the same everywhere.
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def median_seconds(run: Callable[[], object], *, repeats=5, at_least=0.0) -> float:
    """The median time of one call, after a call to warm up.

    Repeats go on until `at_least` seconds are spent, for what is too quick to time once.
    """
    run()
    times, begun = [], time.perf_counter()
    while len(times) < repeats or time.perf_counter() - begun < at_least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def single_thread():
    """One thread for torch: two cores that wait for each other would be all that a clock sees."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare_seconds(
    runs: Sequence[Callable[[], object]], *, rounds: int = 3, at_least: float = 0.01
) -> list[float]:
    """The seconds of one call of each, measured in turns on one core, without gradients.

    Each is the lowest of a few medians, since other work on the machine can only add time.
    """
    with single_thread(), torch.inference_mode():
        times = [[median_seconds(run, at_least=at_least) for run in runs] for _ in range(rounds)]
    return [min(some) for some in zip(*times, strict=True)]


class Exponent(NamedTuple):
    """How y grows with x: y is about x ** exponent, between `low` and `high` for every pair of
    neighbours."""

    exponent: float
    low: float
    high: float

    def __str__(self):
        return f"{self.exponent:.2f} ({self.low:.2f} to {self.high:.2f} between neighbours)"


def fit_exponent(xs: Sequence[float], ys: Sequence[float]) -> Exponent:
    """The slope of the straight line through log y against log x, by least squares.

    Raises   ValueError for fewer than two points, unequal lengths, or numbers that are not above 0
    """
    if len(xs) != len(ys) or len(xs) < 2 or min(*xs, *ys) <= 0:
        raise ValueError(
            f"growth needs two or more pairs of numbers above 0, got {list(xs)} and {list(ys)}"
        )
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    slope = statistics.linear_regression(u, v).slope
    steps = [(v[i + 1] - v[i]) / (u[i + 1] - u[i]) for i in range(len(u) - 1)]
    return Exponent(slope, min(steps), max(steps))


def crossover(xs, first, second) -> float | None:
    """The x from which the second curve lies below the first, straight lines between the points on
    logarithmic axes; none if it never does.
    """
    gaps = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    for (x0, g0), (x1, g1) in pairwise(zip(xs, gaps, strict=True)):
        if g0 <= 0 < g1:
            return math.exp(math.log(x0) - g0 / (g1 - g0) * math.log(x1 / x0))
    return xs[0] if gaps[0] > 0 else None


class MemoryTrace(NamedTuple):
    """What a call made: the most bytes alive at once, and the numbers in all results."""

    peak_bytes: int
    numbers_made: int


def trace_memory(run: Callable[[], object]) -> MemoryTrace:
    """Count the tensors that `run` makes, a backward pass included. What existed before is free.

    Scratch space inside a single fused operation is not seen.
    """
    with _Watch() as watch:
        kept = run()  # alive until the end of the count
        del kept
    return MemoryTrace(watch.peak, watch.made)


class _Watch(TorchDispatchMode):
    """Adds a storage when an operation returns it for the first time, subtracts it when it dies."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.made = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given = {_place(value) for value in tree_leaves((args, kwargs)) if _has_place(value)}
        for value in filter(_has_place, tree_leaves(result)):
            if (place := _place(value)) in given:  # a view, or written in place
                continue
            self.made += value.numel()
            if place not in self._known:
                self._add(value.untyped_storage(), place)
        return result

    def _add(self, storage, place):
        self._known.add(place)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, place, storage.nbytes())

    def _drop(self, place, size):
        self._known.discard(place)
        self.live -= size


def _has_place(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _place(tensor):
    return tensor.untyped_storage()._cdata


def saved_bytes(run: Callable[[], object]) -> int:
    """What the forward pass `run` leaves for a backward pass, the weights themselves left out.

    Memory that is saved twice counts once. What an operation of one's own keeps by other means
    than `save_for_backward` is not seen.
    """
    saved = {}

    def pack(tensor):
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, torch.nn.Parameter):
            storage = tensor.untyped_storage()  # held, so that its place is not used again
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in saved.values())


def count_flops(run: Callable[[], object]) -> int:
    """Floating-point operations in the matrix products, convolutions and attention of a call.

    A multiply and an add count as two. Elementwise work is left out; `allocation` counts that.
    Fused attention is unfolded into its two products, since torch sees none in it on a CPU; so its
    whole table is counted, the hidden half included.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
