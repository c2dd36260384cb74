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
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from itertools import chain, pairwise

import numpy as np
from numpy.typing import ArrayLike

from ..checks import check_fields, check_positive, look_up
from ..files import user_path

_Pair = tuple[int, int]
_BYTES = [bytes([byte]) for byte in range(256)]
SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>", "<cls>", "<sep>", "<mask>")
SENTINELS = tuple(f"<extra_id_{n}>" for n in range(100))  # of T5, one for each removed span

# Bounds on what a file may ask for. The largest vocabularies in use have 262,144 ids, the longest
# ids stand for 128 spaces, and the largest tokenizer.json has 35 MB.
MAX_IDS = 1 << 19
_MAX_ID_BYTES = 512
_MAX_JSON_BYTES = 1 << 26
_MAX_GROWTH = 64  # how much longer the steps of a tokenizer.json may make a text
_GROWTH = {"ByteLevel": 2.0, "Precompiled": 16.0}  # and how much longer these two make it
_MAX_PIECES = 1 << 20  # different pieces that merges are learned from
_CHUNK_BYTES = 1 << 18  # the text that is encoded at a time; Hugging Face takes 100 times as much

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
    Raises   ValueError for input that is not text, ids outside 0 … vocab_size - 1, duplicate
             specials, more than MAX_IDS ids, or an id that stands for more than 512 bytes
    """

    specials: tuple[str, ...]
    tokens: list[bytes]  # the bytes of every id that is not special

    def __post_init__(self):
        names = self.specials
        listed = isinstance(names, tuple | list) and all(isinstance(n, str) and n for n in names)
        if not listed or len(set(names)) < len(names):
            raise ValueError(f"specials must be distinct names, got {names!r}")
        _check_sizes(len(names), max((len(_as_bytes(name)) for name in names), default=0))
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
        return np.concatenate([np.empty(0, self.dtype), *self.iterate_ids(text)])

    def iterate_ids(self, text: str | bytes) -> Iterator[np.ndarray]:
        """Yield the ids of a text in arrays of a bounded size: joined, they are `encode(text)`."""
        raise NotImplementedError

    def decode(self, ids: ArrayLike) -> bytes:
        """The text of a list, array or tensor of ids."""
        return b"".join(self._spelled[id] for id in _check_ids(ids, self.vocab_size))

    def decode_stream(self, rows: Iterable[ArrayLike]) -> Iterator[bytes]:
        """Yield the text of ids while they come: joined, it is `decode` of all of them.

        Shapes   rows: any number of (n,) whole numbers
        """
        return map(self.decode, rows)

    @cached_property
    def _spelled(self) -> list[bytes]:
        return [*self.tokens, *(name.encode() for name in self.specials)]

    def to_json(self) -> str:
        """The tokenizer as JSON; `tokenizer_from_json` is the inverse."""
        return json.dumps({"kind": type(self).__name__} | asdict(self))


@dataclass(frozen=True)
class Bytes(Tokenizer):
    """Each byte is its own id. Nothing has to be learned, and every text can be encoded."""

    specials: tuple[str, ...] = ()
    tokens = _BYTES

    def iterate_ids(self, text: str | bytes) -> Iterator[np.ndarray]:
        for chunk in _iterate_chunks(text):
            yield np.frombuffer(chunk, np.uint8).astype(self.dtype)


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
                f"an alphabet must be a string of distinct characters, got {letters!r:.80}"
            )
        _check_sizes(len(letters) + len(self.specials), len(_as_bytes(letters[:1])))
        _as_bytes(letters)  # half a character cannot be decoded

    @classmethod
    def train(cls, text: str | bytes, specials: Iterable[str] = ()) -> Characters:
        """The alphabet of a text, in the order of code points."""
        return cls("".join(sorted(set().union(*_iterate_text(_require_text(text))))), specials)

    @cached_property
    def tokens(self) -> list[bytes]:
        return [character.encode() for character in self.alphabet]

    def iterate_ids(self, text: str | bytes) -> Iterator[np.ndarray]:
        for chunk in _iterate_text(text):
            ids = self._ids[_code_points(chunk)]
            if ids.min() < 0:
                raise ValueError(
                    f"character {min(set(chunk) - set(self.alphabet))!r} is not among the "
                    f"{len(self.alphabet)} of the alphabet; train on a text that has it, or add "
                    "the special '<unk>' for unknown characters"
                )
            yield ids.astype(self.dtype)

    @cached_property
    def _ids(self) -> np.ndarray:
        """The id of every code point; -1 if it has none."""
        ids = np.full(sys.maxunicode + 1, self.special_ids.get("<unk>", -1), np.int32)
        ids[_code_points(self.alphabet)] = np.arange(len(self.alphabet))
        return ids


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


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
        _check_sizes(256 + len(self.merges) + len(self.specials))
        merges, lengths = tuple(tuple(pair) for pair in self.merges), [1] * 256
        for new, pair in enumerate(merges, 256):
            if len(pair) != 2 or not all(type(id) is int and 0 <= id < new for id in pair):
                raise ValueError(f"merge {new - 256} must be two ids below {new}, got {pair!r:.80}")
            lengths.append(lengths[pair[0]] + lengths[pair[1]])
        _check_sizes(len(lengths), max(lengths))
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
        _check_sizes(vocab_size)
        if vocab_size < least:
            raise ValueError(
                f"vocab_size={vocab_size} is too small: 256 bytes and {len(specials)} specials "
                f"need {least}"
            )
        merges = learn(count_pieces(text), vocab_size - least)
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

    def iterate_ids(self, text: str | bytes) -> Iterator[np.ndarray]:
        encode = lru_cache(1 << 17)(self._encode_piece)  # most pieces of a text are repeated
        for chunk in _iterate_chunks(text):
            ids = chain.from_iterable(map(encode, _PIECES.findall(chunk)))
            yield np.fromiter(ids, self.dtype)

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
    byte-level tokenizer restores every text exactly, one that lowercases its input does not. A text
    above 256 kB is encoded in chunks that end with a line or a word, each as a text of its own.

    Raises   ImportError when `tokenizers` is not installed
             ValueError for bytes that are not UTF-8, content that is not a tokenizer or makes a
             text too long, and whatever else the library fails on
    """

    content: str  # of a tokenizer.json

    @classmethod
    def of(cls, source: object) -> HuggingFace:
        """From the path of a tokenizer.json, or an object of `tokenizers` or `transformers`.

        Raises   FileNotFoundError when there is no such file, ValueError naming it when it is not a
                 tokenizer
        """
        source = getattr(source, "backend_tokenizer", source)  # wrapped by `transformers`
        if hasattr(source, "to_str"):
            return cls(source.to_str())
        path = user_path(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"no tokenizer at {str(path)!r}; give the path of a tokenizer.json"
            )
        try:
            with path.open("rb") as file:
                return cls(file.read(_MAX_JSON_BYTES + 1).decode())
        except ValueError as error:
            raise ValueError(f"{str(path)!r} cannot be used: {error}") from None

    def __post_init__(self):
        if not isinstance(self.content, str) or len(self.content) > _MAX_JSON_BYTES:
            raise ValueError(
                "not a tokenizer.json of Hugging Face: it must be a text of at most "
                f"{_MAX_JSON_BYTES:,} characters"
            )
        _check_sizes(self._theirs.get_vocab_size())
        if not (vocabulary := self._theirs.get_vocab()):
            raise ValueError("not a tokenizer.json of Hugging Face that can be used: it has no ids")
        _check_sizes(1 + max(vocabulary.values()), max(map(len, vocabulary)))

    @cached_property
    def _theirs(self):
        library = _import_tokenizers()
        with _in_words("not a tokenizer.json of Hugging Face"):
            theirs = library.Tokenizer.from_str(self.content)
            steps = filter(None, (theirs.normalizer, theirs.pre_tokenizer, theirs.decoder))
            growth = max(
                (_measure_growth(json.loads(step.__getstate__())) for step in steps), default=1.0
            )
        if growth > _MAX_GROWTH:
            raise ValueError(
                f"this tokenizer of Hugging Face can make a text {growth:.0e} times longer before "
                f"it encodes or after it decodes; at most {_MAX_GROWTH} times is accepted"
            )
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

    def iterate_ids(self, text: str | bytes) -> Iterator[np.ndarray]:
        for chunk in _iterate_text(text):
            with _in_words("this tokenizer of Hugging Face cannot encode the text"):
                found = self._theirs.encode(chunk, add_special_tokens=False)
            yield np.array(found.ids, self.dtype)

    def decode(self, ids: ArrayLike) -> bytes:
        ids = _check_ids(ids, self.vocab_size)
        with _in_words("this tokenizer of Hugging Face cannot decode these ids"):
            return self._theirs.decode(ids, skip_special_tokens=False).encode()

    def decode_stream(self, rows: Iterable[ArrayLike]) -> Iterator[bytes]:
        """What an id says depends on its neighbours: it is held back until it cannot change."""
        stream = _import_tokenizers().decoders.DecodeStream(skip_special_tokens=False)
        ids: list[int] = []
        said = 0
        for row in rows:
            for id in _check_ids(row, self.vocab_size):
                ids.append(id)
                with _in_words("this tokenizer of Hugging Face cannot decode these ids"):
                    text = (stream.step(self._theirs, id) or "").encode()
                said += len(text)
                yield text
        yield self.decode(ids)[said:]


