"""The race: which model learns most from the same text in the same computing time?

Every entry gets the same CPU seconds of one core, the same corpus and the same search, over the
sizes of its model, the learning rate, and the **batch**: how many windows a step reads, and how
long they are. First each candidate trains for a quarter of the smallest budget, which finds the
rate and the batch of each size. Then the best few sizes train at the smallest budget and at each
longer one, since larger models need longer. The best size of a budget runs with the other seeds.

Whatever windows an entry trains in, the search and the race are decided by its loss in windows of
1,024 ids: in the search on the head of the held-out split, then on all of it. Whoever wins is also
judged in longer windows and as a stream. Time is the CPU time of the training steps, so a busy
machine slows a race but does not decide it.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import __version__
from ..checks import check_positive
from ..files import write_atomically
from ..model.families import count_parameters, eval_mode
from ..probes import measure, state_numbers
from ..probes.evaluate import LN2, mean_loss
from ..spec import Spec
from ..text.corpora import Corpus, corpus
from ..training.questions import fit_vocabulary
from ..training.recipe import Recipe
from ..training.trainer import Diverged, Trainer
from .entries import RACE
from .pool import start_processes

LEARNING_RATES = (4e-3, 8e-3)
BATCHES = ((1, 1024), (4, 1024), (1, 2048))  # windows per step, and ids per window
WINDOWS = (1024, 4096)  # ids per window in which every entry is judged; the first one decides
_POINTS = 16  # of a learning curve, evenly spaced on a log scale of seconds
_BINS = 16  # of the window, for the loss by position
_LONGEST = 4096  # ids per stream of a model whose state grows with what it has read


class Run(NamedTuple):
    """One training run of the race, as plain data."""

    entry: str
    spec: Spec
    recipe: Recipe
    corpus: str
    quick: bool = False  # only ranked, on the head of the held-out split

    @property
    def key(self) -> str:
        """The name of the run's result in the folder of results."""
        facts = json.dumps([self.spec.to_json(), asdict(self.recipe), self.corpus, self.quick])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def but(self, **changes) -> Run:
        """This run with some fields of its recipe changed."""
        return self._replace(recipe=replace(self.recipe, **changes))

    def __str__(self) -> str:
        spec, recipe = self.spec, self.recipe
        return (
            f"{self.entry}, width {spec.d_model}, layers {spec.layers}, lr {recipe.lr:g}, "
            f"batch {recipe.batch}x{recipe.window}, seed {recipe.seed}, {recipe.seconds:g} s"
        )


# ---------------------------------------------------------------- running


class Point(NamedTuple):
    """A point of a learning curve."""

    bytes_seen: int
    seconds: float
    nats: float  # per byte of the held-out split


def follow(
    trainer: Trainer, along: str, marks: Iterable[float], window: int | None = None
) -> list[Point]:
    """Train to the end, and validate whenever `trainer.step` or `trainer.seconds` passes a mark.

    The windows of validation are those of the training, or have `window` ids.
    """
    curve, parent = [], multiprocessing.parent_process()
    marks = sorted(marks)
    for _ in trainer:
        if parent and not parent.is_alive():  # or a killed race would continue unseen
            raise SystemExit("the race was ended")
        now = getattr(trainer, along)
        if marks and now >= marks[0]:
            nats = trainer.validate(window=window)
            curve.append(Point(trainer.bytes_seen, trainer.seconds, nats))
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


def _train_one(run: Run, rivals: Sequence[Path] = ()) -> dict:
    """Train, evaluate, and return the result as plain data.

    A run that diverges is evaluated as it was at its last good snapshot. `rivals` are the places
    of the results of others, see `_tells_enough`.
    """
    torch.set_num_threads(1)
    trainer = Trainer(run.spec, corpus(run.corpus), run.recipe, clock=time.process_time)
    _, window = run.spec.split_window(WINDOWS[0])
    budget = run.recipe.seconds
    marks = [budget * 2.0 ** (i / 2 - _POINTS / 2 + 0.5) for i in range(_POINTS)]
    try:
        curve, diverged = follow(trainer, "seconds", [] if run.quick else marks, window), False
    except Diverged:
        curve, diverged = [], True
    limit = None if run.quick else len(trainer.corpus.valid)
    nats, count = trainer.loss_by_position(limit, window)
    result = {
        "entry": run.entry,
        "spec": json.loads(run.spec.to_json()),
        "recipe": asdict(run.recipe),
        "corpus": trainer.corpus.name,
        "parameters": count_parameters(trainer.model),
        "diverged": diverged,
        "judged_window": window,
        "nats_per_byte": mean_loss(nats, count),
        "held_out": int(count.sum()),  # how many targets were evaluated
        "bytes_per_second": trainer.bytes_seen / max(trainer.seconds, 1e-9),
        "bytes_seen": trainer.bytes_seen,
        "curve": [[round(point.seconds, 2), point.nats] for point in curve],
        "by_position": [
            chunk.mean().item() for chunk in nats[count > 0].tensor_split(_BINS) if len(chunk)
        ],
        "judgement": None,
    }
    if not _tells_enough(run, result, rivals):
        result["judgement"] = _judge(trainer, window, result["nats_per_byte"])
    return result


