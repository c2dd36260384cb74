"""Lesson 10, Write with it."""

from __future__ import annotations

import functools
import statistics
import time
from collections import deque
from collections.abc import Iterator

import torch

from ...model import sample
from ...model.families import build
from ...probes.inside import state_bytes
from ...study.figures import Chart, Note, Page
from ...text.corpora import corpus
from ...training.recipe import Recipe
from ...training.trainer import Trainer
from ..explore import explorer, line, slider
from ..show import sized

_KERNEL, _ATTENTION = "qllk-2-nano", "gpt-nano"
_COLUMNS = 64  # characters of written text in a line
PIECE = 25  # bytes written between two points of a curve; divides every length
_PAGE_SECONDS = 0.5  # between two pages


# ---------------------------------------------------------------- a model that can write


@functools.cache
def trainer() -> Trainer:
    """The lesson's one training run, shared by every call, which continues it."""
    steps = sized(900, 220)
    recipe = Recipe(steps=steps, batch=4, window=128, validate_every=10 * steps)
    return Trainer(_KERNEL, corpus("stdlib"), recipe)


# ---------------------------------------------------------------- widget


class _Reader:
    """A model, the state that it carries, and what each byte costs it."""

    def __init__(self, model):
        self.model, self.state = model, None
        self.kib: list[tuple[int, float]] = []  # (bytes written, size of the state)
        self.milliseconds: list[tuple[int, float]] = []  # (bytes written, time of a byte)
        self._newest: deque[float] = deque(maxlen=PIECE)

    def read(self, ids):
        """Logits of ids (1,T), which follow those that were read before."""
        start = time.perf_counter()
        with torch.no_grad():
            logits, self.state = self.model.run(ids, self.state)
        self._newest.append(1e3 * (time.perf_counter() - start))
        return logits

    def note(self, written: int) -> None:
        """A point for each curve."""
        self.kib.append((written, state_bytes(self.state) / 1024))
        self.milliseconds.append((written, statistics.median(self._newest)))


def wrapped(text: bytes, columns: int = _COLUMNS) -> list[str]:
    """Text as lines that fit; what is neither ASCII nor printable becomes a dot."""
    rows = [
        "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row) for row in text.splitlines()
    ]
    return [row[i : i + columns] for row in rows for i in range(0, max(1, len(row)), columns)]


@explorer(
    "Where does the text turn from repetition to noise, and which curve stays flat meanwhile?",
    runs=True,
    prompt=line("prompt"),
    temperature=slider("temperature", [0, 0.3, 0.6, 0.8, 1.0, 1.5, 2.5]),
    top_p=slider("top-p", [0.3, 0.6, 0.8, 0.9, 0.95, 1.0]),
    length=slider("bytes", [50, 200, 500, 1500]),
)
def play(prompt="import ", temperature=1.0, top_p=0.9, length=200) -> Iterator[Page]:
    """Train the writer if nobody has, then write after a prompt. Yields pages."""
    run, shown = trainer(), 0.0
    for record in run:
        if time.perf_counter() - shown > _PAGE_SECONDS:
            shown = time.perf_counter()
            said = f"step {record.step} of {run.recipe.steps}, {record.bits_per_byte:.1f} bits"
            yield Note("Training the writer, once.", [said])
    pick = sample.sampler(temperature, top_p=top_p, seed=0) if temperature else sample.greedy
    yield from pages(run.model.eval(), prompt.encode() or b"\n", pick, length)


def pages(model, prompt: bytes, pick, length: int) -> Iterator[Page]:
    """What a model writes, the size of its state, and the time of each byte.

    Attention reads along for comparison. Its weights are random: they change nothing in its cost.
    """
    kernel, attention = _Reader(model), _Reader(build(_ATTENTION, seed=0).eval())
    text, ids, shown = prompt, torch.tensor([list(prompt)]), 0.0
    for written in range(1, length + 1):
        logits = kernel.read(ids)
        attention.read(ids)
        ids = pick(logits[:, -1])[:, None]
        text += bytes(ids[0].tolist())
        if written % PIECE == 0:
            kernel.note(written)
            attention.note(written)
            if written == length or time.perf_counter() - shown > _PAGE_SECONDS:
                shown = time.perf_counter()
                yield page(text, written, kernel, attention)


def page(text: bytes, written: int, kernel: _Reader, attention: _Reader) -> Page:
    """The text so far, and a curve for each reader."""
    readers = {"kernel": kernel, "attention": attention}
    sizes = {name: list(reader.kib) for name, reader in readers.items()}
    paces = {name: list(reader.milliseconds) for name, reader in readers.items()}
    return [
        Note(f"The prompt, and {written} bytes after it", wrapped(text)),
        Chart(sizes, "bytes written", "state, KiB", log=""),
        Chart(paces, "bytes written", "milliseconds for a byte", log=""),
    ]