@contextmanager
def _in_words(what: str):
    """Turn whatever the library fails with into a ValueError.

    Its errors are plain exceptions, and a panic of its Rust code is not even one of these.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ValueError(f"{what}: {error}") from None


def _measure_growth(step) -> float:
    """How many times longer a step of a tokenizer.json can make a text, with the steps in it."""
    if isinstance(step, list):
        return math.prod(map(_measure_growth, step))
    if not isinstance(step, dict):
        return 1.0
    if step.get("type") != "Replace":
        return _GROWTH.get(step.get("type"), 1.0) * _measure_growth([*step.values()])
    found = step["pattern"].get("String")  # else a pattern, which may match nothing, anywhere
    return max(1.0, len(step["content"]) / len(found)) if found else 1.0 + len(step["content"])


# ---------------------------------------------------------------- reading, checking


_KINDS = {cls.__name__: cls for cls in (Bytes, Characters, BPE, HuggingFace)}


def tokenizer_from_json(text: str) -> Tokenizer:
    """The inverse of `Tokenizer.to_json`, for every kind of tokenizer.

    Raises   ValueError when the text is not JSON, or not that of a tokenizer
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
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


def _as_bytes(text) -> bytes | np.ndarray:
    """A text as bytes; a split of a corpus stays an array, which may be larger than the memory."""
    if isinstance(text, bytes) or getattr(text, "dtype", None) == np.uint8:
        return text
    if isinstance(text, bytearray):
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