def _tells_enough(run: Run, result: dict, rivals: Iterable[Path]) -> bool:
    """Whether a result needs no judgement beyond the loss that ranks it.

    Judging takes time, so it is for the runs of a budget that are not beaten by one of the rivals
    whose results are there. The best one is beaten by none, so it has its judgement.
    """
    if run.quick or result["judgement"] is not None:
        return True
    found = filter(None, map(read_kept, rivals))
    return any(rival["nats_per_byte"] < result["nats_per_byte"] for rival in found)


def read_kept(path: Path) -> dict | None:
    """The result that is kept at a path; None if there is none, or a damaged one."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _judge(trainer: Trainer, window: int, mean: float) -> dict:
    """The nats per byte of a decoder on the whole held-out split, by the length of its streams.

    `mean` is the result in windows of `window` ids, which need not be read again.

    window_nats      by the window, of those that fit into the model's context
    stream_nats      as a stream, which ends after `stream_longest` ids, or for None never
    """
    if trainer.spec.family != "decoder":
        return {}
    context, longest = trainer.spec.context, longest_stream(trainer.model)
    lengths = [length for length in WINDOWS if length <= (context or length)]
    nats: dict[int | None, float] = {window: mean}
    for length in {*lengths, longest} - nats.keys():
        losses = trainer.stream_losses(len(trainer.corpus.valid), longest=length)
        nats[length] = mean_loss(*losses)
    return {
        "window_nats": {str(length): nats[length] for length in lengths},
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
    groups: Collection[Sequence[Run]],
    folder: Path,
    pool: Executor,
    report: Callable[[str], None] = print,
) -> dict[str, dict]:
    """The result of every run by its key: read from `folder` if it is there, or trained now.

    First the first run of each group trains, then the second ones. The runs of a group are rivals,
    see `_tells_enough`.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def place(run: Run) -> Path:
        return folder / f"{run.key}.json"

    results, waiting, total = {}, [], sum(map(len, groups))
    with_group = ([(run, group) for run in group] for group in groups)
    for run, group in filter(None, chain.from_iterable(zip_longest(*with_group))):
        rivals = [place(other) for other in group if other.key != run.key]
        kept = read_kept(place(run))
        if kept and _tells_enough(run, kept, rivals):
            results[run.key] = kept
        else:
            waiting.append((run, rivals))
    if results:
        report(f"{total - len(waiting)} of {total} runs are read from {folder}")
    futures = {pool.submit(_train_one, *task): task[0] for task in waiting}
    for done, future in enumerate(as_completed(futures), 1):
        run, result = futures[future], future.result()
        write_atomically(place(run), json.dumps(result).encode())
        results[run.key] = result
        ended = "diverged, before that " if result["diverged"] else ""
        report(f"[{done}/{len(waiting)}] {run}: {ended}{result['nats_per_byte']:.4f} nats")
    return results


def _workers(jobs: int) -> AbstractContextManager[Executor]:
    """Processes that train runs. An interrupt ends them, so that they start no further run."""
    usual = (signal.SIGINT, signal.SIG_DFL)
    return start_processes(jobs, initializer=signal.signal, initargs=usual)


