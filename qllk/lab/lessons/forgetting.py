"""Lesson 15, Learn to forget."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checks import build_part
from ...model import kernels
from ...model.linformer import BidirectionalLinformer
from ...model.mixers import MIXERS
from ...presets import PRESETS
from ...probes import measure
from ...spec import Part, Spec
from ...study.figures import Bars, Heat, Note
from ...study.standings import stored_report
from ...text.corpora import Corpus
from ..explore import choice, explorer, line, slider
from ..ledger import DOES_NOT, IN_PART, Claim, holds_if
from ..show import letters_of

# ---------------------------------------------------------------- a text that begins again

_LETTERS, _LENGTH, _PRIOR = 8, 48, 0.3
MARK = _LETTERS  # the id that ends a section


def sections(size: int, seed: int) -> np.ndarray:
    """Sections of random length, each with letter frequencies of its own and a mark in front.

    Shapes   -> (size,) uint8, letters 0 … 7 and the mark
    """
    rng, drawn = np.random.default_rng(seed), []
    while sum(map(len, drawn)) < size:
        shares = rng.dirichlet(np.full(_LETTERS, _PRIOR))
        letters = rng.choice(_LETTERS, 1 + rng.geometric(1 / _LENGTH), p=shares)
        drawn.append(np.concatenate(([MARK], letters)))
    return np.concatenate(drawn)[:size].astype(np.uint8)


def marked_text(train: int = 1 << 18, held_out: int = 1 << 14) -> Corpus:
    """A corpus of such sections."""
    return Corpus("sections", sections(train, 0), sections(held_out, 1))


def counting_loss(text: np.ndarray, half_life: float | None = None) -> float:
    """Nats per id of one who predicts by counting the letters so far.

    With a half-life, older letters count less; without one, the counts begin again at each mark,
    which is the best possible: the length of a section and its letters are known to be random.
    """
    counts, nats = np.full(_LETTERS, _PRIOR), 0.0
    kept = 1.0 if half_life is None else 0.5 ** (1 / half_life)
    for letter in text:
        if letter == MARK:
            nats += np.log(_LENGTH)
            if half_life is None:
                counts = np.full(_LETTERS, _PRIOR)
            continue
        nats -= np.log((1 - 1 / _LENGTH) * counts[letter] / counts.sum())
        counts = _PRIOR + kept * (counts - _PRIOR)
        counts[letter] += 1
    return nats / len(text)


# One layer, and what it does with its state: the only thing that differs.
LAYERS: dict[str, Part] = {
    "never": ("linear", {"heads": 2}),
    "at a fixed speed": ("linear", {"heads": 2, "decay": "fixed"}),
    "as the input says": ("linear", {"heads": 2, "decay": "head"}),
    "so, and what a key finds": ("delta", {"heads": 2, "decay": "head"}),
    "attention": ("softmax", {"heads": 2}),
}


def one_layer(mixer: Part) -> Spec:
    """A model whose only layer that looks back is `mixer`."""
    return Spec(d_model=32, layers=1, mixers=(mixer,), positions="rotary")


# ---------------------------------------------------------------- Linformer as published, masked


class MaskedLinformer(nn.Module):
    """The published projection of all keys, with a causal mask laid over its summaries.

    Shapes   ids (B,T)  ->  logits (B,T,vocab)
    """

    def __init__(self, length: int, d_model: int = 16, slots: int = 4, vocab: int = 256):
        super().__init__()
        self.embed = nn.Embedding(vocab, d_model)
        self.mix = BidirectionalLinformer(d_model, heads=1, context=length, slots=slots)
        self.head = nn.Linear(d_model, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        q, k, v, _ = self.mix.project_qkv(self.embed(ids))
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        scores = (q @ k.transpose(2, 3)).masked_fill(~seen, float("-inf"))
        return self.head((scores.softmax(dim=-1) @ v)[:, 0])


# ---------------------------------------------------------------- the field, measured

# The mixers whose time is compared, by the names of the field.
_MIXERS = {
    "Transformer": "gpt-nano",
    "Linformer": "linformer-nano",
    "RWKV-4": "rwkv4-nano",
    "RetNet": "retnet-nano",
    "Mamba": "mamba-nano",
    "Mamba-2": "mamba2-nano",
    "delta rule": "delta-nano",
}


def seconds_by_length(lengths: tuple[int, int], width: int = 64) -> dict[str, tuple[float, float]]:
    """Seconds that one layer of each model takes for a text of each of two lengths."""
    mixers = {
        name: build_part(MIXERS, PRESETS[preset].mixers[0], "mixer", (width,))
        for name, preset in _MIXERS.items()
    }
    found = []
    with torch.no_grad(), measure.single_thread():
        for length in lengths:
            x = torch.randn(1, length, width)
            found.append(
                measure.compare_seconds([lambda m=mixer, x=x: m(x) for mixer in mixers.values()])
            )
    return dict(zip(mixers, zip(*found, strict=True), strict=True))


class Row(NamedTuple):
    """What a model of the field has reached in the stored race, and how fast it read."""

    nats: float
    stream: float | None
    bytes_per_second: float


@cache
def field_rows(ngrams: bool = False) -> dict[str, Row]:
    """The rows of the stored race, by name: without hashed n-grams, or all with them."""
    end = " with n-grams"
    return {
        row["entry"].removesuffix(end): Row(
            row["mean_nats"],
            row["stream_nats"],
            row["bytes_per_second"],
        )
        for row in stored_report("field")["rows"]
        if row["entry"].endswith(end) == ngrams
    }


def field_lines(rows: Mapping[str, Row]) -> list[str]:
    """The rows, the best first, with loss and speed relative to the Transformer's."""
    base = rows["Transformer"]
    return [
        f"{name:18} {row.nats:.3f} nats, "
        f"{row.nats / base.nats - 1:+4.0%} loss, "
        f"{row.bytes_per_second / base.bytes_per_second:4.1f} times the speed"
        for name, row in sorted(rows.items(), key=lambda item: item[1].nats)
    ]


