"""Lesson 10, Race honestly."""

from __future__ import annotations

import itertools
import math
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
from ...model.families import build, count_parameters
from ...presets import PRESETS
from ...probes import baselines, measure
from ...probes.evaluate import LN2
from ...spec import Spec
from ...study import published
from ...study.figures import Chart
from ...study.race import Point, follow
from ...text import objectives
from ...text.corpora import Corpus, corpus, task
from ...text.windows import iterate_windows
from ...training.recipe import Recipe
from ...training.trainer import Trainer
from ..check import SEES_THE_FUTURE, WRONG_VALUES, Case, Exercise, Mistake
from ..explore import Runner, choice, slider
from ..show import TEXT

# ---------------------------------------------------------------- exercises


def bits(windows):
    """Bits per byte of all windows together, from the loss of each of their bytes in nats."""
    losses = torch.cat(list(windows))
    return losses.mean() / math.log(2)


def unread(ids, blank):
    """Row t is the text as a writer has it after byte t: the bytes that follow are blank."""
    rows = ids.expand(len(ids), -1)  # (T, T)
    return torch.where(torch.ones_like(rows).tril() > 0, rows, blank)


def verdict(model, control):
    """Who is better, from bits per byte of several seeds each: by more than luck, or not."""
    if min(len(model), len(control)) < 2:
        return "too close"  # one seed does not tell how far luck reaches
    gap = sum(control) / len(control) - sum(model) / len(model)
    luck = max(max(model) - min(model), max(control) - min(control))
    if abs(gap) <= luck:
        return "too close"
    return "ahead" if gap > 0 else "behind"


def bits_loop(windows):
    total, count = 0.0, 0
    for losses in windows:
        for nats in losses.tolist():
            total, count = total + nats / math.log(2), count + 1
    return total / count


def unread_loop(ids, blank):
    T = len(ids)
    rows = [[int(ids[i]) if i <= t else blank for i in range(T)] for t in range(T)]
    return torch.tensor(rows)


def said_by(gap, luck, model, control):
    """A verdict by other measures of gap and luck; never from a single seed."""
    if min(len(model), len(control)) < 2 or abs(gap) <= luck:
        return "too close"
    return "ahead" if gap > 0 else "behind"


def spread(values):
    return max(values) - min(values)


def gap_of_means(model, control):
    return sum(control) / len(control) - sum(model) / len(model)


def ragged(rng):
    for lengths in ((1,), (5, 5), (7, 2, 1), (40, 3)):
        yield Case((tuple(torch.rand(T, generator=rng, dtype=torch.float64) for T in lengths),))


def texts(rng):
    for T in (1, 3, 8, 11, 24):
        yield Case((torch.randint(97, 123, (T,), generator=rng), 32))


def seeds_of_two(rng):
    for model, control in (
        ([2.00, 2.02, 2.01], [2.30, 2.31, 2.29]),  # plain
        ([2.00], [2.50]),  # one seed
        ([2.00, 2.40, 2.50], [1.90, 2.60, 2.70]),  # both spreads are wide
        ([2.00, 2.01, 2.02], [2.00, 2.30, 2.60]),  # only one is
        ([3.10, 3.20], [2.50, 2.60, 2.55]),
    ):
        yield Case((model, control))


