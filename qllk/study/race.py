"""The race: which model learns most from the same text in the same computing time?

Every entry gets the same CPU seconds of one core, the same corpus, the same amount of text per step
and the same search: first each of its sizes with each learning rate, at a quarter of the smallest
budget; then each size with its best rate at the full budget. The best size runs with the other
seeds. Everything is evaluated on the whole held-out split, in the windows of its training, which
decide the race, and beside them in windows of fixed lengths and as a stream. Time is the CPU time
of the training steps, so a busy machine slows a race but does not decide it.

A win proves nothing about a part until the same model without that part, its **control**, has run.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import __version__
from ..checks import check_positive
from ..files import write_atomically
from ..model.families import count_parameters, eval_mode
from ..presets import PRESETS
from ..probes import measure, state_numbers
from ..probes.evaluate import LN2, mean_loss
from ..spec import Spec
from ..text.corpora import Corpus, corpus
from ..training.questions import QUESTIONS
from ..training.recipe import Recipe
from ..training.trainer import Trainer
from .figures import Chart

LEARNING_RATES = (4e-3, 8e-3)
_POINTS = 16  # of a learning curve, evenly spaced on a log scale of seconds
_BINS = 16  # of the window, for the loss by position
_WINDOWS = (1024, 4096)  # ids per window in which every decoder is judged, whatever it trained in
_LONGEST = 4096  # ids per stream of a model whose state grows with what it has read


class Run(NamedTuple):
    """One training run of the race, as plain data."""

    entry: str
    spec: Spec
    recipe: Recipe
    corpus: str

    @property
    def key(self) -> str:
        """The name of the run's result in the folder of results."""
        facts = json.dumps([self.spec.to_json(), asdict(self.recipe), self.corpus])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def but(self, **changes) -> Run:
        """This run with some fields of its recipe changed."""
        return self._replace(recipe=replace(self.recipe, **changes))


def _wider(spec: Spec, widths) -> tuple[Spec, ...]:
    return tuple(spec.but(d_model=width) for width in widths)


def _trunk(**changes) -> tuple[Spec, ...]:
    """qllk-2 with another patch path."""
    spec = PRESETS["qllk-2"]
    return (spec.but(patch=replace(spec.patch, **changes)),)


