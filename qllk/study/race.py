"""The race: who learns most from the same text in the same computing time?

Every entry gets the same CPU seconds of one core, the same corpus, as much of it in a step, and the
same search: first each of its sizes with each learning rate, at a quarter of the smallest budget;
then each size with its best rate at the full budget. The best size goes on with the other seeds.
All is judged on the whole held-out split. Time is the CPU time of the training steps alone, so that
a busy machine slows a race but does not decide it.

A win says nothing about a part until the same model without that part, its **control**, ran too.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from .. import __version__
from ..checks import check_positive
from ..files import write_atomically
from ..model.families import count_parameters
from ..presets import PRESETS
from ..probes import baselines, evaluate
from ..spec import Spec
from ..text.objectives import ASKED_FOR
from ..training.checkpoint import find_corpus
from ..training.recipe import Recipe
from ..training.trainer import Trainer

LEARNING_RATES = (4e-3, 8e-3)
_POINTS = 16  # on a learning curve, evenly spread on a log scale of seconds
BINS = 16  # of the window, for the loss by position


class Run(NamedTuple):
    """One training run of the race, as plain data."""

    entry: str
    spec: Spec
    recipe: Recipe
    corpus: str

    @property
    def key(self) -> str:
        """Names the run in the folder of results."""
        facts = json.dumps([self.spec.to_json(), asdict(self.recipe), self.corpus])
        return hashlib.sha256(facts.encode()).hexdigest()[:16]

    def but(self, **changes) -> Run:
        """This run with some of its recipe changed."""
        return self._replace(recipe=replace(self.recipe, **changes))


def _wider(spec: Spec, *widths: int) -> tuple[Spec, ...]:
    return tuple(spec.but(d_model=width) for width in widths)


def _trunk(**changes) -> tuple[Spec, ...]:
    """qllk-2 with another patch path."""
    spec = PRESETS["qllk-2"]
    return (spec.but(patch=replace(spec.patch, **changes)),)


CONTROL = "qllk-2-local"
# Who races. Each entry is one size or several; of several, the search picks the best.
RACE = {
    "qllk-2": (PRESETS["qllk-2"],),
    CONTROL: _wider(PRESETS[CONTROL], 96, 128, 192),
    "gpt": (PRESETS["gpt"],),
    "gpt (best width)": tuple(
        PRESETS["gpt"].but(d_model=width, mixers=(("softmax", {"heads": width // 32}),))
        for width in (64, 96, 128)
    ),
}
# Other designs of qllk-2 to race: one thing changed at a time.
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


def train_one(run: Run) -> dict:
    """Train, judge on the whole held-out split, and tell all about it."""
    torch.set_num_threads(1)
    trainer = Trainer(run.spec, find_corpus(run.corpus), run.recipe, clock=time.process_time)
    budget, curve, parent = run.recipe.seconds, [], multiprocessing.parent_process()
    marks = [budget * 2.0 ** (i / 2 - _POINTS / 2 + 0.5) for i in range(_POINTS)]
    for _ in trainer:
        if parent and not parent.is_alive():  # else a killed race would go on unseen
            raise SystemExit("the race was ended")
        if marks and trainer.seconds >= marks[0]:
            curve.append([round(trainer.seconds, 2), trainer.validate()])
            marks = [mark for mark in marks if mark > trainer.seconds]
    nats, count = trainer.loss_by_position(len(trainer.corpus.valid))
    mean = evaluate.mean_loss(nats, count)
    return {
        "entry": run.entry,
        "spec": json.loads(run.spec.to_json()),
        "recipe": asdict(run.recipe),
        "corpus": trainer.corpus.name,
        "parameters": count_parameters(trainer.model),
        "nats_per_byte": mean,
        "bits_per_byte": mean / baselines.LN2,
        "held_out": int(count.sum()),  # how many answers were judged
        "bytes_per_second": trainer.bytes_seen / trainer.seconds,
        "bytes_seen": trainer.bytes_seen,
        "curve": curve,
        "by_position": [
            chunk.mean().item() for chunk in nats[count > 0].tensor_split(BINS) if len(chunk)
        ],
    }


def run_all(runs: list[Run], folder: Path, jobs: int, told=print) -> dict[str, dict]:
    """Every run's result by its key; those already in `folder` are read, the rest are trained.

    `jobs` at a time, each in a process of its own with one thread.
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
        told(f"{len(results)} of {len(runs)} runs are read from {folder}")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        futures = {pool.submit(train_one, run): run for run in waiting}
        for done, future in enumerate(as_completed(futures), 1):
            run, result = futures[future], future.result()
            write_atomically(folder / f"{run.key}.json", json.dumps(result).encode())
            results[run.key] = result
            told(
                f"[{done}/{len(waiting)}] {run.entry}, {result['parameters']:,} parameters, "
                f"lr {run.recipe.lr:g}, seed {run.recipe.seed}, {run.recipe.seconds:g} s: "
                f"{result['nats_per_byte']:.4f} nats"
            )
    return results


