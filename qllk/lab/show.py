"""What a cell shows: equality, source, rounded numbers; and how large its numbers are."""

from __future__ import annotations

import inspect
import os

import torch

TEXT = b"abracadabra abra"  # the one string of the course: sixteen bytes, two patches of eight


def fast() -> bool:
    """Whether QLLK_FAST asks for the smallest sizes."""
    return os.environ.get("QLLK_FAST", "0") not in ("", "0")


def sized(full, small):
    """`small` where QLLK_FAST asks for it, else `full`. What a lesson says is true of both."""
    return small if fast() else full


def same(first, second, within: float = 1e-9) -> None:
    """Say that two tensors are equal up to `within`; raise if they are not.

    Raises   AssertionError naming the first place where they differ, or their shapes
    """
    first, second = torch.as_tensor(first), torch.as_tensor(second)
    if first.shape != second.shape:
        raise AssertionError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")
    gaps = (first.detach().double() - second.detach().double()).abs()
    if not (gaps <= within).all():  # so that nan is not the same as anything
        where = tuple((~(gaps <= within)).nonzero()[0].tolist())
        a, b = first[where].item(), second[where].item()
        raise AssertionError(f"they differ, first at {where}: {a:.6g} and {b:.6g}")
    size = " x ".join(map(str, first.shape)) or "one number"
    print(f"same: {size}, no gap above {within:g}")


def show(thing) -> None:
    """Print the source of a function or class of the library: what the tests test."""
    module = inspect.getmodule(thing)
    print(f"# {module.__name__.replace('.', '/')}.py")
    print(inspect.getsource(thing).rstrip())


def digits(x, places: int = 3) -> None:
    """Print a tensor, rounded so that no other machine prints another last digit."""
    x = torch.as_tensor(x).detach().double()
    rounded = torch.round(x, decimals=places) + 0.0  # no -0
    if x.ndim < 2:
        print(_row(rounded.reshape(-1), places))
        return
    for row in rounded.reshape(-1, x.shape[-1]):
        print(_row(row, places))


def _row(row, places):
    return " ".join(f"{value:{places + 4}.{places}f}" for value in row.tolist())


def tiny(d: int = 4, seed: int = 0, *names: str):
    """The course's string embedded, and small random projections of it, in float64.

        x, q, k, v = tiny(4, 0, "q", "k", "v")

    Shapes   -> x (1,16,d), then one (1,16,d) for each name
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(256, d, generator=generator, dtype=torch.float64)
    x = table[list(TEXT)][None]
    weights = [torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in names]
    return x, *(x @ w * d**-0.5 for w in weights)
