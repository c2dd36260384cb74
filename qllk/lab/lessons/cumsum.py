"""Lesson 03, Keep a running sum."""

from __future__ import annotations

import torch

from ...model import kernels
from ...study.figures import Chart, Heat
from ..explore import choice, explorer, slider
from ..show import TEXT, tiny

_CHANNELS = 4
_HALF_LIFE = 2.0  # bytes, of the forgetting rule in the widget


# ---------------------------------------------------------------- widget


@explorer(
    "Which byte changed the state most, and does the state ever come back?",
    steps=slider("bytes", list(range(1, len(TEXT) + 1))),
    rule=choice("rule", ["keep all", "forget half in 2 bytes"]),
)
def watch(steps: int = 4, rule: str = "keep all"):
    """The state after `steps` bytes of the course's string, and how it came to be."""
    _, q, k, v = tiny(_CHANNELS, 3, "q", "k", "v")
    decay = None
    if rule != "keep all":
        decay = torch.full((_CHANNELS,), -torch.log(torch.tensor(2.0)).item() / _HALF_LIFE)
    sums, _ = kernels.running_sum_loop(k * v, log_decay=decay)
    now = steps - 1
    table = Heat(
        title=f"byte {steps} of {len(TEXT)}: {chr(TEXT[now])!r}",
        rows=[x[0, now].tolist() for x in (k * v, sums, q * sums)],
        row_names=["k v, new", "S, kept", "q S, read"],
        column_names=[f"{i}" for i in range(_CHANNELS)],
        numbers=True,
        most=sums.abs().max().item(),
        said=f"After {steps} bytes S is {' '.join(f'{s:.2f}' for s in sums[0, now].tolist())}.",
    )
    path = {
        f"channel {c}": [(t + 1, sums[0, t, c].item()) for t in range(steps)]
        for c in range(_CHANNELS)
    }
    return [(table, Chart(path, "bytes read", "state S", log=""))]
