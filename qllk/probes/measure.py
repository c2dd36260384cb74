"""Time, memory, operations and scaling exponents, to test claims about speed.

Seconds are noisy and specific to a machine: compare them only as ratios within one run. Bytes,
numbers and operations are counted, so they are the same everywhere.
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def median_seconds(run: Callable[[], object], *, repeats: int = 5, at_least: float = 0.0) -> float:
    """The median time of one call, after a warm-up call.

    There are at least `repeats` calls, and more until they took `at_least` seconds together.
    """
    run()
    times, begun = [], time.perf_counter()
    while len(times) < repeats or time.perf_counter() - begun < at_least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch with one thread; with more, small operations mostly measure synchronisation."""
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


def median_cpu_seconds(runs: Sequence[Callable[[], object]], *, rounds: int = 100) -> list[float]:
    """The median CPU time of one call of each, on one core, without gradients.

    Each round calls each of them once, after a round that does not count: what slows this process
    for a while slows all of them. On a busy machine, differences of a few percent are still seen.
    """
    times = []
    with single_thread(), torch.inference_mode():
        for _ in range(rounds + 1):
            marks = [time.process_time()]
            for run in runs:
                run()
                marks.append(time.process_time())
            times.append([after - before for before, after in pairwise(marks)])
    return [statistics.median(some) for some in zip(*times[1:], strict=True)]


class _Exponent(NamedTuple):
    """y grows like x ** exponent; between neighbouring points the exponent is `low` to `high`."""

    exponent: float
    low: float
    high: float

    def __str__(self):
        return f"{self.exponent:.2f} ({self.low:.2f} to {self.high:.2f} between neighbours)"


def fit_exponent(xs: Sequence[float], ys: Sequence[float]) -> _Exponent:
    """Fit the scaling exponent of y in x: the least-squares slope of log y against log x.

    Raises   ValueError for fewer than two points, unequal lengths, or numbers that are not above 0
    """
    if len(xs) != len(ys) or len(xs) < 2 or min(*xs, *ys) <= 0:
        raise ValueError(
            f"an exponent needs at least two pairs of numbers above 0, got {list(xs)} and "
            f"{list(ys)}"
        )
    u, v = [math.log(x) for x in xs], [math.log(y) for y in ys]
    slope = statistics.linear_regression(u, v).slope
    steps = [(v[i + 1] - v[i]) / (u[i + 1] - u[i]) for i in range(len(u) - 1)]
    return _Exponent(slope, min(steps), max(steps))


def crossover(xs: Sequence[float], first: Sequence[float], second: Sequence[float]) -> float | None:
    """The x where the second curve falls below the first, or None if it never does.

    Between points, the curves are straight lines on logarithmic axes.
    """
    gaps = [math.log(a / b) for a, b in zip(first, second, strict=True)]
    for (x0, g0), (x1, g1) in pairwise(zip(xs, gaps, strict=True)):
        if g0 <= 0 < g1:
            return math.exp(math.log(x0) - g0 / (g1 - g0) * math.log(x1 / x0))
    return xs[0] if gaps[0] > 0 else None


class _MemoryTrace(NamedTuple):
    """The memory of one call."""

    peak_bytes: int  # the most bytes alive at once
    numbers_made: int  # the numbers in all tensors created


def trace_memory(run: Callable[[], object]) -> _MemoryTrace:
    """Count the tensors that `run` creates, including those of a backward pass.

    Tensors that existed before do not count. Scratch memory inside a fused operation is not seen.
    """
    with _Watch() as watch:
        kept = run()  # stays alive until the count ends
        del kept
    return _MemoryTrace(watch.peak, watch.made)


class _Watch(TorchDispatchMode):
    """Adds a storage when an operation first returns it, and subtracts it when it is freed."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = self.made = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        given = {_address(value) for value in tree_leaves((args, kwargs)) if _is_strided(value)}
        for value in filter(_is_strided, tree_leaves(result)):
            if (address := _address(value)) in given:  # a view, or written in place
                continue
            self.made += value.numel()
            if address not in self._known:
                self._add(value.untyped_storage(), address)
        return result

    def _add(self, storage, address):
        self._known.add(address)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, address, storage.nbytes())

    def _drop(self, address, size):
        self._known.discard(address)
        self.live -= size


def _is_strided(value):
    return isinstance(value, torch.Tensor) and value.layout == torch.strided


def _address(tensor):
    return tensor.untyped_storage()._cdata


def saved_bytes(run: Callable[[], object]) -> int:
    """The bytes that the forward pass `run` saves for a backward pass, without the weights.

    Memory that is saved twice counts once. A custom operation that keeps tensors by other means
    than `save_for_backward` is not seen.
    """
    saved = {}

    def pack(tensor):
        owner = tensor if tensor._base is None else tensor._base
        if not isinstance(owner, torch.nn.Parameter):
            storage = tensor.untyped_storage()  # kept, so that its address is not reused
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in saved.values())


def count_flops(run: Callable[[], object]) -> int:
    """The floating-point operations of a call in matrix products, convolutions and attention.

    A multiply-add counts as two. Elementwise operations do not count. Fused attention is computed
    as its two matrix products, because torch's counter does not see it on a CPU; this counts the
    whole table of scores, including the masked half.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()
