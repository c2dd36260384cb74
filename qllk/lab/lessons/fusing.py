"""Lesson 07, Fuse the projections."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from ...probes import measure
from ...study.figures import Bars
from ..explore import choice, explorer, slider
from .exercises.fusing import fuse

PARTS = {"q, k, v": 3, "q, k, v and gate": 4}
_WIDTHS, _ROWS = (16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32, 64, 128, 256)


# ---------------------------------------------------------------- side by side


class Apart(nn.Module):
    """Several projections, each a layer of its own: x (..., D) -> a tuple of (..., D)."""

    def __init__(self, width, parts=3):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(parts))

    def forward(self, x):
        return tuple(layer(x) for layer in self.layers)


class Together(nn.Module):
    """The same projections out of one layer: x (..., D) -> a tuple of (..., D)."""

    def __init__(self, apart):
        super().__init__()
        self.parts, width = len(apart.layers), apart.layers[0].in_features
        self.layer = nn.Linear(width, self.parts * width)
        weight, bias = fuse(*zip(*((one.weight, one.bias) for one in apart.layers), strict=True))
        self.layer.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x):
        return self.layer(x).chunk(self.parts, dim=-1)


def gain(width: int, rows: int) -> float:
    """How many times faster q, k and v are from one layer than from three, for `rows` bytes."""
    apart, x = Apart(width), torch.randn(rows, width)
    separate, fused = measure.compare_seconds(
        [partial(apart, x), partial(Together(apart), x)], rounds=6, at_least=0.02
    )
    return separate / fused


# ---------------------------------------------------------------- widget


@explorer(
    "From how many bytes at once is there nothing left to win?",
    width=slider("width", list(_WIDTHS)),
    rows=slider("bytes at once", list(_ROWS)),
    parts=choice("fused", list(PARTS)),
)
def projections(width: int = 64, rows: int = 1, parts: str = "q, k, v"):
    """Projections apart and together: their time, and what can be counted."""
    apart = Apart(width, PARTS[parts])
    sides, x = {"separate": apart, "fused": Together(apart)}, torch.randn(rows, width)
    runs = [partial(side, x) for side in sides.values()]
    times = measure.compare_seconds(runs, rounds=2, at_least=0.008)
    ratio = times[0] / times[1]
    work = [measure.count_flops(run) for run in runs]
    held = [sum(p.numel() for p in side.parameters()) for side in sides.values()]
    layers = [sum(isinstance(m, nn.Linear) for m in side.modules()) for side in sides.values()]

    def bars(title, values, unit):
        return Bars(title, dict(zip(sides, values, strict=True)), unit)

    return [
        bars(
            f"time of one call: fused is {ratio:.2f} times as fast", [t * 1e6 for t in times], "µs"
        ),
        bars("linear layers", layers, "in all"),
        bars("operations of one call", work, "operations"),
        bars("parameters", held, "numbers"),
    ]
