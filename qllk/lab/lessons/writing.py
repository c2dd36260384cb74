"""Lesson 09, Write with it."""

from __future__ import annotations

import functools
import statistics
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch

from ...model import sample
from ...model.families import build
from ...probes.inside import state_bytes
from ...study.figures import Chart, Note, Page
from ...text.corpora import corpus
from ...training.recipe import Recipe
from ...training.trainer import Trainer
from ..check import TOO_STEEP, WRONG_KIND, WRONG_VALUES, Case, Exercise, Mistake, normal
from ..explore import Runner, line, slider
from ..show import sized

KERNEL, ATTENTION = "qllk-2-nano", "gpt-nano"
COLUMNS = 64  # characters of written text in a line
PIECE = 25  # bytes written between two points of a curve; divides every length
PAGE_SECONDS = 0.5  # between two pages


# ---------------------------------------------------------------- exercises


def temperature(logits, heat):
    """The chances of all ids at a temperature: (B,V) -> (B,V)."""
    return (logits / heat).softmax(dim=-1)


def temperature_loop(logits, heat):
    """The definition of `temperature`, one number at a time."""
    rows = []
    for row in logits:
        weights = [torch.exp(logit / heat) for logit in row]
        rows.append(torch.stack([weight / sum(weights) for weight in weights]))
    return torch.stack(rows)


def top_p(chances, p):
    """The fewest likeliest ids that together hold p, the others at zero: (B,V) -> (B,V)."""
    ranked, ids = chances.sort(dim=-1, descending=True)
    before = ranked.cumsum(dim=-1) - ranked  # held by all that are likelier
    kept = torch.zeros_like(chances).scatter(-1, ids, ranked * (before < p))
    return kept / kept.sum(dim=-1, keepdim=True)


def top_p_loop(chances, p):
    """The definition of `top_p`, one id at a time."""
    kept = torch.zeros_like(chances)
    for row, chance in zip(kept, chances, strict=True):
        held = 0.0
        for i in sorted(range(len(chance)), key=lambda i: -chance[i].item()):
            if held < p:
                row[i] = chance[i]
                held += chance[i].item()
        row /= row.sum()
    return kept


def in_order(chances, p):
    """The right chances, likeliest first, not put back to their ids."""
    return top_p(chances, p).sort(dim=-1, descending=True).values


def unscaled(chances, p):
    """The right set, its chances as they were."""
    return torch.where(top_p(chances, p) > 0, chances, 0.0)


def stream(step, prompt, n):
    """The n ids that a greedy writer puts after a prompt; every id is read once: -> (n,)."""
    state = None
    for i in prompt:
        logits, state = step(i, state)
    written = []
    for _ in range(n):
        written.append(int(logits.argmax()))
        logits, state = step(written[-1], state)
    return torch.tensor(written)


def stream_by_rereading(step, prompt, n):
    """The same ids, all that is there read again for each."""
    ids = list(prompt)
    for _ in range(n):
        state = None
        for i in ids:
            logits, state = step(i, state)
        ids.append(int(logits.argmax()))
    return torch.tensor(ids[len(prompt) :])


class Step(NamedTuple):
    """A toy writer: each step turns its state, lets some of it fade, and adds what was read."""

    table: torch.Tensor  # (V,D)
    head: torch.Tensor  # (D,V)

    def __call__(self, i, state):
        """One id and the state before it, to logits (V,) and the state after it."""
        state = self.table[i] + (0.0 if state is None else 0.9 * state.roll(1))
        return state @ self.head, state


def stream_stateless(step, prompt, n):
    """Each id from the one before it alone."""
    written, last = [], prompt[-1]
    for _ in range(n):
        last = int(step(last, None)[0].argmax())
        written.append(last)
    return torch.tensor(written)


def stream_stale(step, prompt, n):
    """The state of the prompt, used over and over."""
    logits, state = read(step, prompt)
    written = []
    for _ in range(n):
        written.append(int(logits.argmax()))
        logits, _ = step(written[-1], state)
    return torch.tensor(written)


def stream_twice(step, prompt, n):
    """The last id of the prompt read twice."""
    _, state = read(step, prompt)
    last, written = prompt[-1], []
    for _ in range(n):
        logits, state = step(last, state)
        last = int(logits.argmax())
        written.append(last)
    return torch.tensor(written)


def read(step, prompt):
    """What a step gives after the whole prompt."""
    logits, state = None, None
    for i in prompt:
        logits, state = step(i, state)
    return logits, state


def late_by_one(step, prompt, n):
    """The prompt's last id counted as written."""
    return torch.cat((torch.tensor(prompt[-1:]), stream(step, prompt, n)))[:n]


def toy(rng, V, D):
    return Step(normal(rng, V, D), normal(rng, D, V))


