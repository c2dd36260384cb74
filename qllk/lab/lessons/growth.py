"""Lesson 04, Watch the state grow."""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from ...model import kernels, recurrent
from ...study.axes import format_number
from ...study.figures import Chart, Note
from ..exercise import (
    normal,
)
from ..explore import choice, explorer, slider

_CHANNELS, _STEPS = 32, 4096
_MEAN, _LOUD = 0.1, 100.0
INPUTS = ("constant", "random", f"random, mean {_MEAN}", f"constant, {_LOUD:.0f}")
HALF_LIVES = ("none", 1024, 64, 4)
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# ---------------------------------------------------------------- widget


def terms(kind: str, steps: int) -> torch.Tensor:
    """What is added at each step, in float64: (1,steps,CHANNELS)."""
    shape = (1, steps, _CHANNELS)
    if kind.startswith("random"):
        x = normal(torch.Generator().manual_seed(0), *shape)
        return x + _MEAN if kind.endswith(str(_MEAN)) else x
    size = _LOUD if kind.endswith(f"{_LOUD:.0f}") else 1.0
    return torch.full(shape, size, dtype=torch.float64)


@lru_cache(maxsize=64)
def _summed(kind: str, half_life, dtype: torch.dtype, steps: int) -> torch.Tensor:
    """The sum so far at each step, by the loop in its dtype: (1,steps,CHANNELS)."""
    x = terms(kind, steps).to(dtype)
    if half_life == "none":
        return kernels.running_sum_loop(x)[0]
    log_decay = torch.full((_CHANNELS,), -math.log(2) / half_life, dtype=dtype)
    return kernels.running_sum_loop(x, log_decay=log_decay)[0]


@explorer(
    "Which rule keeps the state itself small, and which only what is read from it?",
    kind=choice("input", list(INPUTS)),
    half_life=slider("half-life", list(HALF_LIVES)),
    normaliser=choice("normaliser", list(recurrent.NORMALISERS)),
    precision=choice("precision", list(PRECISIONS)),
)
def grown(kind="constant", half_life="none", normaliser="none", precision="bfloat16", steps=_STEPS):
    """The state's size over time: kept in a precision, without rounding, and as it is read."""
    kept = _summed(kind, half_life, PRECISIONS[precision], steps)
    exact = _summed(kind, half_life, torch.float64, steps)
    read = recurrent.NORMALISERS[normaliser](kept, torch.arange(1, steps + 1)[:, None])
    lines = {"kept": _over_time(kept), "in float64": _over_time(exact), "read": _over_time(read)}
    return [Chart(lines, "steps", "root mean square"), _fate(kept[0], exact[0], precision)]


def _over_time(sums) -> list[tuple[int, float]]:
    """Root mean square over the channels at lengths evenly apart on a log scale."""
    size = sums[0].double().square().mean(dim=-1).sqrt().tolist()
    steps = len(size)
    found = sorted({round(2 ** (i / 2)) for i in range(2 * math.ceil(math.log2(steps)) + 1)})
    return [(t, size[t - 1]) for t in found if t <= steps]


def _fate(kept, exact, precision) -> Note:
    """In words: whether the state still moves, and how far it is off. Shapes  (T,D) both"""
    steps = len(kept)
    moved = (kept[1:] != kept[:-1]).any(dim=-1).nonzero()
    last = moved[-1].item() + 2 if len(moved) else 1
    if not kept[-1].isfinite().all():
        said = f"It overflows at step {last:,} and is lost."
    elif last < steps:
        said = f"It has not moved since step {last:,}."
    else:
        said = f"It still moves at step {steps:,}."
    off = (kept[-1].double() - exact[-1]).square().mean().sqrt().item()
    off = off / exact[-1].square().mean().sqrt().item()
    wrong = "In the end it is not a finite number."
    if math.isfinite(off):
        percent = format_number(100 * off)
        wrong = f"In the end the error is {percent} % as large as the state in float64."
    return Note(f"The state in {precision}", [said, wrong])