EXERCISES = (
    Exercise(
        name="race.bits",
        difficulty=1,
        minutes=5,
        answer=bits,
        truth=bits_loop,
        cases=ragged,
        hints=(
            "A nat is 1 / ln 2 bits: about 1.44 of them.",
            "Each byte counts once, so the longer window weighs more.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "That multiplies by ln 2: a bit is smaller than a nat, so there are more of them.",
                lambda windows: torch.cat(list(windows)).mean() * math.log(2),
            ),
            Mistake(
                WRONG_VALUES,
                "That is still in nats.",
                lambda windows: torch.cat(list(windows)).mean(),
            ),
            Mistake(
                WRONG_VALUES,
                "That is the bits of the whole text, not of one byte.",
                lambda windows: torch.cat(list(windows)).sum() / math.log(2),
            ),
            Mistake(
                WRONG_VALUES,
                "That is a mean of means: a short last window counts as much as a full one.",
                lambda windows: torch.stack([w.mean() for w in windows]).mean() / math.log(2),
            ),
        ),
    ),
    Exercise(
        name="race.unread",
        difficulty=2,
        minutes=8,
        answer=unread,
        truth=unread_loop,
        cases=texts,
        hints=(
            "The result has a row and a column for each byte of the text.",
            "What row t may keep is the lower triangle; torch's tril makes one.",
            "torch.where picks from two tensors, place by place; the second may be a number.",
        ),
        mistakes=(
            Mistake(
                SEES_THE_FUTURE,
                "That hides only later patches: the rest of the patch is the leak.",
                lambda ids, blank: torch.where(
                    torch.arange(len(ids)) // 8 <= torch.arange(len(ids))[:, None] // 8, ids, blank
                ),
            ),
            Mistake(
                SEES_THE_FUTURE,
                "That leaves one byte too many: the very byte that is to be predicted.",
                lambda ids, blank: torch.where(triangle(ids, 1), ids, blank),
            ),
            Mistake(
                WRONG_VALUES,
                "That hides the newest byte as well.",
                lambda ids, blank: torch.where(triangle(ids, -1), ids, blank),
            ),
            Mistake(
                WRONG_VALUES,
                "What is hidden became zero, not the blank that was asked for.",
                lambda ids, blank: torch.where(triangle(ids, 0), ids, 0),
            ),
        ),
        time_axis=0,
    ),
    Exercise(
        name="race.verdict",
        difficulty=3,
        minutes=12,
        answer=verdict,
        cases=seeds_of_two,
        hints=(
            "Fewer bits are better. Take the gap of the means first, and mind its sign.",
            "How far does luck reach? Largest less smallest, of whichever side has it larger.",
            "With one seed on either side nobody knows how far luck reaches.",
        ),
        mistakes=(
            Mistake(
                WRONG_VALUES,
                "Fewer bits are better, so the gap has the wrong sign.",
                lambda model, control: verdict(control, model),
            ),
            Mistake(
                WRONG_VALUES,
                "One seed has no spread at all, and that is no proof of anything.",
                lambda model, control: said_by(
                    gap_of_means(model, control),
                    max(spread(model), spread(control)),
                    model * 2,
                    control * 2,
                ),
            ),
            Mistake(
                WRONG_VALUES,
                "That compares the luckiest seed of each.",
                lambda model, control: said_by(min(control) - min(model), 0.0, model, control),
            ),
            Mistake(
                WRONG_VALUES,
                "The larger of the two spreads counts, not the smaller.",
                lambda model, control: said_by(
                    gap_of_means(model, control),
                    min(spread(model), spread(control)),
                    model,
                    control,
                ),
            ),
            Mistake(
                WRONG_VALUES,
                "Those are the means alone; another seed could turn them round.",
                lambda model, control: said_by(gap_of_means(model, control), 0.0, model, control),
            ),
        ),
    ),
)


def triangle(ids, diagonal):
    T = len(ids)
    return torch.ones(T, T, dtype=torch.bool).tril(diagonal)


# ---------------------------------------------------------------- who runs


class Published(NamedTuple):
    """QLLK 1.1 as published, small; without `hashing` its "hash" matrix stays zero."""

    dim: int
    hashing: bool = True


def trainer_of(entry: Spec | Published, text: Corpus, recipe: Recipe, clock=time.process_time):
    """A trainer of either kind of entry; by default it counts this process's own time."""
    what = published_model(entry, recipe.seed) if isinstance(entry, Published) else entry
    return Trainer(what, text, recipe, clock=clock)


