"""Argument checks and table look-ups shared by all subpackages. Imports no torch."""

from __future__ import annotations

import sys
from dataclasses import fields
from types import UnionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def as_plain(value: object) -> Any:
    """Return `value` with the numbers of numpy and torch as Python's, which JSON can hold.

    Tuples, lists and dicts are searched; everything else stays as it is.
    """
    if isinstance(value, dict):
        return {key: as_plain(inner) for key, inner in value.items()}
    if type(value) in (tuple, list):
        return type(value)(map(as_plain, value))
    return value.item() if getattr(value, "ndim", None) == 0 else value


def make_fields_plain(record: object) -> None:
    """Replace every field of a dataclass, also a frozen one, by `as_plain` of it."""
    for field in fields(record):
        object.__setattr__(record, field.name, as_plain(getattr(record, field.name)))


def check_positive(owner: str, **numbers: int) -> None:
    """Check that every one of `numbers` is a whole number above 0 and fits in 64 bits.

    Raises   ValueError naming the owner and the number
    """
    for name, value in as_plain(numbers).items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{owner}: {name} must be a whole number above 0, got {value!r}")
        if value >= 1 << 63:
            raise ValueError(f"{owner}: {name} must be a whole number below 2**63, got {value!r}")


def check_dropout(owner: str, dropout: float) -> None:
    """Check that a probability of dropping is one, and below 1.

    Raises   ValueError naming the owner
    """
    number = isinstance(as_plain(dropout), int | float)
    if not number or not 0.0 <= dropout < 1.0:
        raise ValueError(f"{owner}: dropout must lie in [0, 1), got {dropout!r}")


def check_fields(cls: type, values: object) -> dict[str, Any]:
    """Return the JSON object `values` as keyword arguments of the dataclass `cls`.

    Raises   ValueError when it is not an object, or has a name that is not a field
    """
    known = [f.name for f in fields(cls)]
    if not isinstance(values, dict):
        raise ValueError(f"{cls.__name__} must be a JSON object, got {type(values).__name__}")
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it has {', '.join(known)}")
    return values


def look_up(table: dict[str, Any], name: str, what: str) -> Any:
    """Return `table[name]`.

    Raises   ValueError listing the known names, when the table does not have it
    """
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"unknown {what} {name!r}; choose from {', '.join(sorted(table))}")
    return table[name]


def build_part(table: dict[str, Any], part: tuple[str, dict], what: str, args: tuple = ()) -> Any:
    """Build the part `(name, options)` from a table of classes, called as `cls(*args, **options)`.

    Raises   ValueError when the table has no such name, or the class no such option
    """
    name, options = part
    cls = look_up(table, name, what)
    try:
        return cls(*args, **options)
    except TypeError as error:
        raise ValueError(f"{what} {name!r}: {error}") from None


def check_same_shape(what: str, given: Tensor, ids: Tensor) -> Tensor:
    """Return `given`, if it has one value per id.

    Raises   ValueError when the shapes differ
    """
    if given.shape != ids.shape:
        raise ValueError(
            f"{what} must have the shape of ids, {tuple(ids.shape)}; got {tuple(given.shape)}"
        )
    return given


def check_ids(ids: Tensor, vocab_size: int) -> Tensor:
    """Return the ids in the type that torch indexes with.

    Shapes   (B,T) of any integer type -> (B,T) int64
    Raises   ValueError when they are not (B,T), are empty, or lie outside the vocabulary
    """
    if not hasattr(ids, "is_floating_point"):  # a method that only tensors have
        raise ValueError(
            f"ids must be a tensor, got {type(ids).__name__}; pass torch.as_tensor(ids)"
        )
    whole = str(ids.dtype).startswith(("torch.int", "torch.uint"))
    if ids.ndim != 2 or 0 in ids.shape or not whole:
        raise ValueError(
            f"ids must be whole numbers of shape (batch, time), neither empty; got "
            f"{tuple(ids.shape)} of {ids.dtype}. For one sequence use ids[None]"
        )
    ids = ids.long()
    # Reading values would stall a GPU, where torch's own check catches bad ids. Fake tensors,
    # which models are measured with, have no values.
    visible = ids.device.type == "cpu" and not hasattr(ids, "fake_mode")
    if visible and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ValueError(
            f"ids must lie in 0 … {vocab_size - 1}, got {ids.min().item()} … {ids.max().item()}"
        )
    return ids


def check_rate(what: str, value: float) -> None:
    """Check that `value` is a finite number above 0.

    Raises   ValueError naming `what`
    """
    value = as_plain(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        raise ValueError(f"{what} must be a number above 0, got {value!r}")


def check_range(what: str, value: float, kind: type | UnionType, most: float) -> None:
    """Check that `value` is an `int` or an `int | float`, as `kind` says, from 0 to `most`.

    Raises   ValueError naming `what`
    """
    value = as_plain(value)
    if not isinstance(value, kind) or isinstance(value, bool) or not 0 <= value <= most:
        limit = "" if most > 1 else " and at most 1"
        whole = "a whole number" if kind is int else "a number"
        raise ValueError(f"{what} must be {whole} of at least 0{limit}, got {value!r}")
