"""Where does a memory pay? Losses by the distance of what could be remembered, and what it costs.

    study_text      a model with recall and its control, the same without it, on real text: the
                    losses by the distance to the last occurrence of a word, and by the position
                    in a window
    study_lookup    digits that must be looked up: a memory with addresses, a fading sum, attention
    study_state     what the state costs against attention's cache, by length
    study_speed     what a byte costs after a short text and after a long one

All models train for the same seconds of one core. `study_memory` does all four, and returns plain
data that `format_study` shows as Markdown.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..model import sample
from ..model.blocks import cycle
from ..model.families import ModelState, eval_mode
from ..presets import CONV, PRESETS, find_spec, name_of, recipe_of
from ..probes import measure, state_bytes
from ..probes.evaluate import LN2, iterate_stream, losses_by_id, read_text
from ..spec import Spec
from ..text.corpora import Corpus
from ..text.tasks import asked_digits, make_task
from ..training.costs import Costs, measure_costs
from ..training.recipe import Recipe
from . import race

Bins = dict[str, float]  # the name of each bin, and the largest number in it
Row = dict[str, str | int | float | None]

_WORD = re.compile(rb"\w{4,}")  # letters, digits and underscores of ASCII
_GIVEN = 2  # letters of a word that must be read before the others can be known


def _up_to(*edges: int) -> Bins:
    return {f"up to {edge:,}": edge for edge in edges} | {f"beyond {edges[-1]:,}": math.inf}


_WORD_BINS = {"other bytes": -1, "never before": 0, **_up_to(100, 1_000, 10_000)}
_DIGIT_BINS = _up_to(64, 256, 1_024, 4_096)


def means_by_bin(values: dict[str, np.ndarray], numbers: np.ndarray, bins: Bins) -> list[Row]:
    """The means of some values in each bin of a number that each of them has.

    Shapes   values (n,) by name, numbers (n,)
    Returns  for each bin a row with bin, count, and by name the mean, None where the bin is empty
    """
    bin_of, rows = np.searchsorted(list(bins.values()), numbers), []
    for i, name in enumerate(bins):
        inside = bin_of == i
        found = {
            key: float(x[inside].mean()) if inside.any() else None for key, x in values.items()
        }
        rows.append({"bin": name, "count": int(inside.sum()), **found})
    return rows


def format_table(what: str, rows: list[Row]) -> str:
    """Rows as a Markdown table, whose first column is called `what`."""
    _, *names = rows[0]
    lines = [f"| {' | '.join([what, *names])} |", "| --- " + "| ---: " * len(names) + "|"]
    lines += [f"| {' | '.join(map(_cell, row.values()))} |" for row in rows]
    return "\n".join(lines)


def _cell(value) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else value


def _train(spec: Spec, text: Corpus, recipe: Recipe) -> nn.Module:
    trainer = race.make_trainer(spec, text, recipe)
    race.follow(trainer, "seconds", ())
    return trainer.model


# ---------------------------------------------------------------- words that come again


def word_distances(text: np.ndarray) -> np.ndarray:
    """How far back the word of each byte began when it last occurred.

    Words are runs of at least four ASCII letters, digits and underscores. Their first two bytes
    count as other bytes: they have to be read before a reader can know which word comes again.

    Shapes   text (n,) uint8  ->  (n,) int64, in bytes; 0 in a word that never occurred before, and
             -1 for other bytes
    """
    distances, last = np.full(len(text), -1), {}
    for match in _WORD.finditer(text.tobytes()):
        start, word = match.start(), match[0]
        distances[start + _GIVEN : match.end()] = start - last.get(word, start)
        last[word] = start
    return distances


def study_text(spec: Spec, text: Corpus, recipe: Recipe) -> tuple[nn.Module, dict]:
    """Train a model with recall and its control; where in the held-out text is it better?

    Returns  the model, and rows of mean bits per byte with their difference: `words`, by
             `word_distances`, read as a stream; `positions`, in windows as long as the training's
    Raises   ValueError when the spec has no recall
    """
    if not spec.recall:
        raise ValueError(
            "where a memory pays is shown against the same model without recall, but this model "
            "has none; choose 'qllk-3' or 'qllk-3-nano', or a Spec with `recall`"
        )
    models = {
        name: _train(each, text, recipe)
        for name, each in {"with recall": spec, "without": spec.but(recall=None)}.items()
    }
    position = np.arange(len(text.valid) - 1) % recipe.window + 1
    edges = sorted({_reach(spec), 64, 512})
    return models["with recall"], {
        "reach": _reach(spec),
        "words": means_by_bin(
            _bits(models, text.valid), word_distances(text.valid)[1:], _WORD_BINS
        ),
        "positions": means_by_bin(
            _bits(models, text.valid, recipe.window), position, _up_to(*edges)
        ),
    }


def _reach(spec: Spec) -> int:
    """How many bytes the convolutions of a model see, the current one included."""
    parts = cycle(spec.mixers, spec.layers)
    return 1 + sum(options["width"] - 1 for name, options in parts if name == "conv")


def _bits(models, text, longest=None) -> dict[str, np.ndarray]:
    """The loss of every byte but the first in bits, for two models, and the difference."""
    found = {
        name: losses_by_id(model, text, longest=longest).numpy() / LN2
        for name, model in models.items()
    }
    first, second = found.values()
    return found | {"difference": first - second}


# ---------------------------------------------------------------- digits that are looked up

_NANO = "qllk-3-nano"
_SUM = ("cumsum", {"normaliser": "rms", "half_lives": [8, 2048]})  # in bytes
# Each with the learning rate of its preset; all else in the recipe is the same.
_READERS = {
    _NANO: (PRESETS[_NANO], recipe_of(_NANO)["lr"]),
    "fading sums": (
        PRESETS[_NANO].but(layers=4, mixers=(CONV, _SUM), recall=None),
        recipe_of(_NANO)["lr"],
    ),
    "gpt, two layers": (PRESETS["gpt-nano"].but(layers=2), recipe_of("gpt-nano")["lr"]),
}


def lookup_text(size: int = 6 * 400_000, held_out: int = 6 * 40_000) -> Corpus:
    """Two texts of the task "lookup", with different keys, that start with an entry."""
    train, valid = (make_task("lookup", n, seed)[0] for seed, n in enumerate((size, held_out)))
    return Corpus("lookup", train, valid)


def digit_hits(model: nn.Module, text: np.ndarray, longest: int | None = None) -> np.ndarray:
    """Whether the most probable byte is the right one, where a text of "lookup" asks for a digit.

    `longest` is as for `iterate_stream`.

    Shapes   text (n,) uint8, starting with an entry  ->  (m,) bool, as `asked_digits`
    """
    read = iterate_stream(model, text, longest=longest)
    hits = torch.cat([logits.argmax(dim=-1)[0] == targets[0] for logits, targets in read])
    positions, _ = asked_digits(text)
    return hits.cpu().numpy()[positions - 1]


def study_lookup(text: Corpus, seconds: float, seed: int = 0) -> list[Row]:
    """The share of asked digits that each model finds, by the distance to where they are stated.

    A model whose state is constant reads the held-out text as one stream, attention in windows.
    """
    hits, recipe = {}, Recipe(**recipe_of(_NANO), seconds=seconds, seed=seed)
    for name, (spec, lr) in _READERS.items():
        model = _train(spec, text, replace(recipe, lr=lr))
        hits[name] = digit_hits(model, text.valid, race.longest_stream(model))
    return means_by_bin(hits, asked_digits(text.valid)[1], _DIGIT_BINS)


# ---------------------------------------------------------------- what it costs

_LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
_STEPS = 4  # bytes generated at a time when their speed is measured


def smaller_from(constant: Costs, growing: Costs) -> int | None:
    """The length from which on the first state is smaller; None unless the second grows faster."""
    ahead = constant.state_bytes - growing.state_bytes
    growth = growing.state_bytes_per_token - constant.state_bytes_per_token
    return max(0, math.floor(ahead / growth) + 1) if growth > 0 else None


def study_state(spec: Spec) -> dict:
    """The bytes of the model's state and of `gpt`'s cache, and from which length it is smaller."""
    costs = {"this model": measure_costs(spec, 1024, 1), "gpt": measure_costs("gpt", 1024, 1)}
    rows = [
        {"bytes": length}
        | {n: round(c.state_bytes + length * c.state_bytes_per_token) for n, c in costs.items()}
        for length in _LENGTHS
    ]
    return {"rows": rows, "smaller_from": smaller_from(*costs.values())}


def study_speed(model: nn.Module, text: np.ndarray, lengths: tuple[int, ...]) -> dict:
    """The milliseconds of a generated byte and the bytes of the state, by the bytes that were read.

    The text is repeated if it is shorter. Times are medians of CPU time, measured in turns.

    Returns  rows, and the ratio of the last time to the first
    """
    text, state, states = np.resize(text, max(lengths)), None, []
    for start, end in pairwise((0, *lengths)):
        state = read_text(model, text[start:end], state)
        states.append(state)
    with eval_mode(model):
        runs = [partial(_generate, model, state) for state in states]
        times = measure.median_cpu_seconds(runs, rounds=200)
    rows = [
        {"bytes": length, "ms": 1e3 * seconds / _STEPS, "state": state_bytes(state)}
        for length, seconds, state in zip(lengths, times, states, strict=True)
    ]
    return {"rows": rows, "ratio": times[-1] / times[0]}


def _generate(model, state: ModelState) -> list[Tensor]:
    prompt = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    return list(sample.take_first(sample.stream(model, prompt, sample.greedy, state), _STEPS))


# ---------------------------------------------------------------- all together


def study_memory(what: str | Path | Spec, text: Corpus, seconds: float, seed: int = 0) -> dict:
    """All four studies of a model with recall, as plain data. `text` is a corpus of bytes.

    Cost     five trainings of so many seconds of one core, and about as long as one to judge them
    Raises   ValueError when the model has no recall
    """
    spec, fields = find_spec(what), recipe_of(str(what))
    recipe = Recipe(**fields, seconds=seconds, seed=seed, validate_every=1 << 30)
    with measure.single_thread():
        model, found = study_text(spec, text, recipe)
        return {
            "model": name_of(spec),
            "corpus": text.name,
            "seconds": seconds,
            "seed": seed,
            "window": recipe.window,
            **found,
            "lookup": study_lookup(lookup_text(), seconds, seed),
            "state": study_state(spec),
            "speed": study_speed(model, text.train, (_LENGTHS[0], _LENGTHS[-1])),
        }


def format_study(facts: dict) -> str:
    """The result of `study_memory` as Markdown."""
    state, speed = facts["state"], facts["speed"]
    smaller = state["smaller_from"]
    return "\n\n".join(
        (
            f"{facts['model']} on {facts['corpus']}, {facts['seconds']:g} seconds of one core for "
            f"each model, seed {facts['seed']}.",
            "Bits per byte with recall and without, by the distance to the last occurrence of the "
            "same word. The whole held-out text is read as one stream:",
            format_table("word last seen, in bytes", facts["words"]),
            f"The same by the position in windows of {facts['window']:,} bytes, of which the "
            f"convolutions see {facts['reach']} at a time:",
            format_table("position", facts["positions"]),
            "The share of digits found in the task `lookup`, by the distance to where they are "
            "stated; chance is 0.1. Attention reads windows of 4,096 bytes, the others one stream:",
            format_table("stated, bytes ago", facts["lookup"]),
            "The state in bytes, by the bytes that were read:",
            format_table("bytes read", state["rows"]),
            f"The state of the model is the smaller one from {smaller:,} bytes on."
            if smaller is not None
            else "The state of the model does not become the smaller one.",
            "The milliseconds of a generated byte and the bytes of the state, by the bytes that "
            f"were read. The last time is {speed['ratio']:.3f} times the first:",
            format_table("bytes read", speed["rows"]),
        )
    )
