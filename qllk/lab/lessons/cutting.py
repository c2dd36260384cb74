"""Lesson 17, Cut text into pieces."""

from __future__ import annotations

import random
import re
import statistics
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...presets import PRESETS
from ...probes import evaluate
from ...spec import Spec
from ...study.figures import Chart, Heat, Note
from ...text import prepare
from ...text.corpora import Corpus, corpus
from ...text.objectives import IGNORED
from ...text.tokens import BPE, Tokenizer, count_pieces, learn_merges
from ...text.windows import pack
from ..explore import choice, explorer, line, slider
from ..ledger import DOES_NOT, IN_PART, Claim, holds_if
from ..show import TEXT

# ---------------------------------------------------------------- one text in several kinds of ids


def excerpt(train: int, valid: int) -> Corpus:
    """The first lines of both splits of the standard library, with at most so many bytes."""
    text = corpus("stdlib")
    return replace(
        text, train=_whole_lines(text.train[:train]), valid=_whole_lines(text.valid[:valid])
    )


def _whole_lines(data: np.ndarray) -> np.ndarray:
    return data[: 1 + np.flatnonzero(data == ord("\n"))[-1]]  # or a character might be cut in two


def encode(text: Corpus, tokenizer: Tokenizer) -> Corpus:
    """A corpus of bytes in the ids of a tokenizer."""
    train, valid = (tokenizer.encode(split.tobytes()) for split in (text.train, text.valid))
    raw = (text.train, text.valid)
    return replace(text, train=train, valid=valid, tokenizer=tokenizer, raw=raw)


def hugging_face_ids(bpe: BPE, pieces: Iterable[bytes]) -> list[int]:
    """The ids of pieces of text, by Hugging Face's `tokenizers` with the same merges."""
    import tokenizers

    names = [token.decode("latin-1") for token in bpe.tokens]  # a character for each byte
    merges = [(names[left], names[right]) for left, right in bpe.merges]
    model = tokenizers.models.BPE({name: id for id, name in enumerate(names)}, merges)
    theirs = tokenizers.Tokenizer(model)
    return [id for piece in pieces for id in theirs.encode(piece.decode("latin-1")).ids]


def nats_per_id(model: torch.nn.Module, ids: np.ndarray, window: int) -> float:
    """The mean loss of a model on ids, in windows."""
    return evaluate.mean_loss(*evaluate.loss_by_position(model, ids, window))


def small_gpt(vocab_size: int, d_model: int = 32) -> Spec:
    """Two blocks with attention, the same for every vocabulary."""
    return PRESETS["gpt-nano"].but(d_model=d_model, layers=2, vocab_size=vocab_size)


# ---------------------------------------------------------------- rows


def pack_as_published(documents: list[list[int]], window: int, eos: int) -> tuple[Tensor, Tensor]:
    """Whole documents in rows, each followed by `eos`, which is the padding as well."""
    rows = [[]]
    for ids in documents:
        if rows[-1] and len(rows[-1]) + len(ids) + 1 > window:
            rows.append([])
        rows[-1] += [*ids, eos][:window]
    ids = torch.tensor([row + [eos] * (window - len(row)) for row in rows])
    targets = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], eos)), dim=1)
    return ids, targets.masked_fill(ids == eos, IGNORED)


def rows_as_published(sizes: Sequence[int], window: int) -> int:
    """How many rows documents of these sizes take, their separators included."""
    return len(pack_as_published([[1] * (size - 1) for size in sizes], window, eos=0)[0])


def rows_if_cut(sizes: Sequence[int], window: int) -> int:
    """The same, if a document may go on in the next row."""
    return sum(1 for _ in pack((np.zeros(size, np.uint8) for size in sizes), window))


