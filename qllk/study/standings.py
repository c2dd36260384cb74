"""The standings of a race: its rows as a table and as charts."""

from __future__ import annotations

import json
from pathlib import Path

from ..probes.evaluate import LN2
from ..training.questions import QUESTIONS
from .entries import CONTROLS
from .figures import Chart
from .race import WINDOWS

_FIRST, _LAST = WINDOWS
_COLUMNS = (
    *("seconds", "model", "parameters", "width", "layers", "lr", "batch"),
    *(f"windows of {_FIRST:,}", "seeds' spread", "bits per byte"),
    *(f"windows of {_LAST:,}", "stream", "bytes/s"),
)


def stored_report(name: str = "race") -> dict:
    """A race that the lessons draw: a file next to this one, as `bench` has written it.

    race     python -m qllk bench --precision float32 --seconds 100 --report qllk/study/race.json
    field    the models of the field, without hashed n-grams and with them; RESULTS.md has the
             commands
    """
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text("utf-8"))


def format_rows(rows: list[dict]) -> str:
    """The race as a Markdown table, the best first within each budget.

    A batch is windows x ids. The nats per byte in windows of 1,024 ids decide; next to them are the
    seeds' spread, the same in bits, and the nats in longer windows and as a stream. Where a model
    reads shorter windows, or its stream is cut because its state grows, the length stands next to
    the number. A dash stands for a model that cannot be judged so.
    """
    lines = [
        f"| {' | '.join(_COLUMNS)} |",
        "| ---: | --- " + "| ---: " * (len(_COLUMNS) - 2) + "|",
    ]
    for r in sorted(rows, key=lambda r: (r["seconds"], r["mean_nats"])):
        label = QUESTIONS[r["family"]].label
        shorter = r["judged_window"] if r["judged_window"] < _FIRST else None
        cells = (
            *(f"{r['seconds']:g}", r["entry"] + (label and f", {label}ids")),
            *(f"{r['parameters']:,}", f"{r['d_model']}", f"{r['layers']}"),
            *(f"{r['lr']:g}", f"{r['batch']}x{r['window']}"),
            *(_cell(r["mean_nats"], shorter), f"{r['spread']:.4f}", f"{r['bits_per_byte']:.4f}"),
            *(_cell(r["window_nats"][str(_LAST)]), _cell(r["stream_nats"], r["stream_longest"])),
            f"{r['bytes_per_second']:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(nats: float | None, length: int | None = None) -> str:
    if nats is None:
        return "–"
    return f"{nats:.4f}" + (f" ({length:,})" if length else "")


def draw_curves(curves: dict[str, list], baselines: dict[str, float]) -> Chart:
    """Learning curves, lists of (seconds, nats) by name, with the baselines that they pass."""
    lines = {
        name: [(seconds, nats / LN2) for seconds, nats in curve] for name, curve in curves.items()
    }
    highest = max((bits for line in lines.values() for _, bits in line), default=0.0)
    levels = {name: bits for name, bits in _merge_levels(baselines).items() if bits < highest}
    return Chart(lines, "seconds of training", "bits per byte, held out", log="x", levels=levels)


def draw_race(rows: list[dict], baselines: dict[str, float]) -> list[tuple[Chart, Chart]]:
    """The rows of one budget: loss against seconds, and the gap to the control by position.

    A gap that falls to the right shows a model that uses distant context.
    """
    by_entry = {row["entry"]: row for row in rows}
    control = next((by_entry[name] for name in CONTROLS if name in by_entry), rows[0])
    gaps = {}
    for row in rows:
        pairs = zip(row["by_position"], control["by_position"], strict=True)
        bits = [(mine - theirs) / LN2 for mine, theirs in pairs]
        wide = row["judged_window"] / len(bits)
        gaps[row["entry"]] = [((i + 0.5) * wide, gap) for i, gap in enumerate(bits)]
    curves = draw_curves({row["entry"]: row["curve"] for row in rows}, baselines)
    label = f"bits per byte above {control['entry']}"
    return [(curves, Chart(gaps, "position in the window, in ids", label, log=""))]


def _merge_levels(levels: dict[str, float], closer_than: float = 0.1) -> dict[str, float]:
    """Levels whose labels would overlap share one label, at the lowest of them."""
    found: dict[str, float] = {}
    for name, bits in sorted(levels.items(), key=lambda level: level[1]):
        last = next(reversed(found), None)
        if last is not None and bits - found[last] < closer_than:
            found[f"{last}, {name}"] = found.pop(last)
        else:
            found[name] = bits
    return found