def run_race(
    source: str,
    budgets: Collection[float],
    *,
    entries: Mapping[str, Sequence[Spec]] = RACE,
    learning_rates: Collection[float] = LEARNING_RATES,
    batches: Collection[tuple[int, int]] = BATCHES,
    keep: int = 2,
    seeds: int = 3,
    recipe: Recipe = Recipe(),
    folder: Path | str,
    jobs: int,
) -> list[dict]:
    """Search, then race on the corpus `source`: one row per entry and budget in seconds.

    Results are kept in `folder`, under the text and the versions that they belong to. `jobs` runs
    train at a time, each in its own process with one thread.

    Options  entries the sizes of each entry, see `entries.py`
             learning_rates, batches   what the search tries with every size of an entry, in place
             of those of the recipe
             keep    how many sizes of an entry train at each budget, each with its best rate and
             batch
    Returns  rows with entry, seconds, parameters, d_model, layers, lr, batch, window, the nats of
             every seed, their mean and spread (largest minus smallest), bytes per second, curve and
             loss by position, and the means of `_judge`, None where a result has none
    Raises   ValueError when `keep`, `seeds` or `jobs` is below 1, there is nothing to choose from,
             or the corpus is shorter than a window
             ChildProcessError as `start_processes`, such as from a script without a main guard
    """
    check_positive("race", keep=keep, seeds=seeds, jobs=jobs)
    searched = {"budgets": budgets, "learning_rates": learning_rates, "batches": batches}
    for what, choices in (searched | {"entries": entries} | entries).items():
        if not choices:
            raise ValueError(f"race: {what} must not be empty")
    longest = max(window for _, window in batches)
    text = corpus(source).require(longest)
    folder = Path(folder) / f"{text.fingerprint[:8]}-qllk-{__version__}-torch-{torch.__version__}"

    def candidates(entry: str) -> list[Run]:
        """Every size with every learning rate and every batch."""
        found = []
        for spec, lr, (batch, window) in product(entries[entry], learning_rates, batches):
            spec = fit_vocabulary(spec, max(longest, WINDOWS[0]), text.tokenizer)
            changes = {"lr": lr, "batch": batch, "window": window, "seed": 0}
            tried = replace(recipe, seconds=min(budgets) / 4, **changes)
            found.append(Run(entry, spec, tried, source, quick=True))
        return found

    def rank(groups: dict[str, list[Run]]) -> dict[str, list[Run]]:
        """Train the runs of all groups together, and sort each group, the best first."""
        found = _run_all(groups.values(), folder, pool)
        return {
            entry: sorted(runs, key=lambda run: found[run.key]["nats_per_byte"])
            for entry, runs in groups.items()
        }

    def follow_up(runs: list[Run], seconds: float) -> list[Run]:
        """The best run of each of the best sizes once more, with a budget of its own."""
        best: dict[str, Run] = {}
        for run in runs:
            best.setdefault(run.spec.to_json(), run)
        several = list(best.values())[:keep]
        return [run.but(seconds=seconds)._replace(quick=False) for run in several]

    finals: dict[tuple[str, float], list[Run]] = {}
    with _workers(jobs) as pool:
        ranked = rank({entry: candidates(entry) for entry in entries})
        for seconds in sorted(budgets):
            ranked = rank({entry: follow_up(runs, seconds) for entry, runs in ranked.items()})
            for entry, (best, *_) in ranked.items():
                finals[entry, seconds] = [best.but(seed=seed) for seed in range(seeds)]
        found = _run_all([[run] for runs in finals.values() for run in runs], folder, pool)
    return [
        _row(entry, seconds, [found[run.key] for run in runs])
        for (entry, seconds), runs in finals.items()
    ]


def _row(entry, seconds, results) -> dict:
    nats = [result["nats_per_byte"] for result in results]
    judged = [result["judgement"] for result in results]
    first = results[0]
    return {
        "entry": entry,
        "seconds": seconds,
        "corpus": first["corpus"],
        "parameters": first["parameters"],
        **{name: first["spec"][name] for name in ("family", "d_model", "layers")},
        **{name: first["recipe"][name] for name in ("lr", "batch", "window")},
        "judged_window": first["judged_window"],
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
            str(window): _mean([found.get("window_nats", {}).get(str(window)) for found in judged])
            for window in WINDOWS
        },
        "stream_nats": _mean([found.get("stream_nats") for found in judged]),
        "stream_longest": judged[0].get("stream_longest"),
    }


def _mean(nats: list[float | None]) -> float | None:
    return None if None in nats else statistics.fmean(nats)
