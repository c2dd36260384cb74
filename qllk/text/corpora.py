"""Corpora: text to train on and text held out, by name, by path, or streamed.

A corpus is two memory-mapped arrays of bytes, or of a tokenizer's ids. Texts are split by file or
by their tail, never interleaved, so that no held-out byte has a neighbour in the training split.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from time import monotonic
from typing import BinaryIO

import numpy as np

from ..files import user_path
from .copies import (
    MAX_BYTES,
    Facts,
    Splits,
    check_unchanged,
    describe_files,
    find_files,
    prepare,
    read_chunks,
    sealed_bytes,
    stamp,
)
from .downloads import MAX_SECONDS, download
from .tasks import MAX_TASK_BYTES, TASKS, make_task
from .tokens import (
    BPE,
    MAX_IDS,
    Bytes,
    Characters,
    HuggingFace,
    Tokenizer,
    learn_merges,
    learn_merges_fast,
    tokenizer_from_json,
)

_MANIFEST = Path(__file__).with_name("corpora.json")
_HELD_OUT = 0.1  # the tail of a text that is not split by file
_STREAM_BYTES = 100_000_000  # the size of a corpus made of a stream
_TEXT_SUFFIXES = (
    ".c .cfg .cpp .css .csv .go .h .html .ini .java .js .json .md .py .rs .rst .sh .tex .toml .ts "
    ".txt .xml .yaml .yml"
)
# Streams by name: a data set of the Hugging Face hub and one of its parts.
# FineWeb-Edu, Penedo 2024, 2406.17557, ODC-By 1.0; one crawl is more than any run reads.
_STREAMS = {"fineweb-edu": ("HuggingFaceFW/fineweb-edu", "CC-MAIN-2024-10")}
# "bpe-1024:stdlib": a corpus in the ids of a tokenizer that is trained on it or read from a file.
_TOKENIZED = re.compile(r"(characters|bpe-[0-9]+|.+\.json):(.+)", re.DOTALL)
# "task:copy:4000:7": a synthetic task, its size and its seed.
_TASK = re.compile(r"task:([a-z]+)(?::([0-9]{1,20}))?(?::([0-9]{1,20}))?")
# Excluded from the standard library: its tests, and installed packages.
_LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")
_BYTES = Bytes()
_TASK_BYTES = 1 << 18

_Raw = tuple[np.ndarray, np.ndarray]  # both splits, as bytes


@dataclass(frozen=True, eq=False)
class Corpus:
    """Text to train on and text held out, as bytes or as a tokenizer's ids.

    Shapes   train, valid (n,) of the tokenizer's dtype: uint8 for bytes
    """

    name: str
    train: np.ndarray
    valid: np.ndarray
    source: str = ""  # the name to pass to `corpus`, which checkpoints store
    tokenizer: Tokenizer = _BYTES
    floor: float | None = None  # the lowest possible nats per byte; known for synthetic tasks
    raw: _Raw | None = None  # both splits as bytes; default: what the ids decode to
    ends: np.ndarray | None = None  # where each document of `train` ends, if there are several

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all ids of both splits and of the tokenizer."""
        digest = hashlib.sha256(len(self.train).to_bytes(8))
        digest.update(self.train)
        digest.update(self.valid)
        if self.tokenizer != _BYTES:
            digest.update(self.tokenizer.to_json().encode())
        return digest.hexdigest()

    @cached_property
    def source_bytes(self) -> int:
        """The bytes of the text that `source` names."""
        return len(self.text.train) + len(self.text.valid)

    @cached_property
    def text(self) -> Corpus:
        """This corpus as bytes."""
        if self.tokenizer == _BYTES:
            return self
        splits = self.raw or (
            np.frombuffer(self.tokenizer.decode(ids), np.uint8) for ids in (self.train, self.valid)
        )
        train, valid = splits
        return replace(self, train=train, valid=valid, tokenizer=_BYTES, raw=None)

    @cached_property
    def bytes_per_id(self) -> float:
        """The mean number of bytes per id in the held-out split; 1 for bytes."""
        return len(self.text.valid) / len(self.valid)

    def require(self, window: int) -> Corpus:
        """Return this corpus if both splits have at least one window and its target.

        Raises   ValueError naming the split that is too short
        """
        for split in ("train", "valid"):
            if (size := len(getattr(self, split))) <= window:
                raise ValueError(
                    f"corpus {self.name!r}: the {split} split has {size} ids, but a window of "
                    f"{window} needs at least {window + 1}; take a longer text or a shorter window"
                )
        return self


