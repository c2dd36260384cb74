"""What the lab's panel says, as HTML text: a snapshot in, strings out. No widget in here.

Everything that comes from outside (names, paths, errors, samples) is escaped.
"""

from __future__ import annotations

from html import escape
from typing import NamedTuple

from ..pictures import svg
from .run import Note, Snapshot

NOTES_SHOWN = 6


class View(NamedTuple):
    """One frame of the panel."""

    status: str
    facts: str
    loss: str
    states: str
    sample: str
    notes: str
    pause: str  # what the pause button is called
    enabled: frozenset[str]  # buttons that make sense now


def view(now: Snapshot, steps: int) -> View:
    """The frame for a snapshot; `steps` is the budget as long as there is no trainer to ask."""
    steps = now.steps or steps
    return View(
        status=status(now),
        facts=facts(now, steps),
        loss=svg.loss_curve(now.train, now.valid, now.baselines, now.marks, steps),
        states=svg.state_curves(now.states, steps, no_states(now)),
        sample=sample(now),
        notes=notes(now.notes),
        pause="Resume" if now.state == "paused" else "Pause",
        enabled=enabled(now),
    )


def enabled(now: Snapshot) -> frozenset[str]:
    under_way = now.state in ("running", "paused")
    names = {"reset", "load"} | ({"pause", "stop", "switch"} if under_way else {"start"})
    return frozenset(names | ({"save"} if now.record else set()))


def status(now: Snapshot) -> str:
    what = f"{now.model} on {now.corpus}" if now.model else "nothing built yet"
    doing = f" · {now.doing} …" if now.doing else ""
    label = "preparing" if now.doing and now.state == "running" else now.state
    return (
        f'<div class="q-line"><span class="q-chip q-is-{now.state}">{escape(label)}</span>'
        f"<b>{escape(what)}</b><span>{escape(doing)}</span></div>"
    )


def facts(now: Snapshot, steps: int) -> str:
    record = now.record
    shown = {
        "step": (f"{now.step:,}", f"of {steps:,}"),
        "training loss": (f"{now.train[-1].mean:.2f}", "bits/byte") if now.train else None,
        "held-out loss": (f"{now.valid[-1][1]:.2f}", "bits/byte") if now.valid else None,
        "speed": (f"{now.bytes_per_second / 1000:.1f}", "KB/s") if record else None,
        "step time": (f"{1000 * now.step_seconds:.0f}", "ms") if record else None,
        "learning rate": (f"{record.lr:.2g}", f"peak {now.lr:.2g}") if record else None,
        "running on": (
            (now.marks[-1][1], f"since step {now.marks[-1][0]:,}") if now.marks else None
        ),
    }
    tiles = "".join(tile(name, *(value or ("–", ""))) for name, value in shown.items())
    return f'<div class="q-tiles">{tiles}</div>'


def tile(name: str, value: str, unit: str) -> str:
    name, value, unit = escape(name), escape(value), escape(unit)
    return f"<div><small>{name}</small><b>{value}</b><small>{unit or '&nbsp;'}</small></div>"


def no_states(now: Snapshot) -> str:
    return "this model keeps no state" if now.record else "not looked at yet"


def sample(now: Snapshot) -> str:
    if not now.sample:
        return box("what the model writes", '<pre class="q-empty">nothing yet</pre>')
    step, (title, given, made) = now.sample
    body = f"<pre><i>{escape(visible(given))}</i>{escape(visible(made))}</pre>"
    return box(f"{title}, at step {step:,}", body)


def visible(text: str) -> str:
    """Printable letters, line ends and blanks as they are; every other character as a dot."""
    text = text.replace("\t", "    ").replace("\ufffd", "·")
    return "".join(c if c.isprintable() or c == "\n" else "·" for c in text)


def notes(newest_last: list[Note]) -> str:
    rows = "".join(
        f'<li class="{"q-bad" if bad else "q-good"}"><small>{step:,}</small> {escape(text)}</li>'
        for step, text, bad in reversed(newest_last[-NOTES_SHOWN:])
    )
    return box("what happened", f"<ul>{rows or '<li class=q-empty>nothing yet</li>'}</ul>")


def box(title: str, body: str) -> str:
    return f'<div class="q-box"><small>{escape(title)}</small>{body}</div>'
