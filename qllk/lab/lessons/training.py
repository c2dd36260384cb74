"""Lesson 09, Train it live."""

from __future__ import annotations

import math

from ...probes.evaluate import LN2
from ...study.figures import Chart
from ...training.recipe import Record
from ..live.panels import Panel, lab

# ---------------------------------------------------------------- pictures and the widget


def progress(records: list[Record], baselines: dict[str, float], density: int = 12) -> Chart:
    """Training loss and held-out loss over the step, above the floors that they have to pass.

    Steps that are close on the logarithmic axis, `density` to a doubling, share one mean.
    """
    groups: dict[int, list[Record]] = {}
    for record in records:
        groups.setdefault(int(density * math.log2(record.step)), []).append(record)
    trained = [
        (group[-1].step, sum(r.bits_per_byte for r in group) / len(group))
        for group in groups.values()
    ]
    held_out = [(r.step, r.valid_nats / LN2) for r in records if r.valid_nats is not None]
    lines = {"training": trained} | ({"held out": held_out} if held_out else {})
    return Chart(lines, "step", "bits per byte", log="x", levels=baselines)


def widget() -> Panel:
    """The live trainer of the first notebook, under a name of its own."""
    return lab("lesson 09", steps=2000)