def field_bars(rows: Mapping[str, Row]) -> Bars:
    """The losses of the stored race."""
    ordered = sorted(rows.items(), key=lambda item: item[1].nats)
    return Bars("held out, after equal computing time", {n: r.nats for n, r in ordered}, "nats")


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Evidence:
    """What the tests look at: rows of a race that has a row "Transformer"."""

    rows: Mapping[str, Row] = field(default_factory=field_rows)


def _row_test(names: tuple[str, ...], speed: float, loss: float) -> Callable:
    """A test of a row of the published table: so many times as fast, so much higher a loss.

    It holds if one of the models with this name keeps both, within a fifth of the speed and one
    hundredth of the loss.
    """

    def test(seen: Evidence) -> tuple[str, str]:
        base, kept, said = seen.rows["Transformer"], [], []
        for name in names:
            row = seen.rows[name]
            faster = row.bytes_per_second / base.bytes_per_second
            higher = row.nats / base.nats - 1
            kept.append((faster >= 0.8 * speed, higher <= loss + 0.01))
            said.append(f"{name}: {faster:.1f} times as fast, {higher:+.0%} loss")
        partly = IN_PART if any(map(any, kept)) else DOES_NOT
        return holds_if(any(map(all, kept)), partly), "; ".join(said)

    return test


# The published comparison: a name, how many times as fast, and how much higher a loss.
_PUBLISHED = {
    "L12a": ("Linformer", 10, 0.05, ("Linformer",)),
    "L12b": ("RWKV", 50, 0.10, ("RWKV-4", "RWKV-7")),
    "L12c": ("Mamba", 100, 0.03, ("Mamba", "Mamba-2")),
    "L12d": ("QLLK", 125, 0.05, ("QLLK, leak-free",)),
}
CLAIMS = tuple(
    Claim(id, f"{name}: {speed} times as fast, {loss:.0%} loss", _row_test(models, speed, loss))
    for id, (name, speed, loss, models) in _PUBLISHED.items()
)


def mean_and_spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f}, spread {max(values) - min(values):.3f}"


# ---------------------------------------------------------------- widget

_FORMS = ("never", "at a fixed speed", "at every mark", "what the key finds")


def kept_shares(form: str, text: bytes, half_life: float) -> Tensor:
    """How much of what each step wrote is left in the state at each later step: (T,T).

    Each step writes a value of its own under the key of its letter, and all keys are read.
    """
    T, letters = len(text), sorted(set(text))
    keys = F.one_hot(torch.tensor([letters.index(letter) for letter in text]), len(letters))
    k, v = keys.double()[None, None], torch.eye(T, dtype=torch.float64)[None, None]
    q = torch.ones_like(k)
    if form == "what the key finds":
        return kernels.delta_rule(q, k, v, torch.ones_like(k[..., :1]))[0][0, 0]
    log_decay = torch.zeros(1, 1, T, 1, dtype=torch.float64)
    if form == "at a fixed speed":
        log_decay += np.log(0.5) / half_life
    if form == "at every mark":
        log_decay[0, 0, [letter == ord("#") for letter in text]] = -50.0
    return kernels.linear_attention(q, k, v, log_decay)[0][0, 0]


@explorer(
    "Which rule lets go of the past at the right moment, and which only slowly?",
    half_life=slider("half-life", [1, 2, 4, 8]),
    form=choice("forgets", list(_FORMS)),
    text=line("text"),
)
def left(form: str = "at a fixed speed", half_life: float = 4, text: str = "abra#cada#bra#ab"):
    """What is left of each step's value, at every later step."""
    if not 2 <= len(text) <= 24 or not text.isascii():
        return [Note("Write 2 to 24 letters", ["Only letters of ASCII can be read, please."])]
    shares = kept_shares(form, text.encode(), half_life)
    letters = letters_of(text.encode())
    last = shares[-1]
    said = f"in the end {int((last > 0.01).sum())} of {len(text)} values are left"
    rows = [f"{t:2}, wrote {letter}" for t, letter in enumerate(letters)]
    return [
        Heat(f"forgets {form}", shares.tolist(), rows, letters, most=1.0, said=said),
        Note("What is left", [f"{said}, with a weight of {last.sum():.2f} together."]),
    ]