def rows_one_each(sizes: Sequence[int], window: int) -> int:
    """The same, if no two documents share a row."""
    return sum(-(-size // window) for size in sizes)


PACKINGS = {
    "a row for each document": rows_one_each,
    "whole documents": rows_as_published,
    "documents cut at the edge": rows_if_cut,
}


def padding_per_cent(sizes: Sequence[int], window: int) -> dict[str, float]:
    """How much of the rows is padding, by the way in which they are packed."""
    return {n: 100 * padding(sizes, window, rows(sizes, window)) for n, rows in PACKINGS.items()}


def padding(sizes: Sequence[int], window: int, rows: int) -> float:
    """The share of so many rows that is not text."""
    return max(0.0, 1 - sum(sizes) / (rows * window))


# ---------------------------------------------------------------- copies

PASSAGE = (
    "The tower of the old town stands on a hill, and whoever climbs it sees the river bend twice "
    "before it reaches the sea. Most visitors come in spring, when the wind is mild and the paths "
    "are dry. In winter the gate is often closed, but the keeper opens it for those who ask, and "
    "tells them what the bells were for. One rang for bread, one for fire, and the third, which "
    "nobody alive has heard, for the return of ships."
)
PRIME = 2**31 - 1


def dozen() -> list[str]:
    """A passage, and eleven copies of it that lack more and more of its words."""
    return [prepare.drop_words(PASSAGE, n / 60, random.Random(n)) for n in range(12)]


def sign(texts: Iterable[str], signature: Callable, count: int, words: int = 3) -> Tensor:
    """The signatures of texts, from the same so many hash functions: (number of texts, count).

    signature   called with the numbers of a text's shingles, the factors and summands of the hash
                functions, and PRIME
    """
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randint(1, PRIME, (count,), generator=rng) for _ in range(2))
    return torch.stack([signature(_numbers(text, words), a, b, PRIME) for text in texts])


def _numbers(text, words):
    """A number below PRIME for each shingle: (n,) int64."""
    pieces = sorted(prepare.shingles(text, words))
    return torch.tensor([zlib.crc32(piece.encode()) % PRIME for piece in pieces])


def crawl(count: int, fresh: int = 40, seed: int = 0) -> tuple[list[str], list[str]]:
    """So many functions of the standard library, as a crawl would find them: one in three twice,
    another third a second time with a few words lost; and `fresh` others, none of them a copy.
    """
    source = corpus("stdlib").train[: 1 << 21].tobytes().decode(errors="replace")
    found = re.split(r"\n(?=(?:    )?def )", source)
    found = list(dict.fromkeys(one for one in found if 300 <= len(one) <= 1200))
    random.Random(0).shuffle(found)
    own, rng = found[:count], random.Random(seed)
    again = [one for n, one in enumerate(own) if n % 3 == 0]
    again += [_lose_words(one, rng) for n, one in enumerate(own) if n % 3 == 1]
    pages = own + again
    rng.shuffle(pages)
    return pages, found[count : count + fresh]


def _lose_words(text, rng):
    while (less := prepare.drop_words(text, 0.03, rng)) == text:
        pass
    return less


def join(texts: list[str]) -> np.ndarray:
    """Texts as one array of bytes, with two line ends between them."""
    return np.frombuffer("\n\n".join(texts).encode(), np.uint8)


def memoriser() -> Spec:
    """A small model whose tables of n-grams learn a text by heart within seconds."""
    spec = PRESETS["qllk-3-nano"].but(recall=None, layers=1)
    return spec.but(ngrams=replace(spec.ngrams, rows=1 << 14))


# ---------------------------------------------------------------- claims


@dataclass(frozen=True)
class Evidence:
    """What the tests look at.

    bits           bits per byte of each seed, by the kind of ids
    bytes_per_id   by the kind of ids, on held-out text
    rows           sizes of documents, window -> how many rows they take; default: as published
    """

    bits: dict[str, list[float]]
    bytes_per_id: dict[str, float]
    rows: Callable[[Sequence[int], int], int] = rows_as_published


def _padding(seen, window=2048):
    drawn = np.random.default_rng(0).lognormal(6, 1, size=400)
    sizes = np.clip(drawn, 2, window).astype(int).tolist()
    rows, apart = seen.rows(sizes, window), rows_one_each(sizes, window)
    share, before = padding(sizes, window, rows), padding(sizes, window, apart)
    least = -(-sum(sizes) // window)
    measured = f"{share:.1%} of the rows is padding, {before:.1%} with a row for each document"
    return holds_if(rows <= least, IN_PART if rows < apart else DOES_NOT), measured


def _efficient(seen):
    pairs = zip(seen.bits["characters"], seen.bits["bpe-512"], strict=True)
    gaps = [characters - bpe for characters, bpe in pairs]
    lower = statistics.mean(gaps) > max(gaps) - min(gaps)
    shorter = seen.bytes_per_id["bpe-512"] > seen.bytes_per_id["characters"]
    measured = (
        f"{seen.bytes_per_id['bpe-512']:.2f} bytes per id instead of "
        f"{seen.bytes_per_id['characters']:.2f}; {statistics.mean(gaps):.2f} bits per byte less"
    )
    return holds_if(lower and shorter, IN_PART if lower or shorter else DOES_NOT), measured


CLAIMS = (
    Claim("L31", "packing minimises padding", _padding),
    Claim("L58", "BPE is more efficient than characters", _efficient),
)


# ---------------------------------------------------------------- widget

_MERGES = (0, 1, 2, 3, 4, 8, 16, 64, 256, 768)
_SOURCES = ("this text", "Python source")
_MOST_SHOWN = 40  # bytes of the text


@lru_cache(maxsize=8)
def _merges_of(data: bytes) -> list[tuple[int, int]]:
    return learn_merges(count_pieces(data), _MERGES[-1])


def _source(learned: str, text: bytes) -> bytes:
    return text if learned == _SOURCES[0] else corpus("stdlib").train[: 1 << 18].tobytes()


@explorer(
    "Which pieces does a text fall into, after how many merges, learned from what?",
    text=line("text"),
    merges=slider("merges", list(_MERGES)),
    learned=choice("learned from", list(_SOURCES)),
)
def pieces(text: str = TEXT.decode(), merges: int = 8, learned: str = _SOURCES[0]):
    """The pieces of a text after more and more merges, and how many bytes an id stands for."""
    data = text.encode()[:_MOST_SHOWN].decode(errors="ignore").encode()
    if not data:
        return Note("Type a text.", [])
    known = _merges_of(_source(learned, data))
    rows, names, lengths = [], [], []
    for count in [count for count in _MERGES if count <= merges]:
        bpe = BPE(tuple(known[:count]))
        found = [bpe.decode([id]) for id in bpe.encode(data)]
        rows.append([1 - 2 * (n % 2) for n, piece in enumerate(found) for _ in piece])
        names.append(f"{count} merges")
        lengths.append((256 + count, len(data) / len(found)))
    letters, at = _columns(data), np.cumsum([0, *map(len, found)])
    shown = ["".join(letters[a:b]) for a, b in pairwise(at)]
    said = f"{len(found)} pieces after {merges} merges: {' | '.join(shown)}"
    heat = Heat("each change of colour is a border", rows, names, letters, most=2.0, said=said)
    words = [f"{len(known)} merges can be learned from {learned}."] if merges > len(known) else []
    page = [heat, Note(f"{lengths[-1][1]:.2f} bytes per id", [said, *words])]
    if len(lengths) > 1:
        page.append(Chart({learned: lengths}, "ids in the vocabulary", "bytes per id", ""))
    return page


def _columns(data: bytes) -> list[str]:
    """A name for each byte: its character at the first byte of one, "·" at the others."""
    names = []
    for character in data.decode():
        shown = character.replace(" ", "_") if character.isprintable() else "·"
        names += [shown, *"·" * (len(character.encode()) - 1)]
    return names