def corpus(name: str | Path = "stdlib") -> Corpus:
    """A corpus by name, or any file or folder of text by path.

        corpus("stdlib")   corpus("my/folder")   corpus("task:copy")   corpus("bpe-1024:stdlib")

    "stdlib" is the source of the running Python's standard library: real text, available
    everywhere without a download. The names in corpora.json are downloaded once and their
    checksums verified. Of a stream ("fineweb-edu") the first documents are fetched once. A
    synthetic task is "task:NAME", "task:NAME:SIZE" or "task:NAME:SIZE:SEED".

    Any of these may be prefixed by a tokenizer: "characters:" for its alphabet, "bpe-1024:" for a
    byte-level BPE with that many ids, both trained on the corpus once, or the path of a Hugging
    Face tokenizer.json followed by a colon.

    A text has at most 1 GiB; a folder has at most 10,000 files of text.

    Raises   FileNotFoundError when it is neither a known name nor a path
             ValueError when it has no text or too much, cannot be read, changes while it is read,
             the tokenizer cannot be trained on it, or there is no such task
             ConnectionError when a download fails
             ModuleNotFoundError when it is a stream and the package `datasets` is missing
    """
    manifest = json.loads(_MANIFEST.read_text())
    if made := _TOKENIZED.fullmatch(str(name)):
        return _tokenize(*made.groups())
    if str(name).startswith("task:"):
        return _read_task(str(name))
    if name == "stdlib":
        found = _read_stdlib()
    elif name in manifest:
        found = _download(str(name), manifest[name])
    elif name in _STREAMS:
        found = _read_stream(str(name))
    elif str(name) and (path := user_path(name)).exists():  # "" would be the current folder
        name = path.resolve()
        found = _from_folder(name) if path.is_dir() else _from_file(name)
    else:
        raise FileNotFoundError(f"no corpus {str(name)!r:.300}: give {describe_names()}")
    return replace(found, source=str(name))


def describe_names() -> str:
    """What `corpus` understands, in words, for help texts and errors."""
    return (
        f"a file, a folder, one of {', '.join(corpus_names())}, or task:NAME, where NAME is one of "
        f"{', '.join(TASKS)}; optionally prefixed by a tokenizer: 'characters:', 'bpe-1024:' or "
        "'path/to/tokenizer.json:'"
    )


def corpus_names() -> list[str]:
    """The names that `corpus` knows, tasks aside."""
    return ["stdlib", *json.loads(_MANIFEST.read_text()), *_STREAMS]


def task(name: str, size: int = _TASK_BYTES, seed: int = 0) -> Corpus:
    """A synthetic text with a known `floor`, see `tasks`; its last tenth is held out.

    Raises   ValueError as `make_task`
    """
    text, floor = make_task(name, size, seed)
    return Corpus(name, *_split_tail(text), source=f"task:{name}:{size}:{seed}", floor=floor)


# ---------------------------------------------------------------- where text comes from


def _read_task(source: str) -> Corpus:
    if not (made := _TASK.fullmatch(source)):
        raise ValueError(
            f"{source!r:.100} is not of the form task:NAME, task:NAME:SIZE or task:NAME:SIZE:SEED, "
            f"where NAME is one of {', '.join(TASKS)}"
        )
    name, *numbers = made.groups()
    return task(name, *(int(number) for number in numbers if number))


def _read_stdlib() -> Corpus:
    folder, files = _find_stdlib()
    facts = [(path.relative_to(folder).as_posix(), seen.st_size) for path, seen in files.items()]
    version = ".".join(map(str, sys.version_info[:3]))
    return _from_files("stdlib", f"stdlib-{version}", facts, folder, files)


