"""What the panel of the lab shows, as HTML text: a snapshot in, strings out. No widgets here.

Everything that comes from outside (names, paths, errors, samples) is escaped, and printable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ...training.costs import format_bytes
from ..pictures.svg import show_text
from .curves import loss_curve, state_curves
from .run import Note, Snapshot

_NOTES_SHOWN = 6


class View(NamedTuple):
    """One frame of the panel."""

    status: str
    facts: str
    loss: str
    states: str
    sample: str
    notes: str
    pause: str  # the label of the pause button
    enabled: frozenset[str]  # the buttons that can be pressed now


class Earlier(NamedTuple):
    """A run that a panel has shown before."""

    settings: dict[str, object]  # what was chosen, by name
    curve: list[tuple[int, float]]  # held-out bits per byte by step

    @classmethod
    def of(cls, now: Snapshot, settings: dict[str, object]) -> Earlier:
        """The run of a snapshot, without held-out losses by its training losses."""
        train = [(point.step, point.mean) for point in now.train]
        return cls(settings, now.valid or train)


def render(
    now: Snapshot,
    steps: int,
    settings: dict[str, object] | None = None,
    earlier: Sequence[Earlier] = (),
) -> View:
    """The frame for a snapshot; `steps` is the budget shown until there is a trainer.

    Earlier runs, the latest one last, are drawn behind, and `settings` compared with the latest.
    """
    steps = now.steps or steps
    behind = [one.curve for one in earlier]
    no_states = "this model keeps no state" if now.record else "not measured yet"
    rows_in_use = now.record.rows_in_use if now.record else {}
    return View(
        status=_status(now) + _compare(now, settings or {}, earlier),
        facts=_facts(now, steps),
        loss=loss_curve(now.train, now.valid, now.baselines, now.marks, steps, behind),
        states=state_curves(now.states, steps, rows_in_use, no_states),
        sample=_sample(now),
        notes=_notes(now.notes),
        pause="Resume" if now.state == "paused" else "Pause",
        enabled=_enabled_buttons(now),
    )


def _enabled_buttons(now: Snapshot) -> frozenset[str]:
    names = {"reset", "load"}
    names |= {"pause", "stop", "switch"} if now.state in ("running", "paused") else {"start"}
    return frozenset(names | ({"save"} if now.record else set()))


def _status(now: Snapshot) -> str:
    title = f"{now.model} on {now.corpus}" if now.model else "nothing built yet"
    doing = f" · {now.doing} …" if now.doing else ""
    label = "preparing" if now.doing and now.state == "running" else now.state
    return (
        f'<div class="q-line"><span class="q-chip q-is-{now.state}">{show_text(label)}</span>'
        f"<b>{show_text(title)}</b><span>{show_text(doing)}</span></div>"
    )


def _compare(now: Snapshot, settings: dict[str, object], earlier: Sequence[Earlier]) -> str:
    """What differs from the run before, and how far both are after as many steps."""
    if not earlier:
        return ""
    before = earlier[-1]
    changed = [
        f"{name} {old} → {settings[name]}"
        for name, old in before.settings.items()
        if name in settings and settings[name] != old
    ]
    said = f"the run before: {', '.join(changed) or 'nothing differs'}"
    ours = Earlier.of(now, settings).curve
    if ours and before.curve:
        step = min(ours[-1][0], before.curve[-1][0])
        then, this = (_at(curve, step) for curve in (before.curve, ours))
        if then is not None and this is not None:
            said += f"; at step {step:,} it had {then:.2f} bits per byte, this one {this:.2f}"
    return f'<div class="q-line q-before"><small>{show_text(said)}</small></div>'


def _at(curve: list[tuple[int, float]], step: int) -> float | None:
    """The last value of a curve up to a step."""
    return next((bits for at, bits in reversed(curve) if at <= step), None)


def _facts(now: Snapshot, steps: int) -> str:
    record = now.record
    tiles = {  # name -> value, unit
        "step": (f"{now.step:,}", f"of {steps:,}"),
        "training loss": (f"{now.train[-1].mean:.2f}", "bits/byte") if now.train else None,
        "held-out loss": (f"{now.valid[-1][1]:.2f}", "bits/byte") if now.valid else None,
        "speed": (f"{now.bytes_per_second / 1000:.1f}", "KB/s") if record else None,
        "step time": (f"{1000 * now.step_seconds:.0f}", "ms") if record else None,
        "learning rate": (f"{record.lr:.2g}", f"peak {now.lr:.2g}") if record else None,
        "state": (
            (format_bytes(record.state_bytes), "after a window")
            if record and record.state_bytes
            else None
        ),
        "running on": (
            (now.marks[-1][1], f"since step {now.marks[-1][0]:,}") if now.marks else None
        ),
    }
    html = "".join(_tile(name, *(tile or ("–", ""))) for name, tile in tiles.items())
    return f'<div class="q-tiles">{html}</div>'


def _tile(name: str, value: str, unit: str) -> str:
    name, value, unit = show_text(name), show_text(value), show_text(unit)
    return f"<div><small>{name}</small><b>{value}</b><small>{unit or '&nbsp;'}</small></div>"


def _sample(now: Snapshot) -> str:
    if not now.sample:
        return _box("what the model writes", '<pre class="q-empty" tabindex="0">nothing yet</pre>')
    step, (title, prompt, answer) = now.sample
    prompt, answer = (show_text(text) for text in (prompt, answer))
    body = f'<pre tabindex="0"><i>{prompt}</i>{answer}</pre>'
    return _box(f"{title}, at step {step:,}", body)


def _notes(oldest_first: list[Note]) -> str:
    rows = "".join(
        f'<li class="{"q-bad" if bad else "q-good"}"><small>{step:,}</small> {show_text(text)}</li>'
        for step, text, bad in reversed(oldest_first[-_NOTES_SHOWN:])
    )
    rows = rows or "<li class=q-empty>nothing yet</li>"
    return _box("what happened", f'<ul tabindex="0">{rows}</ul>')


def _box(title: str, body: str) -> str:
    """A titled box; its body may scroll, so it takes the keyboard focus (`tabindex`)."""
    return f'<div class="q-box"><small>{show_text(title)}</small>{body}</div>'
