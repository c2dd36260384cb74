"""Lesson 01, Pay for attention."""

from __future__ import annotations

from functools import cache

import torch

from ...model import kernels, masks
from ...probes import measure
from ...study.figures import Chart, Heat
from ..explore import explorer, slider, switch
from ..show import TEXT, tiny

CHANNELS, SEED = 4, 1  # of the small tensors in the lesson
_FULL = 0.5  # the weight that gets the full colour
_LENGTHS = (2, 4, 8, 16, 32, 64, 128, 256, 512)  # of the widget's length clock


# ---------------------------------------------------------------- widget


def letters(length: int = len(TEXT)) -> list[str]:
    """The first letters of the course's string, a space made visible."""
    return [chr(byte).replace(" ", "␣") for byte in TEXT[:length]]


def _marked(table: torch.Tensor) -> list[list[float]]:
    """A (T,T) table as rows for a Heat, with what lies in the future below zero: orange."""
    return (table.tril() - table.triu(1)).tolist()


def attended(length: int, mask: bool, sharpness: float) -> torch.Tensor:
    """The weights over the first bytes of the course's string: attention that averages the rows
    of an identity matrix.

    Shapes   -> (length,length)
    """
    _, q, k = tiny(CHANNELS, SEED, "q", "k")
    q, k = q[:, None, :length], k[:, None, :length]
    each = torch.eye(length, dtype=q.dtype)[None, None]
    keep = masks.causal_mask(length, length) if mask else None
    return kernels.softmax_attention(sharpness * q, k, each, keep)[0, 0]


@cache
def clock(mask: bool) -> dict[str, list[tuple[int, int]]]:
    """Peak bytes alive against length, counted: the table's form and the fused one."""
    counted = {"table": [], "fused": []}
    for N in _LENGTHS:
        q = k = v = torch.zeros(1, 1, N, CHANNELS)
        forms = {
            "table": lambda: kernels.softmax_attention(
                q,  # noqa: B023 - called at once
                k,  # noqa: B023
                v,  # noqa: B023
                masks.causal_mask(N, N) if mask else None,  # noqa: B023
            ),
            "fused": lambda: kernels.causal_attention(q, k, v),  # noqa: B023
        }
        for name, run in forms.items():
            counted[name].append((N, measure.trace_memory(run).peak_bytes))
    return counted


@explorer(
    "Which bytes does a byte listen to, and what does listening cost?",
    length=slider("length", [n for n in _LENGTHS if n <= len(TEXT)]),
    sharpness=slider("sharpness", [0.0, 0.5, 1.0, 2.0, 4.0, 8.0]),
    mask=switch("mask"),
)
def look(length: int = len(TEXT), mask: bool = True, sharpness: float = 1.0):
    """Who listens to whom in the course's string, and what a table of that length costs."""
    table = attended(length, mask, sharpness)
    ahead = table.triu(1).sum().item() / length
    names = letters(length)
    heat = Heat(
        title="weights, a row for each reader" + ("" if mask else "; orange: the future"),
        rows=_marked(table),
        row_names=names,
        column_names=names,
        most=_FULL,
        said=f"Each byte takes {ahead:.0%} of what it reads from the future, on average; "
        f"its largest weight is {table.max(dim=1).values.mean().item():.2f}.",
    )
    curves = clock(mask)
    here = {f"{length} bytes need": dict(curves["table"])[length]}
    return [(heat, Chart(curves, "length of the text", "bytes alive at once", levels=here))]
