"""Tokenizers: bytes, characters, byte-level BPE, and any tokenizer of Hugging Face.

    tokenizer = BPE.train(text, vocab_size=512, specials=("<pad>", "<eos>"))
    ids = tokenizer.encode(text)                      tokenizer.decode(ids) == text, as bytes
    again = tokenizer_from_json(tokenizer.to_json())  again == tokenizer

The ids of text come first and those of special tokens last, so that specials change no other id. No
text is encoded as a special token, even if it spells the name of one; insert the id of a special
where you want it.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..checks import check_fields, check_positive, look_up

_Pair = tuple[int, int]
_BYTES = [bytes([byte]) for byte in range(256)]
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<cls>", "<sep>", "<mask>")
SENTINELS = tuple(f"<extra_id_{n}>" for n in range(100))  # of T5, one for each removed span

# GPT-2's pre-tokenization, on bytes: no merge crosses a word boundary. Bytes from 128 on count as
# letters, so that no character is split. A piece has at most 64 bytes of a kind, which keeps the
# cost linear in the length of the text even without spaces.
_PIECES = re.compile(
    rb"""'(?:[sdmt]|ll|ve|re)               # an English ending
    | [ ]?[A-Za-z\x80-\xff]{1,64}           # a word and the space before it
    | [ ]?[0-9]{1,64}                       # a number
    | [ ]?[^\sA-Za-z0-9\x80-\xff]{1,64}     # punctuation
    | \s{1,64}(?!\S) | \s{1,64}             # whitespace, without the space before a word
    """,
    re.VERBOSE,
)


class Tokenizer:
    """The base class of all tokenizers, which are plain frozen data, like a Spec.

    Shapes   encode: str (as UTF-8) or bytes -> (n,) of the smallest unsigned dtype for vocab_size;
             decode: (n,) whole numbers -> bytes, specials as their names
    Raises   ValueError for input that is not text, ids outside 0 … vocab_size - 1, or duplicate
             specials
    """

    specials: tuple[str, ...]
    tokens: list[bytes]  # the bytes of every id that is not special

    def __post_init__(self):
        names = self.specials
        listed = isinstance(names, tuple | list) and all(isinstance(n, str) and n for n in names)
        if not listed or len(set(names)) < len(names):
            raise ValueError(f"specials must be distinct names, got {names!r}")
        object.__setattr__(self, "specials", tuple(names))

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """The id of each special by its name."""
        return {name: id for id, name in enumerate(self.specials, len(self.tokens))}

    def special(self, name: str) -> int:
        """The id of a special.

        Raises   ValueError listing the known specials, when there is no such name
        """
        return look_up(self.special_ids, name, "special")

    @cached_property
    def vocab_size(self) -> int:
        """The number of ids, specials included."""
        return len(self.tokens) + len(self.specials)

    @property
    def dtype(self) -> np.dtype:
        """The dtype of encoded text."""
        return np.min_scalar_type(self.vocab_size - 1)

    def encode(self, text: str | bytes) -> np.ndarray:
        """The ids of a text."""
        raise NotImplementedError

    def decode(self, ids: ArrayLike) -> bytes:
        """The text of a list, array or tensor of ids."""
        tokens = [*self.tokens, *(name.encode() for name in self.specials)]
        return b"".join(tokens[id] for id in _check_ids(ids, self.vocab_size))

    def to_json(self) -> str:
        """The tokenizer as JSON; `tokenizer_from_json` is the inverse."""
        return json.dumps({"kind": type(self).__name__} | asdict(self))


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """Each byte is its own id. Nothing has to be learned, and every text can be encoded."""

    specials: tuple[str, ...] = ()
    tokens = _BYTES

    def encode(self, text: str | bytes) -> np.ndarray:
        return np.frombuffer(_as_bytes(text), np.uint8).astype(self.dtype)


@dataclass(frozen=True)
class Characters(Tokenizer):
    """Each character of an alphabet is an id. Other characters become the special "<unk>".

    Raises   ValueError for a character outside the alphabet, unless "<unk>" is among the specials
    """

    alphabet: str
    specials: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        letters = self.alphabet
        if not isinstance(letters, str) or not 0 < len(letters) == len(set(letters)):
            raise ValueError(
                f"an alphabet must be a string of distinct characters, got {letters!r}"
            )

    @classmethod
    def train(cls, text: str | bytes, specials: Iterable[str] = ()) -> Characters:
        """The alphabet of a text, in the order of code points."""
        return cls("".join(sorted(set(_as_text(_require_text(text))))), specials)

    @cached_property
    def tokens(self) -> list[bytes]:
        return [character.encode() for character in self.alphabet]

    def encode(self, text: str | bytes) -> np.ndarray:
        text, ids = _as_text(text), {c: id for id, c in enumerate(self.alphabet)}
        if (unknown := self.special_ids.get("<unk>")) is None and (new := set(text) - set(ids)):
            raise ValueError(
                f"character {min(new)!r} is not among the {len(ids)} of the alphabet; train on a "
                "text that has it, or add the special '<unk>' for unknown characters"
            )
        return np.array([ids.get(c, unknown) for c in text], self.dtype)


# ---------------------------------------------------------------- byte-pair encoding


def _merge_pair(ids: list[int], pair: _Pair, new: int) -> list[int]:
    """Replace each `pair` by `new`, from the left: [1, 1, 1, 2] with (1, 1) -> 9 is [9, 1, 2]."""
    out, at = [], 0
    while at < len(ids):
        found = tuple(ids[at : at + 2]) == pair
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


def learn_merges(pieces: Counter, count: int) -> list[_Pair]:
    """Merge the most frequent pair of neighbouring ids into a new id, up to `count` times.

    Ties go to the pair with the smaller left id, then the smaller right id. Overlapping pairs all
    count: three equal bytes contain two. Learning ends early when every piece is a single id.

    Shapes   pieces {bytes: frequency}  ->  merge k creates id 256 + k
    Cost     per merge, a scan of all pairs to find the best, then of the pieces that contain it
    Twin     learn_merges_fast: the same merges
    """
    words, times = [list(piece) for piece in pieces], list(pieces.values())
    counts: Counter[_Pair] = Counter()
    where = defaultdict(set)  # the words that contained a pair at some time

    def tally(word, sign):
        for pair in pairwise(words[word]):
            counts[pair] += sign * times[word]
            where[pair].add(word)

    for word in range(len(words)):
        tally(word, 1)
    merges: list[_Pair] = []
    while len(merges) < count and (most := max(counts.values(), default=0)):
        best = min(pair for pair, n in counts.items() if n == most)
        for word in where.pop(best):
            tally(word, -1)
            words[word] = _merge_pair(words[word], best, 256 + len(merges))
            tally(word, 1)
        merges.append(best)
    return merges


def learn_merges_fast(pieces: Counter, count: int) -> list[_Pair]:
    """The same as `learn_merges`, by Hugging Face's `tokenizers`, for large vocabularies.

    The library breaks ties by its own ids, which equal ours because bytes are passed as the
    characters 0 … 255. Trained in its usual way it numbers printable bytes first, and may break
    ties between pairs with a space or a line break differently.

    Twin     learn_merges: the same merges
    Raises   ImportError when `tokenizers` is not installed
    """
    library = _import_tokenizers()
    theirs = library.Tokenizer(library.models.BPE())
    trainer = library.trainers.BpeTrainer(
        vocab_size=256 + count,
        initial_alphabet=[chr(byte) for byte in range(256)],
        show_progress=False,
    )
    theirs.train_from_iterator((p.decode("latin-1") for p in pieces.elements()), trainer)
    model = json.loads(theirs.to_str())["model"]
    return [(model["vocab"][left], model["vocab"][right]) for left, right in model["merges"]]


@dataclass(frozen=True)
class BPE(Tokenizer):
    """Byte-level byte-pair encoding: frequent pairs get an id of their own; every text has ids.

        id b < 256 is byte b        id 256 + k is the pair of ids of merge k

    A text is split into words, numbers, punctuation and whitespace. In each of these pieces the
    earliest applicable merge is applied everywhere, from the left, until none applies.

    Paper    Sennrich 2016, 1508.07909; on bytes: Radford 2019 (GPT-2)
    Twin     Hugging Face's `tokenizers`: the same ids from the same merges and pieces
    Raises   ValueError when a merge is not a pair of earlier ids, or occurs twice
    """

    merges: tuple[_Pair, ...]
    specials: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        merges = tuple(tuple(pair) for pair in self.merges)
        for new, pair in enumerate(merges, 256):
            if len(pair) != 2 or not all(type(id) is int and 0 <= id < new for id in pair):
                raise ValueError(f"merge {new - 256} must be two ids below {new}, got {pair!r}")
        if len(set(merges)) < len(merges):
            raise ValueError("a pair is merged twice; leave out the second merge")
        object.__setattr__(self, "merges", merges)

    @classmethod
    def train(
        cls,
        text: str | bytes,
        vocab_size: int = 512,
        specials: Sequence[str] = (),
        *,
        learn: Callable[[Counter, int], list[_Pair]] = learn_merges,
    ) -> BPE:
        """Learn merges until bytes, merges and specials are `vocab_size` ids together.

        Options  learn   learn_merges or learn_merges_fast
        Raises   ValueError when the text is empty or has too few pairs, or the vocabulary has no
                 room for the 256 bytes and the specials
        """
        text, least = _require_text(text), 256 + len(specials)
        check_positive("BPE", vocab_size=vocab_size)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(specials)} specials "
                f"need {least}"
            )
        merges = learn(Counter(_PIECES.findall(text)), vocab_size - least)
        if (most := least + len(merges)) < vocab_size:
            raise ValueError(
                f"vocab_size={vocab_size} is too large for this text, which has only "
                f"{len(merges)} pairs to merge; ask for {most} at most, or give more text"
            )
        return cls(tuple(merges), specials)

    @cached_property
    def _ranks(self) -> dict[_Pair, int]:
        """The id of each merged pair; the smaller, the earlier it was learned."""
        return {pair: id for id, pair in enumerate(self.merges, 256)}

    @cached_property
    def tokens(self) -> list[bytes]:
        tokens = list(_BYTES)
        for left, right in self.merges:
            tokens.append(tokens[left] + tokens[right])
        return tokens

    def encode(self, text: str | bytes) -> np.ndarray:
        seen: dict[bytes, list[int]] = {}  # most pieces of a text are repeated
        ids: list[int] = []
        for piece in _PIECES.findall(_as_bytes(text)):
            if piece not in seen:
                seen[piece] = self._encode_piece(piece)
            ids += seen[piece]
        return np.array(ids, self.dtype)

    def _encode_piece(self, piece: bytes) -> list[int]:
        ids = list(piece)
        never = len(self.tokens)
        while pairs := set(pairwise(ids)):
            best = min(pairs, key=lambda pair: self._ranks.get(pair, never))
            if best not in self._ranks:
                break
            ids = _merge_pair(ids, best, self._ranks[best])
        return ids


# ---------------------------------------------------------------- Hugging Face


def _import_tokenizers():
    """Import the library `tokenizers`, an optional dependency."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "this needs Hugging Face's `tokenizers`, which is not installed: pip install tokenizers"
        ) from error
    return tokenizers


