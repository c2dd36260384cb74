"""Helpers for notebook cells: compare tensors, print source and rounded numbers, choose sizes."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import TypeVar

import torch

_T = TypeVar("_T")

TEXT = b"abracadabra abra"  # the example of the whole course: 16 bytes, two patches of eight


def letters_of(text: bytes) -> list[str]:
    """The characters of an ASCII text for the axes of a picture, "_" for a space."""
    return list(text.decode().replace(" ", "_"))


def fast() -> bool:
    """Whether the environment variable QLLK_FAST asks for the smallest sizes."""
    return os.environ.get("QLLK_FAST", "0") not in ("", "0")


def sized(full: _T, small: _T) -> _T:
    """`small` if QLLK_FAST is set, else `full`. What a lesson claims must be true of both."""
    return small if fast() else full


def describe_error(error: BaseException) -> str:
    """The type of an error and what it says, whatever its own code does, in 500 characters."""
    try:
        said = str(error).strip()
    except BaseException:
        said = "it cannot say what happened"
    return f"{type(error).__name__}: {said[:500]}" if said else type(error).__name__


def same(first: torch.Tensor | float, second: torch.Tensor | float, within: float = 1e-9) -> None:
    """Print that two tensors are equal up to `within`, or raise.

    Raises   AssertionError with the first place where they differ, or with their shapes
    """
    first, second = torch.as_tensor(first), torch.as_tensor(second)
    if first.shape != second.shape:
        raise AssertionError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")
    gaps = (first.detach().double() - second.detach().double()).abs()
    if not (gaps <= within).all():  # written so that nan equals nothing
        where = tuple((~(gaps <= within)).nonzero()[0].tolist())
        a, b = first[where].item(), second[where].item()
        raise AssertionError(f"they differ, first at {where}: {a:.6g} and {b:.6g}")
    size = " x ".join(map(str, first.shape)) or "one number"
    print(f"same: {size}, no gap above {within:g}")


def show(thing: type | Callable) -> None:
    """Print the source of a function or class of the library, exactly as it is tested."""
    module = inspect.getmodule(thing)
    print(f"# {module.__name__.replace('.', '/')}.py")
    print(inspect.getsource(thing).rstrip())


def digits(x: torch.Tensor | float, places: int = 3) -> None:
    """Print a tensor, rounded so that every machine prints the same digits."""
    x = torch.as_tensor(x).detach().double()
    rounded = torch.round(x, decimals=places) + 0.0  # no -0
    if x.ndim < 2:
        rounded = rounded.reshape(1, -1)
    for row in rounded.flatten(end_dim=-2).tolist():
        print(" ".join(f"{value:{places + 4}.{places}f}" for value in row))


def tiny(d: int = 4, seed: int = 0, *names: str) -> tuple[torch.Tensor, ...]:
    """The course's example text embedded, and a random projection of it per name, in float64.

        x, q, k, v = tiny(4, 0, "q", "k", "v")

    Shapes   -> x (1,16,d), then (1,16,d) for each name
    """
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(256, d, generator=generator, dtype=torch.float64)
    x = table[list(TEXT)][None]
    weights = [torch.randn(d, d, generator=generator, dtype=torch.float64) for _ in names]
    return x, *(x @ w * d**-0.5 for w in weights)