def logits_and_temperatures(rng):
    for B, V, heat in ((2, 5, 0.5), (1, 1, 2.0), (1, 3, 1.0), (3, 17, 0.1), (2, 256, 1.7)):
        yield Case((normal(rng, B, V), heat))


def chances_and_shares(rng):
    for B, V, p in ((2, 17, 0.8), (1, 1, 0.5), (1, 5, 0.01), (3, 5, 1.0), (2, 256, 0.95)):
        yield Case((normal(rng, B, V).softmax(dim=-1), p))


def prompts(rng):
    for V, D, length, n in ((13, 6, 4, 9), (5, 3, 1, 1), (7, 4, 3, 2), (31, 9, 1, 20)):
        yield Case((toy(rng, V, D), [i % V for i in range(3, 3 + length)], n))


EXERCISES = (
    Exercise(
        name="writing.temperature",
        difficulty=1,
        minutes=5,
        answer=temperature,
        truth=temperature_loop,
        cases=logits_and_temperatures,
        hints=(
            "The temperature acts on the logits, before they become chances.",
            "torch's softmax works along one axis: a row of chances adds up to 1.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That is the inverse: a high temperature must make the chances more equal.",
                lambda logits, heat: (logits * heat).softmax(dim=-1),
            ),
            Mistake(
                WRONG_VALUES,
                "The chances add up to 1 over the batch, not over the ids.",
                lambda logits, heat: (logits / heat).softmax(dim=0),
            ),
            Mistake(
                WRONG_VALUES,
                "The temperature has no effect: it must divide the logits, before the softmax.",
                lambda logits, heat: logits.softmax(dim=-1),
            ),
            Mistake(
                WRONG_VALUES,
                "Those are logits, not yet chances.",
                lambda logits, heat: logits / heat,
            ),
            Mistake(
                WRONG_VALUES,
                "Divide the logits, not the chances, which then no longer add up to 1.",
                lambda logits, heat: logits.softmax(dim=-1) / heat,
            ),
            Mistake(
                WRONG_VALUES,
                "Those are the logarithms of the chances.",
                lambda logits, heat: (logits / heat).log_softmax(dim=-1),
            ),
        ),
    ),
    Exercise(
        name="writing.top_p",
        difficulty=3,
        minutes=12,
        answer=top_p,
        truth=top_p_loop,
        cases=chances_and_shares,
        hints=(
            "Sort the chances, likeliest first, and remember where each came from.",
            "An id is kept if those that are likelier hold less than p between them.",
            "scatter puts sorted values back to their ids; then each row is divided by its sum.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The id that crosses p belongs to the set: without it the set holds less than p.",
                lambda chances, p: kept_where(chances, lambda r: r.cumsum(-1) <= p),
            ),
            Mistake(
                WRONG_VALUES,
                "That sorts the other way, and keeps the rarest ids.",
                lambda chances, p: kept_where(chances, lambda r: r.cumsum(-1) - r < p, False),
            ),
            Mistake(
                WRONG_VALUES,
                "What is kept must be scaled to add up to 1 again.",
                unscaled,
            ),
            Mistake(
                WRONG_VALUES,
                "The mask is in sorted order; it must go back to the ids it belongs to.",
                lambda chances, p: unsorted_mask(chances, p),
            ),
            Mistake(
                WRONG_VALUES,
                "The result is in sorted order; each chance must go back to its id.",
                in_order,
            ),
            Mistake(
                WRONG_VALUES,
                "Nothing is sorted: the sum must run from the likeliest id to the rarest.",
                lambda chances, p: scaled(chances * (chances.cumsum(-1) - chances < p)),
            ),
            Mistake(
                WRONG_VALUES,
                "gather takes numbers from these places; scatter puts them there.",
                lambda chances, p: in_order(chances, p).gather(-1, (-chances).argsort(dim=-1)),
            ),
            Mistake(
                WRONG_VALUES,
                "Each row must add up to 1 by itself, not all of them together.",
                lambda chances, p: unscaled(chances, p) / unscaled(chances, p).sum(),
            ),
        ),
    ),
    Exercise(
        name="writing.stream",
        difficulty=2,
        minutes=10,
        answer=stream,
        truth=stream_by_rereading,
        cases=prompts,
        hints=(
            "Read the prompt first, id by id. The logits after its last id choose the first.",
            "Each round appends one id and reads that same id, with the state of the round before.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "The state is not carried: each id knows only the one before it.",
                stream_stateless,
            ),
            Mistake(
                WRONG_VALUES,
                "The state is the prompt's for ever; what was written is never remembered.",
                stream_stale,
            ),
            Mistake(
                WRONG_VALUES,
                "The prompt's last id was read twice.",
                stream_twice,
            ),
            Mistake(
                WRONG_VALUES,
                "The prompt's last id is not a written one.",
                late_by_one,
            ),
            Mistake(
                WRONG_VALUES,
                "The first id was read, but not written down.",
                lambda step, prompt, n: stream(step, prompt, n + 1)[1:],
            ),
            Mistake(
                WRONG_VALUES,
                "Only the last id of the prompt was read.",
                lambda step, prompt, n: stream(step, prompt[-1:], n),
            ),
            Mistake(
                WRONG_KIND,
                "Only the ids that were written are asked for.",
                lambda step, prompt, n: torch.cat((torch.tensor(prompt), stream(step, prompt, n))),
            ),
            Mistake(
                TOO_STEEP,
                "All that is there is read again for each id.",
                stream_by_rereading,
            ),
        ),
        steepest=1.2,
        # A sixteenth of the length: whoever reads all again would otherwise wait for long.
        sized=lambda T: (toy(torch.Generator().manual_seed(0), 7, 4), [1], T // 16),
    ),
)


