"""Losses that need no neural network: n-gram tables and compressors."""

from __future__ import annotations

import bz2
import lzma
import math

import numpy as np

from ..text.corpora import Corpus

LN2 = math.log(2.0)
UNIFORM = math.log(256)


def measure_baselines(corpus: Corpus) -> dict[str, float]:
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
    return {name: float(-np.log(p).mean()) for name, p in table_probabilities(train, valid).items()}


def table_probabilities(train, valid) -> dict[str, np.ndarray]:
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