def _find_stdlib() -> tuple[Path, Facts]:
    folder = Path(sysconfig.get_path("stdlib"))
    return folder, find_files(folder, {".py"}, leave_out=_LEFT_OUT)


def _from_folder(folder: Path) -> Corpus:
    files = find_files(folder, _TEXT_SUFFIXES.split())
    if not files:
        raise ValueError(
            f"no text under {str(folder)!r}: looked for files ending in "
            f"{_TEXT_SUFFIXES}; give one file by its path instead"
        )
    family = f"folder-{stamp(str(folder))}"
    return _from_files(_printable(folder.name), family, describe_files(files), folder, files)


def _from_files(name: str, family: str, facts: list, folder: Path, files: Facts) -> Corpus:
    """A corpus of files, split by file. Of all its copies, only that of today's facts is kept.

    One file in twenty is held out, chosen by a hash of its name, which makes the choice stable.
    """
    names = {path: path.relative_to(folder).as_posix() for path in files if files[path].st_size}
    if (size := sum(seen.st_size for seen in files.values())) < 2:
        raise ValueError(
            f"corpus {name!r}: the {len(files)} files under {str(folder)!r} have {size} bytes in "
            "all, but at least two are needed"
        )
    key = f"{family}-{stamp(facts)}"
    if len(names) < 2:
        (only,) = names
        return Corpus(name, *prepare(key, lambda: _read_tail(only, files), family)[:2])
    digests = {path: hashlib.sha256(os.fsencode(names[path])).digest() for path in names}
    held_out = {path for path in names if digests[path][0] % 20 == 0}
    if not held_out or len(held_out) == len(names):  # too few files: hold out the last one
        held_out = {max(names, key=names.get)}

    def read(paths: Iterable[Path]) -> Iterator[bytes]:
        for path in paths:
            yield from read_chunks(partial(open, path, "rb"), 0, files[path].st_size)

    train, valid = ([p for p in names if (p in held_out) == held] for held in (False, True))

    def read_splits() -> Splits:
        return read(train), chain(read(valid), check_unchanged(files))

    ends = np.cumsum([files[path].st_size for path in train])
    return Corpus(name, *prepare(key, read_splits, family)[:2], ends=ends)


def _from_file(path: Path) -> Corpus:
    """A file; its last tenth is held out."""
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is neither a file nor a folder, but a device or a pipe")
    files = {path: path.stat()}
    if (size := files[path].st_size) < 2:
        raise ValueError(f"{str(path)!r} has {size} bytes; there is nothing to learn from")
    if size > MAX_BYTES:
        raise ValueError(
            f"{str(path)!r} has {size:,} bytes, but a text may have at most {MAX_BYTES:,}; give a "
            "part of it"
        )
    family = f"file-{stamp(str(path))}"
    key = f"{family}-{stamp(describe_files(files))}"
    return Corpus(_printable(path.stem), *prepare(key, lambda: _read_tail(path, files), family)[:2])


def _read_tail(path: Path, files: Facts) -> Splits:
    """Both splits of one file."""
    train, valid = _cut_tail(partial(open, path, "rb"), files[path].st_size)
    return train, chain(valid, check_unchanged(files))


def _cut_tail(open_file: Callable[[], BinaryIO], size: int) -> Splits:
    cut = int(size * (1 - _HELD_OUT))
    return read_chunks(open_file, 0, cut), read_chunks(open_file, cut, size)


def _printable(name: str) -> str:
    """A file's name with marks in the place of what is not UTF-8."""
    return os.fsencode(name).decode(errors="replace")


# ---------------------------------------------------------------- in the ids of a tokenizer