def published_model(entry: Published, seed: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = published.QLLK11(dim=entry.dim)
    if not entry.hashing:
        torch.nn.init.zeros_(model.hash_proj).requires_grad_(False)
    return model


def narrow(spec: Spec, width: int) -> Spec:
    """The same model at another width, its patches included."""
    patch = spec.patch and replace(spec.patch, d_model=width)
    return spec.but(d_model=width, patch=patch)


# ---------------------------------------------------------------- the race


class Run(NamedTuple):
    """One entry with one seed."""

    parameters: int
    curve: list[Point]  # nats per byte of the held-out text
    model: torch.nn.Module

    @property
    def bits(self) -> float:
        """Bits per byte at the end."""
        return self.curve[-1].nats / LN2

    def bits_at(self, seconds: float) -> float:
        """Bits per byte after so many seconds: a straight line between points, seconds by log."""
        times = np.log([point.seconds for point in self.curve])
        return float(
            np.interp(math.log(seconds), times, [point.nats / LN2 for point in self.curve])
        )


Runs = dict[str, list[Run]]


def run(entry: Spec | Published, text: Corpus, recipe: Recipe, points=4) -> Run:
    """Train, and look at the held-out text at the end, at half of the way, at a quarter …"""
    trainer = trainer_of(entry, text, recipe)
    curve = follow(trainer, "step", {max(1, round(recipe.steps / 2**i)) for i in range(points)})
    return Run(count_parameters(trainer.model), curve, trainer.model)


def race(entries: dict, text: Corpus, recipe: Recipe, seeds=3) -> Runs:
    """Every entry with every seed: the same text, the same windows, the same number of bytes."""
    runs: Runs = {name: [] for name in entries}
    with measure.single_thread():
        for seed in range(seeds):
            for name, entry in entries.items():
                runs[name].append(run(entry, text, replace(recipe, seed=seed)))
    return runs


def equal_bytes(runs: Runs) -> dict[str, list[float]]:
    """Bits per byte of each seed, when all have read the same number of bytes."""
    return {name: [one.bits for one in several] for name, several in runs.items()}


def equal_seconds(runs: Runs) -> dict[str, list[float]]:
    """Bits per byte of each seed, when all have computed as long as the quickest in all."""
    shortest = quickest(runs)
    return {name: [one.bits_at(shortest) for one in several] for name, several in runs.items()}


def quickest(runs: Runs) -> float:
    return min(one.curve[-1].seconds for several in runs.values() for one in several)


def leader(results: dict[str, list[float]]) -> str:
    """Who is ahead of every other by more than luck; else "nobody"."""
    for name, mine in results.items():
        others = [theirs for other, theirs in results.items() if other != name]
        if all(verdict(mine, theirs) == "ahead" for theirs in others):
            return name
    return "nobody"


def race_lines(runs: Runs) -> list[str]:
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


def mean_curve(several: list[Run], along: str) -> list[tuple[float, float]]:
    """The mean over the seeds, along "bytes_seen" or "seconds"."""
    return [
        (
            statistics.fmean(getattr(point, along) for point in points),
            statistics.fmean(point.nats / LN2 for point in points),
        )
        for points in zip(*(one.curve for one in several), strict=True)
    ]


def race_chart(runs: Runs, floors: dict[str, float]) -> tuple[Chart, Chart]:
    """The two views of one race."""
    axes = {"bytes_seen": "bytes read", "seconds": "seconds of one core"}
    return tuple(
        Chart(
            {name: mean_curve(several, along) for name, several in runs.items()},
            x,
            "bits per byte, held out",
            log="",
            levels=floors,
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
            own = logits.diagonal(dim1=1, dim2=2).mT  # row t answers for place t alone
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


def streamed(model, ids, piece: int):
    """Read a text piece by piece, carrying the state; the state after its last byte."""
    state = None
    with torch.no_grad():
        for part in ids.split(piece, dim=1):
            _, state = model.run(part, state)
    return state


def scaling(spec: Spec, lengths: list[int], piece: int | None = None) -> Scaling:
    """Read the course's string over and over, at these lengths, in pieces or each at once."""
    model = build(spec, seed=0).eval()
    with measure.single_thread():
        rows = [priced(model, repeated(T), piece or T) for T in lengths]
    return Scaling(lengths, *map(list, zip(*rows, strict=True)))


def repeated(length: int) -> torch.Tensor:
    """Shapes  -> (1, length)"""
    return torch.from_numpy(np.resize(np.frombuffer(TEXT, np.uint8), length))[None]


def priced(model, ids, piece) -> tuple[float, int, int]:
    """Seconds, operations, and numbers in the state, of reading a text."""
    held = []
    took = measure.median_seconds(lambda: streamed(model, ids, piece), repeats=1)
    work = counted(lambda: held.append(probes.state_numbers(streamed(model, ids, piece))))
    return took, work, held[0]


def counted(call) -> int:
    """Operations of a call that is not trained."""
    with torch.no_grad():
        return measure.count_flops(call)


# ---------------------------------------------------------------- widget

LIVE = Recipe(batch=4, window=64, validate_every=1 << 30, validate_bytes=2049)
LIVE_WIDTH = 32
FIELDS = {
    "kernel, control": ("kernel", "control"),
    "kernel, attention": ("kernel", "attention"),
    "kernel, control, attention": ("kernel", "control", "attention"),
    "kernel, published": ("kernel", "published"),
}


def entries(width: int) -> dict[str, Spec | Published]:
    """Who races, at one width."""
    kernel = narrow(PRESETS["qllk-2-nano"], width)
    return {
        "kernel": kernel,
        "control": kernel.but(patch=None),
        "attention": narrow(PRESETS["gpt-nano"], width),
        "published": Published(width),
    }


@cache
def live_text(name: str) -> tuple[Corpus, dict[str, float]]:
    """A short text of that name, and the levels to compare with."""
    if name == "stdlib":
        text = excerpt(corpus(name), 1 << 20, LIVE.validate_bytes)
        tables = baselines.table_losses(text.train[: 1 << 16], text.valid)
        names = ("unigram", "trigram")
        return text, {name: tables[name] / LN2 for name in names}
    text = task(name, 1 << 16)
    floor = text.floor
    return excerpt(text, len(text.train), LIVE.validate_bytes), {"floor": floor / LN2}


def live(field="kernel, control", text="stdlib", seconds=2) -> Iterator[Chart]:
    """A race as it runs: who has computed least moves next. Ends after so many seconds in all."""
    data = live_text(text)
    recipe = replace(LIVE, seconds=float(seconds))
    with measure.single_thread():
        trainers = {
            name: trainer_of(entries(LIVE_WIDTH)[name], data[0], recipe, time.perf_counter)
            for name in FIELDS[field]
        }
        lines: dict[str, list] = {name: [] for name in trainers}
        begun = time.perf_counter()
        while True:
            for name, trainer in trainers.items():
                lines[name].append((trainer.seconds, trainer.validate() / LN2))
            yield Chart(lines, "seconds each", "bits per byte", "", data[1])
            told = time.perf_counter()
            if told - begun >= seconds:
                return
            while time.perf_counter() < min(told + 0.5, begun + seconds):
                next(min(trainers.values(), key=lambda trainer: trainer.seconds))


def finished(field="kernel, control", text="stdlib", seconds=2) -> Chart:
    """How a race ends."""
    return list(live(field, text, seconds))[-1]


def widget() -> Runner:
    """Pick who races, on what, and for how long."""
    return Runner(
        "How much of the lead over attention belongs to the kernel, and does it come in time?",
        {
            "field": choice("runners", list(FIELDS)),
            "text": choice("text", ["stdlib", "copy", "recall", "periodic", "markov", "noise"]),
            "seconds": slider("seconds", [2, 5, 10]),
        },
        live,
    )
