"""Lesson 11, Race honestly."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from ...model.families import eval_mode
from ...probes import baselines, measure
from ...probes.evaluate import LN2, nats_per_token
from ...study import published, standings
from ...study.entries import controls_of
from ...study.figures import Chart
from ...study.race import Entry, Results, equal_bytes, equal_seconds, make_trainer
from ...text import objectives
from ...text.corpora import Corpus, corpus, task
from ...text.tasks import asked_digits
from ...text.windows import iterate_windows
from ...training.recipe import Recipe
from ..explore import choice, explorer, slider
from .exercises.assembly import spec_of

Bits = dict[str, list[float]]  # of each seed, by entry; the seeds are in the same order for all
Verdict = Callable[[list[float], list[float]], str]  # what exercise 11.2 asks for

# ---------------------------------------------------------------- who runs


def published_model(dim: int, hashing: bool = True):
    """QLLK 1.1 as published, small, from a seed; without `hashing` its "hash" matrix stays zero."""

    def make(seed: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = published.QLLK11(dim=dim)
        if not hashing:
            torch.nn.init.zeros_(model.hash_proj).requires_grad_(False)
        return model

    return make


def excerpt(text: Corpus, train: int, valid: int) -> Corpus:
    """The head of both splits."""
    return replace(text, train=text.train[:train], valid=text.valid[:valid])


# ---------------------------------------------------------------- the race


def leader(results: Bits, verdict: Verdict) -> str:
    """Who is ahead of every other by more than luck; else "nobody"."""
    for name, mine in results.items():
        others = [theirs for other, theirs in results.items() if other != name]
        if all(verdict(mine, theirs) == "ahead" for theirs in others):
            return name
    return "nobody"


def race_lines(runs: Results) -> list[str]:
    """The race as text, a line for each entry: the mean of the seeds, after the same bytes and
    after the same time.
    """
    by_bytes, by_time = equal_bytes(runs), equal_seconds(runs)
    return [f"{'':16}{'parameters':>11}{'equal bytes':>13}{'equal time':>12}"] + [
        f"{name:16}{several[0].parameters:11,}"
        f"{statistics.fmean(by_bytes[name]):13.2f}{statistics.fmean(by_time[name]):12.2f}"
        for name, several in runs.items()
    ]


def long_race(report: dict) -> tuple[Chart, Chart]:
    """The longest budget of a report of `python -m qllk bench`: its curves, and the gaps to the
    control by position, under the names of the lesson.
    """
    longest = max(row["seconds"] for row in report["rows"])
    rows = [row for row in report["rows"] if row["seconds"] == longest]
    (charts,) = standings.draw_race(rows, report["baselines"])
    return tuple(
        chart._replace(lines={plain(name): line for name, line in chart.lines.items()})
        for chart in charts
    )


def plain(entry: str) -> str:
    """The name of a control without that of its model."""
    return entry.removeprefix("qllk-3 ")


def long_lines(report: dict) -> list[str]:
    """The standings of a report, the best first within each budget, in bits per byte."""
    lines = [f"{'':36}{'windows':>9}{'stream':>9}"]
    for row in sorted(report["rows"], key=lambda row: (row["seconds"], row["mean_nats"])):
        name = f"{row['seconds']:g} s  {plain(row['entry'])}"
        lines.append(f"{name:36}{row['mean_nats'] / LN2:9.3f}{row['stream_nats'] / LN2:9.3f}")
    return lines


# ---------------------------------------------------------------- judging


def read_as_written(
    model, data, window: int, cover: Callable, patch=8, blank=ord(" ")
) -> torch.Tensor:
    """The loss of each byte when all that was not yet read is blank, as it is in writing.

    `cover(ids, blank)` makes a row for each byte, see exercise 11.1. A model that does not leak has
    the same losses as ever.

    Shapes   data (n,) uint8, n - 1 a multiple of window  ->  (n - 1,) nats
    """
    ids = torch.cat(list(iterate_windows(data, 1, window))).long()  # (W, window + 1)
    found = []
    with eval_mode(model):
        for first in range(0, window, patch):
            stop = min(first + patch, window)
            rows = torch.stack([cover(row, blank)[first:] for row in ids[:, :stop]])
            logits = model(rows.flatten(0, 1)).unflatten(0, (len(ids), -1))[:, :, first:]
            own = logits.diagonal(dim1=1, dim2=2).mT  # row t answers only for place t
            found.append(objectives.token_losses(own, ids[:, first + 1 : stop + 1]))
    return torch.cat(found, dim=1).flatten()


def guess_last(model, data, positions, context: int) -> torch.Tensor:
    """The logits of some bytes, each from the `context` bytes before it and from nothing else.

    The byte is asked for at the last place of a full patch, where there is nothing left to leak.

    Shapes   data (n,) uint8, positions (m,), none below context  ->  (m, 256)
    """
    before = np.arange(-context, 0)
    with eval_mode(model):
        return torch.cat(
            [
                model(torch.from_numpy(data[some[:, None] + before]).long())[:, -1]
                for some in np.array_split(positions, -(-len(positions) * context // 16384))
            ]
        )


def slid_bits(model, data, context=64) -> float:
    """Bits per byte where each byte is asked for last, after sliding the text to end before it."""
    positions = np.arange(context, len(data))
    logits, targets = guess_last(model, data, positions, context), torch.tensor(data[context:])
    return objectives.token_losses(logits[None], targets[None]).mean().item() / LN2


def bits_by_length(model, data, lengths) -> list[float]:
    """Bits per byte in windows of each length; a window as long as the text is a stream."""
    ids = data.astype(np.int64)
    return [nats_per_token(model, ids, length) / LN2 for length in lengths]


def digits_found(model, text, window: int) -> np.ndarray:
    """Whether the most probable byte is the right one, where a text of "lookup" asks for a digit.

    The text is read in windows; a single window is a stream.

    Shapes   text (n,) uint8, starting with an entry  ->  (m,) bool, as `asked_digits`
    """
    with eval_mode(model):
        read = iterate_windows(text, 1, window)
        guesses = torch.cat([model(ids[:, :-1].long())[0].argmax(dim=-1) for ids in read])
    positions, _ = asked_digits(text)
    return (guesses.numpy() == text[1:])[positions - 1]


# ---------------------------------------------------------------- widget

_LIVE = Recipe(batch=2, window=512, lr=8e-3, validate_every=1 << 30, validate_bytes=6145)
_SIZES = (32, (2, 3, 4, "word"), (3, 4, 6, "word"), 4096, 4096)
_FIELDS = {
    ", ".join(names): names
    for names in (
        ("qllk-3", "without memory"),
        ("qllk-3", "without recall", "attention"),
        ("qllk-3", "without n-grams"),
        ("qllk-3", "published"),
    )
}


def entries() -> dict[str, Entry]:
    """Who races in the widget: the model of lesson 08, what controls it, and the published one."""
    spec = spec_of(*_SIZES)
    return {"qllk-3": spec, **controls_of(spec), "published": published_model(32)}


@cache
def live_text(name: str) -> tuple[Corpus, dict[str, float]]:
    """A short text of that name, and the levels to compare with."""
    if name == "stdlib":
        text = excerpt(corpus(name), 1 << 20, _LIVE.validate_bytes)
        tables = baselines.table_losses(text.train[: 1 << 16], text.valid)
        names = ("unigram", "trigram")
        return text, {name: tables[name] / LN2 for name in names}
    text = task(name, 1 << 18)
    floor = text.floor
    return excerpt(text, len(text.train), _LIVE.validate_bytes), {"floor": floor / LN2}


@explorer(
    "On which text does a memory pay, and on which does it not?",
    runs=True,
    field=choice("runners", list(_FIELDS)),
    text=choice("text", ["stdlib", "lookup", "markov", "noise"]),
    seconds=slider("seconds", [2, 5, 10]),
)
def live(field="qllk-3, without memory", text="lookup", seconds=5) -> Iterator[Chart]:
    """A race as it runs: who has computed least moves next. Ends after `seconds` in all."""
    data = live_text(text)
    recipe = replace(_LIVE, seconds=float(seconds))
    with measure.single_thread():
        trainers = {
            name: make_trainer(entries()[name], data[0], recipe, time.perf_counter)
            for name in _FIELDS[field]
        }
        lines: dict[str, list] = {name: [] for name in trainers}
        begun = time.perf_counter()
        while True:
            for name, trainer in trainers.items():
                lines[name].append((trainer.seconds, trainer.validate() / LN2))
            yield Chart(lines, "seconds each", "bits per byte", "", data[1])
            shown = time.perf_counter()
            if shown - begun >= seconds:
                return
            while time.perf_counter() < min(shown + 0.5, begun + seconds):
                next(min(trainers.values(), key=lambda trainer: trainer.seconds))