def _tokenize(kind: str, name: str) -> Corpus:
    """The corpus in the ids of a tokenizer that is read, or trained once.

    Merges are learned from the training split. The alphabet is that of both splits, so that every
    character has an id.
    """
    if _TOKENIZED.fullmatch(name):
        raise ValueError(f"{kind!r} tokenizes bytes, but {name!r:.100} is tokenized already")
    if kind.endswith(".json"):
        kind = str(user_path(kind).resolve())
        tokenizer = HuggingFace.of(kind)
        return _encode(kind, corpus(name), tokenizer)
    size = kind.removeprefix("bpe-")
    if kind != "characters" and (len(size) > 9 or int(size) > MAX_IDS):
        raise ValueError(
            f"{kind!r:.40} asks for {size:.40} ids; at most {MAX_IDS:,} can be learned"
        )
    text = corpus(name)
    return _encode(kind, text, _train_tokenizer(kind, text))


def _train_tokenizer(kind: str, text: Corpus) -> Tokenizer:
    """Train a tokenizer once; it is cached."""

    def train() -> tuple[Iterable, Iterable, bytes]:
        splits = _move_cut(text)
        if kind == "characters":
            letters = set().union(*(Characters.train(split).alphabet for split in splits))
            made = Characters("".join(sorted(letters)))
        else:  # both give the same merges
            learn = learn_merges_fast if find_spec("tokenizers") else learn_merges
            made = BPE.train(splits[0], int(kind.removeprefix("bpe-")), learn=learn)
        return [], [], made.to_json().encode()

    with _told(kind, text):
        return tokenizer_from_json(prepare(f"{kind}-{text.fingerprint[:16]}", train)[2].decode())


def _encode(kind: str, text: Corpus, tokenizer: Tokenizer) -> Corpus:
    """The corpus in a tokenizer's ids, which are cached."""
    raw = _move_cut(text)
    key = f"ids-{stamp((tokenizer.to_json(), text.fingerprint))}"
    with _told(kind, text):
        train, valid, _ = prepare(key, lambda: tuple(map(tokenizer.iterate_ids, raw)))
    return Corpus(
        f"{Path(kind).stem}:{text.name}",
        train.view(tokenizer.dtype),
        valid.view(tokenizer.dtype),
        f"{kind}:{text.source}",
        tokenizer,
        text.floor,
        raw,
    )


@contextmanager
def _told(kind: str, text: Corpus):
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{kind!r} cannot encode {text.name!r}: {error}") from error


def _move_cut(text: Corpus) -> _Raw:
    """Both splits; if the cut falls inside a UTF-8 character, it moves to the character's end."""
    train, valid = text.train, text.valid
    inside = next((i for i, byte in enumerate(valid[:3]) if byte & 0xC0 != 0x80), 0)
    return np.concatenate((train, valid[:inside])) if inside else train, valid[inside:]


# ---------------------------------------------------------------- downloads


def _download(name: str, row: dict) -> Corpus:
    """Download once into the cache; a file gets its final name only after its checksum."""

    def read() -> Splits:
        path = download(name, row)
        if "unzip" not in row:
            return _read_tail(path, {path: path.stat()})
        size = zipfile.ZipFile(path).getinfo(row["unzip"]).file_size
        return _cut_tail(lambda: zipfile.ZipFile(path).open(row["unzip"]), size)

    return Corpus(name, *prepare(_key(name, row), read)[:2])


def _read_stream(name: str) -> Corpus:
    """The first documents of a stream, each followed by a newline, cached as one file."""

    def read() -> Splits:
        text, end = bytearray(), monotonic() + MAX_SECONDS
        for document in documents(name):
            text += document.tobytes() + b"\n"
            if len(text) >= _STREAM_BYTES:
                break
            if monotonic() > end:
                raise ConnectionError(
                    f"the stream {name!r} sent {len(text):,} of {_STREAM_BYTES:,} bytes in "
                    f"{MAX_SECONDS:.0f} seconds; try again, or use 'stdlib', which needs none"
                )
        return tuple([split] for split in _split_tail(memoryview(text)))

    return Corpus(name, *prepare(_key(name, None), read)[:2])


# ---------------------------------------------------------------- splits and cache


def _split_tail(data):
    cut = int(len(data) * (1 - _HELD_OUT))
    return data[:cut], data[cut:]


# ---------------------------------------------------------------- the text of a saved run


