"""Lesson 11, Race honestly."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from ... import probes
from ...model import kernels
from ...model.families import build
from ...presets import PRESETS
from ...probes import baselines, measure
from ...probes.evaluate import LN2
from ...spec import Spec
from ...study import published
from ...study.figures import Chart
from ...study.race import Entry, Result, Results, equal_bytes, equal_seconds, make_trainer
from ...text import objectives
from ...text.corpora import Corpus, corpus, task
from ...text.windows import iterate_windows
from ...training.recipe import Recipe
from ..explore import choice, explorer, slider
from ..show import TEXT
from .exercises.race import bits, spread, unread, verdict

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


def narrow(spec: Spec, width: int) -> Spec:
    """The same model at another width, its patches included."""
    patch = spec.patch and replace(spec.patch, d_model=width)
    return spec.but(d_model=width, patch=patch)


# ---------------------------------------------------------------- the race


def leader(results: dict[str, list[float]]) -> str:
    """Who is ahead of every other by more than luck; else "nobody"."""
    for name, mine in results.items():
        others = [theirs for other, theirs in results.items() if other != name]
        if all(verdict(mine, theirs) == "ahead" for theirs in others):
            return name
    return "nobody"


def race_lines(runs: Results) -> list[str]:
    """The race as text, a line for each entry."""
    by_bytes, by_time = equal_bytes(runs), equal_seconds(runs)
    lines = [f"{'':12}{'parameters':>11}{'equal bytes':>16}{'equal time':>16}"]
    for name, several in runs.items():
        cells = [
            f"{statistics.fmean(found):9.2f} ± {spread(found):.2f}"
            for found in (by_bytes[name], by_time[name])
        ]
        lines.append(f"{name:12}{several[0].parameters:11,}{cells[0]:>16}{cells[1]:>16}")
    return lines


def _mean_curve(several: list[Result], along: str) -> list[tuple[float, float]]:
    """The mean over the seeds, along "bytes_seen" or "seconds"."""
    return [
        (
            statistics.fmean(getattr(point, along) for point in points),
            statistics.fmean(point.nats / LN2 for point in points),
        )
        for points in zip(*(one.curve for one in several), strict=True)
    ]


def race_chart(runs: Results, baselines: dict[str, float]) -> tuple[Chart, Chart]:
    """The two views of one race."""
    axes = {"bytes_seen": "bytes read", "seconds": "seconds of one core"}
    return tuple(
        Chart(
            {name: _mean_curve(several, along) for name, several in runs.items()},
            x,
            "bits per byte, held out",
            log="",
            levels=baselines,
        )
        for along, x in axes.items()
    )


# ---------------------------------------------------------------- judging


def excerpt(text: Corpus, train: int, valid: int) -> Corpus:
    """The head of both splits."""
    return replace(text, train=text.train[:train], valid=text.valid[:valid])


def read_as_written(model, data, window: int, patch=8, blank=ord(" ")) -> torch.Tensor:
    """The loss of each byte when all that was not yet read is blank, as it is in writing.

    A model that does not leak has the same losses as ever.

    Shapes   data (n,) uint8, n - 1 a multiple of window  ->  (n - 1,) nats
    """
    ids = torch.cat(list(iterate_windows(data, 1, window))).long()  # (W, window + 1)
    model.eval()
    found = []
    with torch.no_grad():
        for first in range(0, window, patch):
            stop = min(first + patch, window)
            rows = torch.stack([unread(row, blank)[first:] for row in ids[:, :stop]])
            logits = model(rows.flatten(0, 1)).unflatten(0, (len(ids), -1))[:, :, first:]
            own = logits.diagonal(dim1=1, dim2=2).mT  # row t answers only for place t
            found.append(objectives.token_losses(own, ids[:, first + 1 : stop + 1]))
    return torch.cat(found, dim=1).flatten()


def honest_bits(model, text: Corpus, window: int, size: int) -> float:
    """Bits per byte of the head of the held-out text, with nothing unread in sight."""
    losses = read_as_written(model, text.valid[: size // window * window + 1], window)
    return bits([losses.double()]).item()


# ---------------------------------------------------------------- recall


def recalled(rule: str, pairs: int, width=64, trials=32, symbols=10) -> float:
    """Store random pairs of key and digit in one state, ask for all: the share that comes back.

    Keys and digits are random signs, one vector each, and nothing is trained: "kernel" keeps
    `width` numbers, "matrix" one head of linear attention, "attention" all keys and values.
    """
    rng = torch.Generator().manual_seed(pairs)

    def signs(*shape):
        return torch.randint(2, shape, generator=rng).float() * 2 - 1

    keys, names = signs(trials, pairs, width), signs(symbols, width)
    asked = torch.randint(symbols, (trials, pairs), generator=rng)
    values = names[asked]  # (trials, pairs, width)
    q, k, v = keys[:, None], keys[:, None], values[:, None]  # one head
    if rule == "kernel":
        _, S = kernels.cumsum_kernel(keys, keys, values)
        read = keys * S[:, None]
    elif rule == "matrix":
        _, S = kernels.linear_attention(q, k, v)
        read = (q @ S)[:, 0]
    else:
        read = kernels.softmax_attention(q, k, v)[:, 0]
    return ((read @ names.T).argmax(-1) == asked).double().mean().item()


def holds_pairs(shares: dict[int, float], enough=0.8) -> int:
    """The largest number of pairs of which enough came back, counted from the smallest up."""
    good = itertools.takewhile(lambda pairs: shares[pairs] >= enough, sorted(shares))
    return max(good, default=0)


# ---------------------------------------------------------------- length


class Scaling(NamedTuple):
    """What one model pays for a text of each length."""

    lengths: list[int]
    seconds: list[float]
    operations: list[int]
    state: list[int]  # numbers carried at the end


def _streamed(model, ids, piece: int):
    """Read a text piece by piece, carrying the state; the state after its last byte."""
    state = None
    with torch.no_grad():
        for part in ids.split(piece, dim=1):
            _, state = model.run(part, state)
    return state


def scaling(spec: Spec, lengths: list[int], piece: int | None = None) -> Scaling:
    """Read the course's string, repeated to these lengths, in pieces or each at once."""
    model = build(spec, seed=0).eval()
    with measure.single_thread():
        text = np.frombuffer(TEXT, np.uint8)
        ids = [torch.from_numpy(np.resize(text, T))[None] for T in lengths]
        rows = [_priced(model, one, piece or one.shape[1]) for one in ids]
    return Scaling(lengths, *map(list, zip(*rows, strict=True)))


