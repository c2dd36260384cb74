"""Text as ids and back: bytes, characters, byte-level BPE, and any tokenizer of Hugging Face.

    tokenizer = BPE.train(text, vocab_size=512, specials=("<pad>", "<eos>"))
    ids = tokenizer.encode(text)                    tokenizer.decode(ids) == text, as bytes
    again = from_json(tokenizer.to_json())          again == tokenizer

Ids of text come first, those of specials after them, so that specials change no other id. No text
becomes a special, not even one that spells its name: whoever wants one puts its id there.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from ..checks import check_fields, check_positive, look_up

_Pair = tuple[int, int]
_BYTES = [bytes([byte]) for byte in range(256)]
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<cls>", "<sep>", "<mask>")
SENTINELS = tuple(f"<extra_id_{n}>" for n in range(100))  # T5: each stands for a span left out

# GPT-2's cut, on bytes: no merge crosses from a word to the next. Bytes from 128 on are taken for
# letters, so that a character stays whole. At most 64 to a piece: the cost stays linear in the text
# even where a line has no blanks.
PIECES = re.compile(
    rb"""'(?:[sdmt]|ll|ve|re)               # an English ending
    | [ ]?[A-Za-z\x80-\xff]{1,64}           # a word, with the blank before it
    | [ ]?[0-9]{1,64}                       # a number
    | [ ]?[^\sA-Za-z0-9\x80-\xff]{1,64}     # signs
    | \s{1,64}(?!\S) | \s{1,64}             # blanks, but the last one goes with what follows
    """,
    re.VERBOSE,
)


class Tokenizer:
    """What all have in common. A tokenizer is plain frozen data, like a Spec.

    Shapes   encode: str (read as UTF-8) or bytes -> (n,) of the smallest unsigned type that holds
             every id; decode: (n,) whole numbers -> bytes, a special as its name
    Raises   ValueError for what is no text, ids outside 0 … vocab_size - 1, specials named twice
    """

    specials: tuple[str, ...]
    tokens: list[bytes]  # what the ids before the specials stand for

    def __post_init__(self):
        names = self.specials
        listed = isinstance(names, tuple | list) and all(isinstance(n, str) and n for n in names)
        if not listed or len(set(names)) < len(names):
            raise ValueError(f"specials must be different names, got {names!r}")
        object.__setattr__(self, "specials", tuple(names))

    @cached_property
    def special_ids(self) -> dict[str, int]:
        return {name: id for id, name in enumerate(self.specials, len(self.tokens))}

    def special(self, name: str) -> int:
        """The id of a special, or an error that lists those that there are."""
        return look_up(self.special_ids, name, "special")

    @cached_property
    def vocab_size(self) -> int:
        return len(self.tokens) + len(self.specials)

    @property
    def dtype(self) -> np.dtype:
        return np.min_scalar_type(self.vocab_size - 1)

    def encode(self, text: str | bytes) -> np.ndarray:
        raise NotImplementedError

    def decode(self, ids) -> bytes:
        tokens = [*self.tokens, *(name.encode() for name in self.specials)]
        return b"".join(tokens[id] for id in _check_ids(ids, self.vocab_size))

    def to_json(self) -> str:
        return json.dumps({"kind": type(self).__name__} | asdict(self))


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """Each byte is its own id: nothing to learn, nothing unknown."""

    specials: tuple[str, ...] = ()
    tokens = _BYTES

    def encode(self, text):
        return np.frombuffer(_as_bytes(text), np.uint8).astype(self.dtype)


@dataclass(frozen=True)
class Characters(Tokenizer):
    """Each character of an alphabet is an id; any other is the special "<unk>", where there is one.

    Raises   ValueError for a character that is not in the alphabet, where there is no "<unk>"
    """

    alphabet: str
    specials: tuple[str, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        letters = self.alphabet
        if not isinstance(letters, str) or not 0 < len(letters) == len(set(letters)):
            raise ValueError(
                f"an alphabet must be a string of different characters, got {letters!r}"
            )

    @classmethod
    def train(cls, text: str | bytes, specials=()) -> Characters:
        """The alphabet of this text, in the order of code points."""
        return cls("".join(sorted(set(_as_text(_require_text(text))))), specials)

    @cached_property
    def tokens(self):
        return [character.encode() for character in self.alphabet]

    def encode(self, text):
        text, ids = _as_text(text), {c: id for id, c in enumerate(self.alphabet)}
        if (unknown := self.special_ids.get("<unk>")) is None and (new := set(text) - set(ids)):
            raise ValueError(
                f"character {min(new)!r} is not among the {len(ids)} of the alphabet; train on a "
                "text that has it, or add the special '<unk>' to stand for all that are unknown"
            )
        return np.array([ids.get(c, unknown) for c in text], self.dtype)


# ---------------------------------------------------------------- byte-pair encoding


def _merge_pair(ids: list[int], pair: _Pair, new: int) -> list[int]:
    """Each `pair` in `ids` as `new`, from the left: [1, 1, 1, 2] with (1, 1) as 9 is [9, 1, 2]."""
    out, at = [], 0
    while at < len(ids):
        found = tuple(ids[at : at + 2]) == pair
        out.append(new if found else ids[at])
        at += 2 if found else 1
    return out


def learn_merges(pieces: Counter, count: int) -> list[_Pair]:
    """Up to `count` times, the pair of neighbours that is most frequent becomes a new id.

    Ties go to the pair with the smaller left id, then the smaller right id. Overlapping pairs all
    count: three equal bytes hold two. Ends early when no piece has two ids left.

    Shapes   pieces {bytes: how often}  ->  merge k makes id 256 + k
    Cost     a merge: all pairs once, to find the best; then only the pieces that have it
    Twin     learn_merges_fast: the same merges
    """
    words, times = [list(piece) for piece in pieces], list(pieces.values())
    counts: Counter[_Pair] = Counter()
    where = defaultdict(set)  # the words in which a pair has been seen

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
    """The same by Hugging Face's `tokenizers`, for large vocabularies.

    It breaks ties as we do, but by its own ids. Here they are ours, because it is given bytes as
    the characters 0 … 255. Trained its usual way it numbers the printable bytes first, so that ties
    with a blank or a line end, and all that follows from them, may fall otherwise.

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
    """Byte-level byte-pair encoding: frequent neighbours share an id; any bytes can be written.

        id b < 256 is byte b        id 256 + k is the two ids of merge k, side by side

    A text is cut by PIECES. In each piece the earliest merge that fits is made first, everywhere
    from the left, until none fits.

    Paper    Sennrich 2016, 1508.07909; on bytes: Radford 2019 (GPT-2)
    Twin     Hugging Face's `tokenizers`: the same ids from the same merges and pieces
    Raises   ValueError when a merge is not a pair of earlier ids, or comes twice
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
            raise ValueError("a pair is merged twice; leave the second one out")
        object.__setattr__(self, "merges", merges)

    @classmethod
    def train(cls, text: str | bytes, vocab_size=512, specials=(), *, learn=learn_merges) -> BPE:
        """Learn merges until bytes, merges and specials are `vocab_size` ids.

        Raises   ValueError when the text is empty or has too few pairs, or the vocabulary has no
                 room for the 256 bytes and the specials
        """
        text, least = _require_text(text), 256 + len(specials)
        check_positive("BPE", vocab_size=vocab_size)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(specials)} specials "
                f"take {least}"
            )
        merges = learn(Counter(PIECES.findall(text)), vocab_size - least)
        if (most := least + len(merges)) < vocab_size:
            raise ValueError(
                f"vocab_size={vocab_size} is too large for this text, which has only "
                f"{len(merges)} pairs to merge; ask for {most} at most, or give more text"
            )
        return cls(tuple(merges), specials)

    @cached_property
    def ranks(self) -> dict[_Pair, int]:
        """The id of each merge; a smaller one was learned earlier."""
        return {pair: id for id, pair in enumerate(self.merges, 256)}

    @cached_property
    def tokens(self):
        tokens = list(_BYTES)
        for left, right in self.merges:
            tokens.append(tokens[left] + tokens[right])
        return tokens

    def encode(self, text):
        seen: dict[bytes, list[int]] = {}  # most pieces of a text come again
        ids: list[int] = []
        for piece in PIECES.findall(_as_bytes(text)):
            if piece not in seen:
                seen[piece] = self.encode_piece(piece)
            ids += seen[piece]
        return np.array(ids, self.dtype)

    def encode_piece(self, piece: bytes) -> list[int]:
        ids = list(piece)
        never = len(self.tokens)
        while pairs := set(pairwise(ids)):
            best = min(pairs, key=lambda pair: self.ranks.get(pair, never))
            if best not in self.ranks:
                break
            ids = _merge_pair(ids, best, self.ranks[best])
        return ids


# ---------------------------------------------------------------- Hugging Face


def _import_tokenizers():
    """The library `tokenizers`, which only those need who use it."""
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            "this needs Hugging Face's `tokenizers`, not installed here: pip install -e '.[text]'"
        ) from error
    return tokenizers


@dataclass(frozen=True)
class HuggingFace(Tokenizer):
    """Any tokenizer of Hugging Face, behind the same interface.

    Padding, truncation and marks at the ends are off: ids are those of the text alone. What comes
    back is what their decoder makes of ids: byte-level ones give every text back whole, one that
    lowers case does not.

    Raises   ImportError when `tokenizers` is not installed
             ValueError for bytes that are not UTF-8, or what is no tokenizer
    """

    content: str  # of a tokenizer.json

    @classmethod
    def of(cls, source) -> HuggingFace:
        """From the path of a tokenizer.json, or an object of `tokenizers` or `transformers`."""
        source = getattr(source, "backend_tokenizer", source)  # what a `transformers` one wraps
        if hasattr(source, "to_str"):
            return cls(source.to_str())
        return cls(Path(source).read_text(encoding="utf-8"))

    def __post_init__(self):
        # What cannot be read shall fail here, not at the first text.
        self.theirs  # noqa: B018

    @cached_property
    def theirs(self):
        library = _import_tokenizers()
        try:
            theirs = library.Tokenizer.from_str(self.content)
        except Exception as error:  # they raise no narrower one
            raise ValueError(f"not a tokenizer.json of Hugging Face: {error}") from None
        theirs.no_padding()
        theirs.no_truncation()
        theirs.encode_special_tokens = True  # as text
        return theirs

    @cached_property
    def special_ids(self):
        added = sorted(self.theirs.get_added_tokens_decoder().items())
        return {token.content: id for id, token in added if token.special}

    @property
    def specials(self):
        return tuple(self.special_ids)

    @cached_property
    def vocab_size(self):
        return 1 + max(self.theirs.get_vocab().values())  # some leave ids unused

    def encode(self, text):
        found = self.theirs.encode(_as_text(text), add_special_tokens=False)
        return np.array(found.ids, self.dtype)

    def decode(self, ids):
        ids = _check_ids(ids, self.vocab_size)
        return self.theirs.decode(ids, skip_special_tokens=False).encode()


# ---------------------------------------------------------------- reading, checking


_KINDS = {cls.__name__: cls for cls in (Bytes, Characters, BPE, HuggingFace)}


def tokenizer_from_json(text: str) -> Tokenizer:
    """The inverse of `to_json`, for every kind.

    Raises   ValueError when the text is no JSON, or not that of a tokenizer
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"a tokenizer must be JSON: {error}") from None
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ValueError(
            "a tokenizer's JSON must be an object that names its kind; a tokenizer.json of "
            "Hugging Face is read by Adapter.of"
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
            f"{text[error.start]!r} at {error.start} is half a character and has no bytes; read "
            "the text as bytes"
        ) from None


def _as_text(text) -> str:
    try:
        return _as_bytes(text).decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start} is not UTF-8, so it is no character; Bytes and BPE take any bytes"
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