def find_again(source: str, size: int | None) -> Corpus:
    """The text of a saved run as bytes, by the corpus's source and its `source_bytes`.

    Both may come from someone else's file. So nothing is downloaded, and nothing is read that has
    another size; a path, whose size must be known, is not read without it.

    Raises   FileNotFoundError when it is not on this machine
             ValueError when it has another size, or is too large
    """
    name = _split_source(source)[1]
    if (found := _count_bytes(name)) is None:
        raise FileNotFoundError(f"there is no text {name!r} on this machine; it is not downloaded")
    if size != found and (size is not None or user_path(name).exists()):
        had = "an unknown number of" if size is None else f"{size:,}"
        raise ValueError(f"it had {had} bytes, but {name!r} has {found:,} now")
    if found > (MAX_TASK_BYTES if name.startswith("task:") else MAX_BYTES):
        raise ValueError(f"{name!r} has {found:,} bytes, which are too many")
    return corpus(name)


def encode_corpus(text: Corpus, tokenizer: Tokenizer, source: str) -> Corpus:
    """The corpus in the ids of a tokenizer that the prefix of `source` names, which is not read.

    Raises   ValueError when the corpus has another tokenizer, or its text cannot be encoded
    """
    if text.tokenizer == tokenizer:
        return text
    if text.tokenizer != _BYTES:
        raise ValueError(f"{text.name!r} has another tokenizer than the run; give its bytes")
    return _encode(_split_source(source)[0] or type(tokenizer).__name__, text, tokenizer)


def _split_source(source: str) -> tuple[str, str]:
    """The tokenizer and the text of "bpe-1024:stdlib"; "" for bytes."""
    made = _TOKENIZED.fullmatch(source)
    return made.groups() if made else ("", source)


def _count_bytes(name: str) -> int | None:
    """The bytes of a text by its name, not read; None if it is not on this machine."""
    manifest = json.loads(_MANIFEST.read_text())
    if made := _TASK.fullmatch(name):
        return int(made[2] or _TASK_BYTES)
    if name in manifest or name in _STREAMS:
        return sealed_bytes(_key(name, manifest.get(name)))
    if name == "stdlib":
        files = _find_stdlib()[1]
    elif not name:
        return None
    elif (path := user_path(name)).is_dir():
        files = find_files(path, _TEXT_SUFFIXES.split())
    else:
        files = {path: path.stat()} if path.is_file() else {}
    return sum(seen.st_size for seen in files.values()) if files else None


def _key(name: str, row: dict | None) -> str:
    """The name in the cache of a download or, without a row of the manifest, of a stream."""
    return f"{name}-{row['sha256'][:16] if row else _STREAM_BYTES}"


# ---------------------------------------------------------------- documents


def documents(source: str | Path = "fineweb-edu", column: str = "text") -> Iterator[np.ndarray]:
    """Iterate over documents as UTF-8 bytes, fetched on demand.

    `source` is the name of a stream, or anything that `datasets.load_dataset` reads: a data set of
    the hub, or a folder of parquet or JSON lines, which needs no network.

    Shapes   yields (n,) uint8
    Raises   ModuleNotFoundError when the package `datasets` is missing
             ConnectionError when the source cannot be reached
             ValueError when the column is missing or has no text
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"streaming {str(source)!r} needs the package `datasets`: pip install datasets; "
            "or use corpus('stdlib'), which needs neither the package nor a network"
        ) from error
    place, part = _STREAMS.get(str(source), (str(source), None))
    try:
        rows = datasets.load_dataset(place, part, split="train", streaming=True)
    except ConnectionError as error:
        raise ConnectionError(
            f"{str(source)!r} could not be reached ({error}); try again when online, or give a "
            "folder of parquet files, or use corpus('stdlib'), which needs no network"
        ) from error
    return (_read_text(row, column) for row in rows)


def _read_text(row: dict, column: str) -> np.ndarray:
    if not isinstance(row.get(column), str):
        raise ValueError(f"no text in column {column!r}; the columns are {', '.join(sorted(row))}")
    return np.frombuffer(row[column].encode(), np.uint8)