# Where a chunk of a text may end: after a line that is followed by a line without indentation, or
# else after a word. No tokenizer here, nor GPT-2's or Llama's, has an id that reaches across.
_CHUNK_ENDS = (re.compile(rb"(?s).*\S\n(?=\S)"), re.compile(rb"(?s).*\S(?=\s)"))


def _iterate_chunks(text) -> Iterator[bytes]:
    """Cut a text into chunks of at most _CHUNK_BYTES, between lines, words or at least characters.

    Raises   ValueError for what is not a text
    """
    text, start = _as_bytes(text), 0
    while start < len(text):
        chunk = bytes(text[start : start + _CHUNK_BYTES])
        if start + len(chunk) < len(text):
            ends = (end.match(chunk) for end in _CHUNK_ENDS)
            chunk = next((end[0] for end in ends if end), chunk[: _end_of_characters(chunk)])
        yield chunk
        start += len(chunk)


def _end_of_characters(chunk: bytes) -> int:
    """Where the last character of a chunk starts, which may go on after it."""
    starts = (at for at in range(len(chunk) - 1, len(chunk) - 4, -1) if chunk[at] & 0xC0 != 0x80)
    return next(starts, len(chunk))


def _iterate_text(text) -> Iterator[str]:
    """The chunks of a text as characters.

    Raises   ValueError naming the first byte that is not UTF-8
    """
    start = 0
    for chunk in _iterate_chunks(text):
        try:
            yield chunk.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"the text is not UTF-8 at byte {start + error.start}; use Bytes or BPE, which "
                "accept any bytes, or convert the text to UTF-8"
            ) from None
        start += len(chunk)


def count_pieces(text: str | bytes) -> Counter:
    """The pieces that no merge crosses, and how often each occurs: {bytes: frequency}.

    Reading ends when there are _MAX_PIECES different ones.
    """
    counts: Counter[bytes] = Counter()
    for chunk in _iterate_chunks(text):
        counts.update(_PIECES.findall(chunk))
        if len(counts) > _MAX_PIECES:
            break
    return counts


def _require_text(text) -> bytes | np.ndarray:
    if not len(text := _as_bytes(text)):
        raise ValueError("the training text is empty; there is nothing to learn from")
    return text


def _check_sizes(ids: int, longest: int = 0) -> None:
    if ids > MAX_IDS or longest > _MAX_ID_BYTES:
        raise ValueError(
            f"a tokenizer may have at most {MAX_IDS:,} ids, each of at most {_MAX_ID_BYTES} bytes; "
            f"this one has {ids:,}, the longest of {longest} bytes"
        )


def _check_ids(ids, vocab_size: int) -> list[int]:
    ids = np.asarray(ids)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"ids must be one row of whole numbers, got {ids.dtype} of {ids.shape}")
    if ids.size and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ValueError(f"ids must lie in 0 … {vocab_size - 1}, got {ids.min()} … {ids.max()}")
    return ids.tolist()