@dataclass(frozen=True)
class HuggingFace(Tokenizer):
    """Any tokenizer of Hugging Face, behind the same interface.

    Padding, truncation and special tokens at the ends are switched off. Decoding is theirs: a
    byte-level tokenizer restores every text exactly, one that lowercases its input does not.

    Raises   ImportError when `tokenizers` is not installed
             ValueError for bytes that are not UTF-8, or content that is not a tokenizer
    """

    content: str  # of a tokenizer.json

    @classmethod
    def of(cls, source: object) -> HuggingFace:
        """From the path of a tokenizer.json, or an object of `tokenizers` or `transformers`."""
        source = getattr(source, "backend_tokenizer", source)  # wrapped by `transformers`
        if hasattr(source, "to_str"):
            return cls(source.to_str())
        return cls(Path(source).read_text(encoding="utf-8"))

    def __post_init__(self):
        self._theirs  # noqa: B018 - unreadable content fails here, not when it is first used

    @cached_property
    def _theirs(self):
        library = _import_tokenizers()
        try:
            theirs = library.Tokenizer.from_str(self.content)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"not a tokenizer.json of Hugging Face: {error}") from None
        theirs.no_padding()
        theirs.no_truncation()
        theirs.encode_special_tokens = True  # names of specials in a text stay text
        return theirs

    @cached_property
    def special_ids(self) -> dict[str, int]:
        added = sorted(self._theirs.get_added_tokens_decoder().items())
        return {token.content: id for id, token in added if token.special}

    @property
    def specials(self) -> tuple[str, ...]:
        return tuple(self.special_ids)

    @cached_property
    def vocab_size(self) -> int:
        return 1 + max(self._theirs.get_vocab().values())  # some tokenizers skip ids

    def encode(self, text: str | bytes) -> np.ndarray:
        found = self._theirs.encode(_as_text(text), add_special_tokens=False)
        return np.array(found.ids, self.dtype)

    def decode(self, ids: ArrayLike) -> bytes:
        ids = _check_ids(ids, self.vocab_size)
        return self._theirs.decode(ids, skip_special_tokens=False).encode()


