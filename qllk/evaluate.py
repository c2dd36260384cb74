"""How good is a model? Loss over a whole held-out split, beside what simple tables reach."""

from __future__ import annotations

import bz2
import lzma
import math

import numpy as np
import torch

from .data import Corpus, all_windows
from .models import evaluating
from .objectives import IGNORED, byte_losses, next_token

LN2 = math.log(2.0)
UNIFORM = math.log(256)


def loss_by_position(model, data, window: int, *, rows=16, ask=next_token):
    """Mean loss at each place of the window, over all of `data`, each window read from its start.

    A model that uses what lies far back goes on improving along the window.

    Shapes   data (n,) ids  ->  nats (window,), counts (window,), both float64; where nothing was
             asked, beyond the end of short `data` for example, the count is 0 and the nats are nan
    Options  ask   makes a `Batch` of rows (B,T+1): what the model is asked about them
    Raises   ValueError when there is no byte to predict
    """
    if len(data) < 2:
        raise ValueError(f"to judge a model takes two bytes or more, got {len(data)}")
    # An answer may be longer than what it is about: the spans of a short text, with their marks.
    total, count = torch.zeros(2, window + 2, dtype=torch.float64)
    device = next(model.parameters()).device
    with evaluating(model):
        for ids in all_windows(data, rows, window):
            batch = ask(ids).to(device)
            losses = byte_losses(model(*batch.inputs), batch.targets).cpu().double()
            total[: losses.shape[1]] += losses.sum(0)
            count[: losses.shape[1]] += (batch.targets != IGNORED).sum(0).cpu()
    reached = max(window, int(count.nonzero().max()) + 1) if count.any() else window
    return (total / count)[:reached], count[:reached]


def nats_per_byte(model, data, window: int, *, rows=16) -> float:
    """Mean loss over every byte of `data` but the first; divide by ln 2 for bits per byte."""
    return overall(*loss_by_position(model, data, window, rows=rows))


def overall(nats, count) -> float:
    """One mean from those at each place, as `loss_by_position` gives them."""
    reached = count > 0
    return ((nats * count)[reached].sum() / count.sum()).item()


def floors(corpus: Corpus) -> dict[str, float]:
    """Bits per byte of the held-out split that need no neural network, by name.

    uniform              every byte equally likely
    unigram … trigram    tables of the training split, given none, one or two bytes before
    bz2, lzma            the held-out split compressed on its own
    """
    text = corpus.text
    tables, valid = table_losses(text.train, text.valid), text.valid.tobytes()
    packed = {"bz2": bz2.compress(valid, 9), "lzma": lzma.compress(valid, preset=9)}
    return {
        "uniform": 8.0,
        **{name: nats / LN2 for name, nats in tables.items()},
        **{name: 8.0 * len(text) / len(valid) for name, text in packed.items()},
    }


def table_losses(train, valid) -> dict[str, float]:
    """Nats per byte that the tables of `table_chances` pay, by name."""
    return {name: float(-np.log(p).mean()) for name, p in table_chances(train, valid).items()}


def table_chances(train, valid) -> dict[str, np.ndarray]:
    """What tables of order 0, 1, 2 give to each byte, each falling back on the one below.

        p_n(b | context) = (count(context b) + kinds(context) p_{n-1}(b)) / (count(context) + kinds)

    where `kinds` is how many different bytes followed the context.

    Shapes   train, valid (n,) uint8  ->  (n,) for each order: "unigram", "bigram", "trigram"
    Paper    Witten and Bell 1991, method C
    """
    guess, chances = np.full(len(valid), 1 / 256), {}
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        counts = count_grams(train, order)
        seen = counts.reshape(-1, 256)
        total, kinds = seen.sum(1), (seen > 0).sum(1)
        which = grams(valid, order)
        context, found = which // 256, counts[which]
        weight = np.maximum(kinds[context], 1)  # an unseen context leaves the lower order alone
        guess[order:] = (found + weight * guess[order:]) / (total[context] + weight)
        chances[name] = guess.copy()
    return chances


def count_grams(data, order, piece=1 << 24):
    """How often each number of `grams` occurs; in pieces, so that memory stays bounded."""
    counts = np.zeros(256 ** (order + 1), np.int64)
    for start in range(0, len(data) - order, piece):
        codes = grams(data[start : start + piece + order], order)
        counts += np.bincount(codes, minlength=len(counts))
    return counts


def grams(data, order):
    """Each byte and the `order` bytes before it as one number.  Shapes  (n,) -> (n - order,)"""
    data = data.astype(np.int64)
    codes = np.zeros(max(0, len(data) - order), np.int64)
    for back in range(order, -1, -1):
        codes = codes * 256 + data[order - back : len(data) - back]
    return codes