def kept_where(chances, rule, descending=True):
    ranked, ids = chances.sort(dim=-1, descending=descending)
    return scaled(torch.zeros_like(chances).scatter(-1, ids, ranked * rule(ranked)))


def scaled(kept):
    """Each row made to add up to 1."""
    return kept / kept.sum(dim=-1, keepdim=True)


def unsorted_mask(chances, p):
    ranked = chances.sort(dim=-1, descending=True).values
    return scaled(chances * (ranked.cumsum(dim=-1) - ranked < p))


# ---------------------------------------------------------------- a model that can write


@functools.cache
def trainer() -> Trainer:
    """The one training run of this lesson: whoever goes on with it finds it where it stands."""
    steps = sized(900, 220)
    recipe = Recipe(steps=steps, batch=4, window=128, validate_every=10 * steps)
    return Trainer(KERNEL, corpus("stdlib"), recipe)


# ---------------------------------------------------------------- widget


class Reader:
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


def wrapped(text: bytes, columns: int = COLUMNS) -> list[str]:
    """Text as lines that fit; what is neither ASCII nor printable becomes a dot."""
    rows = [
        "".join(chr(byte) if 32 <= byte < 127 else "·" for byte in row) for row in text.splitlines()
    ]
    return [row[i : i + columns] for row in rows for i in range(0, max(1, len(row)), columns)]


def play(prompt="import ", temperature=1.0, top_p=0.9, length=200) -> Iterator[Page]:
    """Train the writer if nobody has, then write after a prompt. Yields pages."""
    run, shown = trainer(), 0.0
    for record in run:
        if time.perf_counter() - shown > PAGE_SECONDS:
            shown = time.perf_counter()
            said = f"step {record.step} of {run.recipe.steps}, {record.bits_per_byte:.1f} bits"
            yield Note("Training the writer, once.", [said])
    pick = sample.sampler(temperature, top_p=top_p, seed=0) if temperature else sample.greedy
    yield from pages(run.model.eval(), prompt.encode() or b"\n", pick, length)


def pages(model, prompt: bytes, pick, length: int) -> Iterator[Page]:
    """What a model writes, the size of its state, and the time of each byte.

    Attention reads along for comparison. Its weights are random: they change nothing in its cost.
    """
    kernel, attention = Reader(model), Reader(build(ATTENTION, seed=0).eval())
    text, ids, shown = prompt, torch.tensor([list(prompt)]), 0.0
    for written in range(1, length + 1):
        logits = kernel.read(ids)
        attention.read(ids)
        ids = pick(logits[:, -1])[:, None]
        text += bytes(ids[0].tolist())
        if written % PIECE == 0:
            kernel.note(written)
            attention.note(written)
            if written == length or time.perf_counter() - shown > PAGE_SECONDS:
                shown = time.perf_counter()
                yield page(text, written, kernel, attention)


def page(text: bytes, written: int, kernel: Reader, attention: Reader) -> Page:
    """The text so far, and a curve for each reader."""
    readers = {"kernel": kernel, "attention": attention}
    sizes = {name: list(reader.kib) for name, reader in readers.items()}
    paces = {name: list(reader.milliseconds) for name, reader in readers.items()}
    return [
        Note(f"The prompt, and {written} bytes after it", wrapped(text)),
        Chart(sizes, "bytes written", "state, KiB", log=""),
        Chart(paces, "bytes written", "milliseconds for a byte", log=""),
    ]


def widget() -> Runner:
    """Write after a prompt of your own."""
    return Runner(
        "Where does the text turn from repetition to noise, and which curve stays flat meanwhile?",
        {
            "prompt": line("prompt", "import "),
            "temperature": slider("temperature", [0, 0.3, 0.6, 0.8, 1.0, 1.5, 2.5], 1.0),
            "top_p": slider("top-p", [0.3, 0.6, 0.8, 0.9, 0.95, 1.0], 0.9),
            "length": slider("bytes", [50, 200, 500, 1500], 200),
        },
        play,
    )