def _priced(model, ids, piece) -> tuple[float, int, int]:
    """Seconds, operations, and numbers in the state, of reading a text."""
    held = []
    took = measure.median_seconds(lambda: _streamed(model, ids, piece), repeats=1)
    work = measure.count_flops(
        lambda: held.append(probes.state_numbers(_streamed(model, ids, piece)))
    )
    return took, work, held[0]


# ---------------------------------------------------------------- widget

_LIVE = Recipe(batch=4, window=64, validate_every=1 << 30, validate_bytes=2049)
_LIVE_WIDTH = 32
_FIELDS = {
    "kernel, control": ("kernel", "control"),
    "kernel, attention": ("kernel", "attention"),
    "kernel, control, attention": ("kernel", "control", "attention"),
    "kernel, published": ("kernel", "published"),
}


def entries(width: int) -> dict[str, Entry]:
    """Who races, at one width."""
    kernel = narrow(PRESETS["qllk-2-nano"], width)
    return {
        "kernel": kernel,
        "control": kernel.but(patch=None),
        "attention": narrow(PRESETS["gpt-nano"], width),
        "published": published_model(width),
    }


@cache
def live_text(name: str) -> tuple[Corpus, dict[str, float]]:
    """A short text of that name, and the levels to compare with."""
    if name == "stdlib":
        text = excerpt(corpus(name), 1 << 20, _LIVE.validate_bytes)
        tables = baselines.table_losses(text.train[: 1 << 16], text.valid)
        names = ("unigram", "trigram")
        return text, {name: tables[name] / LN2 for name in names}
    text = task(name, 1 << 16)
    floor = text.floor
    return excerpt(text, len(text.train), _LIVE.validate_bytes), {"floor": floor / LN2}


@explorer(
    "How much of the lead over attention belongs to the kernel, and does it come in time?",
    runs=True,
    field=choice("runners", list(_FIELDS)),
    text=choice("text", ["stdlib", "copy", "recall", "periodic", "markov", "noise"]),
    seconds=slider("seconds", [2, 5, 10]),
)
def live(field="kernel, control", text="stdlib", seconds=2) -> Iterator[Chart]:
    """A race as it runs: who has computed least moves next. Ends after `seconds` in all."""
    data = live_text(text)
    recipe = replace(_LIVE, seconds=float(seconds))
    with measure.single_thread():
        trainers = {
            name: make_trainer(entries(_LIVE_WIDTH)[name], data[0], recipe, time.perf_counter)
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