def run_race(
    corpus,
    budgets,
    *,
    entries=tuple(RACE),
    learning_rates=LEARNING_RATES,
    seeds=3,
    recipe=Recipe(),
    folder,
    jobs,
):
    """Search, then race: one row per entry and budget.

    Runs are kept in `folder`, under the text and the versions that they belong to.

    Returns  rows with entry, seconds, parameters, lr, d_model, the nats of every seed, their mean
             and spread (largest less smallest), bytes per second, curve and loss by position
    """

    check_positive("race", seeds=seeds, jobs=jobs)
    text = find_corpus(corpus).fingerprint[:8]
    folder = Path(folder) / f"{text}-qllk-{__version__}-torch-{torch.__version__}"

    def best(groups: dict) -> dict:
        """Train every group's runs, all groups together, and keep the best run of each."""
        found = run_all([run for runs in groups.values() for run in runs], folder, jobs)
        return {
            key: min(runs, key=lambda run: found[run.key]["nats_per_byte"])
            for key, runs in groups.items()
        }

    rates = best(
        {
            (entry, spec.d_model): [
                Run(entry, spec, replace(recipe, lr=lr, seed=0, seconds=min(budgets) / 4), corpus)
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
    found = run_all([run for runs in finals.values() for run in runs], folder, jobs)
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
        "bits_per_byte": statistics.fmean(nats) / baselines.LN2,
        "bytes_per_second": statistics.fmean(r["bytes_per_second"] for r in results),
        "held_out": first["held_out"],
        "curve": first["curve"],
        "by_position": [
            statistics.fmean(nats)
            for nats in zip(*(r["by_position"] for r in results), strict=True)
        ],
    }


def table(rows) -> str:
    """The race as a Markdown table, best first within each budget."""
    lines = [
        "| seconds | model | parameters | width | lr | nats per byte | seeds' spread "
        "| bits per byte | bytes/s |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for r in sorted(rows, key=lambda r: (r["seconds"], r["mean_nats"])):
        asked = ASKED_FOR[r["family"]] and f", {ASKED_FOR[r['family']]}ids"
        lines.append(
            f"| {r['seconds']:g} | {r['entry']}{asked} "
            f"| {r['parameters']:,} | {r['d_model']} "
            f"| {r['lr']:g} | {r['mean_nats']:.4f} | {r['spread']:.4f} "
            f"| {r['bits_per_byte']:.4f} | {r['bytes_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def plot_run(label, curve, path: Path, *, floors: dict[str, float]) -> None:
    """One learning curve and the corpus's floors, as a PNG."""
    figure = _new_figure(8)
    _draw_curves(figure.subplots(), {label: curve}, floors)
    _save_figure(figure, path)


def plot_race(rows, path: Path, *, floors: dict[str, float]) -> None:
    """The rows of one budget, as a PNG: loss against seconds, and against the place in the window.

    The second panel shows how much better each entry is than the `qllk-2-local` of the same race.
    A line that falls to the right tells of a model that uses what lies far back.
    """
    figure = _new_figure(12)
    left, right = figure.subplots(1, 2)
    _draw_curves(left, {row["entry"]: row["curve"] for row in rows}, floors)
    control = next((row for row in rows if row["entry"] == CONTROL), rows[0])
    for row in rows:
        gaps = [
            (mine - theirs) / baselines.LN2
            for mine, theirs in zip(row["by_position"], control["by_position"], strict=True)
        ]
        place = [(i + 0.5) / len(gaps) for i in range(len(gaps))]
        right.plot(place, gaps, marker=".", label=row["entry"])
    right.set(xlabel="place in the window", ylabel=f"bits per byte above {control['entry']}")
    _save_figure(figure, path)


def _new_figure(width):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, 4.5), layout="constrained")


def _draw_curves(axes, curves: dict, floors: dict[str, float]) -> None:
    """Bits per byte against seconds; `curves` maps a label to [seconds, nats] pairs."""
    top = 0.0
    for label, points in curves.items():
        bits = [nats / baselines.LN2 for _, nats in points]
        axes.plot([seconds for seconds, _ in points], bits, marker=".", label=label)
        top = max([top, *bits])
    for name, bits in merged(floors).items():
        if bits < top:
            axes.axhline(bits, color="0.75", linewidth=0.8, zorder=0)
            axes.annotate(
                name,
                (1, bits),
                xycoords=("axes fraction", "data"),
                xytext=(-3, 2),
                textcoords="offset points",
                color="0.4",
                fontsize=8,
                ha="right",
            )
    axes.set(xscale="log", xlabel="seconds of training", ylabel="bits per byte, held out")
    axes.legend(frameon=False)


def merged(floors: dict[str, float], closer_than=0.1) -> dict[str, float]:
    """Floors whose labels would overlap share one line and one label, at the lower of them."""
    found: dict[str, float] = {}
    for name, bits in sorted(floors.items(), key=lambda floor: floor[1]):
        last = next(reversed(found), None)
        if last is not None and bits - found[last] < closer_than:
            found[f"{last}, {name}"] = found.pop(last)
        else:
            found[name] = bits
    return found


def _save_figure(figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