_CONTROL = "qllk-2-local"
# An entry has one size or several; the search picks the best.
RACE = {
    "qllk-2": (PRESETS["qllk-2"],),
    _CONTROL: _wider(PRESETS[_CONTROL], (96, 128, 192)),
    "gpt": (PRESETS["gpt"],),
    "gpt (best width)": tuple(
        PRESETS["gpt"].but(d_model=width, mixers=(("softmax", {"heads": width // 32}),))
        for width in (64, 96, 128)
    ),
}
# Variants of qllk-2, each with one thing changed.
_VARIANTS = {
    "sum that never forgets": _trunk(mixers=(("cumsum", {"normaliser": "rms"}),)),
    "attention on patches": _trunk(mixers=(("softmax", {"heads": 4}),)),
    "matrix state on patches": _trunk(mixers=(("linear", {"heads": 4, "decay": "fixed"}),)),
    "wide trunk": _trunk(d_model=256),
    "patches of 4": _trunk(size=4),
    "one layer after": _trunk(after=1),
    "gelu": (PRESETS["qllk-2"].but(mlp=("gelu", {"ratio": 4})),),
}
ENTRIES = {name: (spec,) for name, spec in PRESETS.items()} | RACE | _VARIANTS


# ---------------------------------------------------------------- running


class Point(NamedTuple):
    """A point of a learning curve."""

    bytes_seen: int
    seconds: float
    nats: float  # per byte of the held-out split


def follow(trainer: Trainer, along: str, marks: Iterable[float]) -> list[Point]:
    """Train to the end, and validate whenever `trainer.step` or `trainer.seconds` passes a mark."""
    curve, parent = [], multiprocessing.parent_process()
    marks = sorted(marks)
    for _ in trainer:
        if parent and not parent.is_alive():  # or a killed race would continue unseen
            raise SystemExit("the race was ended")
        now = getattr(trainer, along)
        if marks and now >= marks[0]:
            curve.append(Point(trainer.bytes_seen, trainer.seconds, trainer.validate()))
            marks = [mark for mark in marks if mark > now]
    return curve


Entry = Spec | Callable[[int], torch.nn.Module]  # a design, or a model made from a seed


def make_trainer(
    entry: Entry, text: Corpus, recipe: Recipe, clock: Callable[[], float] = time.process_time
) -> Trainer:
    """A trainer of an entry; by default it counts this process's own CPU time."""
    what = entry if isinstance(entry, Spec) else entry(recipe.seed)
    return Trainer(what, text, recipe, clock=clock)


class Result(NamedTuple):
    """One entry with one seed."""

    parameters: int
    curve: list[Point]
    model: torch.nn.Module

    @property
    def bits(self) -> float:
        """Bits per byte at the end."""
        return self.curve[-1].nats / LN2

    def bits_at(self, seconds: float) -> float:
        """Bits per byte after `seconds`, interpolated on a log scale of time."""
        times = np.log([point.seconds for point in self.curve])
        bits = [point.nats / LN2 for point in self.curve]
        return float(np.interp(math.log(seconds), times, bits))


Results = dict[str, list[Result]]


def race_here(
    entries: dict[str, Entry], text: Corpus, recipe: Recipe, *, seeds: int = 3, points: int = 4
) -> Results:
    """Train every entry with every seed on the same windows, in this process and on one core.

    The held-out split is evaluated at the end, half way, at a quarter and so on.
    """
    marks = {max(1, round(recipe.steps / 2**i)) for i in range(points)}
    results: Results = {name: [] for name in entries}
    with measure.single_thread():
        for seed in range(seeds):
            for name, entry in entries.items():
                trainer = make_trainer(entry, text, replace(recipe, seed=seed))
                curve = follow(trainer, "step", marks)
                found = Result(count_parameters(trainer.model), curve, trainer.model)
                results[name].append(found)
    return results


def equal_bytes(results: Results) -> dict[str, list[float]]:
    """Bits per byte of each seed after the same number of bytes."""
    return {name: [one.bits for one in several] for name, several in results.items()}


def equal_seconds(results: Results) -> dict[str, list[float]]:
    """Bits per byte of each seed after the computing time of the quickest run."""
    shortest = min(one.curve[-1].seconds for several in results.values() for one in several)
    return {name: [one.bits_at(shortest) for one in several] for name, several in results.items()}


def _train_one(run: Run) -> dict:
    """Train, evaluate on the whole held-out split, and return the result as plain data."""
    torch.set_num_threads(1)
    trainer = Trainer(run.spec, corpus(run.corpus), run.recipe, clock=time.process_time)
    budget = run.recipe.seconds
    marks = [budget * 2.0 ** (i / 2 - _POINTS / 2 + 0.5) for i in range(_POINTS)]
    curve = follow(trainer, "seconds", marks)
    nats, count = trainer.loss_by_position(len(trainer.corpus.valid))
    mean = mean_loss(nats, count)
    return {
        "entry": run.entry,
        "spec": json.loads(run.spec.to_json()),
        "recipe": asdict(run.recipe),
        "corpus": trainer.corpus.name,
        "parameters": count_parameters(trainer.model),
        "nats_per_byte": mean,
        "bits_per_byte": mean / LN2,
        "held_out": int(count.sum()),  # how many targets were evaluated
        "bytes_per_second": trainer.bytes_seen / trainer.seconds,
        "bytes_seen": trainer.bytes_seen,
        "curve": [[round(point.seconds, 2), point.nats] for point in curve],
        "by_position": [
            chunk.mean().item() for chunk in nats[count > 0].tensor_split(_BINS) if len(chunk)
        ],
        **_judge_streams(trainer, mean),
    }


def _judge_streams(trainer: Trainer, mean: float) -> dict:
    """The nats per byte of a decoder on the whole held-out split, by the length of its streams.

    `mean` is the result in the windows of its training, which need not be read again.

    window_nats      by the window, of those that fit into the model's context
    stream_nats      as a stream, which ends after `stream_longest` ids, or for None never
    """
    if trainer.spec.family != "decoder":
        return {}
    context, longest = trainer.spec.context, longest_stream(trainer.model)
    windows = [window for window in _WINDOWS if window <= (context or window)]
    nats: dict[int | None, float] = {trainer.window: mean}
    for length in {*windows, longest} - nats.keys():
        losses = trainer.stream_losses(len(trainer.corpus.valid), longest=length)
        nats[length] = mean_loss(*losses)
    return {
        "window_nats": {str(window): nats[window] for window in windows},
        "stream_nats": nats[longest],
        "stream_longest": longest,
    }


def longest_stream(model: torch.nn.Module) -> int | None:
    """The ids that a stream of the model may have: None, without end, for a state of constant size.

    A state counts as constant if it has its full size after `_LONGEST` ids.
    """
    if context := model.spec.context:
        return min(context, _LONGEST)
    ids = torch.zeros(1, _LONGEST, dtype=torch.long, device=next(model.parameters()).device)
    with eval_mode(model):
        _, once = model.run(ids)
        _, twice = model.run(ids, once)
    return _LONGEST if state_numbers(twice) > state_numbers(once) else None


def _run_all(
    runs: list[Run], folder: Path, jobs: int, report: Callable[[str], None] = print
) -> dict[str, dict]:
    """The result of every run by its key: read from `folder` if it is there, or trained now.

    `jobs` runs train at a time, each in its own process with one thread.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results, waiting = {}, []
    for run in runs:
        path = folder / f"{run.key}.json"
        if path.exists():
            results[run.key] = json.loads(path.read_text())
        else:
            waiting.append(run)
    if results:
        report(f"{len(results)} of {len(runs)} runs are read from {folder}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        futures = {pool.submit(_train_one, run): run for run in waiting}
        for done, future in enumerate(as_completed(futures), 1):
            run, result = futures[future], future.result()
            write_atomically(folder / f"{run.key}.json", json.dumps(result).encode())
            results[run.key] = result
            report(
                f"[{done}/{len(waiting)}] {run.entry}, {result['parameters']:,} parameters, "
                f"lr {run.recipe.lr:g}, seed {run.recipe.seed}, {run.recipe.seconds:g} s: "
                f"{result['nats_per_byte']:.4f} nats"
            )
    return results


def run_race(
    source: str,
    budgets: list[float],
    *,
    entries: Iterable[str] = tuple(RACE),
    learning_rates: Iterable[float] = LEARNING_RATES,
    seeds: int = 3,
    recipe: Recipe = Recipe(),
    folder: Path | str,
    jobs: int,
) -> list[dict]:
    """Search, then race on the corpus `source`: one row per entry and budget in seconds.

    Results are kept in `folder`, under the text and the versions that they belong to.

    Returns  rows with entry, seconds, parameters, lr, d_model, the nats of every seed, their mean
             and spread (largest minus smallest), bytes per second, curve and loss by position, and
             the means of `_judge_streams`, None where a result has none
    """
    check_positive("race", seeds=seeds, jobs=jobs)
    text = corpus(source).fingerprint[:8]
    folder = Path(folder) / f"{text}-qllk-{__version__}-torch-{torch.__version__}"

    def best(groups: dict) -> dict:
        """Train the runs of all groups together, and keep the best run of each group."""
        found = _run_all([run for runs in groups.values() for run in runs], folder, jobs)
        return {
            key: min(runs, key=lambda run: found[run.key]["nats_per_byte"])
            for key, runs in groups.items()
        }

    rates = best(
        {
            (entry, spec.d_model): [
                Run(entry, spec, replace(recipe, lr=lr, seed=0, seconds=min(budgets) / 4), source)
                for lr in learning_rates
            ]
            for entry in entries
            for spec in ENTRIES[entry]
        }
    )
    sizes = best(
        {
            (entry, seconds): [
                rates[entry, spec.d_model].but(seconds=seconds) for spec in ENTRIES[entry]
            ]
            for seconds in budgets
            for entry in entries
        }
    )
    finals = {key: [run.but(seed=seed) for seed in range(seeds)] for key, run in sizes.items()}
    found = _run_all([run for runs in finals.values() for run in runs], folder, jobs)
    return [
        _row(entry, seconds, [found[run.key] for run in runs])
        for (entry, seconds), runs in finals.items()
    ]


def _row(entry, seconds, results) -> dict:
    nats = [result["nats_per_byte"] for result in results]
    first = results[0]
    return {
        "entry": entry,
        "seconds": seconds,
        "corpus": first["corpus"],
        "parameters": first["parameters"],
        "d_model": first["spec"]["d_model"],
        "family": first["spec"]["family"],
        "lr": first["recipe"]["lr"],
        "nats": nats,
        "mean_nats": statistics.fmean(nats),
        "spread": max(nats) - min(nats),
        "bits_per_byte": statistics.fmean(nats) / LN2,
        "bytes_per_second": statistics.fmean(r["bytes_per_second"] for r in results),
        "held_out": first["held_out"],
        "curve": first["curve"],
        "by_position": [
            statistics.fmean(nats)
            for nats in zip(*(r["by_position"] for r in results), strict=True)
        ],
        "window_nats": {
            str(window): _mean([r.get("window_nats", {}).get(str(window)) for r in results])
            for window in _WINDOWS
        },
        "stream_nats": _mean([r.get("stream_nats") for r in results]),
        "stream_longest": first.get("stream_longest"),
    }


def _mean(nats: list[float | None]) -> float | None:
    return None if None in nats else statistics.fmean(nats)


# ---------------------------------------------------------------- showing


def format_rows(rows: list[dict]) -> str:
    """The race as a Markdown table, the best first within each budget.

    The last columns are nats per byte in windows of fixed lengths and as a stream. A stream of a
    model whose state grows is cut, and the length of its pieces stands beside it. A dash stands for
    a model that cannot be judged so, and for a result of an older version.
    """
    windows = "".join(f"| windows of {window:,} " for window in _WINDOWS)
    lines = [
        "| seconds | model | parameters | width | lr | nats per byte | seeds' spread "
        f"| bits per byte | bytes/s {windows}| stream |",
        "| ---: | --- " + "| ---: " * (8 + len(_WINDOWS)) + "|",
    ]
    for r in sorted(rows, key=lambda r: (r["seconds"], r["mean_nats"])):
        label = QUESTIONS[r["family"]].label
        asked = label and f", {label}ids"
        lines.append(
            f"| {r['seconds']:g} | {r['entry']}{asked} "
            f"| {r['parameters']:,} | {r['d_model']} "
            f"| {r['lr']:g} | {r['mean_nats']:.4f} | {r['spread']:.4f} "
            f"| {r['bits_per_byte']:.4f} | {r['bytes_per_second']:,.0f} "
            + "".join(f"| {_cell(nats)} " for nats in r["window_nats"].values())
            + f"| {_cell(r['stream_nats'], r['stream_longest'])} |"
        )
    return "\n".join(lines)


def _cell(nats: float | None, longest: int | None = None) -> str:
    if nats is None:
        return "–"
    return f"{nats:.4f}" + (f" ({longest:,})" if longest else "")


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
    control = next((row for row in rows if row["entry"] == _CONTROL), rows[0])
    gaps = {}
    for row in rows:
        pairs = zip(row["by_position"], control["by_position"], strict=True)
        bits = [(mine - theirs) / LN2 for mine, theirs in pairs]
        gaps[row["entry"]] = [((i + 0.5) / len(bits), gap) for i, gap in enumerate(bits)]
    curves = draw_curves({row["entry"]: row["curve"] for row in rows}, baselines)
    label = f"bits per byte above {control['entry']}"
    return [(curves, Chart(gaps, "position in the window", label, log=""))]


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
