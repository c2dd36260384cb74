"""Baselines: losses reached without a neural network, by n-gram tables and by compressors."""

from __future__ import annotations

import bz2
import lzma
import math
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from ..text.corpora import Corpus
from .evaluate import LN2

UNIFORM = math.log(256)  # nats per byte when every byte is equally likely
_TRAIN_BYTES, _VALID_BYTES = 1 << 26, 1 << 22  # of each split, at most
_PIECE = 1 << 20  # bytes that are looked up or counted at a time

_Table = tuple[np.ndarray, np.ndarray, np.ndarray]


def measure_baselines(corpus: Corpus) -> dict[str, float]:
    """Bits per byte of every baseline on the held-out split, by name.

    uniform              every byte equally likely
    unigram … trigram    tables of the training split, given 0, 1 or 2 previous bytes
    bz2, lzma            the held-out split, compressed by itself

    They take seconds, however long the text is: of a long text only the first 64 MiB of the
    training split and the first 4 MiB of the held-out split are read, and the names say so.
    """
    text = corpus.text
    train, valid = text.train[:_TRAIN_BYTES], text.valid[:_VALID_BYTES]
    whole = (len(train), len(valid)) == (len(text.train), len(text.valid))
    share = "" if whole else f" (first {len(valid) / 1e6:.1f} MB)"
    tables, held_out = table_losses(train, valid), valid.tobytes()
    packed = {"bz2": bz2.compress(held_out, 9), "lzma": lzma.compress(held_out, preset=9)}
    return {
        "uniform": 8.0,
        **{f"{name}{share}": nats / LN2 for name, nats in tables.items()},
        **{f"{name}{share}": 8.0 * len(text) / len(valid) for name, text in packed.items()},
    }


def measure_zpaq(corpus: Corpus) -> dict[str, float]:
    """Bits per byte of the compressor zpaq on the held-out split, after the training split.

        size(archive of train + valid) - size(archive of train)

    It mixes the predictions of many contexts and learns as it reads, so it is the peer of a model
    that carries its state through a text: both have read the training split, as one stream.

    Returns  {"zpaq": bits}, or no row where the program `zpaq` is not installed
    Cost     two passes over the text: minutes for the corpus "stdlib", where the tables and the
             other compressors of `measure_baselines` take seconds
    Paper    Mahoney 2005, Adaptive weighing of context models for lossless data compression
    Raises   OSError when zpaq fails
    """
    if not shutil.which("zpaq"):
        return {}
    text = corpus.text
    method = _zpaq_method(len(text.train) + len(text.valid))
    with tempfile.TemporaryDirectory() as folder:
        train, both = (
            _zpaq_size(Path(folder), split, method) for split in (text.train, text.valid)
        )
    return {"zpaq": 8.0 * (both - train) / len(text.valid)}


def _zpaq_method(size: int) -> str:
    """Level 5, the strongest, with a block of 2^N MiB that holds `size` bytes; N is at least 8.

    A new block forgets what was read before it. A block is 4,096 bytes smaller than its name says.
    """
    return f"5{max(8, (size + 4096 >> 20).bit_length())}"


def _zpaq_size(folder: Path, split: np.ndarray, method: str) -> int:
    """The size of a new archive of the file `text` in the folder, after `split` is added to it."""
    archive = folder / "archive.zpaq"
    archive.unlink(missing_ok=True)  # or zpaq would add to it what is new in the file
    with open(folder / "text", "ab") as file:
        file.write(split)
    options = ("-method", method, "-threads", "1")
    done = subprocess.run(
        ("zpaq", "add", archive.name, "text", *options),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise OSError(
            f"zpaq ended with status {done.returncode}: {done.stderr.strip()!r}; it needs room for "
            f"the text and its archive in {tempfile.gettempdir()!r}, and a text of at most 2 GiB. "
            "Without zpaq on the PATH this baseline is left out"
        )
    return archive.stat().st_size


def table_losses(train: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """Nats per byte of the unigram, bigram and trigram tables of `train` on `valid`, by name."""
    tables = [_count_table(train, order) for order in range(3)]
    nats = np.zeros(3)
    for start in range(0, len(valid), _PIECE):
        context = min(start, 2)
        piece = valid[start - context : start + _PIECE]
        nats -= [np.log(p[context:]).sum() for p in _table_probabilities(tables, piece)]
    return dict(zip(("unigram", "bigram", "trigram"), (nats / len(valid)).tolist(), strict=True))


def _table_probabilities(tables: list[_Table], text: np.ndarray) -> list[np.ndarray]:
    """The probability of each byte by tables of order 0, 1 and 2, each smoothed by the one below.

        p_n(b | context) = (count(context b) + kinds(context) p_{n-1}(b)) / (count(context) + kinds)

    where `kinds` is the number of distinct bytes that followed the context.

    Shapes   text (n,) uint8  ->  (n,) for each order
    Paper    Witten and Bell 1991, method C
    """
    current, probabilities = np.full(len(text), 1 / 256), []
    for order, (counts, total, kinds) in enumerate(tables):
        codes = _encode_ngrams(text, order)
        context, found = codes // 256, counts[codes]
        weight = np.maximum(kinds[context], 1)  # for an unseen context: the lower order unchanged
        current[order:] = (found + weight * current[order:]) / (total[context] + weight)
        probabilities.append(current.copy())
    return probabilities


def _count_table(train: np.ndarray, order: int) -> _Table:
    """The counts of all n-grams, and of each context the sum and the number of distinct bytes."""
    counts = _count_ngrams(train, order)
    followers = counts.reshape(-1, 256)
    return counts, followers.sum(1), (followers > 0).sum(1)


def _count_ngrams(data, order, piece=_PIECE):
    """The frequency of each code of `_encode_ngrams`, counted in pieces to bound the memory."""
    counts = np.zeros(256 ** (order + 1), np.uint32)
    for start in range(0, len(data) - order, piece):
        codes = _encode_ngrams(data[start : start + piece + order], order)
        np.add.at(counts, codes, np.uint32(1))  # of another type, 1 would take ten times as long
    return counts


def _encode_ngrams(data, order):
    """Each byte and the `order` bytes before it as one number.  Shapes  (n,) -> (n - order,)"""
    data = data.astype(np.int64)
    codes = np.zeros(max(0, len(data) - order), np.int64)
    for back in range(order, -1, -1):
        codes = codes * 256 + data[order - back : len(data) - back]
    return codes