# ---------------------------------------------------------------- reading, checking


_KINDS = {cls.__name__: cls for cls in (Bytes, Characters, BPE, HuggingFace)}


def tokenizer_from_json(text: str) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`, for every kind of tokenizer.

    Raises   ValueError when the text is not JSON, or not that of a tokenizer
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a tokenizer must be JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ValueError(
            "a tokenizer's JSON must be an object that names its kind; read a tokenizer.json of "
            "Hugging Face with HuggingFace.of"
        )
    cls = look_up(_KINDS, values.pop("kind"), "kind of tokenizer")
    try:
        return cls(**check_fields(cls, values))
    except TypeError as error:
        raise ValueError(f"not a {cls.__name__}: {error}") from None


def _as_bytes(text) -> bytes:
    if isinstance(text, bytes | bytearray) or getattr(text, "dtype", None) == np.uint8:
        return bytes(text)
    if not isinstance(text, str):
        raise ValueError(f"a text must be a str or bytes, got {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{text[error.start]!r} at {error.start} is half a character and cannot be encoded; "
            "pass the text as bytes"
        ) from None


def _as_text(text) -> str:
    try:
        return _as_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the text is not UTF-8 at byte {error.start}; use Bytes or BPE, which accept any bytes"
        ) from None


def _require_text(text) -> bytes:
    if not (text := _as_bytes(text)):
        raise ValueError("the training text is empty; there is nothing to learn from")
    return text


def _check_ids(ids, vocab_size: int) -> list[int]:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"ids must be one row of whole numbers, got {ids.dtype} of {ids.shape}")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"ids must lie in 0 … {vocab_size - 1}, got {ids.min()} … {ids.max()}")
    return ids.tolist()
