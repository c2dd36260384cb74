"""Lesson 09, Train it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from ...presets import recipe_of
from ...probes.evaluate import LN2
from ...study.figures import Chart
from ...training.recipe import Record
from ..live.panels import Panel, lab

# ---------------------------------------------------------------- pictures and the widget


def progress(records: list[Record], baselines: dict[str, float], density: int = 12) -> Chart:
    """Training loss and held-out loss over the step, with baselines to compare.

    Steps that are close on the logarithmic axis, `density` to a doubling, share one mean. A run
    that was moved has a line for each place, such as "cpu bfloat16".
    """
    places = [f"{r.device} {r.precision}" for r in records]
    names = places if len(set(places)) > 1 else ["training"] * len(records)
    groups: dict[tuple[str, int], list[Record]] = {}
    for name, record in zip(names, records, strict=True):
        groups.setdefault((name, int(density * math.log2(record.step))), []).append(record)
    lines: dict[str, list] = {name: [] for name in names}
    for (name, _), group in groups.items():
        mean = sum(r.bits_per_byte for r in group) / len(group)
        lines[name].append((group[-1].step, mean))
    held_out = [(r.step, r.valid_nats / LN2) for r in records if r.valid_nats is not None]
    lines |= {"held out": held_out} if held_out else {}
    return Chart(lines, "step", "bits per byte", log="x", levels=baselines)


def widget(make_model: Callable[[], nn.Module] | str = "qllk-3-nano") -> Panel:
    """The live trainer of the first notebook, around a model of one's own."""
    return lab("lesson 09", model=make_model, **recipe_of("qllk-3-nano") | {"steps": 2000})
